"""Dynamic shape: no model writes into a buffer that may be too small, as CANN would let it write past the end."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aioais import AclError, InferSession, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]

SYNC, ASYNC = "acl.mdl.execute", "acl.mdl.execute_async"


async def runs(session: InferSession, n: int, custom_sizes: Any = 100_000) -> tuple[int, int]:
    """Infer once and give the synchronous and asynchronous executions that took."""
    ones = np.ones((n, 100), np.float32)
    emulator.reset_counts()
    (total,) = await session.infer([ones, ones], "dymshape", custom_sizes)
    np.testing.assert_array_equal(total, 2 * ones)
    counts = emulator.counts()
    return counts.get(SYNC, 0), counts.get(ASYNC, 0)


async def test_acl_allocates_what_may_be_large(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    async with InferSession(0, models.add(["n", "k"])) as session:
        assert await runs(session, 2000) == (1, 0)
        assert await runs(session, 2000) == (0, 1), "these shapes were met"
        assert await runs(session, 1000) == (1, 0), "these were not, and half as much may be too much"
        assert await runs(session, 9000) == (1, 0)
        for n in (1000, 9000, 2000):
            assert await runs(session, n) == (0, 1)
        assert session.statistics().failed == 0
    (message,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "[800000] bytes" in message
    assert "custom_sizes=[100000]" in message


async def test_amply_large_buffers_are_used(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    async with InferSession(0, models.add(["n", "k"])) as session:
        for n in (1, 7, 60):
            assert await runs(session, n) == (0, 1)
    assert not caplog.records


async def test_sizes_that_the_caller_gives_are_used(models: Models) -> None:
    async with InferSession(0, models.add(["n", "k"])) as session:
        for n in (2000, 1000, 9000):
            assert await runs(session, n, [4_000_000]) == (0, 1)


async def test_sizes_that_proved_too_small_are_not_believed_again(models: Models) -> None:
    async with InferSession(0, models.add(["n", "k"])) as session:
        assert await runs(session, 2000, 4096) == (1, 1)
        assert await runs(session, 3000, 4096) == (1, 0)
        assert await runs(session, 3000, 4096) == (0, 1)


def nonzero(models: Models) -> str:
    return models.write(
        "nonzero", [("NonZero", ["x"], ["where"], {})], {"x": (1, ["n", "k"])}, {"where": (7, [2, "found"])}
    )


async def test_outputs_that_depend_on_values(models: Models) -> None:
    rng = np.random.default_rng(1)
    path = nonzero(models)
    async with InferSession(0, path, depth=1) as session:
        for keep in (0.9, 0.1, 0.95, 0.5, 0.96):
            x = np.where(rng.random((200, 200)) < keep, 1, 0).astype(np.float32)
            emulator.reset_counts()
            (places,) = await session.infer([x], "dymshape")
            np.testing.assert_array_equal(places, np.stack(np.nonzero(x)))
            # Once they have differed for the same shapes, shapes tell nothing. The second is smaller.
            assert emulator.counts().get(SYNC, 0) == (keep != 0.1)


@pytest.mark.parametrize("found", [10, 300])
async def test_outputs_that_differ_and_fit(models: Models, found: int) -> None:
    """They are copied once more, in their own shape; the model need not run again."""
    async with InferSession(0, nonzero(models), depth=1) as session:
        for count in (40, found):
            x = (np.arange(400) < count).astype(np.float32).reshape(20, 20)
            emulator.reset_counts()
            (places,) = await session.infer([x], "dymshape")
            np.testing.assert_array_equal(places, np.stack(np.nonzero(x)))
            assert (emulator.counts().get(SYNC, 0), emulator.counts()[ASYNC]) == (0, 1)


async def test_a_release_that_does_not_allocate(models: Models) -> None:
    async with InferSession(0, models.add(["n", "k"])) as session:
        emulator.fail(SYNC, 107000, times=100)
        assert await runs(session, 2000) == (1, 3), "refused, then 100000, 400000 and 1600000 bytes"
        assert await runs(session, 9000) == (0, 3), "not asked again: 800000 as before, 3200000 and 12800000 bytes"
        emulator.disarm()


async def test_a_failed_run_fails_its_request(models: Models) -> None:
    async with InferSession(0, models.add(["n", "k"])) as session:
        emulator.fail(SYNC, 507011)
        with pytest.raises(AclError) as caught:
            await runs(session, 2000)
        assert (caught.value.call, caught.value.code) == (SYNC, 507011)
        del caught
        assert await runs(session, 2000) == (1, 0)


async def test_a_wait_that_must_be_bounded_is_never_synchronous(models: Models) -> None:
    async with InferSession(0, models.add(["n", "k"]), hang_timeout=60) as session:
        assert (await runs(session, 2000))[0] == 0


@pytest.mark.parametrize("loop", [1, 3])
async def test_many_at_once(models: Models, loop: int) -> None:
    async with InferSession(0, models.add(["n", "k"]), loop=loop) as session:

        async def one(n: int) -> None:
            ones = np.full((n, 100), n, np.float32)
            (total,) = await session.infer([ones, ones], "dymshape")
            np.testing.assert_array_equal(total, 2 * ones)

        for _ in range(3):
            await asyncio.gather(*(one(n) for n in (10, 2000, 300, 4000, 1, 2000, 1500)))
        assert len(session.summary()) == 21 * loop


@pytest.mark.parametrize("mem_copy", [True, False])
async def test_iteration(models: Models, mem_copy: bool) -> None:
    ones = np.ones((1000, 100), np.float32)
    async with InferSession(0, models.add(["n", "k"])) as session:
        for _ in range(2):
            (total,) = await session.infer_iteration([ones, ones], [0, -1], 5, "dymshape", mem_copy=mem_copy)
            np.testing.assert_array_equal(total, 6 * ones)


async def test_no_bytes_at_all(models: Models) -> None:
    empty = np.ones((0, 100), np.float32)
    async with InferSession(0, models.add(["n", "k"])) as session:
        assert await runs(session, 2000) == (1, 0)
        (tensor,) = await session.infer([empty, empty], "dymshape", out_array=False)
        assert (await tensor.to_host()).shape == (0, 100)
        tensor.close()
