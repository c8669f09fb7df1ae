"""The cost of the library itself: a model that does almost nothing, with one await and with 64 at once."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from aioais import InferSession

from .baseline import OneThread, ToThread
from .report import Row, rounds

Infer = Callable[[np.ndarray], Awaitable[Any]]


async def one_by_one(infer: Infer, array: np.ndarray, count: int) -> float:
    """Return the microseconds of one await while nothing else runs."""
    start = time.perf_counter()
    for _ in range(count):
        await infer(array)
    return (time.perf_counter() - start) / count * 1e6


async def at_once(infer: Infer, array: np.ndarray, count: int, tasks: int = 64) -> tuple[float, float]:
    """Return the microseconds per request with many awaits at once, and those of the event loop's thread."""

    async def work() -> None:
        for _ in range(count // tasks):
            await infer(array)

    start, busy = time.perf_counter(), time.thread_time()
    await asyncio.gather(*[work() for _ in range(tasks)])
    requests = count // tasks * tasks
    return (time.perf_counter() - start) / requests * 1e6, (time.thread_time() - busy) / requests * 1e6


async def measure(path: str, acl: Any, turns: int = 5, count: int = 640) -> dict[str, list[float]]:
    """Compare with the same ACL calls in ``asyncio.to_thread`` and behind one thread, in turns; microseconds."""
    figures: dict[str, list[float]] = {}
    async with InferSession(0, path) as session:
        array = np.ones(session.get_inputs()[0].shape, np.float32)

        async def ours(feed: np.ndarray) -> object:
            return await session.infer([feed])

        programs = ToThread(acl, path), OneThread(acl, path)
        ways: dict[str, Infer] = {"": ours, "_to_thread": programs[0].infer, "_one_thread": programs[1].infer}
        for infer in ways.values():
            await one_by_one(infer, array, 50)
            await at_once(infer, array, 320)
        for _ in range(turns):
            for name, infer in ways.items():
                figures.setdefault(f"one{name}", []).append(await one_by_one(infer, array, count // 2))
            for name, infer in ways.items():
                elapsed, busy = await at_once(infer, array, 2 * count)
                figures.setdefault(f"64{name}", []).append(elapsed)
                figures.setdefault(f"loop{name}", []).append(busy)
        for program in programs:
            program.close()
    return figures


def rows(figures: dict[str, list[float]]) -> list[Row]:
    """Return the lines of the table."""
    median = {name: statistics.median(values) for name, values in figures.items()}
    found = []
    for key, what, goal in (
        ("one", "one await of a model that does nothing, us", "goal: 1.1 x asyncio.to_thread"),
        ("64", "64 awaits at once, us a request", "goal: 30 us, twice the rate of to_thread"),
        ("loop", "  the loop's thread, us of processor time a request", "goal: 10 us; asyncio's own tasks included"),
    ):
        found.append(Row(what, *rounds(figures[key], 0), goal))
        for name, beside in (("to_thread", "in asyncio.to_thread"), ("one_thread", "behind one bare thread")):
            theirs = f"{key}_{name}"
            ratio = f"{median[key] / median[theirs]:.2f} x its time"
            found.append(Row(f"  the same ACL calls {beside}", *rounds(figures[theirs], 0), ratio))
    return found
