"""The machine as the checks of ``aioais doctor`` see it: files, environment, installed packages.

Every lookup starts at a root folder and takes the environment from the record, so that tests describe a machine with a
folder. Uses the standard library only.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from importlib.metadata import distributions
from pathlib import Path
from typing import Literal

from .._machine import machine_memory, read_text

__all__ = ["Check", "Host", "Status", "first_value", "read_text", "version_tuple"]

Status = Literal["ok", "missing", "wrong", "note"]
"""``missing`` and ``wrong`` keep a platform from working; ``note`` is information."""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes
    ----------
    name
        The subject.
    status
        The verdict.
    found
        What is there, or what is missing.
    fix
        The command or the step that fixes it; empty if there is nothing to fix.
    platform
        The platform that needs it: ``"ascend"``, ``"cpu"``, or ``"all"``.
    """

    name: str
    status: Status
    found: str
    fix: str = ""
    platform: Literal["all", "ascend", "cpu"] = "all"

    @property
    def is_problem(self) -> bool:
        """Whether the platform does not work because of it."""
        return self.status in ("missing", "wrong")


@dataclass(frozen=True)
class Host:
    """A machine, or a folder that describes one.

    Attributes
    ----------
    root
        The root of the file system.
    environ
        The environment variables.
    search
        The folders in which Python looks for modules.
    user, groups
        Ids of the user, who has the rights of root if the id is 0.
    """

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    search: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))
    user: int = field(default_factory=lambda: os.getuid() if hasattr(os, "getuid") else 0)
    groups: frozenset[int] = field(
        default_factory=lambda: frozenset([os.getgid(), *os.getgroups()]) if hasattr(os, "getgid") else frozenset()
    )

    def path(self, absolute: str) -> Path:
        """Return a path below the root."""
        return self.root / absolute.lstrip("/")

    def shown(self, path: Path) -> str:
        """Return a path as a program on this machine sees it."""
        try:
            return "/" + str(path.relative_to(self.root))
        except ValueError:
            return str(path)

    def has_module(self, name: str) -> bool:
        """Return whether a module can be found, without importing it."""
        return PathFinder.find_spec(name, list(self.search)) is not None

    def version(self, package: str) -> str | None:
        """Return the version of an installed package; ``None`` if it is not installed."""
        for distribution in distributions(name=package, path=list(self.search)):
            return distribution.version
        return None

    def can_use(self, path: Path) -> bool:
        """Return whether the user may read and write a file."""
        try:
            status = path.stat()
        except OSError:
            return False
        if self.user == 0:
            return True
        if status.st_uid == self.user:
            needed = stat.S_IRUSR | stat.S_IWUSR
        elif status.st_gid in self.groups:
            needed = stat.S_IRGRP | stat.S_IWGRP
        else:
            needed = stat.S_IROTH | stat.S_IWOTH
        return status.st_mode & needed == needed

    def holders(self, folder: str, prefix: str) -> Iterator[tuple[int, str]]:
        """Yield (process id, file) of each open file ``folder/prefix…``, of those processes that the user may see."""
        for process in sorted(self.path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
            try:
                targets = {os.readlink(link) for link in (process / "fd").iterdir()}
            except OSError:
                continue  # it has ended, or belongs to another user
            for target in sorted(targets):
                if target.startswith(f"{folder}/{prefix}"):
                    yield int(process.name), target

    @property
    def is_container(self) -> bool:
        """Whether this seems to be a container."""
        return self.path("/.dockerenv").exists() or self.path("/run/.containerenv").exists()

    def memory(self) -> tuple[int, int]:
        """Return the bytes of memory that are available and the total, within the limit of the container; or zeros."""
        return machine_memory(self.root)


def first_value(path: Path, key: str) -> str | None:
    """Return the value of the first line ``key=value`` of a file, whatever the case of the key."""
    for line in read_text(path).splitlines():
        name, separator, value = line.partition("=")
        if separator and name.strip().lower() == key:
            return value.strip().strip("[]\"'")
    return None


def version_tuple(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, for comparison."""
    numbers = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
