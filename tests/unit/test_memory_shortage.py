"""A device without memory: idle memory is given back, one more attempt, then an error that says who holds it."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aioais import AclMemoryError, InferSession, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

pytestmark = pytest.mark.usefixtures("clean_slate")

Array = np.ndarray[Any, np.dtype[Any]]

MIB = 1 << 20
FLOATS = 1 << 18
"""Of float32 in one MiB."""


def ones(mib: float) -> Array:
    return np.ones((1, int(mib * FLOATS)), np.float32)


async def run(session: InferSession, mib: float, mode: Any = "static") -> None:
    (got,) = await session.infer([ones(mib)], mode)
    assert got.shape == (1, int(mib * FLOATS))
    assert (got == 1).all()


async def use_all_slots(session: InferSession, depth: int) -> None:
    """Have as many requests on the device at once as there may be."""
    with emulator.gate("execute"):
        tasks = [asyncio.ensure_future(run(session, 1)) for _ in range(depth + 2)]
        while session.statistics().in_flight < depth:
            await asyncio.sleep(0.001)
    await asyncio.gather(*tasks)
    assert session.statistics().slots == depth
    assert session.statistics().failed == 0


async def test_spare_buffers_of_another_session_are_given_back(models: Models) -> None:
    path = models.identity((1, FLOATS))  # 2 MiB of buffers a request
    with emulator.configure(memory_mb=11):
        async with InferSession(0, path, depth=4) as idle, InferSession(0, path, depth=4) as busy:
            await use_all_slots(idle, 4)
            await use_all_slots(busy, 4)
            assert idle.statistics().slots == 0, "its buffers are unused"
            await asyncio.gather(*(run(idle, 1) for _ in range(8)), *(run(busy, 1) for _ in range(8)))
            assert idle.statistics().failed == busy.statistics().failed == 0


async def test_what_cannot_be_given_back_is_logged(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    path = models.identity((1, FLOATS))
    with emulator.configure(memory_mb=11):
        async with InferSession(0, path, depth=4) as idle, InferSession(0, path) as busy:
            await use_all_slots(idle, 4)
            emulator.fail("acl.rt.destroy_stream", 507899)
            tensor = await busy.to_device(ones(8))
            assert (await tensor.to_host() == 1).all()
            tensor.close()
            assert idle.statistics().slots == 0
            await run(idle, 1)
    assert "device 0: idle memory could not be freed: " in caplog.text
    assert "acl.rt.destroy_stream" in caplog.text
    await InferSession.finalize()
    emulator.reset()  # that stream can no longer be destroyed


async def test_a_device_that_does_not_tell_its_memory(models: Models) -> None:
    async with InferSession(0, models.identity((1, FLOATS)), depth=1) as session:
        await run(session, 1)
        with emulator.configure(memory_mb=8):
            for _ in range(2):
                emulator.fail("acl.rt.get_mem_info", 507899)
            with pytest.raises(AclMemoryError, match=f"needed {16 * MIB} bytes of device memory"):
                await session.to_device(ones(16))
        await run(session, 1)


async def test_who_holds_it_is_told(models: Models) -> None:
    path = models.identity((1, FLOATS))
    open_path = models.identity([1, "n"], name="open")
    with emulator.configure(memory_mb=16):
        async with InferSession(0, open_path) as session, InferSession(0, path) as other:
            await run(other, 1)
            tensor = await session.to_device(ones(1))
            await run(session, 1, "dymshape")
            before = session.statistics()
            with pytest.raises(AclMemoryError) as caught:
                await session.infer([ones(32)], "dymshape")
            error = caught.value
            text = str(error)
            assert isinstance(error, MemoryError)
            assert (error.call, error.code) == ("acl.rt.malloc", 207001)
            assert f"needed {32 * MIB} bytes of device memory" in text
            assert f"of {16 * MIB} bytes are free" in text
            assert repr(open_path) in text
            assert repr(path) in text
            assert f"{MIB} bytes in device tensors" in text
            assert "close sessions or tensors" in text
            del caught, error
            await run(session, 1, "dymshape")
            await run(other, 1)
            assert session.statistics().failed == 1
            assert session.statistics().slots == before.slots
            tensor.close()


@pytest.mark.parametrize("mib", [3, 5])
async def test_growing_needs_no_room_for_both(models: Models, mib: int) -> None:
    """Smaller buffers are given back before larger ones are made."""
    with emulator.configure(memory_mb=16):
        async with InferSession(0, models.identity([1, "n"]), depth=1) as session:
            await run(session, mib - 0.5, "dymshape")
            await run(session, mib, "dymshape")
            assert session.statistics().failed == 0


@pytest.mark.parametrize("rounds", [1, pytest.param(4, marks=pytest.mark.slow)])
async def test_smaller_requests_run_amid_too_large_ones(models: Models, rounds: int) -> None:
    with emulator.configure(memory_mb=16):
        async with InferSession(0, models.identity([1, "n"]), depth=2) as session:
            sizes = [1.0, 40, 0.5, 40, 1, 0.25] * rounds
            results = await asyncio.gather(
                *(session.infer([ones(mib)], "dymshape") for mib in sizes), return_exceptions=True
            )
            for mib, result in zip(sizes, results, strict=True):
                if mib > 16:
                    assert isinstance(result, AclMemoryError)
                else:
                    assert isinstance(result, list)
                    assert result[0].shape == (1, int(mib * FLOATS))
            del results, result


async def test_idle_pinned_memory_is_given_back(models: Models) -> None:
    async with InferSession(0, models.identity((1, FLOATS)), depth=2) as session:
        await asyncio.gather(*(run(session, 1) for _ in range(4)))
        gc.collect()
        while not session.statistics().pinned_idle:  # the engine holds a result for a moment longer
            await asyncio.sleep(0.001)
        emulator.fail("acl.rt.malloc_host", 207001)
        kept = [await session.infer([ones(1)]) for _ in range(6)]  # more blocks than were idle
        assert session.statistics().failed == 0
        assert all((result[0] == 1).all() for result in kept)


async def test_a_model_that_has_no_room_at_first(models: Models) -> None:
    path = models.identity((1, FLOATS))
    async with InferSession(0, path) as idle:
        await run(idle, 1)
        emulator.fail("acl.mdl.load_from_file", 207001)
        async with InferSession(0, path) as session:
            assert idle.statistics().slots == 0
            await run(session, 1)
        emulator.fail("acl.mdl.load_from_file", 207001, times=2)
        with pytest.raises(AclMemoryError, match="the memory of"):
            await InferSession(0, path)
        await run(idle, 1)


async def test_a_tensor_that_has_no_room(models: Models) -> None:
    with emulator.configure(memory_mb=8):
        async with InferSession(0, models.identity((1, FLOATS))) as session:
            await run(session, 1)
            with pytest.raises(AclMemoryError, match="needed"):
                await session.to_device(ones(16))
            tensor = await session.to_device(ones(7))  # there is room since the spare buffers are gone
            assert session.statistics().slots == 0
            tensor.close()
            await run(session, 1)


async def test_memory_that_is_about_to_be_freed_is_waited_for(models: Models) -> None:
    """The thread that frees a collected tensor is busy with a copy when the buffers of a request need the room."""
    with emulator.configure(memory_mb=8):
        async with InferSession(0, models.identity((1, 2 * FLOATS)), depth=1) as session:
            tensor = await session.to_device(ones(5))
            with emulator.gate("h2d") as gate:
                copy = asyncio.ensure_future(session.to_device(ones(0.5)))
                assert await asyncio.to_thread(gate.wait_reached, 60)
                del tensor
                emulator.reset_counts()
                request = asyncio.ensure_future(run(session, 2))
                while emulator.counts().get("acl.rt.malloc", 0) < 2:  # the second one has no room
                    await asyncio.sleep(0.001)
            await request
            (await copy).close()


async def test_depth_shrinks_and_everything_still_runs(models: Models) -> None:
    with emulator.configure(memory_mb=5):
        async with InferSession(0, models.identity((1, FLOATS)), depth=8) as session:
            with emulator.gate("execute"):
                tasks = [asyncio.ensure_future(run(session, 1)) for _ in range(24)]
                while session.statistics().depth == 8:
                    await asyncio.sleep(0.001)
            await asyncio.gather(*tasks)
            now = session.statistics()
            assert (now.depth, now.slots, now.failed) == (2, 2, 0)
