"""Sessions that break: a hung or lost device, a thread that dies. Every caller is told, nothing waits for ever."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import inside
from tests.unit.sums import check, feeds

from aioais import (
    AclError,
    ArgumentError,
    BrokenSessionError,
    ClosedError,
    DeviceHangError,
    InferSession,
    Mode,
    emulator,
)

if TYPE_CHECKING:
    from tests.unit.conftest import Models

pytestmark = pytest.mark.usefixtures("clean_slate")

Array = np.ndarray[Any, np.dtype[Any]]

SMALL = (2, 8)
LARGE = (2, 1 << 17)
LIMIT = 0.2
BOTH = pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
MODES = pytest.mark.parametrize("mode", ["static", "dymbatch", "dymshape"])
STAGES = pytest.mark.parametrize("stage", ["h2d", "execute", "d2h"])
LOST = [507010, 507053, 507054, 507901]


async def works(session: InferSession, shape: tuple[int, ...], mode: Mode = "static") -> None:
    check(shape, 3, await session.infer(feeds(shape, 3), mode))


async def refuses(session: InferSession, cause: type[BaseException], shape: tuple[int, ...] = SMALL) -> None:
    """Check that a broken session says so, at every door."""
    assert "broken" in repr(session)
    x = feeds(shape)

    async def pipeline() -> None:
        async for _ in session.infer_pipeline([x], "auto"):
            pass

    calls = (
        session.infer(x, "auto"),
        session.infer([]),  # what is wrong besides does not matter any more
        session.infer_iteration(x, [0, -1], 2, "auto"),
        pipeline(),
        session.to_device(x[0]),
    )
    for call in calls:
        with pytest.raises(BrokenSessionError) as caught:
            await call
        assert isinstance(caught.value.__cause__, cause)
        assert "close it and open another" in str(caught.value)
        del caught
    assert session.statistics().queued == 0
    assert session.summary().count >= 0  # looking on is still possible


def live() -> dict[str, int]:
    return {name: number for name, number in emulator.live().items() if name != "devices"}


# --- a device that hangs ------------------------------------------------------------------------


@pytest.mark.pairs
@STAGES
@MODES
@BOTH
async def test_a_stage_hangs(models: Models, stage: str, mode: Mode, shape: tuple[int, ...]) -> None:
    path = models.add_in(mode, shape)
    async with InferSession(1, path) as other:
        await works(other, shape, mode)
        before = live()
        session = await InferSession(0, path, depth=2, hang_timeout=LIMIT)
        await works(session, shape, mode)
        with emulator.gate(stage, 0):
            tasks = [asyncio.ensure_future(session.infer(feeds(shape, seed), mode)) for seed in range(6)]
            errors = await asyncio.gather(*tasks, return_exceptions=True)
            hung = [error for error in errors if isinstance(error, DeviceHangError)]
            assert hung
            assert {(error.call, error.code) for error in hung} == {("acl.rt.synchronize_stream_with_timeout", 507046)}
            assert len({id(error) for error in errors}) == len(errors), "each waiter has an error of its own"
            for error in errors:
                assert isinstance(error, DeviceHangError) or (
                    isinstance(error, BrokenSessionError) and isinstance(error.__cause__, DeviceHangError)
                )
            held = live()
            assert held["device_blocks"] > before["device_blocks"], "set aside while the device may use it"
            assert session.statistics().failed == 6
            await works(other, shape, mode)
        # The gate is open: the device comes to its senses, and all is freed.
        del tasks, errors, hung, error
        await session.aclose()
        while live()["device_blocks"] > before["device_blocks"]:  # the device, on which nothing is left, frees its pool
            await asyncio.sleep(0.001)
        await works(other, shape, mode)


@pytest.mark.parametrize("mode", ["static", "dymshape"])
@pytest.mark.parametrize("mem_copy", [True, False])
async def test_an_iteration_hangs(models: Models, mode: Mode, mem_copy: bool) -> None:
    session = await InferSession(0, models.add_in(mode, SMALL), hang_timeout=LIMIT)
    with emulator.gate("execute"):
        with pytest.raises(DeviceHangError):
            await session.infer_iteration(feeds(SMALL), [0, -1], 5, mode, mem_copy=mem_copy)
        await refuses(session, DeviceHangError)
    await session.aclose()


async def test_a_pipeline_hangs(models: Models) -> None:
    session = await InferSession(0, models.add(LARGE), depth=2, hang_timeout=LIMIT)
    taken, done = 0, 0
    gate: emulator.Gate | None = None

    def source() -> Iterator[list[Array]]:
        nonlocal taken
        while True:
            taken += 1
            yield feeds(LARGE)

    async def consume() -> None:
        nonlocal done, gate
        async for outputs in session.infer_pipeline(source()):
            del outputs
            done += 1
            gate = gate or emulator.gate("execute")

    with pytest.raises(DeviceHangError):
        await consume()
    assert gate is not None
    assert done >= 1
    assert taken <= done + 2 * 2
    await refuses(session, DeviceHangError, LARGE)
    gate.open()
    await session.aclose()


@BOTH
async def test_closed_while_the_device_hangs(
    models: Models, shape: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is freed that the device may use; once it is through, ``finalize`` finds it."""
    session = await InferSession(0, models.add(shape), depth=2, hang_timeout=LIMIT)
    await works(session, shape)
    with emulator.gate("execute", 0):
        with pytest.raises(DeviceHangError):
            await session.infer(feeds(shape))
        held = live()
        with caplog.at_level(logging.ERROR, "aioais"):
            await session.aclose()
        assert "stay set aside" in caplog.text
        assert live() == held
        await session.aclose()  # idempotent
        with pytest.raises(ClosedError):
            await session.infer(feeds(shape))
        await InferSession.finalize()  # ends, and leaves what it must
        assert live()["device_blocks"] == held["device_blocks"]
        async with InferSession(1, models.add(shape, name="again")) as another:
            await works(another, shape)
    async with InferSession(0, models.add(shape, name="again")) as another:
        await works(another, shape)
    await InferSession.finalize()
    assert emulator.leaks() == {}


@pytest.mark.parametrize("is_through", [True, False], ids=["through", "working"])
async def test_leaked(models: Models, is_through: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A broken session that is never closed warns as a whole one does, and frees what the device lets go of."""
    session = await InferSession(0, models.add(SMALL), hang_timeout=LIMIT)
    with emulator.gate("execute") as gate:
        with pytest.raises(DeviceHangError):
            await session.infer(feeds(SMALL))
        held = live()["device_blocks"]
        if is_through:
            gate.open()
        else:
            caplog.set_level(logging.ERROR, "aioais")
        with pytest.warns(ResourceWarning, match="broken> was never closed") as warned:  # noqa: PT031
            del session
            while not warned.list:  # the session's threads, and this step of the loop, hold it for a moment
                await asyncio.sleep(0.001)
                gc.collect()
        if not is_through:
            while "stay set aside" not in caplog.text:  # the suite's timeout ends it
                await asyncio.sleep(0.001)
            assert live()["device_blocks"] == held
    if not is_through:
        await InferSession.finalize()
    while any(live().values()):
        await asyncio.sleep(0.001)


async def test_finalised_while_it_is_broken(models: Models) -> None:
    """It goes on to say why, and its counters stay true."""
    session = await InferSession(0, models.add(SMALL), depth=2)
    await works(session, SMALL)
    emulator.fail("acl.mdl.execute_async", LOST[0], device_side=True)
    with pytest.raises(AclError):
        await session.infer(feeds(SMALL))
    await InferSession.finalize()
    seen = session.statistics()
    assert (seen.in_flight, seen.queued, seen.slots, seen.done, seen.failed) == (0, 0, 0, 1, 1)
    await refuses(session, AclError)
    await session.aclose()


async def test_hangs_while_it_is_being_closed(models: Models) -> None:
    session = await InferSession(0, models.add(SMALL), hang_timeout=LIMIT)
    with emulator.gate("execute") as gate:
        task = asyncio.ensure_future(session.infer(feeds(SMALL)))
        await asyncio.sleep(0)
        assert gate.wait_reached()
        await session.aclose()
        with pytest.raises(DeviceHangError):
            await task
    await InferSession.finalize()


async def test_a_hung_request_was_cancelled(models: Models) -> None:
    session = await InferSession(0, models.add(LARGE), depth=2, hang_timeout=LIMIT)
    with emulator.gate("execute") as gate:
        tasks = [asyncio.ensure_future(session.infer(feeds(LARGE))) for _ in range(4)]
        await asyncio.sleep(0)
        assert gate.wait_reached()
        tasks[0].cancel()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(errors[0], asyncio.CancelledError)
        assert all(isinstance(error, (DeviceHangError, BrokenSessionError)) for error in errors[1:])
        assert (session.statistics().cancelled, session.statistics().failed) == (1, 3)
    del tasks, errors
    await session.aclose()


async def test_what_hangs_is_recorded_once(models: Models) -> None:
    session = await InferSession(0, models.add(LARGE), depth=2, hang_timeout=LIMIT)
    with session.record() as timings, emulator.gate("execute"):
        await asyncio.gather(*(session.infer(feeds(LARGE)) for _ in range(4)), return_exceptions=True)
    await session.aclose()
    assert [timing.outcome for timing in timings] == ["failed"] * 4


async def test_a_device_tensor_that_was_fed_is_set_aside(models: Models) -> None:
    session = await InferSession(0, models.add(SMALL), hang_timeout=LIMIT)
    tensor = await session.to_device(feeds(SMALL)[0])
    with emulator.gate("execute"):
        with pytest.raises(DeviceHangError):
            await session.infer([tensor, feeds(SMALL)[1]])
        held = live()["device_blocks"]
        tensor.close()
        del tensor
        gc.collect()
        assert live()["device_blocks"] == held
    await session.aclose()


async def test_in_time_is_no_hang(models: Models) -> None:
    async with InferSession(0, models.add(LARGE), depth=4, hang_timeout=60) as session:
        await asyncio.gather(*(works(session, LARGE) for _ in range(12)))
        assert session.statistics().failed == 0


@pytest.mark.parametrize("came", [0, -1, float("nan"), float("inf"), "1", True, 1e10])
def test_hang_timeout_out_of_range(came: Any) -> None:
    with pytest.raises(ArgumentError, match="hang_timeout"):
        InferSession(0, "model.onnx", hang_timeout=came)


async def test_a_release_without_bounded_waits(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside.cpu_library(), "has_stream_timeout", False)
    with pytest.raises(ArgumentError, match="newer CANN"):
        await InferSession(0, models.add(SMALL), hang_timeout=1)
    async with InferSession(0, models.add(SMALL)) as session:
        await works(session, SMALL)


# --- a device that is lost ------------------------------------------------------------------------


@pytest.mark.parametrize("code", LOST)
@pytest.mark.parametrize("call", ["acl.rt.memcpy_async", "acl.mdl.execute_async"])
@BOTH
async def test_the_device_is_lost(models: Models, call: str, code: int, shape: tuple[int, ...]) -> None:
    path = models.add(shape)
    async with InferSession(1, path) as other:
        session = await InferSession(0, path, depth=2)
        await works(session, shape)
        emulator.fail(call, code, after=1, device_side=True)
        errors = await asyncio.gather(*(session.infer(feeds(shape)) for _ in range(6)), return_exceptions=True)
        causes = [e.__cause__ if isinstance(e, BrokenSessionError) else e for e in errors]
        codes = {cause.code if isinstance(cause, AclError) else 0 for cause in causes if not isinstance(cause, list)}
        assert codes == {code}
        assert any(isinstance(error, AclError) for error in errors)
        await refuses(session, AclError, shape)
        await works(other, shape)
        del errors, causes
        await session.aclose()


@pytest.mark.parametrize("code", [507011, 507015, 507899])
async def test_other_codes_leave_the_session_whole(models: Models, code: int) -> None:
    async with InferSession(0, models.add(SMALL)) as session:
        emulator.fail("acl.mdl.execute_async", code, device_side=True)
        with pytest.raises(AclError):
            await session.infer(feeds(SMALL))
        await works(session, SMALL)


async def test_a_context_that_failed_is_not_joined_again(models: Models) -> None:
    """Kept results and tensors hold a device; what is opened next must not get its dead context for that."""
    path = models.add(LARGE)
    async with InferSession(0, path) as session:
        (kept,) = await session.infer(feeds(LARGE))
        tensor = await session.to_device(kept)
        emulator.fail("acl.mdl.execute_async", 507015, device_side=True)
        with pytest.raises(AclError):
            await session.infer(feeds(LARGE))
        emulator.reset_counts()
        await works(session, LARGE)
    assert "acl.rt.create_context" not in emulator.counts()
    async with InferSession(0, path) as session, InferSession(0, path) as neighbour:
        assert emulator.counts()["acl.rt.create_context"] == 1
        await works(session, LARGE)
        await works(neighbour, LARGE)
        (total,) = await session.infer([tensor, tensor])  # the memory is the device's, whatever the context
        np.testing.assert_array_equal(total, 2 * kept)
        np.testing.assert_array_equal(await tensor.to_host(), kept)
        tensor.close()
    del kept, total


# --- an engine thread that dies ---------------------------------------------------------------------


@pytest.mark.parametrize("thread", inside.STAGES)
async def test_a_stage_thread_dies(models: Models, thread: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of ours must end the session and not hang it."""
    before = live()
    session = await InferSession(0, models.add(LARGE), depth=2)
    await works(session, LARGE)
    inside.break_stage(monkeypatch, session, thread, ZeroDivisionError("a bug"))
    tasks = [asyncio.ensure_future(session.infer(feeds(LARGE))) for _ in range(6)]
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    for error in errors:
        assert isinstance(error, BrokenSessionError)
        assert isinstance(error.__cause__, ZeroDivisionError)
    await refuses(session, ZeroDivisionError, LARGE)
    del tasks, errors, error
    await session.aclose()
    await InferSession.finalize()
    assert live() == before
