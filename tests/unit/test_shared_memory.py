"""Boards whose host and device share their memory (run mode 0): one host copy in, none out, nothing on the device."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import pytest_asyncio
from tests import inside

from aioais import AclError, InferSession, MemorySummary, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]

LARGE = (1, 1 << 17)
"""512 KiB: results of it are leased."""


@pytest_asyncio.fixture(autouse=True)
async def board() -> AsyncIterator[None]:
    """The CPU device plays a board; nothing may cross between host and device."""
    await InferSession.finalize()
    with emulator.configure(run_mode=0):
        MemorySummary.reset()
        emulator.reset_counts()
        yield
        await InferSession.finalize()
        copied = emulator.copied()
        assert (copied["h2d"], copied["d2h"], copied["h2h"], copied["pageable"]) == (0, 0, 0, 0)
        assert MemorySummary.get_h2d_time_list() == []
        assert MemorySummary.get_d2h_time_list() == []


def filled(shape: Sequence[int], value: float) -> Array:
    return np.full(shape, value, np.float32)


def no_copies() -> None:
    assert emulator.counts().get("acl.rt.memcpy_async", 0) == 0
    assert emulator.counts().get("acl.rt.memcpy", 0) == 0


@pytest.mark.parametrize("shape", [(1, 4), LARGE], ids=["small", "large"])
async def test_results_of_many_at_once(models: Models, shape: tuple[int, ...]) -> None:
    async with InferSession(0, models.add(shape), depth=3) as session:

        async def one(value: int) -> None:
            (result,) = await session.infer([filled(shape, value), filled(shape, 1)])
            np.testing.assert_array_equal(result, filled(shape, value + 1))

        for k in range(3):
            await one(k)
        await asyncio.gather(*(one(k) for k in range(40)))
        stages = session.statistics().stages
        assert stages["h2d"].total_ms == stages["d2h"].total_ms == 0
        assert stages["execute"].count == 43
        assert len(session.summary()) == 43
    no_copies()


@pytest.mark.parametrize(
    ("mode", "options", "shapes"),
    [
        ("dymbatch", {"input_shape": "x:-1,3,8,8", "dynamic_batch_size": "1,2,4"}, [(1, 3, 8, 8), (4, 3, 8, 8)]),
        ("dymhw", {"input_shape": "x:1,3,-1,-1", "dynamic_image_size": "8,8;64,512"}, [(1, 3, 8, 8), (1, 3, 64, 512)]),
        ("dymdims", {"input_shape": "x:-1,3,-1,8", "dynamic_dims": "1,8;2,64"}, [(2, 3, 64, 8), (1, 3, 8, 8)]),
        ("dymshape", {"input_shape_range": "x:[1~4,3,8~512,-1]"}, [(1, 3, 8, 2), (4, 3, 128, 64), (2, 3, 9, 1)]),
    ],
)
async def test_every_mode(models: Models, mode: Any, options: dict[str, str], shapes: list[tuple[int, ...]]) -> None:
    if mode == "dymhw":
        options["input_format"] = "NCHW"
    if mode == "dymdims":
        options["input_format"] = "ND"
    path = models.convert(models.identity(["n", 3, "h", "w"]), "converted", **options)
    kept = []
    async with InferSession(0, path) as session:
        for turn in range(3):
            arrays = [np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + turn for shape in shapes]
            results = await asyncio.gather(*(session.infer([array], mode, custom_sizes=64) for array in arrays))
            for array, (result,) in zip(arrays, results, strict=True):
                np.testing.assert_array_equal(result, array)
                kept.append((result, array))
    # Whatever ran since has not touched the results that are still held.
    for result, array in kept:
        np.testing.assert_array_equal(result, array)
    no_copies()


async def test_results_are_the_output_buffers_themselves(models: Models) -> None:
    async with InferSession(0, models.identity(LARGE), depth=1) as session:
        (first,) = await session.infer([filled(LARGE, 1)])
        address = first.ctypes.data
        assert first.flags.writeable
        first += 1  # the caller's own
        (second,) = await session.infer([filled(LARGE, 5)])
        assert second.ctypes.data != address
        np.testing.assert_array_equal(first, filled(LARGE, 2))
        part = first[0, 10:20]
        del first, second
        emulator.reset_counts()
        (third,) = await session.infer([filled(LARGE, 7)])
        assert third.ctypes.data != address  # a view of it is alive
        assert (part == 2).all()
        del part
        addresses = {third.ctypes.data}
        del third
        for k in range(20):
            (result,) = await session.infer([filled(LARGE, k)])
            addresses.add(result.ctypes.data)
            del result
        assert len(addresses) <= 4  # blocks come round again
        assert emulator.counts().get("acl.rt.malloc", 0) == 0


async def test_leased_memory_outlives_the_session(models: Models) -> None:
    async with InferSession(0, models.identity(LARGE)) as session:
        (result,) = await session.infer([filled(LARGE, 3)])
    np.testing.assert_array_equal(result, filled(LARGE, 3))
    while emulator.live()["device_blocks"] > 1:  # idle ones are freed by the control thread; the timeout ends it
        await asyncio.sleep(0.001)
    np.testing.assert_array_equal(result, filled(LARGE, 3))
    assert emulator.live()["device_blocks"] == 1
    del result


async def test_beyond_the_limit_results_are_copied(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    async with InferSession(0, models.identity(LARGE)) as session:
        (first,) = await session.infer([filled(LARGE, 0)])
        blocks = emulator.live()["device_blocks"]
        inside.limit_leases(monkeypatch, session)
        results = [(await session.infer([filled(LARGE, k)]))[0] for k in range(5)]
        for k, result in enumerate(results):
            np.testing.assert_array_equal(result, filled(LARGE, k))
        assert emulator.live()["device_blocks"] <= blocks + 1
        del first


async def test_without_room_for_another_buffer_results_are_copied(models: Models) -> None:
    async with InferSession(0, models.identity(LARGE)) as session:
        await session.infer([filled(LARGE, 0)])
        held = [(await session.infer([filled(LARGE, k)]))[0] for k in range(3)]
        emulator.fail("acl.rt.malloc", 207001, times=4)  # two requests, each tried again
        held += [(await session.infer([filled(LARGE, k)]))[0] for k in range(3, 6)]
        assert [result.flags.owndata for result in held] == [False, False, False, True, True, False]
        for k, result in enumerate(held):
            np.testing.assert_array_equal(result, filled(LARGE, k))
        del held, result


async def test_cancelled_requests_keep_their_buffers_until_they_are_done(models: Models) -> None:
    async with InferSession(0, models.identity(LARGE), depth=2) as session:
        await session.infer([filled(LARGE, 0)])
        with emulator.gate("execute") as gate:
            tasks = [asyncio.ensure_future(session.infer([filled(LARGE, k)])) for k in range(4)]
            await asyncio.to_thread(gate.wait_reached)
            for task in tasks[:3]:
                task.cancel()
            done, _ = await asyncio.wait(tasks[:3])
            assert all(task.cancelled() for task in done)
        (result,) = await tasks[3]
        np.testing.assert_array_equal(result, filled(LARGE, 3))
        (result,) = await session.infer([filled(LARGE, 9)])
        np.testing.assert_array_equal(result, filled(LARGE, 9))
        del result, tasks, task, done


async def test_a_failed_execution_leaves_the_session_usable(models: Models) -> None:
    async with InferSession(0, models.identity(LARGE)) as session:
        emulator.fail("acl.mdl.execute_async", 507015, device_side=True)
        with pytest.raises(AclError) as caught:
            await session.infer([filled(LARGE, 1)])
        assert caught.value.code == 507015
        del caught
        (result,) = await session.infer([filled(LARGE, 2)])
        assert (result == 2).all()


@pytest.mark.parametrize("mem_copy", [True, False])
async def test_iteration(models: Models, mem_copy: bool) -> None:
    async with InferSession(0, models.add(LARGE), depth=2) as session:
        for base in (0, 10):
            (result,) = await session.infer_iteration(
                [filled(LARGE, base), filled(LARGE, 1)], [0, -1], 5, mem_copy=mem_copy
            )
            np.testing.assert_array_equal(result, filled(LARGE, base + 5))
            # The views of the inputs follow the buffers that were exchanged.
            (plain,) = await session.infer([filled(LARGE, base), filled(LARGE, 2)])
            np.testing.assert_array_equal(plain, filled(LARGE, base + 2))
    assert emulator.copied()["d2d"] == (2 * 4 * 4 * LARGE[1] if mem_copy else 0)


async def test_tensors(models: Models) -> None:
    async with InferSession(0, models.add(LARGE)) as session:
        one = await session.to_device(filled(LARGE, 1))
        (two,) = await session.infer([one, filled(LARGE, 1)], out_array=False)
        (three,) = await session.infer([two, one], out_array=False)
        (four,) = await session.infer([filled(LARGE, 2), two])
        np.testing.assert_array_equal(await three.to_host(), filled(LARGE, 3))
        np.testing.assert_array_equal(four, filled(LARGE, 4))
        now = session.statistics()
        assert now.device_bytes == now.pinned_bytes >= 5 * 4 * LARGE[1]
        for tensor in (one, two, three):
            tensor.close()
    no_copies()


async def test_pipeline_recorded(models: Models) -> None:
    async with InferSession(0, models.identity(LARGE), loop=2) as session:
        with session.record() as timings:
            k = 0
            async for (result,) in session.infer_pipeline([filled(LARGE, k)] for k in range(12)):
                np.testing.assert_array_equal(result, filled(LARGE, k))
                k += 1
        del result
        assert [timing.outcome for timing in timings] == ["done"] * 12
        assert all(timing.h2d_ms == timing.d2h_ms == 0 < timing.execute_ms for timing in timings)
        assert len(session.summary()) == 24
    no_copies()


async def test_empty_and_foreign_feeds(models: Models) -> None:
    async with InferSession(0, models.identity(["n", 4])) as session:
        (result,) = await session.infer([np.empty((0, 4), np.float32)], "dymshape")
        assert result.shape == (0, 4)
        strided = np.arange(32, dtype=np.float32).reshape(4, 8)[:, ::2]
        (result,) = await session.infer([strided], "dymshape")
        np.testing.assert_array_equal(result, strided)


async def test_a_device_tensor_is_bound_for_its_own_request_only(models: Models) -> None:
    shape = (1, 4)
    async with InferSession(0, models.add(shape), depth=1) as session:
        for _ in range(2):
            (total,) = await session.infer([filled(shape, 1), filled(shape, 2)])
            np.testing.assert_array_equal(total, filled(shape, 3))
            tensor = await session.to_device(filled(shape, 100))
            (total,) = await session.infer([tensor, filled(shape, 2)])
            np.testing.assert_array_equal(total, filled(shape, 102))
            tensor.close()
