"""What a failed call held is freed with it, not when the garbage collector comes round: errors make no cycles."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aioais import AclError, FeedError, InferSession, MultiDeviceSession, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

pytestmark = [
    pytest.mark.usefixtures("clean_slate", "without_collector"),
    pytest.mark.skipif(
        sys.version_info < (3, 11),
        reason="there pytest-asyncio runs tests in tasks of its own, whose frames hold the future and its error",
    ),
]

SMALL = (1, 8)
LARGE = (1, 1 << 17)

CASES = {
    "copy": "acl.rt.memcpy_async",
    "execute": "acl.mdl.execute_async",
    "record": "acl.rt.record_event",
    "wait": "acl.rt.synchronize_stream",
    "time": "acl.rt.event_elapsed_time",
}


class Seen(np.ndarray[Any, Any]):
    """An array that can be watched."""


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Keeps the garbage collector away."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def feed(shape: tuple[int, ...]) -> tuple[Any, weakref.ref[Any]]:
    array = np.ones(shape, np.float32).view(Seen)
    return array, weakref.ref(array)


async def comes(condition: Callable[[], bool]) -> bool:
    """Wait, with the loop running, for what another thread does soon."""
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.0005)
    return True


async def fails(session: Any, how: str, shape: tuple[int, ...]) -> weakref.ref[Any]:
    array, seen = feed(shape)
    try:
        if how == "infer":
            await session.infer([array])
        elif how == "dymshape":
            await session.infer([array], "dymshape")
        elif how == "iteration":
            await session.infer_iteration([array], [0], 3)
        elif how == "pipeline":
            _ = [one async for one in session.infer_pipeline([[array]])]
        elif how == "devices":
            await session.infer({0: [[array]]})
        elif how == "stream":
            _ = [one async for one in session.stream([[array]], [0])]
    except AclError:
        pass
    else:
        pytest.fail("it did not fail")
    return seen


@pytest.mark.pairs
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("what", "on_device"),
    [*((what, False) for what in CASES), ("copy", True), ("execute", True)],
    ids=[*(f"{what}-call" for what in CASES), "copy-task", "execute-task"],
)
@pytest.mark.parametrize("how", ["infer", "dymshape", "iteration", "pipeline"])
async def test_feeds(models: Models, how: str, what: str, on_device: bool, shape: tuple[int, ...]) -> None:
    dims: Sequence[int | str] = [1, "n"] if how == "dymshape" else shape
    async with InferSession(0, models.identity(dims)) as session:
        await session.infer([np.ones(shape, np.float32)], "auto")
        await asyncio.gather(*(session.infer([np.ones(shape, np.float32)], "auto") for _ in range(4)))
        emulator.fail(CASES[what], 507011, device_side=on_device)
        seen = await fails(session, how, shape)
        assert await comes(lambda: seen() is None), "something holds the feed"


@pytest.mark.parametrize("how", ["devices", "stream"])
async def test_feeds_of_many_devices(models: Models, how: str) -> None:
    async with MultiDeviceSession(models.identity(SMALL)) as session:
        await session.infer({0: [[np.ones(SMALL, np.float32)]]})
        emulator.fail("acl.mdl.execute_async", 145000, device_side=True)
        seen = await fails(session, how, SMALL)
        assert await comes(lambda: seen() is None), "something holds the feed"


@pytest.mark.parametrize("call", ["acl.rt.malloc", "acl.rt.memcpy_async"])
async def test_what_is_copied_there(models: Models, call: str) -> None:
    async with InferSession(0, models.identity(SMALL)) as session:
        tensor = await session.to_device(np.ones(SMALL, np.float32))
        array, seen = feed(SMALL)
        if "malloc" in call:
            emulator.fail(call, 207001, times=2)  # once more when idle memory was given back
        else:
            emulator.fail(call, 507011)
        with contextlib.suppress(AclError):
            await session.to_device(array)
            pytest.fail("it did not fail")
        del array
        assert await comes(lambda: seen() is None), "something holds the array"
        emulator.fail("acl.rt.memcpy_async", 507011)
        with contextlib.suppress(AclError):
            await tensor.to_host()
            pytest.fail("it did not fail")
        before = emulator.live()["device_blocks"]
        tensor.close()
        assert await comes(lambda: emulator.live()["device_blocks"] == before - 1), "something holds the block"


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("way", "call"),
    [
        ("to_device", "acl.rt.malloc_host"),
        ("to_device", "acl.rt.memcpy_async"),
        ("to_device", "acl.rt.synchronize_stream"),
        ("to_host", "acl.rt.memcpy_async"),
        ("infer", "acl.rt.memcpy_async"),
        ("infer", "acl.mdl.execute_async"),
        ("infer", "acl.rt.synchronize_stream"),
    ],
)
async def test_an_error_that_is_kept(models: Models, way: str, call: str, shape: tuple[int, ...]) -> None:
    """It holds no memory of the device, and does not keep ACL from ending."""
    kept = None
    async with InferSession(0, models.identity(shape)) as session:
        tensor = await session.to_device(np.ones(shape, np.float32))
        array = np.ones(shape if way == "infer" else (16, *shape), np.float32)  # too large for any idle memory
        before = emulator.live()["device_blocks"]
        emulator.fail(call, 107003, times=2 if "malloc" in call else 1)
        try:
            if way == "to_host":
                await tensor.to_host()
            else:
                await (session.infer([array]) if way == "infer" else session.to_device(array))
        except AclError as error:
            kept = error
        emulator.disarm()
        assert kept is not None
        if way == "to_device":
            assert await comes(lambda: emulator.live()["device_blocks"] == before), "something holds the block"
        tensor.close()
    await InferSession.finalize()
    assert not any(emulator.live().values()), emulator.live()
    assert kept.__traceback__ is not None


class Unreadable:
    """Cannot be seen as an array."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise OSError("the picture cannot be read")


@pytest.mark.parametrize("way", ["infer", "to_device"])
async def test_what_is_no_array(models: Models, way: str) -> None:
    async with InferSession(0, models.identity(SMALL)) as session:
        bad = Unreadable()
        seen = weakref.ref(bad)
        with contextlib.suppress(FeedError):
            await (session.infer([bad]) if way == "infer" else session.to_device(bad))
            pytest.fail("it did not fail")
        del bad
        assert await comes(lambda: seen() is None), "something holds the feed"


@pytest.mark.parametrize(
    "call", ["acl.mdl.load_from_file", "acl.mdl.get_desc", "acl.rt.create_stream", "acl.rt.set_context"]
)
async def test_sessions_that_did_not_open(models: Models, call: str) -> None:
    session = InferSession(0, models.identity(SMALL))
    seen = weakref.ref(session)
    emulator.fail(call, 507899)
    with contextlib.suppress(AclError):
        await session.__aenter__()
        pytest.fail("it did not fail")
    del session
    assert await comes(lambda: seen() is None), "something holds the session"


async def test_results_of_neighbours(models: Models) -> None:
    """A result is its caller's alone, also where a request of the same batch failed."""
    async with InferSession(0, models.identity(LARGE)) as session:
        await session.infer([np.ones(LARGE, np.float32)])
        with emulator.gate("execute"):
            tasks = [asyncio.ensure_future(session.infer([np.ones(LARGE, np.float32)])) for _ in range(4)]
            await asyncio.sleep(0.01)
            emulator.fail("acl.rt.memcpy_async", 507011, device_side=True)
            tasks += [asyncio.ensure_future(session.infer([np.ones(LARGE, np.float32)])) for _ in range(4)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        del tasks
        seen = [weakref.ref(result[0]) for result in results if isinstance(result, list)]
        assert 0 < len(seen) < 8
        del results
        assert await comes(lambda: not any(ref() is not None for ref in seen))


async def test_device_memory(models: Models) -> None:
    """An allocation whose clean-up failed on the way leaves nothing that holds its block."""
    async with InferSession(0, models.identity(LARGE), depth=4) as session:
        await asyncio.gather(*(session.infer([np.ones(LARGE, np.float32)]) for _ in range(8)))
        emulator.fail("acl.rt.destroy_stream", 507899)
        emulator.fail("acl.rt.malloc", 207001)
        tensor = await session.to_device(np.ones(LARGE, np.float32))
        before = emulator.live()["device_bytes"]
        tensor.close()
        assert await comes(lambda: emulator.live()["device_bytes"] <= before - tensor.nbytes)
    await InferSession.finalize()
    emulator.reset()  # that stream can no longer be destroyed
