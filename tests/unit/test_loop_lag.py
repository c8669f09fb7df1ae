"""The event loop stays free: a 1 ms ticker sees little delay, whatever the device does."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aioais import InferSession, emulator
from aioais.testing import LoopLag

if TYPE_CHECKING:
    from tests.unit.conftest import Models

LIMIT_MS = 5.0
"""What the library may add to the lateness that the machine itself shows when nothing runs."""
ROUNDS = 5


async def idle_p99_ms() -> float:
    """Give the lateness of a ticker alone: what other work on the machine costs."""
    async with LoopLag() as ticker:
        await asyncio.sleep(0.3)
    return ticker.p99_ms


async def test_under_load(models: Models) -> None:
    array = np.zeros((1, 3, 64, 64), np.float32)
    best = float("inf")
    with emulator.configure(gil="real", execute_ms=2, h2d_ms=0.5, d2h_ms=0.5):
        async with InferSession(0, models.identity(array.shape)) as session:
            await asyncio.gather(*(session.infer([array]) for _ in range(16)))
            for _ in range(ROUNDS):
                idle = await idle_p99_ms()
                async with LoopLag() as ticker:
                    await asyncio.gather(*(session.infer([array]) for _ in range(64)))
                    for _ in range(3):
                        await asyncio.gather(*(session.infer([array]) for _ in range(64)))
                best = min(best, ticker.p99_ms - 2 * idle)
                if best <= LIMIT_MS:
                    break
    assert best <= LIMIT_MS


@pytest.mark.slow
@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="ONNX Runtime 1.23, the last for Python 3.10, loads with the GIL"
)
async def test_while_a_large_model_loads(models: Models) -> None:
    weights = np.random.default_rng(1).standard_normal((5000, 5000)).astype(np.float32)
    path = models.write(
        "large", [("MatMul", ["x", "w"], ["y"], {})], {"x": (1, (1, 5000))}, {"y": (1, (1, 5000))}, {"w": weights}
    )
    del weights
    best = float("inf")
    for _ in range(ROUNDS):
        idle = await idle_p99_ms()
        async with LoopLag() as ticker, InferSession(0, path) as session:
            await session.infer([np.zeros((1, 5000), np.float32)])
        best = min(best, ticker.p99_ms - 2 * idle)
        if best <= LIMIT_MS:
            break
    assert best <= LIMIT_MS


async def test_nothing_of_the_device_runs_on_the_loop(models: Models) -> None:
    """With every stage held up the loop goes on, and closes and opens nothing itself."""
    array = np.zeros((1, 8), np.float32)
    path = models.identity(array.shape)
    second: asyncio.Future[Any] | None = None
    async with InferSession(0, path) as session:
        for stage in ("malloc", "h2d", "execute", "d2h"):
            with emulator.gate(stage) as gate:
                task = asyncio.ensure_future(session.infer([array]))
                if stage == "malloc":
                    second = asyncio.ensure_future(session.to_device(array))
                else:
                    second = asyncio.ensure_future(asyncio.sleep(0))
                await asyncio.sleep(0)
                assert gate.wait_reached()
                start = time.perf_counter()
                for _ in range(100):
                    await asyncio.sleep(0)
                    session.statistics()
                assert time.perf_counter() - start < 5
                assert not task.done()
            await task
            await second
    del second
    assert threading.current_thread() is threading.main_thread()
