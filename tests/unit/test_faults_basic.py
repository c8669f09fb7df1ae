"""A call that fails, at submission or on the device: who gets the error, and that nothing else suffers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import TYPE_CHECKING

import pytest
from tests.unit.sums import check, feeds

from aioais import AclError, AclMemoryError, InferSession, emulator
from aioais.testing import check_leaks

if TYPE_CHECKING:
    from tests.unit.conftest import Models

pytestmark = pytest.mark.usefixtures("clean_slate")

SMALL = (1, 8)
LARGE = (1, 1 << 17)
BOTH = pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
CODE = 507899


async def many(session: InferSession, shape: tuple[int, ...], count: int) -> list[AclError]:
    """Run many requests at once; what is delivered as good has to be right."""
    results = await asyncio.gather(
        *(session.infer(feeds(shape, seed)) for seed in range(count)), return_exceptions=True
    )
    errors = []
    for seed, result in enumerate(results):
        if isinstance(result, AclError):
            errors.append(result)
        else:
            assert isinstance(result, list), result
            check(shape, seed, result)
    return errors


# --- calls of the request path that fail at once --------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "call",
    [
        "acl.rt.memcpy_async",
        "acl.mdl.execute_async",
        "acl.rt.record_event",
        "acl.rt.synchronize_stream",
        "acl.rt.event_elapsed_time",
    ],
)
async def test_refused_call(models: Models, call: str, shape: tuple[int, ...]) -> None:
    """At each of the first places where a request makes the call."""
    path = models.add(shape)
    async with InferSession(0, path) as other:
        await other.infer(feeds(shape, 1))
        emulator.reset_counts()
        await other.infer(feeds(shape, 1))
        places = range(min(3, emulator.counts()[call]))
        for nth in places:
            async with InferSession(0, path, depth=2) as session:
                for _ in range(2):
                    await session.infer(feeds(shape, 1))
                emulator.fail(call, CODE, after=nth)
                with pytest.raises(AclError) as caught:
                    await session.infer(feeds(shape, 2))
                error = caught.value
                assert (error.call, error.code) == (call, CODE)
                assert str(CODE) in str(error)
                assert call in str(error)
                check(shape, 3, await session.infer(feeds(shape, 3)))
                check(shape, 3, await other.infer(feeds(shape, 3)))
                now = session.statistics()
                assert (now.in_flight, now.queued, now.done, now.failed) == (0, 0, 3, 1)
                assert other.statistics().failed == 0
                assert await many(session, shape, 16) == []
                del caught, error


@BOTH
async def test_a_refused_wait_for_the_execution_before(models: Models, shape: tuple[int, ...]) -> None:
    """It concerns the request that would have waited; the next one waits in its place."""
    async with InferSession(0, models.add(shape), depth=3) as session:
        check(shape, 0, await session.infer(feeds(shape, 0)))
        with emulator.gate("execute") as gate:
            first = asyncio.ensure_future(session.infer(feeds(shape, 1)))
            assert await asyncio.to_thread(gate.wait_reached)
            emulator.fail("acl.rt.stream_wait_event", CODE)
            second = asyncio.ensure_future(session.infer(feeds(shape, 2)))
            while emulator.pending():
                await asyncio.sleep(0.001)
            third = asyncio.ensure_future(session.infer(feeds(shape, 3)))
            while session.statistics().in_flight < 3:
                await asyncio.sleep(0.001)
        check(shape, 1, await first)
        with pytest.raises(AclError) as caught:
            await second
        assert (caught.value.call, caught.value.code) == ("acl.rt.stream_wait_event", CODE)
        del caught
        check(shape, 3, await third)
        assert await many(session, shape, 16) == []
        assert session.statistics().failed == 1


@pytest.mark.pairs
@BOTH
@pytest.mark.parametrize(
    ("call", "nth"),
    [
        (call, nth)
        for call, count in {
            "acl.rt.malloc": 3,
            "acl.rt.malloc_host": 3,
            "acl.rt.create_stream": 1,
            "acl.rt.create_event_ex_with_flag": 3,
            "acl.mdl.create_dataset": 3,
        }.items()
        for nth in range(count)
    ],
)
async def test_buffers_cannot_be_made(models: Models, call: str, nth: int, shape: tuple[int, ...]) -> None:
    async with InferSession(0, models.add(shape), depth=2) as session:
        held = session.statistics().device_bytes
        emulator.fail(call, CODE, after=nth)
        try:
            check(shape, 1, await session.infer(feeds(shape, 1)))
        except AclError as exc:
            assert exc.call == call  # noqa: PT017 - it may as well succeed
            if session.statistics().slots == 0:
                assert session.statistics().device_bytes == held
        with emulator.gate("execute"):  # so that another set of buffers is wanted
            task = asyncio.ensure_future(many(session, shape, 8))
            while emulator.pending() and session.statistics().in_flight < 2:
                await asyncio.sleep(0.001)
        errors = await task
        assert len(errors) <= 1
        assert not emulator.pending(), f"nothing calls {call}"
        check(shape, 3, await session.infer(feeds(shape, 3)))
        now = session.statistics()
        assert (now.in_flight, now.queued) == (0, 0)
        emulator.reset_counts()


@BOTH
@pytest.mark.usefixtures("patient")
async def test_no_memory_for_another_set_of_buffers(models: Models, shape: tuple[int, ...]) -> None:
    async with InferSession(0, models.add(shape), depth=4) as session:
        for seed in range(60):  # until it is known how light the model is
            check(shape, seed, await session.infer(feeds(shape, seed)))
        # Each is tried once more when idle memory was given back. Small ones want room to share the first set before.
        emulator.fail("acl.rt.malloc", 207001, times=2 if shape == LARGE else 4)
        with emulator.gate("execute"):
            task = asyncio.ensure_future(many(session, shape, 32))
            while emulator.pending():  # the suite's timeout ends it
                await asyncio.sleep(0.001)
        assert await task == []
        now = session.statistics()
        assert (now.depth, now.slots, now.failed) == (1, 1, 0)


async def test_spare_buffers_are_kept_when_others_cannot_be_made(models: Models) -> None:
    async with InferSession(0, models.add(LARGE), depth=4) as session:
        check(LARGE, 0, await session.infer(feeds(LARGE, 0)))
        emulator.fail("acl.rt.malloc", 207001, after=1, times=2)
        with emulator.gate("execute") as running, emulator.gate("malloc") as gate:
            first = asyncio.create_task(session.infer(feeds(LARGE, 1)))
            assert await asyncio.to_thread(running.wait_reached, 60)
            second = asyncio.create_task(session.infer(feeds(LARGE, 2)))
            assert await asyncio.to_thread(gate.wait_reached, 60)
            running.open()
            check(LARGE, 1, await first)  # its buffers are free now, while others are being made
        check(LARGE, 2, await second)
        now = session.statistics()
        assert (now.depth, now.slots, now.failed) == (1, 1, 0)


@BOTH
@pytest.mark.parametrize(
    ("call", "code", "what"),
    [("acl.rt.create_event_ex_with_flag", 207007, "events"), ("acl.rt.create_stream", 207008, "streams")],
)
async def test_no_events_or_streams_for_another_set_of_buffers(
    models: Models, caplog: pytest.LogCaptureFixture, call: str, code: int, what: str, shape: tuple[int, ...]
) -> None:
    async with InferSession(0, models.add(shape), depth=4) as session:
        check(shape, 0, await session.infer(feeds(shape, 0)))
        emulator.fail(call, code)
        with emulator.gate("execute"):  # so that another set of buffers is wanted
            task = asyncio.create_task(many(session, shape, 32))
            while emulator.pending():  # the suite's timeout ends it
                await asyncio.sleep(0.001)
        assert await task == []
        assert (session.statistics().failed, session.statistics().depth) == (0, 1)
    assert f"out of {what} for 2 concurrent requests" in caplog.text


async def test_no_memory_at_all(models: Models) -> None:
    async with InferSession(0, models.add(SMALL)) as session:
        emulator.fail("acl.rt.malloc", 207001, times=2)  # once more when idle memory was given back
        with pytest.raises(AclMemoryError) as caught:
            await session.infer(feeds(SMALL, 1))
        assert isinstance(caught.value, MemoryError)
        assert caught.value.name
        check(SMALL, 2, await session.infer(feeds(SMALL, 2)))


@pytest.mark.parametrize("what", ["infer", "tensors", "exchange", "copy"])
async def test_a_buffer_cannot_be_bound(models: Models, what: str) -> None:
    """What the next request computes with must be the buffers that it reads its result from."""

    async def step() -> None:
        if what == "infer":
            check(LARGE, 1, await session.infer(feeds(LARGE, 1)))
        elif what == "tensors":
            (tensor,) = await session.infer(feeds(LARGE, 1), out_array=False)
            tensor.close()
        else:
            await session.infer_iteration(feeds(LARGE, 1), [0, -1], 3, mem_copy=what == "copy")

    call = "acl.update_data_buffer"
    async with InferSession(0, models.add(LARGE), depth=1) as session:
        await step()
        emulator.reset_counts()
        await step()
        for nth in range(emulator.counts().get(call, 0)):
            emulator.fail(call, CODE, after=nth)
            with pytest.raises(AclError) as caught:
                await step()
            assert caught.value.call == call
            del caught
            gc.collect()
            for seed in range(3):
                check(LARGE, seed, await session.infer(feeds(LARGE, seed)))
            await step()


# --- waits that are refused while the work goes on --------------------------------------------------


@pytest.mark.parametrize("hang_timeout", [None, 60])
@pytest.mark.parametrize(("shape", "stage", "nth"), [(SMALL, "execute", 0), (SMALL, "d2h", 0), (LARGE, "d2h", 0)])
async def test_a_refused_wait_gives_nothing_away(
    models: Models, shape: tuple[int, ...], stage: str, nth: int, hang_timeout: float | None
) -> None:
    """The device may still write to the buffers: the request ends when it is through, and not before."""
    call = "acl.rt.synchronize_stream" + ("_with_timeout" if hang_timeout else "")
    async with InferSession(0, models.add(shape), hang_timeout=hang_timeout) as session:
        check(shape, 1, await session.infer(feeds(shape, 1)))
        emulator.reset_counts()
        with emulator.gate(stage):
            emulator.fail(call, CODE, after=nth)
            task = asyncio.ensure_future(session.infer(feeds(shape, 2)))
            while emulator.counts().get(call, 0) < nth + 2 and not task.done():  # until it waits again
                await asyncio.sleep(0.001)
            assert not task.done()
            assert session.statistics().in_flight == 1
        with pytest.raises(AclError) as caught:
            await task
        assert (caught.value.call, caught.value.code) == (call, CODE)
        check(shape, 3, await session.infer(feeds(shape, 3)))
        del caught


async def test_a_wait_that_fails_in_two_ways(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    async with InferSession(0, models.add(SMALL)) as session:
        check(SMALL, 1, await session.infer(feeds(SMALL, 1)))
        emulator.fail("acl.rt.synchronize_stream", CODE)
        emulator.fail("acl.rt.synchronize_stream", 107003)
        with pytest.raises(AclError) as caught:
            await session.infer(feeds(SMALL, 2))
        assert caught.value.code == CODE, "the first is the one to tell"
        assert "waiting again failed too: acl.rt.synchronize_stream failed with 107003" in caplog.text
        check(SMALL, 3, await session.infer(feeds(SMALL, 3)))
        del caught


@pytest.mark.parametrize("call", ["acl.rt.record_event", "acl.rt.synchronize_stream", "acl.update_data_buffer"])
async def test_outputs_that_acl_allocated_are_freed_whatever_fails_next(models: Models, call: str) -> None:
    path = models.convert(
        models.add(["n", 8], name="open"), "ranges", input_shape_range="input1:[1~4,8];input2:[1~4,8]"
    )

    async def live_through() -> None:
        async with InferSession(0, path) as session:
            check(SMALL, 1, await session.infer(feeds(SMALL, 1), "dymshape", 1))

    await live_through()
    emulator.reset_counts()
    await live_through()
    assert emulator.counts()["acl.mdl.execute"] == 1, "ACL allocates in this run"
    for nth in range(emulator.counts()[call]):
        emulator.fail(call, CODE, after=nth)
        with contextlib.suppress(AclError):
            await live_through()
        check_leaks()


# --- work that fails on the device ------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("call", "nth"), [*(("acl.rt.memcpy_async", nth) for nth in range(3)), ("acl.mdl.execute_async", 0)]
)
async def test_alone_on_the_device(models: Models, call: str, nth: int, shape: tuple[int, ...]) -> None:
    async with InferSession(0, models.add(shape)) as session:
        await session.infer(feeds(shape, 1))
        emulator.fail(call, CODE, after=nth, device_side=True)
        with pytest.raises(AclError) as caught:
            await session.infer(feeds(shape, 2))
        assert caught.value.code == CODE
        check(shape, 3, await session.infer(feeds(shape, 3)))
        del caught


@pytest.mark.pairs
@BOTH
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("call", ["acl.rt.memcpy_async", "acl.mdl.execute_async"])
async def test_amid_many_is_never_delivered_as_good(
    models: Models, call: str, depth: int, shape: tuple[int, ...]
) -> None:
    path = models.add(shape)
    async with InferSession(0, path, depth=depth) as session, InferSession(0, path) as other:
        assert await many(session, shape, 2 * depth) == []
        await other.infer(feeds(shape, 1))
        for after in range(12):
            emulator.fail(call, CODE, after=after, device_side=True)
            errors = await many(session, shape, 16)
            while emulator.pending(device_side=True):  # small requests share copies
                assert not errors
                errors = await many(session, shape, 16)
            assert errors, "a failure on the device was lost"
            assert all(error.code == CODE for error in errors)
            assert len({id(error) for error in errors}) == len(errors), "each waiter has an error of its own"
            assert await many(session, shape, 3) == []
        check(shape, 3, await other.infer(feeds(shape, 3)))
        assert other.statistics().failed == 0
        now = session.statistics()
        assert (now.in_flight, now.queued) == (0, 0)


@pytest.mark.parametrize("after", [0, 3, 9])
async def test_queued_behind_a_failure(models: Models, after: int) -> None:
    """The failing run is queued, and is run, while a caller waits for an earlier one."""
    async with InferSession(0, models.add(LARGE), depth=4) as session:
        await many(session, LARGE, 8)
        with emulator.gate("execute") as gate:
            tasks = [asyncio.ensure_future(session.infer(feeds(LARGE, seed))) for seed in range(12)]
            emulator.fail("acl.mdl.execute_async", CODE, after=after, device_side=True)
            await asyncio.sleep(0)
            assert gate.wait_reached()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        errors = [result for result in results if isinstance(result, AclError)]
        assert errors
        for seed, result in enumerate(results):
            if isinstance(result, list):
                check(LARGE, seed, result)
            del result
        assert await many(session, LARGE, 8) == []
        del tasks, results, errors


async def test_cancelled_and_failed(models: Models) -> None:
    async with InferSession(0, models.add(LARGE), depth=2) as session:
        await many(session, LARGE, 4)
        with emulator.gate("execute") as gate:
            task = asyncio.ensure_future(session.infer(feeds(LARGE, 1)))
            emulator.fail("acl.mdl.execute_async", CODE, device_side=True)
            await asyncio.sleep(0)
            assert gate.wait_reached()
            task.cancel()
            await asyncio.wait([task])
        # Those that were executed together with it may fail with it; none is delivered wrong.
        assert all(error.code == CODE for error in await many(session, LARGE, 6))
        assert await many(session, LARGE, 6) == []
