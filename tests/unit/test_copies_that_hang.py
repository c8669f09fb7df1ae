"""``to_device`` and ``to_host`` on a device that hangs: both end, and what is in use is not given away."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import inside

from aioais import AclError, BrokenSessionError, DeviceHangError, InferSession, Tensor, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]

LIMIT = 0.1
X = np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.fixture(autouse=True)
def clean_slate() -> Iterator[None]:
    """Disarm what a failed test has armed."""
    yield
    gc.collect()
    inside.finalize_all()
    emulator.reset()


def live() -> dict[str, int]:
    return {name: number for name, number in emulator.live().items() if number and name != "devices"}


async def all_is_freed() -> None:
    """Wait until the control thread has freed what was handed to it; the suite's timeout ends it."""
    while live():
        gc.collect()  # frames of errors may hold tensors
        await asyncio.sleep(0.001)


async def hangs(work: Any) -> None:
    with pytest.raises(DeviceHangError, match=r"hang_timeout=0\.1") as caught:
        await work
    assert (caught.value.call, caught.value.code) == ("acl.rt.synchronize_stream_with_timeout", 507046)


async def test_to_device(models: Models) -> None:
    path = models.identity([4, 6])
    async with InferSession(0, path) as neighbour, InferSession(1, path) as elsewhere:
        session = await InferSession(0, path, hang_timeout=LIMIT)
        await elsewhere.infer([X])
        before = live()
        with emulator.gate("h2d", 0):
            await hangs(session.to_device(X))
            held = live()
            assert held["device_blocks"] == before["device_blocks"] + 1
            assert held["host_blocks"] > before["host_blocks"], "set aside while the device may read it"
            for work in (session.to_device(X), session.infer([X])):
                with pytest.raises(BrokenSessionError) as caught:
                    await work
                assert isinstance(caught.value.__cause__, DeviceHangError)
                del caught
            np.testing.assert_array_equal((await elsewhere.infer([X]))[0], X)
            await session.aclose()
            assert live()["device_blocks"] == held["device_blocks"]
        np.testing.assert_array_equal(await (await neighbour.to_device(X)).to_host(), X)
        np.testing.assert_array_equal((await neighbour.infer([X]))[0], X)
    await all_is_freed()


@pytest.mark.parametrize("is_output", [False, True], ids=["uploaded", "output"])
async def test_to_host(models: Models, is_output: bool) -> None:
    """It concerns the tensor alone; what it holds is there when the device is back."""
    async with InferSession(0, models.identity([4, 6]), hang_timeout=LIMIT) as session:
        tensor: Tensor
        if is_output:
            (tensor,) = await session.infer([X], out_array=False)
        else:
            tensor = await session.to_device(X)
        with emulator.gate("d2h"):
            await hangs(tensor.to_host())
            await hangs(tensor.to_host())
            (output,) = await session.infer([tensor], out_array=False)  # the session is whole
        np.testing.assert_array_equal(await tensor.to_host(), X)
        np.testing.assert_array_equal(await output.to_host(), X)
    del tensor, output
    await all_is_freed()


async def test_a_tensor_that_is_dropped_while_its_copy_hangs(models: Models) -> None:
    async with InferSession(0, models.identity([4, 6]), hang_timeout=LIMIT) as session:
        tensor = await session.to_device(X)
        with emulator.gate("d2h"):
            await hangs(tensor.to_host())
            held = live()["device_blocks"]
            tensor.close()
            await session.to_device(X)  # the control thread has been through what was posted before
            gc.collect()
            assert live()["device_blocks"] >= held
    await all_is_freed()


async def test_finalised_while_a_copy_hangs(models: Models) -> None:
    """What the device may use stays; once it is through, ``finalize`` finds it."""
    session = await InferSession(0, models.identity([4, 6]), hang_timeout=LIMIT)
    with emulator.gate("h2d"):
        await hangs(session.to_device(X))
        await session.aclose()
        await InferSession.finalize()
        assert live()["device_blocks"] == 1
    await InferSession.finalize()
    assert emulator.leaks() == {}


async def test_a_copy_that_fails_after_it_was_given_up(models: Models) -> None:
    session = await InferSession(0, models.identity([4, 6]), hang_timeout=LIMIT)
    emulator.fail("acl.rt.memcpy_async", 507011, device_side=True)
    with emulator.gate("h2d"):
        await hangs(session.to_device(X))
    await session.aclose()
    await all_is_freed()


async def test_a_wait_that_is_refused_before_the_copy_hangs(models: Models) -> None:
    """The error says both, and the memory is set aside all the same."""
    async with InferSession(0, models.identity([4, 6]), hang_timeout=LIMIT) as session:
        emulator.fail("acl.rt.synchronize_stream_with_timeout", 107003)
        with emulator.gate("h2d"):
            with pytest.raises(DeviceHangError) as caught:
                await session.to_device(X)
            assert isinstance(caught.value.__cause__, AclError)
            assert caught.value.__cause__.code == 107003
            del caught
            assert live()["device_blocks"] == 1
    await all_is_freed()


async def test_without_a_limit_a_copy_waits(models: Models) -> None:
    async with InferSession(0, models.identity([4, 6])) as session:
        with emulator.gate("h2d") as gate:
            copying = asyncio.ensure_future(session.to_device(X))
            assert await asyncio.to_thread(gate.wait_reached)
            assert not copying.done()
        np.testing.assert_array_equal(await (await copying).to_host(), X)


async def test_a_cancelled_copy_that_hangs(models: Models) -> None:
    """No caller is told; the session finds out when it is used next."""
    session = await InferSession(0, models.identity([4, 6]), hang_timeout=LIMIT)
    with emulator.gate("h2d") as gate:
        copying = asyncio.ensure_future(session.to_device(X))
        assert await asyncio.to_thread(gate.wait_reached)
        copying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copying
        await hangs(session.to_device(X))
    await session.aclose()
    await all_is_freed()
