"""What the library itself costs: a model that does next to nothing, one await and 64 at once."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from aioais import InferSession

from .baseline import ToThread
from .report import Row, rounds

Infer = Callable[[np.ndarray], Awaitable[Any]]


async def one_by_one(infer: Infer, array: np.ndarray, count: int) -> float:
    """Give the microseconds of one await, with nothing else under way."""
    start = time.perf_counter()
    for _ in range(count):
        await infer(array)
    return (time.perf_counter() - start) / count * 1e6


async def at_once(infer: Infer, array: np.ndarray, count: int, tasks: int = 64) -> float:
    """Give the microseconds per request with many awaits at once."""

    async def work() -> None:
        for _ in range(count // tasks):
            await infer(array)

    start = time.perf_counter()
    await asyncio.gather(*[work() for _ in range(tasks)])
    return (time.perf_counter() - start) / (count // tasks * tasks) * 1e6


async def measure(path: str, acl: Any, turns: int = 5, count: int = 640) -> dict[str, list[float]]:
    """Compare with the same ACL calls in ``asyncio.to_thread``, in turns; microseconds of each."""
    figures: dict[str, list[float]] = {"one": [], "one_to_thread": [], "64": [], "64_to_thread": []}
    async with InferSession(0, path) as session:
        array = np.ones(session.get_inputs()[0].shape, np.float32)

        async def ours(feed: np.ndarray) -> object:
            return await session.infer([feed])

        baseline = ToThread(acl, path)
        theirs = baseline.infer
        for infer in (ours, theirs):
            await one_by_one(infer, array, 50)
            await at_once(infer, array, 320)
        for _ in range(turns):
            figures["one"].append(await one_by_one(ours, array, count // 2))
            figures["one_to_thread"].append(await one_by_one(theirs, array, count // 2))
            figures["64"].append(await at_once(ours, array, 2 * count))
            figures["64_to_thread"].append(await at_once(theirs, array, 2 * count))
        baseline.close()
    return figures


def rows(figures: dict[str, list[float]]) -> list[Row]:
    """Give the table's lines."""
    one, at_64 = statistics.median(figures["one"]), statistics.median(figures["64"])
    their_one, their_64 = statistics.median(figures["one_to_thread"]), statistics.median(figures["64_to_thread"])
    return [
        Row("one await of a model that does nothing, us", *rounds(figures["one"], 0), "goal: 1.1 x asyncio.to_thread"),
        Row(
            "  the same ACL calls in asyncio.to_thread",
            *rounds(figures["one_to_thread"], 0),
            f"{one / their_one:.2f} x",
        ),
        Row("64 awaits at once, us a request", *rounds(figures["64"], 0), "goal: 30 us, twice the rate of to_thread"),
        Row(
            "  the same ACL calls in asyncio.to_thread",
            *rounds(figures["64_to_thread"], 0),
            f"{their_64 / at_64:.2f} x its rate",
        ),
    ]
