"""MultiDeviceSession: lanes give the results of single sessions, on sessions that stay warm."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aioais import (
    ArgumentError,
    ClosedError,
    DeviceError,
    FeedError,
    InferSession,
    ModelError,
    MultiDeviceSession,
    PipelineOutput,
    WrongLoopError,
    emulator,
)

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]
Same = Callable[[Sequence[Array], Sequence[Array]], None]
SHAPE = (2, 8)


def pair(seed: int, shape: tuple[int, ...] = SHAPE) -> list[Array]:
    return [np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + seed, np.full(shape, 2 * seed, np.float32)]


def right(outputs: Sequence[Array], seed: int, shape: tuple[int, ...] = SHAPE) -> bool:
    (output,) = outputs
    first, second = pair(seed, shape)
    return output.shape == shape and bool((output == first + second).all())


def loads() -> int:
    return emulator.counts().get("acl.mdl.load_from_file", 0)


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
async def test_infer_is_that_of_single_sessions(models: Models, same: Same, devices: int) -> None:
    path = models.convert(
        models.add(["n", 3, "h", "w"]), "b", input_shape="input1:-1,3,8,8;input2:-1,3,8,8", dynamic_batch_size="1,2,4"
    )
    rng = np.random.default_rng(devices)
    feeds = {
        device: [[rng.random((int(n), 3, 8, 8), np.float32) for _ in "ab"] for n in rng.choice([1, 2, 4], 5)]
        for device in range(devices)
    }
    async with MultiDeviceSession(path) as session, InferSession(0, path) as single:
        got = await session.infer(feeds, mode="dymbatch")
        assert list(got) == list(feeds)
        for device, lanes in feeds.items():
            for outputs, lane in zip(got[device], lanes, strict=True):
                same(outputs, await single.infer(lane, "dymbatch"))


async def test_pipeline_awaited_and_iterated(models: Models) -> None:
    async def awaited(count: int) -> AsyncIterator[list[Array]]:
        for seed in range(count):
            await asyncio.sleep(0)
            yield pair(seed)

    def sources() -> dict[int, list[Any]]:
        return {1: [[pair(seed) for seed in range(9)], awaited(4)], 3: [(pair(seed) for seed in range(7)), []]}

    lengths = {1: [9, 4], 3: [7, 0]}
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        got = await session.infer_pipeline(sources())
        assert {device: [len(lane) for lane in lanes] for device, lanes in got.items()} == lengths
        assert all(right(outputs, k) for lanes in got.values() for lane in lanes for k, outputs in enumerate(lane))
        assert {device: len(times) for device, times in session.summary().items()} == {1: 2, 3: 2}

        seen: dict[tuple[int, int], int] = {}
        async for device_id, lane, index, outputs in session.infer_pipeline(device_feeds_list=sources()):
            assert index == seen.get((device_id, lane), 0), "in order within a lane"
            assert right(outputs, index)
            seen[device_id, lane] = index + 1
        assert seen == {(1, 0): 9, (1, 1): 4, (3, 0): 7}


async def test_pipeline_waits_for_its_consumer(models: Models) -> None:
    taken = 0

    def source() -> Any:
        nonlocal taken
        for seed in range(1000):
            taken += 1
            yield pair(seed)

    async with MultiDeviceSession(models.add(SHAPE), depth=2) as session:
        run = session.infer_pipeline({0: [source()]})
        first = await anext(run)
        assert isinstance(first, PipelineOutput)
        assert right(first.outputs, 0)
        (
            await session.infer(
                {0: [pair(1)]},
            )
        )  # time goes by
        assert taken <= 2 * 2 + 2 + 1  # under way and ahead, two that wait for the consumer, one that is with it
        await run.aclose()
        await run.aclose()
        with pytest.raises(RuntimeError, match="used already"):
            await run
        async for _ in session.infer_pipeline({0: [source()], 1: [source()]}):
            break
        gc.collect()
        assert right((await session.infer({0: [pair(3)]}))[0][0], 3)


async def test_a_pipeline_is_used_once(models: Models) -> None:
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        run = session.infer_pipeline({0: [[pair(1)]]})
        await run
        with pytest.raises(RuntimeError, match="cannot be awaited"):
            await run
        with pytest.raises(RuntimeError, match="cannot be iterated over"):
            aiter(run)


async def test_sessions_stay_warm_and_summary_shows_loading(models: Models) -> None:
    path = models.add(SHAPE)
    feeds = {0: [pair(0), pair(1)], 2: [pair(2)]}
    with emulator.configure(load_ms=150):
        async with MultiDeviceSession(path) as session:
            assert session.summary() == {}
            before = loads()
            await session.infer(feeds)
            assert loads() == before + 2, "one model per device, whatever the number of lanes"
            first = session.summary()
            assert {device: len(times) for device, times in first.items()} == {0: 2, 2: 1}
            assert all(ms >= 150 for times in first.values() for ms in times), "loading is in it"
            await session.infer(feeds)
            assert loads() == before + 2
            assert session.summary() != first
            statistics = session.statistics()
            assert {d: (s.is_open, s.opened, s.failure) for d, s in statistics.items()} == {
                0: (True, 1, None),
                2: (True, 1, None),
            }
            assert statistics[0].session is not None
            assert statistics[0].session.done == 4


async def test_devices_open_in_parallel_and_once(models: Models) -> None:
    with emulator.gate("load") as gate:
        async with MultiDeviceSession(models.add(SHAPE)) as session:
            before = loads()
            feeds = {device: [pair(device)] for device in range(4)}
            calls = [asyncio.ensure_future(session.infer(feeds)) for _ in range(2)]
            assert await asyncio.to_thread(gate.wait_reached, 10, 4), "all stand at the gate together"
            gate.open()
            for got in await asyncio.gather(*calls):
                assert all(right(got[device][0], device) for device in feeds)
            assert loads() == before + 4


async def test_what_is_passed(models: Models) -> None:
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        assert right((await session.infer(devices_feeds={0: [pair(1)]}))[0][0], 1)
        assert right((await session.infer(device_feeds={0: [pair(1)]}))[0][0], 1)
        named: dict[str, Array] = dict(zip(("input2", "input1"), pair(4), strict=True))
        assert right((await session.infer({0: [named]}))[0][0], 4)
        assert await session.infer({}) == {}
        assert await session.infer({1: []}) == {1: []}
        assert 1 not in session.statistics()
        with pytest.raises(TypeError, match="one of devices_feeds and device_feeds, got 0"):
            await session.infer()
        with pytest.raises(TypeError, match="got 2"):
            await session.infer({0: []}, device_feeds={0: []})
        with pytest.raises(FeedError, match="devices_feeds: got list; expected a mapping"):
            await session.infer([pair(1)])  # type: ignore[arg-type]
        with pytest.raises(FeedError, match=r"devices_feeds\[0\]: got ndarray; expected a list"):
            await session.infer({0: pair(1)[0]})
        with pytest.raises(DeviceError, match=r"device 4 does not exist: the visible .* are 0 to 3"):
            await session.infer({0: [pair(1)], 4: [pair(1)]})
        with pytest.raises(DeviceError, match="device '0': expected an int"):
            await session.infer({"0": [pair(1)]})  # type: ignore[dict-item]
        assert session.statistics().keys() == {0}


def test_the_constructor_checks_its_arguments() -> None:
    with pytest.raises(ArgumentError, match="depth=0"):
        MultiDeviceSession("model.onnx", depth=0)
    with pytest.raises(ModelError, match="ends neither in"):
        MultiDeviceSession("model.bin")
    session = MultiDeviceSession("model.onnx", loop=3)
    assert (session.model_path, session.loop, session.closed) == ("model.onnx", 3, False)
    assert repr(session) == "<MultiDeviceSession 'model.onnx' on cpu, open>"


def test_visible_devices_are_respected(models: Models) -> None:
    code = """
import asyncio, sys, numpy as np, aioais
async def main():
    async with aioais.MultiDeviceSession(sys.argv[1]) as session:
        x = np.ones((1, 4), np.float32)
        await session.infer({0: [[x]], 1: [[x]]})  # both are open
        used = {r.device_id async for r in session.stream([[x]] * 40, "all")}
        try:
            await session.infer({2: [[x]]})
        except aioais.DeviceError as error:
            print(sorted(used), error)
asyncio.run(main())
"""
    command = [sys.executable, "-c", code, models.identity([1, 4])]
    environment = {**os.environ, "ASCEND_RT_VISIBLE_DEVICES": "1,3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("[0, 1] device 2 does not exist"), done.stderr
    assert "0 to 1" in done.stdout


# --- the end ------------------------------------------------------------------------------------


async def test_closing_waits_for_calls(models: Models) -> None:
    session = MultiDeviceSession(models.add(SHAPE))
    with emulator.gate("execute") as gate:
        call = asyncio.ensure_future(session.infer({0: [pair(0), pair(1)], 1: [pair(2)]}))
        await asyncio.to_thread(gate.wait_reached, 10, 2)
        closing = asyncio.ensure_future(session.aclose())
        await asyncio.sleep(0)
        assert session.closed
        with pytest.raises(ClosedError, match="is closed"):
            await session.infer({0: [pair(0)]})
        assert not closing.done()
        gate.open()
        got = await call
        assert right(got[0][1], 1)
        await closing
    await session.aclose()
    with pytest.raises(ClosedError):
        await session.infer_pipeline({0: [[pair(0)]]})
    with pytest.raises(ClosedError):
        async with session:
            pass


async def test_closing_waits_for_a_session_that_is_being_opened(models: Models) -> None:
    session = MultiDeviceSession(models.add(SHAPE))
    with emulator.gate("load") as gate:
        call = asyncio.ensure_future(session.infer({0: [pair(0)]}))
        await asyncio.to_thread(gate.wait_reached)
        closing = asyncio.ensure_future(session.aclose())
        await asyncio.sleep(0)
        gate.open()
        assert right((await call)[0][0], 0)
        await closing


async def test_closing_waits_for_a_call_that_has_opened_nothing_yet(models: Models) -> None:
    session = MultiDeviceSession(models.add(SHAPE))
    call = asyncio.ensure_future(session.infer({0: [pair(0)]}))
    closing = asyncio.ensure_future(session.aclose())  # begins while the call waits for the number of devices
    assert right((await call)[0][0], 0)
    await closing


@pytest.mark.parametrize("stage", ["load", "execute"])
async def test_closing_cuts_calls_short(models: Models, stage: str) -> None:
    session = MultiDeviceSession(models.add(SHAPE))
    with emulator.gate(stage) as gate:
        call = asyncio.ensure_future(session.infer({0: [pair(0)], 1: [pair(1)]}))
        await asyncio.to_thread(gate.wait_reached, 10, 2)
        waiting = asyncio.ensure_future(session.aclose())
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(session.aclose(cancel=True))
        with pytest.raises(ClosedError, match=r"aclose\(cancel=True\)"):
            await call
        gate.open()
        await asyncio.gather(closing, waiting)


async def drain(run: AsyncIterator[PipelineOutput]) -> tuple[int, Exception | None]:
    count = 0
    try:
        async for one in run:
            assert right(one.outputs, 7)
            count += 1
    except ClosedError as exc:
        return count, exc
    return count, None


async def test_closing_under_a_consumer(models: Models) -> None:
    def endless() -> Any:
        while True:
            yield pair(7)

    for cancel in (False, True):
        session = MultiDeviceSession(models.add(SHAPE), depth=2)
        run = session.infer_pipeline({0: [endless()], 1: [endless()]})
        for _ in range(5):
            assert right((await anext(run)).outputs, 7)
        await session.aclose(cancel)
        count, error = await drain(run)
        assert isinstance(error, ClosedError)
        assert count <= 2 * (2 + 1) + 2, "what was under way"


async def test_cancelled_closing_goes_on(models: Models) -> None:
    session = MultiDeviceSession(models.add(SHAPE))
    with emulator.gate("execute") as gate:
        call = asyncio.ensure_future(session.infer({0: [pair(0)]}))
        await asyncio.to_thread(gate.wait_reached)
        closing = asyncio.ensure_future(session.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        gate.open()
        assert right((await call)[0][0], 0)
    await session.aclose()
    assert not session.statistics()[0].is_open


async def test_closing_before_anything_was_opened() -> None:
    await MultiDeviceSession("model.onnx").aclose()
    async with MultiDeviceSession("model.onnx") as session:
        pass
    assert session.closed


async def test_leaked_sessions_warn(models: Models) -> None:
    left = [MultiDeviceSession(models.add(SHAPE))]
    await left[0].infer({0: [pair(0)], 2: [pair(1)]})
    with pytest.warns(ResourceWarning, match="MultiDeviceSession") as caught:
        left.clear()
    assert len(caught) == 1, "and not one for each device"
    assert "was never closed, with devices [0, 2] open" in str(caught[0].message)
    never_used = MultiDeviceSession("model.onnx")
    del never_used


def test_another_loop_is_refused(models: Models, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    session = MultiDeviceSession(models.add(SHAPE))
    first, second = loop_factory(), loop_factory()
    try:
        first.run_until_complete(session.infer({0: [pair(0)]}))
        for call in (lambda: session.infer({0: [pair(0)]}), session.aclose, lambda: anext(session.stream([pair(0)]))):

            async def run(call: Callable[[], Any] = call) -> None:
                with pytest.raises(WrongLoopError, match="another event loop"):
                    await call()

            second.run_until_complete(run())
        first.run_until_complete(session.aclose())
    finally:
        first.close()
        second.close()


async def test_finalize_under_a_warm_session(models: Models) -> None:
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        await session.infer({0: [pair(0)]})
        await InferSession.finalize()
        assert right((await session.infer({0: [pair(1)]}))[0][0], 1)
        assert session.statistics()[0].opened == 2


async def test_cancelling_a_call_leaves_the_session_usable(models: Models) -> None:
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        for stage in ("load", "execute"):
            with emulator.gate(stage) as gate:
                call = asyncio.ensure_future(session.infer({0: [pair(0)] * 9, 1: [pair(1)]}))
                await asyncio.to_thread(gate.wait_reached, 10, 2)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
        got = await session.infer({0: [pair(5)], 1: [pair(6)]})
        assert right(got[0][0], 5)
        assert right(got[1][0], 6)
        assert {d: s.opened for d, s in session.statistics().items()} == {0: 1, 1: 1}, "kept from the cancelled call"


async def test_a_pipeline_may_be_a_task(models: Models) -> None:
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        task = asyncio.create_task(session.infer_pipeline({0: [[pair(seed) for seed in range(4)]]}))
        got = await task
        assert all(right(outputs, seed) for seed, outputs in enumerate(got[0][0]))
        failing = asyncio.create_task(session.infer_pipeline({0: [[pair(0), [1]]]}))
        with pytest.raises(FeedError):
            await failing
        with emulator.gate("execute") as gate:
            cancelled = asyncio.create_task(session.infer_pipeline({0: [[pair(0)]]}))
            assert await asyncio.to_thread(gate.wait_reached, 60)
            cancelled.cancel()
            await asyncio.wait([cancelled])
        assert cancelled.cancelled()
        used = session.infer_pipeline({0: [[pair(0)]]})
        await asyncio.ensure_future(used)
        with pytest.raises(RuntimeError, match="used already"):
            await used
        never = session.infer_pipeline({0: [[pair(0)]]})
        never.close()
        with pytest.raises(RuntimeError, match="used already"):
            await never


async def test_lanes_by_their_items(models: Models) -> None:
    class Items:
        def __getitem__(self, index: int) -> list[Array]:
            if index >= 3:
                raise IndexError(index)
            return pair(index)

    lanes: Any = Items()
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        got = await session.infer({0: lanes})
        assert [right(outputs, seed) for seed, outputs in enumerate(got[0])] == [True] * 3
