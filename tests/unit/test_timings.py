"""The times of single requests: what `session.record()` collects, and that it costs nothing else."""

from __future__ import annotations

import asyncio
import itertools
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aioais import AclError, ArgumentError, ClosedError, InferSession, Recording, RequestTiming, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

SMALL = (1, 8)
"""Submitted and awaited by one thread when it is alone."""
LARGE = (1, 1 << 17)
"""Always goes by the stages."""
BOTH_WAYS = pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])


def ones(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.ones(shape, np.float32)


def check_order(timing: RequestTiming) -> None:
    """What holds of each request, however noisy the machine."""
    assert timing.is_measured
    assert timing.queue.begin <= timing.queue.end
    assert timing.h2d.begin <= timing.h2d.end <= timing.execute.begin <= timing.execute.end
    assert timing.execute.end <= timing.d2h.begin <= timing.d2h.end
    assert timing.delivery.begin <= timing.delivery.end
    assert timing.total_ms >= timing.h2d_ms + timing.execute_ms + timing.d2h_ms - 1


@BOTH_WAYS
async def test_each_stage_is_timed(models: Models, dialled: None, shape: tuple[int, ...]) -> None:
    async with InferSession(0, models.identity(shape)) as session:
        attempts = itertools.count(1)
        while True:
            before = perf_counter()
            with session.record() as timings:
                await session.infer([ones(shape)])
                assert len(timings) == 1, "the record is there when the await returns"
            after = perf_counter()
            is_placed_well = timings[0].queue.end <= timings[0].h2d.begin + 1e-3
            if is_placed_well or next(attempts) == 5:  # not where a thread was held up amid the anchor
                break
    (timing,) = timings
    check_order(timing)
    assert timing.outcome == "done"
    assert (timing.mode, timing.shapes) == ("static", (shape,))
    assert timing.started == timing.queue.begin
    assert before <= timing.started <= timing.delivery.end <= after
    # An engine takes at least what is dialled.
    assert timing.h2d_ms >= 0.99
    assert timing.execute_ms >= 1.99
    assert timing.d2h_ms >= 0.99
    assert timing.queue_ms >= 0
    assert timing.delivery_ms >= 0
    # The device's times are brought to the host's clock.
    assert timing.queue.end <= timing.h2d.begin + 1e-3
    assert timing.d2h.end <= after


@BOTH_WAYS
async def test_times_agree_with_the_statistics(models: Models, shape: tuple[int, ...]) -> None:
    async with InferSession(0, models.identity(shape), loop=3) as session:
        with session.record() as timings:
            for _ in range(20):
                await session.infer([ones(shape)])
        stages = session.statistics().stages
        executions = session.summary()
    for name in ("queue", "h2d", "execute", "d2h"):
        total = sum(getattr(timing, f"{name}_ms") for timing in timings)
        assert total == pytest.approx(stages[name].total_ms, rel=1e-3, abs=1e-3)
    assert executions.count == 60
    assert [timing.execute_ms for timing in timings] == pytest.approx(
        [sum(executions[k : k + 3]) for k in range(0, 60, 3)], rel=1e-3, abs=1e-3
    )


async def test_a_pipeline_overlaps(models: Models, dialled: None) -> None:
    async with InferSession(0, models.identity(LARGE)) as session:
        attempts = itertools.count(1)
        while True:
            with session.record() as timings:
                async for _ in session.infer_pipeline([[ones(LARGE)] for _ in range(12)]):
                    pass
            assert [timing.number for timing in timings] == sorted(timing.number for timing in timings)
            assert len(timings) == 12
            for timing in timings:
                check_order(timing)
            # Each may be placed by another anchor, which knows the host's time better than the one before.
            gaps = [second.execute.begin - first.execute.end for first, second in pairwise(timings)]
            if min(gaps) >= -1e-4 or next(attempts) == 5:  # a thread held up amid an anchor places its request wrongly
                break
        assert min(gaps) >= -1e-4, "one execution at a time"
    overlaps = sum(second.h2d.begin < first.execute.end for first, second in pairwise(timings))
    assert overlaps >= 3, "copies of the next request run beside the execution"


async def test_a_lonely_request_does_not_hold_up_the_next(models: Models) -> None:
    """Its copies back are not in the way of the next one's execution."""
    async with InferSession(0, models.identity(SMALL)) as session:
        with emulator.configure(execute_ms=1, d2h_ms=500), session.record() as timings:
            await asyncio.gather(*(session.infer([ones(SMALL)]) for _ in range(2)))
    first, second = timings
    assert second.execute.end < first.d2h.end


async def test_delivery_is_the_wait_for_the_loop(models: Models) -> None:
    async with InferSession(0, models.identity(SMALL)) as session:
        with session.record() as timings:
            task = asyncio.ensure_future(session.infer([ones(SMALL)]))
            await asyncio.sleep(0)
            while not session.statistics().done:
                pass  # the loop is blocked here, and the result waits
            freed = perf_counter()
            await task
    assert timings[0].delivery.begin <= freed <= timings[0].delivery.end


@pytest.mark.parametrize("mode", ["dymbatch", "auto"])
async def test_gears(models: Models, mode: Any) -> None:
    path = models.convert(models.identity(("n", 8)), "gears", input_shape="x:-1,8", dynamic_batch_size="1,2,4")
    async with InferSession(0, path) as session:
        with session.record() as timings:
            for batch in (1, 4, 2):
                await session.infer([ones((batch, 8))], mode=mode)
    assert [timing.shapes for timing in timings] == [((1, 8),), ((4, 8),), ((2, 8),)]
    assert {timing.mode for timing in timings} == {"dymbatch"}
    for timing in timings:
        check_order(timing)


@BOTH_WAYS
async def test_dynamic_shape(models: Models, dialled: None, shape: tuple[int, ...]) -> None:
    async with InferSession(0, models.identity(("n", "m"))) as session:
        with session.record() as timings:
            # The second is alone as the first, and its output too large for what was preallocated.
            await session.infer([ones((1, 2))], mode="dymshape", custom_sizes=8)
            await session.infer([ones(shape)], mode="dymshape", custom_sizes=8)
            await asyncio.gather(
                *(session.infer([ones(shape)], mode="dymshape", custom_sizes=1 << 20) for _ in range(4))
            )
    assert len(timings) == 6
    for timing in timings:
        check_order(timing)
        assert timing.mode == "dymshape"
        assert timing.execute_ms >= 1.99


async def test_what_does_not_move_takes_no_time(models: Models, dialled: None) -> None:
    async with InferSession(0, models.identity(SMALL)) as session:
        with session.record() as timings:
            (tensor,) = await session.infer([ones(SMALL)], out_array=False)
            (other,) = await session.infer([tensor], out_array=False)
            tensor.close()
            other.close()
    first, second = timings
    assert (first.d2h_ms, second.h2d_ms, second.d2h_ms) == (0.0, 0.0, 0.0)
    assert first.h2d_ms >= 0.99
    assert second.execute_ms >= 1.99


@BOTH_WAYS
async def test_a_failed_request(models: Models, shape: tuple[int, ...]) -> None:
    async with InferSession(0, models.identity(shape)) as session:
        await session.infer([ones(shape)])
        with session.record() as timings:
            emulator.fail("acl.mdl.execute_async", 507011, device_side=True)
            with pytest.raises(AclError):
                await session.infer([ones(shape)])
            await session.infer([ones(shape)])
    failed, done = timings
    assert (failed.outcome, failed.is_measured) == ("failed", False)
    assert (failed.h2d_ms, failed.execute_ms, failed.d2h_ms) == (0.0, 0.0, 0.0)
    assert failed.queue.end <= failed.delivery.begin <= failed.delivery.end
    assert done.outcome == "done"
    check_order(done)


@BOTH_WAYS
async def test_cancelled_requests(models: Models, shape: tuple[int, ...]) -> None:
    async with InferSession(0, models.identity(shape), depth=1) as session:
        await session.infer([ones(shape)])
        with session.record() as timings:
            with emulator.gate("execute") as gate:
                running = asyncio.ensure_future(session.infer([ones(shape)]))
                await asyncio.sleep(0)
                assert gate.wait_reached()
                queued = asyncio.ensure_future(session.infer([ones(shape)]))
                last = asyncio.ensure_future(session.infer([ones(shape)]))
                await asyncio.sleep(0)
                assert session.statistics().queued == 2
                running.cancel()
                queued.cancel()
                await asyncio.wait([running, queued])
                assert session.statistics().queued == 1, "who gave up does not queue any more"
            await last
            assert session.statistics().queued == 0
    by_number = sorted(timings, key=lambda timing: timing.number)
    assert [timing.outcome for timing in by_number] == ["cancelled", "cancelled", "done"]
    assert by_number[1].is_measured is False, "it never ran"
    check_order(by_number[0])
    check_order(by_number[2])


async def test_a_request_without_buffers(models: Models) -> None:
    async with InferSession(0, models.identity(SMALL)) as session:
        emulator.fail("acl.rt.malloc", 207001, times=2)
        with session.record() as timings, pytest.raises(MemoryError):
            await session.infer([ones(SMALL)])
    assert [(timing.outcome, timing.is_measured) for timing in timings] == [("failed", False)]
    assert timings[0].queue_ms > 0


async def test_a_failed_measurement_fails_no_request(models: Models) -> None:
    async with InferSession(0, models.identity(LARGE), depth=1) as session:
        await session.infer([ones(LARGE)])
        emulator.reset_counts()
        await session.infer([ones(LARGE)])
        counts = emulator.counts()
        with session.record() as timings:
            emulator.fail("acl.rt.create_event_ex_with_flag", 207007)
            np.testing.assert_array_equal((await session.infer([ones(LARGE)]))[0], ones(LARGE))
            # What a request reads for the statistics comes first, then what it reads for the record.
            for call in ("acl.rt.record_event", "acl.rt.synchronize_stream", "acl.rt.event_elapsed_time"):
                await session.infer([ones(LARGE)])
                emulator.fail(call, 107006, after=counts[call])
                await session.infer([ones(LARGE)])
            await session.infer([ones(LARGE)])
        assert session.statistics().failed == 0
    assert [timing.outcome for timing in timings] == ["done"] * 8
    assert [timing.is_measured for timing in timings] == [False, True, False, True, False, True, False, True]
    for timing in timings:
        assert timing.queue.end <= timing.delivery.begin <= timing.delivery.end
    for timing in timings[1::2]:
        check_order(timing)


async def test_any_number_may_be_open(models: Models) -> None:
    async with InferSession(0, models.identity(SMALL)) as session:
        with session.record() as all_of_them:
            await session.infer([ones(SMALL)])
            with session.record() as some:
                await session.infer([ones(SMALL)])
            await session.infer([ones(SMALL)])
        await session.infer([ones(SMALL)])
    assert len(all_of_them) == 3
    assert list(some) == [all_of_them[1]] == all_of_them[1:2]


async def test_only_what_begins_and_ends_inside(models: Models) -> None:
    async with InferSession(0, models.identity(SMALL), depth=1) as session:
        await session.infer([ones(SMALL)])
        with emulator.gate("execute") as gate:
            before = asyncio.ensure_future(session.infer([ones(SMALL)]))
            await asyncio.sleep(0)
            assert gate.wait_reached()
            with session.record() as timings:
                inside = asyncio.ensure_future(session.infer([ones(SMALL)]))
                await asyncio.sleep(0)
            assert (len(timings), timings.unfinished, timings.dropped) == (0, 1, 0)
        await asyncio.gather(before, inside)
    assert (len(timings), timings.unfinished) == (0, 1)


async def test_it_is_bounded(models: Models) -> None:
    async with InferSession(0, models.identity(SMALL)) as session:
        with session.record(limit=3) as timings:
            for _ in range(8):
                await session.infer([ones(SMALL)])
    numbers = [timing.number for timing in timings]
    assert (len(timings), timings.dropped, timings.unfinished) == (3, 5, 0)
    assert numbers == list(range(numbers[0], numbers[0] + 3))
    assert "3 requests, 5 dropped" in repr(timings)


async def test_iterating_while_more_come(models: Models) -> None:
    async with InferSession(0, models.identity(SMALL)) as session:
        with session.record() as timings:
            await session.infer([ones(SMALL)])
            for _ in timings:
                await session.infer([ones(SMALL)])
            assert len(timings) == 2


async def test_it_stays_after_the_session(models: Models) -> None:
    async with InferSession(0, models.identity(SMALL)) as session:
        timings = session.record()
        with timings:
            await session.infer([ones(SMALL)])
            await session.aclose()
        with pytest.raises(ClosedError):
            session.record()
    assert isinstance(timings, Recording)
    assert timings[-1].outcome == "done"
    with pytest.raises(ClosedError, match="opened only once"), timings:
        pass


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "many", None])
async def test_a_wrong_limit(models: Models, limit: Any) -> None:
    async with InferSession(0, models.identity(SMALL)) as session:
        with pytest.raises(ArgumentError, match="limit"):
            session.record(limit)


@BOTH_WAYS
async def test_nothing_is_measured_without_a_recording(models: Models, shape: tuple[int, ...]) -> None:
    """Before, beside and after a recording a request makes the same calls."""

    async def calls(session: InferSession) -> dict[str, int]:
        emulator.reset_counts()
        await session.infer([ones(shape)])
        return emulator.counts()

    async with InferSession(0, models.identity(shape), depth=1) as session:
        await session.infer([ones(shape)])
        before = await calls(session)
        with session.record():
            await session.infer([ones(shape)])
            recorded = await calls(session)
        assert await calls(session) == before
    extra = {name: count - before.get(name, 0) for name, count in recorded.items() if count != before.get(name, 0)}
    assert extra.pop("acl.rt.record_event") == 1
    assert extra.pop("acl.rt.synchronize_stream") == 1
    assert extra.pop("acl.rt.event_elapsed_time") <= 7
    assert not extra
