"""What the configuration file asks to write about the work: a trace and a dump."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._registry import register

if TYPE_CHECKING:
    from .dump import Dump
    from .profiler import Profiler

__all__ = ["Observers", "observers"]


class Observers:
    """The trace and the dump of the running initialisation, where it has them."""

    __slots__ = ("dump", "profiler")

    def __init__(self) -> None:
        self.profiler: Profiler | None = None
        self.dump: Dump | None = None

    def close(self) -> None:
        """Write what is left."""
        if self.profiler is not None:
            self.profiler.close()
        self.profiler = self.dump = None

    def abandon(self) -> None:
        """Let go in a forked child: the files are the parent's."""
        if self.profiler is not None:
            self.profiler.abandon()
            self.profiler = None


observers = Observers()
register(observers.close)
