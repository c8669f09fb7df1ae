"""Trace and dump: the files that the configuration of ``acl.init`` asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._registry import register

if TYPE_CHECKING:
    from .dump import Dump
    from .profiler import Profiler

__all__ = ["Observers", "observers"]


class Observers:
    """The trace and the dump of the current initialisation, if any."""

    __slots__ = ("dump", "profiler")

    def __init__(self) -> None:
        self.profiler: Profiler | None = None
        self.dump: Dump | None = None

    def close(self) -> None:
        """Write what is pending and close the files."""
        if self.profiler is not None:
            self.profiler.close()
        self.profiler = self.dump = None

    def abandon(self) -> None:
        """Forget the files in a forked child: they belong to the parent."""
        if self.profiler is not None:
            self.profiler.abandon()
            self.profiler = None


observers = Observers()
register(observers.close)
