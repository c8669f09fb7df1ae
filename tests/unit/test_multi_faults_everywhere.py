"""Each call of pyACL fails once, at each place of the life of a ``MultiDeviceSession`` on two devices.

Every time: the error names the call and the code, or the log does where a stream goes on without the device; nothing
is left on either device, the session works again, and other sessions on the devices are untouched.
``--long`` takes many places and all families of codes instead of a sample.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import inside
from tests.unit.fault_lives import Life, attempt, fail_each_call, tell

from aioais import AioaisError, InferSession, MultiDeviceSession, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]

DEVICES = (0, 1)
SMALL = (2, 8)
LARGE = (2, 1 << 15)


@pytest.fixture(autouse=True)
def two_devices(clean_slate: None) -> None:
    """Have two devices; their number is set before ACL starts."""
    inside.finalize_all()
    emulator.configure(devices=len(DEVICES))


def feeds(shape: tuple[int, ...], seed: int = 0) -> list[Array]:
    return [np.full(shape, 1.0 + seed, np.float32), np.full(shape, 2.0, np.float32)]


def right(outputs: list[Array], seed: int = 0) -> bool:
    (got,) = outputs
    return bool((got == 3.0 + seed).all())


async def in_lanes(session: MultiDeviceSession, shape: tuple[int, ...]) -> None:
    got = await session.infer({device: [feeds(shape, lane) for lane in range(2)] for device in DEVICES})
    assert list(got) == list(DEVICES)
    assert all(right(outputs, lane) for lanes in got.values() for lane, outputs in enumerate(lanes))


async def in_pipelines(session: MultiDeviceSession, shape: tuple[int, ...]) -> None:
    got = await session.infer_pipeline({device: [[feeds(shape, k) for k in range(3)]] for device in DEVICES})
    assert all(right(outputs, k) for lanes in got.values() for lane in lanes for k, outputs in enumerate(lane))


async def in_pipelines_as_ready(session: MultiDeviceSession, shape: tuple[int, ...]) -> None:
    count = 0
    async for one in session.infer_pipeline({device: [[feeds(shape, k) for k in range(3)]] for device in DEVICES}):
        assert right(one.outputs, one.index)
        count += 1
    assert count == 3 * len(DEVICES)


async def in_iterations(session: MultiDeviceSession, shape: tuple[int, ...], mem_copy: bool) -> None:
    lanes = {device: [feeds(shape)] for device in DEVICES}
    got = await session.infer_iteration(lanes, [0, -1], 3, mem_copy=mem_copy)
    assert all(right(outputs, 4) for lanes in got.values() for outputs in lanes)


async def streamed(session: MultiDeviceSession, shape: tuple[int, ...], ordered: bool) -> None:
    source = (feeds(shape, k) for k in range(8))
    got = [one async for one in session.stream(source, ordered=ordered)]
    assert all(right(one.outputs, one.index) for one in got)
    indices = [one.index for one in got]
    assert (indices if ordered else sorted(indices)) == list(range(8)), "each result comes once"


async def live_through(path: str, shape: tuple[int, ...], is_whole: bool) -> list[AioaisError]:
    """Do everything that a session can; gives what failed. Results are right or there are none."""
    errors: list[AioaisError] = []
    session = MultiDeviceSession(path, depth=2)
    steps = [
        in_lanes(session, shape),
        in_pipelines(session, shape),
        in_pipelines_as_ready(session, shape),
        in_iterations(session, shape, True),
        in_iterations(session, shape, False),
        streamed(session, shape, True),
        streamed(session, shape, False),
    ]
    for step in steps:
        await attempt(step, errors)
    # One failure has to be enough: a device at fault is opened anew. The first of these may be the one that fails.
    assert any([await attempt(in_lanes(session, shape), errors) for _ in range(2)]), errors
    await attempt(session.aclose(), errors)
    if is_whole:
        await attempt(InferSession.finalize(), errors)
    return errors


SHAPES = {"small": SMALL, "large": LARGE, "whole": SMALL}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
async def test_each_call_fails(models: Models, name: str) -> None:
    await try_calls(models, name)


@pytest.mark.parametrize("name", SHAPES)
async def test_some_calls_fail(models: Models, name: str) -> None:
    """A third in each kind of life, so that all are tried."""
    await try_calls(models, name, list(SHAPES).index(name), 3)


async def try_calls(models: Models, name: str, first: int = 0, step: int = 1) -> None:
    """Fail calls of a life; ``whole`` lives from ACL's start to its end, the others beside sessions of both devices."""
    is_whole, shape = name == "whole", SHAPES[name]
    path = models.add(shape)
    async with contextlib.AsyncExitStack() as stack:
        devices = () if is_whole else DEVICES
        neighbours = [await stack.enter_async_context(InferSession(device, path)) for device in devices]

        async def go_on() -> None:
            for neighbour in neighbours:
                assert right(await neighbour.infer(feeds(shape)))
                assert neighbour.statistics().failed == 0
            if is_whole:
                emulator.reset()  # ACL that could not be finalised would be taken for another test's
                emulator.configure(devices=len(DEVICES))

        await go_on()
        life = Life(f"many devices, {name}", lambda: live_through(path, shape, is_whole), neighbours, go_on)
        tell(await fail_each_call(life, first, step))
