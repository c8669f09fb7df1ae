"""Timing data: executions of a session, and copies of the whole process."""

from __future__ import annotations

import math
import os
import threading
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final, Protocol, overload

import numpy as np

__all__ = ["InferSummary", "MemorySummary"]

_KEPT: Final = 65536
"""Newest entries kept; counts and totals stay exact beyond."""


class InferSummary(Sequence[float]):
    """Milliseconds of each execution of a session, oldest first.

    A snapshot: later executions do not change it. The newest 65 536 entries are kept; ``count``, ``total`` and
    ``mean`` cover all executions since the session was opened or the summary was reset. A time that ACL could not
    read is 0.0. Small requests that ran together, as many do at once, have their mean as the entry of each; with
    ``depth=1`` none do.

    Parameters
    ----------
    times
        The entries kept.
    count, total
        Number and sum of all entries.
    """

    __slots__ = ("_count", "_times", "_total")

    def __init__(self, times: list[float], count: int, total: float) -> None:
        self._times = times
        self._count = count
        self._total = total

    @property
    def exec_time_list(self) -> list[float]:
        """The entries as a list, milliseconds, in order."""
        return self._times

    @property
    def count(self) -> int:  # type: ignore[override]  # ais_bench's users expect a number here
        """Number of executions."""
        return self._count

    @property
    def total(self) -> float:
        """Sum of all executions in milliseconds."""
        return self._total

    @property
    def mean(self) -> float:
        """Mean of all executions in milliseconds; 0.0 before the first."""
        return self._total / self._count if self._count else 0.0

    def percentile(self, p: float) -> float:
        """Return the ``p``-th percentile (0 to 100) of the entries kept, linearly interpolated.

        Raises
        ------
        ValueError
            ``p`` is out of range, or there was no execution yet.
        """
        if not 0 <= p <= 100:
            raise ValueError(f"got p={p!r}; expected a percentile between 0 and 100")
        if not self._times:
            raise ValueError("there is no percentile before the first execution; run a request first")
        return float(np.percentile(self._times, p))

    def __len__(self) -> int:
        return len(self._times)

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> list[float]: ...
    def __getitem__(self, index: int | slice) -> float | list[float]:
        return self._times[index]

    def __eq__(self, other: object) -> bool:
        """Compare the entries kept with those of another summary or of a list."""
        if isinstance(other, InferSummary):
            return self._times == other._times and self._count == other._count and self._total == other._total
        if isinstance(other, list):
            return self._times == other
        return NotImplemented

    __hash__: ClassVar[None] = None  # type: ignore[assignment]  # equal to lists, which have none

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Act as a list in NumPy's functions: ``numpy.mean`` would otherwise call :attr:`mean`."""
        kwargs = dict(zip(kwargs, _as_lists(kwargs.values()), strict=True))
        return _AS_ARRAYS.__array_function__(function, (), _as_lists(args), kwargs)

    def __repr__(self) -> str:
        return f"<InferSummary: {self._count} executions, mean {self.mean:.3f} ms>"


_AS_ARRAYS: Final = np.empty(0)  # its __array_function__ is NumPy's own


def _as_lists(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple([value.exec_time_list if isinstance(value, InferSummary) else value for value in values])


def known_times(times: list[float]) -> list[float]:
    """Return the times with 0.0 in place of NaN, which means that a time is unknown."""
    return [0.0 if math.isnan(ms) else ms for ms in times] if math.isnan(sum(times)) else times


class Timeline:
    """Collects times from any thread; bounded.

    All memory is allocated at the first entry, 8 bytes per entry kept, so that it does not grow later.
    """

    __slots__ = ("_count", "_lock", "_ring", "_total")

    def __init__(self) -> None:
        self.renew_lock()
        self._ring: array[float] | None = None
        self._count = 0
        self._total = 0.0

    def renew_lock(self) -> None:
        """Replace the lock, which another thread may hold."""
        self._lock = threading.RLock()  # guards all three; reentrant, as a signal handler may read at any moment

    def add(self, times: list[float]) -> None:
        """Add entries, oldest first."""
        with self._lock:
            ring = self._ring
            if ring is None:
                ring = self._ring = array("d", bytes(8 * _KEPT))
            start = self._count % _KEPT
            if start + len(times) <= _KEPT:
                ring[start : start + len(times)] = array("d", times)
            else:
                for k, ms in enumerate(times):
                    ring[(start + k) % _KEPT] = ms
            self._count += len(times)
            self._total += sum(times)

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._count, self._total = 0, 0.0

    def kept(self) -> list[float]:
        """Return the entries kept, oldest first."""
        with self._lock:
            return self._kept()

    def snapshot(self) -> InferSummary:
        """Return a summary of the entries so far."""
        with self._lock:
            return InferSummary(self._kept(), self._count, self._total)

    def _kept(self) -> list[float]:
        ring, count = self._ring, self._count
        if ring is None:
            return []
        if count <= _KEPT:
            return ring[:count].tolist()
        oldest = count % _KEPT
        return (ring[oldest:] + ring[:oldest]).tolist()


class Source(Protocol):
    """A session: it has times that are not in the summary yet."""

    def book(self) -> None:
        """Add them."""
        ...


sources: Final[set[Source]] = set()
"""The sessions of the process."""


class MemorySummary:
    """Copy times of the whole process, one entry per tensor copied, oldest first.

    As in ais_bench every method is static. The newest 65 536 entries of each direction are kept. A time that ACL
    could not read is 0.0.
    """

    _h2d: Final = Timeline()
    _d2h: Final = Timeline()

    add_h2d: Final = _h2d.add
    add_d2h: Final = _d2h.add
    """Add copies; for the library's own use."""

    @staticmethod
    def record(ms: float, is_upload: bool) -> None:
        """Add a copy behind all that is known; for the library's own use."""
        _book_all()
        (MemorySummary._h2d if is_upload else MemorySummary._d2h).add([ms])

    @staticmethod
    def get_h2d_time_list() -> list[float]:
        """Return the milliseconds of each copy from host to device."""
        _book_all()
        return MemorySummary._h2d.kept()

    @staticmethod
    def get_d2h_time_list() -> list[float]:
        """Return the milliseconds of each copy from device to host."""
        _book_all()
        return MemorySummary._d2h.kept()

    @staticmethod
    def reset() -> None:
        """Empty both lists."""
        _book_all()
        MemorySummary._h2d.clear()
        MemorySummary._d2h.clear()


def _book_all() -> None:
    for source in sources.copy():
        source.book()


def _begin_anew() -> None:
    """Replace the locks in a forked child: the threads that held them do not exist there."""
    MemorySummary._h2d.renew_lock()
    MemorySummary._d2h.renew_lock()
    sources.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
