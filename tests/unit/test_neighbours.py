"""Several models on one device: they share its engines as the streams allow, and none waits for another's start."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aioais import InferSession, emulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.unit.conftest import Models

SHAPE = (1, 1 << 17)
FEED = np.ones(SHAPE, np.float32)


@pytest.fixture
async def two(models: Models) -> AsyncIterator[list[InferSession]]:
    """Sessions of two models, both warm."""
    paths = [models.identity(SHAPE, name="first"), models.identity(SHAPE, name="second")]
    async with InferSession(0, paths[0]) as first, InferSession(0, paths[1]) as second:
        for session in (first, second):
            await session.infer([FEED])
        yield [first, second]


async def one_after_the_other(session: InferSession, count: int) -> None:
    for _ in range(count):
        (got,) = await session.infer([FEED])
        assert (got == 1).all()


async def test_copies_of_one_run_beside_executions_of_the_other(two: list[InferSession]) -> None:
    before = emulator.copied()["h2d"]
    with emulator.gate("execute") as gate:
        tasks = [asyncio.ensure_future(one_after_the_other(session, 1)) for session in two]
        assert await asyncio.to_thread(gate.wait_reached, 30, 2)
        assert emulator.copied()["h2d"] - before == 2 * FEED.nbytes
        tensor = await two[0].to_device(FEED)
        assert (await tensor.to_host() == 1).all(), "both directions are free"
        tensor.close()
        assert not any(task.done() for task in tasks)
    await asyncio.gather(*tasks)


async def test_a_load_stalls_no_other_model(models: Models, two: list[InferSession]) -> None:
    third = InferSession(0, models.identity(SHAPE, name="third"))
    with emulator.gate("load") as gate:
        opening = asyncio.ensure_future(_open(third))
        assert await asyncio.to_thread(gate.wait_reached, 30)
        await asyncio.gather(*(one_after_the_other(session, 8) for session in two))
        async for (got,) in two[0].infer_pipeline([[FEED]] * 8):
            assert (got == 1).all()
        assert not opening.done()
    await opening
    await one_after_the_other(third, 1)
    await third.aclose()


async def test_closing_one_stalls_no_other(models: Models, two: list[InferSession]) -> None:
    third = await InferSession(0, models.identity((1, 8), name="third"))
    with emulator.gate("execute") as gate:
        stuck = asyncio.ensure_future(third.infer([np.ones((1, 8), np.float32)]))
        assert await asyncio.to_thread(gate.wait_reached, 30)
        closing = asyncio.ensure_future(third.aclose())
        tensor = await two[0].to_device(FEED)  # needs the copy engine, and the device's control thread
        assert not closing.done()
    await stuck
    await closing
    assert (await tensor.to_host() == 1).all()
    tensor.close()
    await asyncio.gather(*(one_after_the_other(session, 2) for session in two))


async def _open(session: InferSession) -> Any:
    return await session
