"""Load for a session: many requests, several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["run_tasks"]


async def run_tasks(job: Callable[[int], Awaitable[None]], count: int, tasks: int) -> None:
    """Await ``job(0)`` to ``job(count - 1)``, several at a time.

    Parameters
    ----------
    job
        Called with each number, in order; its result is awaited.
    count
        Number of jobs.
    tasks
        Number of jobs that run at the same time.

    Raises
    ------
    Exception
        The first error of a job, or the cancellation of the caller, after the other tasks are cancelled and done.
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
