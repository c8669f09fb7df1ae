"""The tables of live objects: each module owns its own and registers it here, where it is counted and emptied.

Tables are emptied in place, never replaced, so hot paths may keep references to them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

__all__ = ["clear", "counter", "handles", "leaks", "live", "lost", "register", "table"]

handles = itertools.count(0x5A00_0000_0010, 16)
"""Handles are never reused, so a stale one is always detected."""

lost: dict[str, int] = {}
"""Objects that a device reset removed before the program released them, by kind."""

_counts: dict[str, list[Callable[[], int]]] = {}
_clears: list[Callable[[], object]] = [lost.clear]


def register(clear: Callable[[], object], **counts: Callable[[], int]) -> None:
    """Register something that :func:`clear` empties.

    Parameters
    ----------
    clear
        Called by every reset, in the order of registration.
    **counts
        What to count in it, by kind.
    """
    _clears.append(clear)
    for kind, count in counts.items():
        _counts.setdefault(kind, []).append(count)


def table(kind: str = "", counts: Callable[[Any], bool] | None = None) -> dict[Any, Any]:
    """Create a table of live objects by handle.

    Parameters
    ----------
    kind
        The kind to count them as; by default they are not counted.
    counts
        Which of them to count; by default all.
    """
    found: dict[Any, Any] = {}

    def count() -> int:
        return len(found) if counts is None else sum(map(counts, list(found.values())))

    register(found.clear, **({kind: count} if kind else {}))
    return found


def clear() -> None:
    """Empty everything that is registered."""
    for step in _clears:
        step()


def live() -> dict[str, int]:
    """Count what is alive.

    Returns
    -------
    dict
        ``devices`` (set ones), ``contexts`` (explicit ones), ``streams``, ``events``, ``models``, ``descs``,
        ``datasets``, ``data_buffers``, ``tensor_descs`` (the program's own), ``others`` (bundles, AIPP and
        configuration handles), ``device_blocks``, ``device_bytes``, ``host_blocks``, ``host_bytes``.
    """
    return {kind: sum(count() for count in counts) for kind, counts in _counts.items()}


def leaks() -> dict[str, int]:
    """Count what the program has not released: what is alive, and what a device reset removed.

    Returns
    -------
    dict
        As :func:`live`, without zeros.
    """
    left = live()
    for kind, number in lost.items():
        left[kind] += number
    return {kind: number for kind, number in left.items() if number}


def counter() -> Callable[[], dict[str, int]]:
    """Return a function that counts as :func:`leaks` does, also when the modules are cleared at the end of Python."""
    counts, gone = _counts, lost

    def count() -> dict[str, int]:
        left = {kind: sum([one() for one in ones]) + gone.get(kind, 0) for kind, ones in counts.items()}
        return {kind: number for kind, number in left.items() if number}

    return count
