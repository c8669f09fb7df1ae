"""Time: the engines' virtual timelines and waiting with or without the GIL.

Each engine of a device (H2D, execute, D2H) keeps its own timeline. An operation takes its engine
from max(ready, free) for its configured duration, or for the time its work really took when that was
longer; a thread that waits for it sleeps until that moment. So overlap does not depend on which
thread does the work.
"""

from __future__ import annotations

import ctypes
import threading
from threading import Lock
from time import perf_counter, sleep

__all__ = ["FOREVER", "Engine", "pause", "sleep_until"]

FOREVER = float("inf")

_SPIN = 50e-6
"""The end of a wait spins: kernel timers are late by about this much."""

_GAPS = 32
"""Idle intervals kept, for work that was ready earlier."""

_usleep_held = ctypes.PyDLL(None).usleep  # a PyDLL call keeps the GIL
_usleep_held.argtypes = [ctypes.c_uint]


class Engine:
    """A unit of a device, which does one job at a time.

    Parameters
    ----------
    name
        ``h2d``, ``execute``, ``d2h`` or ``d2d``.
    """

    __slots__ = ("fixed", "free", "gaps", "lock", "name", "per_item")

    def __init__(self, name: str) -> None:
        self.name: str = name
        self.fixed: float = 0.0
        self.per_item: float = 0.0
        self.free: float = 0.0
        self.gaps: list[tuple[float, float]] = []
        self.lock: threading.Lock = Lock()

    def dial(self, milliseconds: float, gbps: float = 0.0, per_item_ms: float = 0.0) -> bool:
        """Set the duration of a job; return whether it is more than 0."""
        self.fixed = milliseconds * 1e-3
        self.per_item = 1e-9 / gbps if gbps else per_item_ms * 1e-3
        self.gaps.clear()
        self.free = 0.0
        return bool(self.fixed or self.per_item)

    def book(self, ready: float, count: int, worked: float) -> float:
        """Book the engine for one job.

        Parameters
        ----------
        ready
            When the job could start.
        count
            Bytes for engines with a bandwidth, rows for that of executions.
        worked
            Seconds the work took.

        Returns
        -------
        float
            When the job ends.
        """
        duration = self.fixed + self.per_item * count
        if worked > duration:
            duration = worked
        with self.lock:
            if ready < self.free:
                # Work runs when a thread waits for it, so jobs may be booked out of order:
                # a job that was ready gets a time at which the engine was idle.
                for index, (start, stop) in enumerate(self.gaps):
                    begin = ready if ready > start else start
                    if begin + duration <= stop:
                        end = begin + duration
                        self.gaps[index : index + 1] = [
                            gap for gap in ((start, begin), (end, stop)) if gap[1] - gap[0] > 1e-6
                        ]
                        return end
                self.free += duration
            else:
                if self.free and ready - self.free > 1e-6:
                    self.gaps.append((self.free, ready))
                    if len(self.gaps) > _GAPS:
                        del self.gaps[0]
                self.free = ready + duration
            return self.free


def sleep_until(end: float, held: bool = False) -> None:
    """Wait for a moment of ``time.perf_counter``.

    Parameters
    ----------
    end
        The moment.
    held
        Keep the GIL while waiting.
    """
    left = end - perf_counter()
    while left > 0:
        if held:
            _usleep_held(max(1, min(int(left * 1e6), 500_000)))
        elif left > _SPIN:
            sleep(left - _SPIN)
        else:
            sleep(0)
        left = end - perf_counter()


def pause(seconds: float, held: bool) -> None:
    """Let time pass, as a call that takes that long does."""
    if seconds > 0:
        sleep_until(perf_counter() + seconds, held)
