"""How late the event loop runs: a ticker that wakes up each millisecond."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

import numpy as np

__all__ = ["LoopLag", "LoopLagError"]


class LoopLagError(AssertionError):
    """The event loop was held up for longer than allowed."""


class LoopLag:
    """Measures the lateness of the running asyncio loop in an ``async with`` block.

    Parameters
    ----------
    limit_ms
        Most lateness allowed, in milliseconds, at the 99th percentile of the wake-ups: the block raises
        :class:`LoopLagError` at its end beyond it. ``None`` measures only. What other work on the machine costs is
        in every measurement; measure an idle block first, and allow more than that.
    period_s
        Seconds between two wake-ups.

    Attributes
    ----------
    late_ms
        Lateness of each wake-up in milliseconds, at least 0, in order. A wake-up that is due when the block ends
        counts with what it is late by then, so that a loop that was blocked to the end shows.

    Notes
    -----
    Works on asyncio's own loop and on uvloop, under pytest-asyncio and anyio's plugin alike. uvloop's clock ticks in
    whole milliseconds: up to 1 ms of what is found there is its timers' resolution. An error that the block itself
    raises goes first.
    """

    def __init__(self, limit_ms: float | None = None, *, period_s: float = 0.001) -> None:
        self.limit_ms = limit_ms
        self.period_s = period_s
        self.late_ms: list[float] = []
        self._due = 0.0

    @property
    def p50_ms(self) -> float:
        """Median lateness in milliseconds."""
        return self.percentile(50)

    @property
    def p99_ms(self) -> float:
        """99th percentile of the lateness in milliseconds."""
        return self.percentile(99)

    @property
    def max_ms(self) -> float:
        """Largest lateness in milliseconds."""
        return self.percentile(100)

    def percentile(self, p: float) -> float:
        """Return a percentile of the lateness in milliseconds; 0.0 where nothing was measured."""
        return float(np.percentile(self.late_ms, p)) if self.late_ms else 0.0

    async def __aenter__(self) -> LoopLag:  # noqa: PYI034 - Self needs Python 3.11
        self.late_ms.clear()
        self._due = time.perf_counter() + self.period_s
        self._ticker = asyncio.ensure_future(self._tick())
        await asyncio.sleep(0)  # the ticker sleeps from now on
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        late = time.perf_counter() - self._due
        if late > 0:
            self.late_ms.append(late * 1e3)
        self._ticker.cancel()
        await asyncio.wait([self._ticker])
        if error is None and self.limit_ms is not None and self.p99_ms > self.limit_ms:
            raise LoopLagError(
                f"the event loop ran {self.p99_ms:.3g} ms late (99th percentile of {len(self.late_ms)} wake-ups, "
                f"median {self.p50_ms:.3g}, most {self.max_ms:.3g}), expected at most {self.limit_ms:g} ms: "
                "something blocks the loop; call it in a thread (asyncio.to_thread)"
            )

    async def _tick(self) -> None:
        while True:
            self._due = time.perf_counter() + self.period_s
            await asyncio.sleep(self.period_s)
            # A coarse clock can also wake the task early.
            self.late_ms.append(max(0.0, time.perf_counter() - self._due) * 1e3)
