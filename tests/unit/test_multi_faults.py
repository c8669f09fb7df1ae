"""MultiDeviceSession when lanes and devices fail: whose error it is, who goes on, and that nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import inside

from aioais import (
    AclError,
    AclInternalError,
    BrokenSessionError,
    FeedError,
    InferSession,
    ModelError,
    MultiDeviceSession,
    PipelineOutput,
    StreamOutput,
    emulator,
)

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]
SHAPE = (1, 8)
LOST_HEARTBEAT = 507010


@pytest.fixture
def dead() -> Iterator[contextlib.ExitStack]:
    """Devices killed on it come back after the test."""
    with contextlib.ExitStack() as stack:
        yield stack


def pair(seed: int) -> list[Array]:
    return [np.arange(8, dtype=np.float32).reshape(SHAPE) + seed, np.full(SHAPE, 2 * seed, np.float32)]


def total(seed: int) -> Array:
    first, second = pair(seed)
    total: Array = first + second
    return total


def right(one: StreamOutput) -> bool:
    return bool((one.outputs[0] == total(one.index)).all())


def notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", []))


BAD = [np.zeros((9, 9), np.float32)] * 2


# --- lanes --------------------------------------------------------------------------------------


async def test_a_bad_lane_cancels_the_others(models: Models) -> None:
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        await session.infer({device: [pair(0)] for device in range(3)})
        with emulator.gate("execute") as gate:
            call = asyncio.ensure_future(session.infer({0: [pair(0)], 1: [pair(0), BAD], 2: [pair(0)]}))
            with pytest.raises(FeedError, match="input1") as caught:
                await call
            gate.open()
        assert notes(caught.value) == ["device 1, lane 1"]
        assert session.summary().keys() == {0, 1, 2}
        assert len(session.summary()[1]) == 2, "lanes that were cut short have a time too"
        got = await session.infer({device: [pair(device)] for device in range(3)})
        assert all((got[device][0][0] == total(device)).all() for device in range(3))
        assert all(s.opened == 1 and s.failure is None for s in session.statistics().values()), "all are still warm"


async def test_lanes_that_fail_together_are_all_named(models: Models) -> None:
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        await session.infer({0: [pair(0)], 3: [pair(0)]})
        with pytest.raises(FeedError) as caught:
            await session.infer({0: [BAD, pair(0)], 3: [BAD[:1]]})
        first, second = notes(caught.value)
        assert first == "device 0, lane 0"
        assert second.startswith("device 3, lane 0 failed too: FeedError: ")


async def test_a_pipeline_lane_that_fails(models: Models) -> None:
    feeds = {0: [[pair(k) for k in range(6)]], 1: [[pair(0), pair(1), BAD]]}
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        with pytest.raises(FeedError) as caught:
            await session.infer_pipeline(feeds)
        assert notes(caught.value) == ["item 2 of the source", "device 1, lane 0"]
        got: list[PipelineOutput] = []
        with pytest.raises(FeedError) as caught:
            await _collect(session.infer_pipeline(feeds), got)
        assert notes(caught.value) == ["item 2 of the source", "device 1, lane 0"]
        assert [one.index for one in got if one.device_id == 1] == [0, 1], "results before the failure come first"


async def _collect(source: Any, got: list[Any]) -> None:
    async for one in source:
        got.append(one)  # noqa: PERF401 - what came before an error is wanted


async def test_a_device_that_cannot_be_opened(models: Models, dead: contextlib.ExitStack) -> None:
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        with emulator.kill(1):
            with pytest.raises(AclInternalError) as caught:
                await session.infer({0: [pair(0)], 1: [pair(1), pair(1)]})
            assert caught.value.code == LOST_HEARTBEAT
            assert notes(caught.value) == ["device 1, lane 0", "device 1, lane 1 failed too: the same"]
            assert (await session.infer({0: [pair(5)]}))[0][0][0][0, 0] == total(5)[0, 0]
            statistics = session.statistics()
            assert statistics[0].failure is None
            assert statistics[0].opened == 1
            assert "507010" in (statistics[1].failure or "")
            assert not statistics[1].is_open
        assert ((await session.infer({1: [pair(2)]}))[1][0][0] == total(2)).all(), "it is tried again"


async def test_an_opening_that_fails_after_its_call_was_cancelled(
    models: Models, caplog: pytest.LogCaptureFixture
) -> None:
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        with emulator.gate("load", device=1) as gate:
            call = asyncio.ensure_future(session.infer({1: [pair(0)]}))
            await asyncio.to_thread(gate.wait_reached)
            call.cancel()
            await asyncio.wait([call])
            emulator.fail("acl.mdl.get_desc", 507010)
            with caplog.at_level(logging.WARNING, "aioais"):
                gate.open()
                while session.statistics()[1].failure is None:  # the suite's timeout ends it
                    await asyncio.sleep(0.001)
        assert "device 1 could not be opened" in caplog.text


async def test_a_fatal_lane_concerns_its_device_alone(
    models: Models, dead: contextlib.ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        await session.infer({0: [pair(0)], 1: [pair(0)]})
        other = asyncio.ensure_future(_await(session.infer_pipeline({0: [[pair(k) for k in range(200)]]})))
        dead.enter_context(emulator.kill(1))
        with pytest.raises(AclInternalError) as caught:
            await session.infer({0: [pair(0)], 1: [pair(1)]})
        assert notes(caught.value)[0] == "device 1, lane 0"
        assert "device 1 is taken out of service" in caplog.text
        got = await other
        assert all((outputs[0] == total(k)).all() for k, outputs in enumerate(got[0][0])), "another call goes on"
        statistics = session.statistics()
        assert (statistics[0].is_open, statistics[0].opened, statistics[0].failure) == (True, 1, None)
        assert not statistics[1].is_open
        dead.close()
        assert ((await session.infer({1: [pair(2)]}))[1][0][0] == total(2)).all()
        assert session.statistics()[1].opened == 2


async def _await(awaitable: Any) -> Any:
    return await awaitable


async def test_another_call_on_a_broken_device_is_told_why(models: Models, dead: contextlib.ExitStack) -> None:
    async def source() -> AsyncIterator[list[Array]]:
        yield pair(0)
        await failed.wait()
        yield pair(1)

    failed = asyncio.Event()
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        run = session.infer_pipeline({1: [source()]})
        assert (await anext(run)).index == 0
        with emulator.kill(1), pytest.raises(AclInternalError):
            await session.infer({1: [pair(0)]})
        failed.set()
        with pytest.raises(BrokenSessionError, match=r"device 1 was taken out of service .*507010") as caught:
            await anext(run)
        assert notes(caught.value) == ["device 1, lane 0"]


async def test_a_stream_goes_on_without_a_device_that_hangs(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    async with MultiDeviceSession(models.add(SHAPE), hang_timeout=0.2) as session:
        await session.infer({0: [pair(0)], 1: [pair(0)]})
        with emulator.gate("execute", device=1):
            got = [one async for one in session.stream((pair(k) for k in range(100)), [0, 1])]
            assert [one.index for one in got] == list(range(100))
            assert {one.device_id for one in got} == {0}
            assert all((one.outputs[0] == total(k)).all() for k, one in enumerate(got))
            assert "DeviceHangError" in (session.statistics()[1].failure or "")
        assert "device 1 is taken out of service" in caplog.text
        assert ((await session.infer({1: [pair(2)]}))[1][0][0] == total(2)).all(), "it is opened anew"
    await InferSession.finalize()  # what the hung device held, if the gate was closed for longer than a close waits


@pytest.mark.parametrize("count", [1, 20])
async def test_a_device_breaks_before_the_first_item_of_a_stream(models: Models, count: int) -> None:
    """The first item is refused with nothing under way anywhere; it runs on the other device."""
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        await session.infer({0: [pair(0)], 1: [pair(0)]})
        warm = inside.session_of(session, 0)

        async def source() -> AsyncIterator[list[Array]]:
            emulator.fail("acl.mdl.execute_async", 507010, device_side=True)
            with pytest.raises(AclError):
                await warm.result(warm.request(pair(0)))
            for k in range(count):
                yield pair(k)

        got = [one async for one in session.stream(source(), [0, 1])]
        assert [(one.index, one.device_id) for one in got] == [(k, 1) for k in range(count)]
        assert all((one.outputs[0] == total(k)).all() for k, one in enumerate(got))
        assert session.statistics()[1].streamed == count


async def test_a_session_that_broke_when_nobody_looked_is_replaced(
    models: Models, dead: contextlib.ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        await session.infer({1: [pair(0)]})
        with emulator.gate("execute", device=1) as gate:
            task = asyncio.ensure_future(session.infer({1: [pair(1)]}))
            await asyncio.to_thread(gate.wait_reached)
            task.cancel()
            await asyncio.wait([task])
            dead.enter_context(emulator.kill(1))
        broken = inside.session_of(session, 1)
        while inside.cause_of_break(broken) is None:
            await asyncio.sleep(0.001)
        dead.close()
        found = await session.infer({1: [pair(2)]})
        np.testing.assert_array_equal(found[1][0][0], total(2))
        assert session.statistics()[1].opened == 2
        assert "device 1 is taken out of service: AclInternalError" in caplog.text


async def test_what_fails_without_being_fatal_keeps_the_session(models: Models) -> None:
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        await session.infer({0: [pair(0)]})
        emulator.fail("acl.mdl.execute_async", 145000)
        with pytest.raises(AclError) as caught:
            await session.infer({0: [pair(0)]})
        assert caught.value.code == 145000
        await session.infer({0: [pair(0)]})
        assert session.statistics()[0].opened == 1


async def test_no_buffer_is_left_by_a_failing_neighbour(models: Models, dead: contextlib.ExitStack) -> None:
    """The guard of these tests looks at every handle of every device after each of them."""
    session = MultiDeviceSession(models.add(SHAPE))
    await session.infer({device: [pair(0)] * 5 for device in range(4)})
    with emulator.gate("execute", device=2) as gate:
        call = asyncio.ensure_future(session.infer({device: [pair(0)] * 5 for device in range(4)}))
        await asyncio.to_thread(gate.wait_reached)
        dead.enter_context(emulator.kill(2))
        gate.open()
        with pytest.raises(AclInternalError):
            await call
    await session.aclose()


# --- streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_killing_a_device_in_the_middle(
    models: Models, dead: contextlib.ExitStack, caplog: pytest.LogCaptureFixture, count: int, ordered: bool
) -> None:
    seen = [False] * count

    async def kill_while_it_works() -> None:
        with emulator.gate("execute", device=2) as gate:
            assert await asyncio.to_thread(gate.wait_reached)
            dead.enter_context(emulator.kill(2))

    async with MultiDeviceSession(models.add(SHAPE)) as session:
        await session.infer({device: [pair(0)] for device in range(4)})
        expected = 0
        killing: asyncio.Future[None] | None = None
        async for one in session.stream((pair(k) for k in range(count)), ordered=ordered):
            assert right(one)
            assert not seen[one.index]
            seen[one.index] = True
            if ordered:
                assert one.index == expected
            expected += 1
            if expected == count * 2 // 5:
                killing = asyncio.ensure_future(kill_while_it_works())
        assert killing is not None
        await killing
        assert all(seen)
        statistics = session.statistics()
        assert not statistics[2].is_open
        assert "507010" in (statistics[2].failure or "")
        assert statistics[2].rerun > 0
        assert sum(s.streamed for s in statistics.values()) == count
        assert [r.getMessage() for r in caplog.records if "device 2 is taken out of service" in r.getMessage()]


async def test_a_device_that_is_dead_from_the_start(models: Models, dead: contextlib.ExitStack) -> None:
    dead.enter_context(emulator.kill(0))
    dead.enter_context(emulator.kill(3, 507033))
    async with MultiDeviceSession(models.add(SHAPE)) as session:

        async def source() -> AsyncIterator[list[Array]]:
            while any(session.statistics()[device].failure is None for device in (0, 3)):
                await asyncio.sleep(0.001)  # the others must not be through before these have failed
            for k in range(100):
                yield pair(k)

        got = [one async for one in session.stream(source(), "all")]
        assert [one.index for one in got] == list(range(100))
        assert all(map(right, got))
        assert {one.device_id for one in got} <= {1, 2}
        assert "507033" in (session.statistics()[3].failure or "")


@pytest.mark.parametrize("ordered", [True, False])
async def test_no_device_is_left(models: Models, dead: contextlib.ExitStack, ordered: bool) -> None:
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        got: list[StreamOutput] = []
        stream = session.stream((pair(k) for k in range(1000)), [0, 2], ordered=ordered)
        got.append(await anext(stream))
        dead.enter_context(emulator.kill(0))
        dead.enter_context(emulator.kill(2, 507899))
        with pytest.raises(BrokenSessionError, match="no device is left of 2") as caught:
            await _collect(stream, got)
        assert all(map(right, got))
        text = str(caught.value)
        assert "device 0: AclInternalError" in text
        assert "device 2: AclInternalError" in text
        assert "507010" in text
        assert "507899" in text
        assert isinstance(caught.value.__cause__, AclInternalError)
        assert len(notes(caught.value)) == 2
        with pytest.raises(BrokenSessionError, match="507899"):
            await anext(session.stream([pair(0)], [2]))
        dead.close()
        assert [one.index async for one in session.stream([pair(0), pair(1)], [0, 2])] == [0, 1]


async def test_a_reason_that_is_no_device_s(models: Models) -> None:
    async with MultiDeviceSession("missing.onnx") as session:
        with pytest.raises(ModelError, match=r"missing\.onnx") as caught:
            await anext(session.stream([pair(0)], [0, 1]))
        assert [note[:9] for note in sorted(notes(caught.value))] == ["device 0:", "device 1:"]


async def test_an_error_of_an_item_is_not_its_device_s(models: Models) -> None:
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        await session.infer({0: [pair(0)]})
        emulator.fail("acl.mdl.execute_async", 145000, after=10)
        got: list[StreamOutput] = []
        with pytest.raises(AclError) as caught:
            await _collect(session.stream((pair(k) for k in range(100)), [0]), got)
        assert caught.value.code == 145000
        assert [one.index for one in got] == list(range(len(got)))
        assert session.statistics()[0].opened == 1


async def test_another_call_finds_out_first(models: Models) -> None:
    async with MultiDeviceSession(models.add(SHAPE), depth=1) as session:
        stream = session.stream((pair(k) for k in range(60)), [0, 1])
        got = [await anext(stream) for _ in range(10)]
        with emulator.kill(1), pytest.raises((AclInternalError, BrokenSessionError)):
            await session.infer({1: [pair(0)]})
        got += [one async for one in stream]
        assert [one.index for one in got] == list(range(60))
        assert all(map(right, got))
        # Before it died it may have had results that waited for their turn: four times the room of both devices.
        assert {one.device_id for one in got[10 + 4 * 4 :]} == {0}
