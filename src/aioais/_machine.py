"""The memory of this machine, or of the container that the process runs in."""

from __future__ import annotations

from pathlib import Path

__all__ = ["machine_memory", "read_text"]

_LIMITS = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and use of a container, by the two versions of control groups."""


def machine_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Return the bytes of memory that are available and the total, within the limit of the container; or zeros.

    Parameters
    ----------
    root
        The root of the file system.
    """
    sizes: dict[str, int] = {}
    for line in read_text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            sizes[name] = int(words[0]) << 10
    total, available = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    for limit_file, use_file in _LIMITS:
        limit = read_text(root / limit_file).strip()
        if limit.isdecimal() and int(limit) < total:
            total = int(limit)
            used = read_text(root / use_file).strip()
            available = min(available, total - int(used)) if used.isdecimal() else min(available, total)
    return max(available, 0), total


def read_text(path: Path) -> str:
    """Return the text of a file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
