"""Keeping a session busy, and watching the event loop meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

__all__ = ["LoopLag", "run_tasks", "watch_loop"]

_TICK_S: Final = 0.001


async def run_tasks(job: Callable[[int], Awaitable[None]], count: int, tasks: int) -> None:
    """Await ``job(0)`` to ``job(count - 1)``, several at once.

    Parameters
    ----------
    job
        Called with a number, in order; what it returns is awaited.
    count
        How many jobs there are.
    tasks
        How many of them are awaited at the same time.

    Raises
    ------
    Exception
        The first error of a job, or the cancellation of the caller; the other tasks are cancelled and
        waited for.
    """
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await job(number)

    workers = [asyncio.create_task(work()) for _ in range(min(tasks, count))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


class LoopLag:
    """How late the event loop wakes a task that sleeps a millisecond at a time.

    uvloop's clock ticks in whole milliseconds: up to 1 ms of what is found there is its timers' resolution.

    Parameters
    ----------
    late_ms
        The lag of each tick; may still grow.
    """

    def __init__(self, late_ms: list[float]) -> None:
        self._late_ms = late_ms

    def percentile(self, percent: float) -> float:
        """Give the lag in milliseconds that ``percent`` % of the ticks do not exceed.

        Parameters
        ----------
        percent
            0 to 100; 100 gives the longest lag of all.

        Returns
        -------
        float
            Milliseconds, 0.0 before the first tick.
        """
        if not self._late_ms:
            return 0.0
        ordered = sorted(self._late_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


@asynccontextmanager
async def watch_loop() -> AsyncIterator[LoopLag]:
    """Measure the lag of the running event loop inside an ``async with`` block."""
    late_ms: list[float] = []

    async def tick() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(_TICK_S)
            # A coarse clock can also wake the task early.
            late_ms.append(max(0.0, time.perf_counter() - start - _TICK_S) * 1000)

    ticker = asyncio.create_task(tick())
    try:
        yield LoopLag(late_ms)
    finally:
        ticker.cancel()
