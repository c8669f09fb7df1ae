"""Small requests that share one set of buffers: what is right of one request must be right of each of them."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import inside
from tests.unit.sums import check, feeds

from aioais import AclError, InferSession, MemorySummary, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

    from aioais.emulator import Gate

pytestmark = pytest.mark.usefixtures("clean_slate", "patient")

SMALL = (1, 8)
CODE = 507899

Task = asyncio.Task[list[np.ndarray[Any, Any]]]


async def round_of(session: InferSession, count: int) -> None:
    results = await asyncio.gather(*(session.infer(feeds(SMALL, seed)) for seed in range(count)))
    for seed, result in enumerate(results):
        check(SMALL, seed, result)


async def rows_of(session: InferSession, rows: int, width: int, count: int) -> None:
    """Run requests of a model with gears that returns its input."""
    arrays = [np.full((rows, width), k, np.float32) for k in range(count)]
    results = await asyncio.gather(*(session.infer([array], "auto") for array in arrays))
    for array, (result,) in zip(arrays, results, strict=True):
        np.testing.assert_array_equal(result, array)


async def grown(session: InferSession) -> int:
    """Keep the session busy until all its slots were shared; returns how many requests may share one."""
    while not inside.is_fast(session):
        await round_of(session, 64)
    for _ in range(3):
        await round_of(session, 128)
    return 16


async def gate_of(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.wait_reached, 60)


@asynccontextmanager
async def waiting(session: InferSession, count: int, first: int = 1) -> AsyncIterator[list[Task]]:
    """Submit requests that find the device at work, so that it takes what may go together next at once.

    Their seeds are 1, 2, … Leaving the block lets the device go on.
    """
    with emulator.gate("execute") as gate:
        lonely = asyncio.create_task(session.infer(feeds(SMALL, 0)))
        await gate_of(gate)
        tasks = [asyncio.create_task(session.infer(feeds(SMALL, seed))) for seed in range(first, first + count)]
        while session.statistics().queued < count:
            await asyncio.sleep(0)
        yield tasks
    check(SMALL, 0, await lonely)


async def outcomes(tasks: list[Task], first: int = 1) -> list[int]:
    """Give the numbers of those that failed; the others must be right."""
    failed = []
    for k, result in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
        if isinstance(result, AclError):
            failed.append(k)
        else:
            assert isinstance(result, list), result
            check(SMALL, first + k, result)
    return failed


async def executions(session: InferSession, tasks: list[Task]) -> int:
    """Give how many executions are queued together, where the device stands before the first of them."""
    count, since = -1, time.monotonic()
    while time.monotonic() < since + 0.05:
        now = emulator.counts().get("acl.mdl.execute_async", 0)
        if now != count:
            count, since = now, time.monotonic()
        await asyncio.sleep(0.001)
        assert not any(task.done() for task in tasks)
        statistics = session.statistics()
        assert statistics.in_flight + statistics.queued == len(tasks)
    return count


@asynccontextmanager
async def taken_next(session: InferSession, count: int) -> AsyncIterator[int]:
    """Submit requests as :func:`waiting` does, and give how many executions the device then takes at once."""
    async with waiting(session, count) as tasks:
        behind = emulator.gate("h2d")
        emulator.reset_counts()
    with behind:
        await gate_of(behind)
        yield await executions(session, tasks)
    assert await outcomes(tasks) == []


@pytest.mark.parametrize(("depth", "together", "slots"), [(1, 1, 1), (2, 32, 2), (4, 40, 3), (16, 40, 3)])
async def test_how_many(models: Models, depth: int, together: int, slots: int) -> None:
    async with InferSession(0, models.add(SMALL), depth=depth) as session:
        await grown(session)
        async with taken_next(session, 40) as count:
            assert count == together
            assert session.statistics().in_flight == slots, "those that share a set of buffers count as one"
        now = session.statistics()
        assert (now.in_flight, now.queued) == (0, 0)


@pytest.mark.parametrize(("depth", "together", "slots"), [(2, 64, 2), (4, 70, 3)])
async def test_how_many_where_the_device_waits_for_the_host(
    models: Models, monkeypatch: pytest.MonkeyPatch, depth: int, together: int, slots: int
) -> None:
    inside.treat_as_instant(monkeypatch)
    async with InferSession(0, models.add(SMALL), depth=depth) as session:
        await grown(session)
        async with taken_next(session, 70) as count:
            assert count == together
            assert session.statistics().in_flight == slots


async def test_each_has_a_slot_where_there_are_enough(models: Models) -> None:
    async with InferSession(0, models.add(SMALL), depth=4) as session:
        await grown(session)
        async with taken_next(session, 4) as count:
            assert count == 4
            assert session.statistics().in_flight == 4


@pytest.mark.parametrize(
    ("depth", "waiting_now", "together"), [(2, 10, 6 + 3), (4, 10, 6 + 1 + 1 + 1), (4, 40, 16 + 13 + 6 + 3)]
)
async def test_half_of_what_waits(
    models: Models, monkeypatch: pytest.MonkeyPatch, depth: int, waiting_now: int, together: int
) -> None:
    """Where a request takes longer than a thread needs to wake, a batch has half of the requests that wait."""
    async with InferSession(0, models.add(SMALL), depth=depth) as session:
        await grown(session)
        inside.treat_as_brief(monkeypatch)
        while inside.is_fast(session):
            await round_of(session, 64)
        async with taken_next(session, waiting_now) as count:
            assert count == together


async def test_a_slower_device_has_depth_requests(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    async with InferSession(0, models.add(SMALL), depth=2) as session:
        await grown(session)
        inside.treat_as_slow(monkeypatch)
        with emulator.configure(execute_ms=3):
            for seed in range(24):
                check(SMALL, seed, await session.infer(feeds(SMALL, seed)))
            with emulator.gate("h2d") as gate:
                emulator.reset_counts()
                tasks = [asyncio.create_task(session.infer(feeds(SMALL, seed))) for seed in range(1, 11)]
                await gate_of(gate)
                assert await executions(session, tasks) <= 2
            assert await outcomes(tasks) == []


async def test_several_executions_are_one_request_at_a_time(models: Models) -> None:
    async with InferSession(0, models.add(SMALL), loop=3) as session:
        await grown(session)
        session.reset_summaryinfo()
        async with waiting(session, 8) as tasks:
            pass
        assert await outcomes(tasks) == []
        assert session.summary().count == 27


async def test_each_is_timed(models: Models) -> None:
    async with InferSession(0, models.add(SMALL)) as session:
        await grown(session)
        MemorySummary.reset()
        session.reset_summaryinfo()
        before = session.statistics().stages
        async with waiting(session, 31) as tasks:
            pass
        assert await outcomes(tasks) == []
        counts = [
            len(session.summary()),
            len(MemorySummary.get_h2d_time_list()),
            len(MemorySummary.get_d2h_time_list()),
        ]
        assert counts == [32, 64, 32]
        assert min(session.summary()) > 0
        for name, stage in session.statistics().stages.items():
            assert stage.count - before[name].count == 32


async def test_a_copy_that_all_share_counts_in_parts(models: Models) -> None:
    async with InferSession(0, models.add(SMALL)) as session:
        await grown(session)
        with emulator.configure(h2d_ms=60, d2h_ms=30):
            async with waiting(session, 15) as tasks:
                pass
            assert await outcomes(tasks) == []
        there, back = MemorySummary.get_h2d_time_list()[-30:], MemorySummary.get_d2h_time_list()[-15:]
        for times, ms in ((there, 60), (back, 30)):
            assert len(set(times)) == 1
            assert 0.99 * ms < sum(times) < ms * len(times) / 2


@pytest.mark.parametrize(
    ("call", "after", "failed", "executions"),
    [
        ("acl.rt.memcpy_async", 0, 0, 14),  # to the device
        ("acl.rt.memcpy_async", 1, 0, 15 + 14),  # and back
        ("acl.mdl.execute_async", 0, 0, 1 + 14),
        ("acl.mdl.execute_async", 7, 7, 8 + 14),
        ("acl.mdl.execute_async", 14, 14, 15 + 14),
        ("acl.rt.record_event", 0, 0, 14),  # before all of them
        ("acl.rt.record_event", 1, 0, 14),  # behind the copy to the device
        ("acl.rt.record_event", 2, 0, 14),  # before the first execution
        ("acl.rt.record_event", 3, 0, 15 + 14),  # behind the last one
        ("acl.rt.record_event", 4, 0, 15 + 14),  # behind the copy back
    ],
)
async def test_a_call_that_fails_concerns_one_request(
    models: Models, call: str, after: int, failed: int, executions: int
) -> None:
    """All others run again. What is for all of them concerns the first."""
    async with InferSession(0, models.add(SMALL)) as session:
        await grown(session)
        timed = session.summary().count
        async with waiting(session, 15) as tasks:
            emulator.fail(call, CODE, after=after)
            emulator.reset_counts()
        assert await outcomes(tasks) == [failed]
        assert emulator.counts()["acl.mdl.execute_async"] == executions
        assert session.summary().count - timed == 1 + 14
        now = session.statistics()
        assert (now.in_flight, now.queued, now.failed) == (0, 0, 1)
        await round_of(session, 64)


@pytest.mark.parametrize("code", [500002, CODE])
async def test_a_time_that_cannot_be_read(models: Models, caplog: pytest.LogCaptureFixture, code: int) -> None:
    """Those that share a slot run again, each alone, unless the device is at fault: then they fail together."""
    async with InferSession(0, models.add(SMALL)) as session:
        most = await grown(session)
        async with waiting(session, most + 8) as tasks:
            # Those of the lonely one are read first: two copies there, one execution, one copy back.
            emulator.fail("acl.rt.event_elapsed_time", code, after=4 + 1)
        assert await outcomes(tasks) == (list(range(most)) if code == CODE else [])
        assert ("run again, each alone" in caplog.text) == (code != CODE)
        await round_of(session, 64)


async def test_a_failure_on_the_device_concerns_those_that_share_a_slot(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside.chain_executions(monkeypatch)  # on one stream a failure concerns all that was queued
    async with InferSession(0, models.add(SMALL)) as session:
        most = await grown(session)
        async with waiting(session, most + 8) as tasks:
            emulator.fail("acl.mdl.execute_async", CODE, after=3, device_side=True)
        assert await outcomes(tasks) == list(range(most))
        await round_of(session, 64)


async def test_a_call_and_the_device_fail_in_one_batch(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """ACL reports the device's failure to the wait that follows the failed call, and to no later one."""
    inside.chain_executions(monkeypatch)  # on one stream a failure concerns all that was queued
    async with InferSession(0, models.add(SMALL)) as session:
        await grown(session)
        async with waiting(session, 15) as tasks:
            emulator.fail("acl.mdl.execute_async", CODE, after=3, device_side=True)
            emulator.fail("acl.rt.memcpy_async", CODE, after=1)  # the copy back
        assert await outcomes(tasks) == [0]
        await round_of(session, 64)


async def test_cancelled_before_and_after(models: Models) -> None:
    async with InferSession(0, models.add(SMALL)) as session:
        most = await grown(session)
        before = session.statistics().cancelled
        async with waiting(session, 40) as tasks:
            for k in (0, 5, 39):
                tasks[k].cancel()
            await asyncio.sleep(0)
            emulator.reset_counts()
            behind = emulator.gate("h2d")
        with behind:
            await gate_of(behind)
            while emulator.counts().get("acl.mdl.execute_async", 0) < most:
                await asyncio.sleep(0.001)
            tasks[1].cancel()
            tasks[12].cancel()
            await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for k, result in enumerate(results):
            if k in (0, 1, 5, 12, 39):
                assert isinstance(result, asyncio.CancelledError)
            else:
                assert isinstance(result, list), result
                check(SMALL, 1 + k, result)
        assert emulator.counts()["acl.mdl.execute_async"] == 37, "what was cancelled in time has not run"
        assert session.statistics().cancelled - before == 5


@pytest.mark.parametrize(
    ("call", "code", "times"),
    [
        ("acl.rt.malloc_host", 207001, 2),
        ("acl.rt.malloc", 207001, 2),
        ("acl.mdl.add_dataset_buffer", 500002, 1000),
    ],
)
async def test_no_room_to_share_a_slot(
    models: Models, call: str, code: int, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with InferSession(0, models.add(SMALL), depth=2) as session:
        while not inside.is_fast(session):
            await round_of(session, 2)
        async with waiting(session, 1) as tasks:
            while session.statistics().in_flight < 2:
                await asyncio.sleep(0.001)
        assert await outcomes(tasks) == []
        assert session.statistics().slots == 2
        emulator.fail(call, code, times=times)
        with caplog.at_level(logging.WARNING, "aioais"):
            await round_of(session, 64)
        emulator.disarm()
        await round_of(session, 64)
        assert session.statistics().failed == 0
        warned = [
            record.message for record in caplog.records if "at most 1 small requests share a slot" in record.message
        ]
        # Memory is asked for twice, all else once.
        assert len(warned) == (2 if times > 2 else 1)


async def test_no_memory_for_larger_requests_to_share_a_slot(models: Models) -> None:
    """Their places have room already, from smaller requests before."""
    path = models.convert(models.identity(["n", 512]), "gears", input_shape="x:-1,512", dynamic_batch_size="1,8")
    async with InferSession(0, path, depth=2) as session:
        while not inside.is_fast(session):
            await rows_of(session, 1, 512, 2)
        await rows_of(session, 8, 512, 2)
        for _ in range(4):
            await rows_of(session, 1, 512, 64)
        emulator.fail("acl.rt.malloc_host", 207001, times=1000)
        await rows_of(session, 8, 512, 64)
        emulator.disarm()
        await rows_of(session, 8, 512, 64)
        assert session.statistics().failed == 0


async def test_requests_that_fill_little_of_their_place_go_alone(models: Models) -> None:
    """A copy for all would be mostly room for larger gears."""
    path = models.convert(models.identity(["n", 1024]), "gears", input_shape="x:-1,1024", dynamic_batch_size="1,16")
    async with InferSession(0, path) as session:
        while not inside.is_fast(session):
            await rows_of(session, 1, 1024, 2)
        await rows_of(session, 1, 1024, 64)
        assert max(inside.places(session)) == 0
        assert session.depth == 16, "they have more slots instead"
        await rows_of(session, 16, 1024, 64)
        await rows_of(session, 1, 1024, 64)
        assert max(inside.places(session)) == 7, "what 1 MiB holds"


async def test_room_for_some(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    async with InferSession(0, models.add(SMALL), depth=2) as session:
        while not inside.is_fast(session):
            await round_of(session, 2)
        async with waiting(session, 1) as tasks:
            while session.statistics().in_flight < 2:
                await asyncio.sleep(0.001)
        assert await outcomes(tasks) == []
        assert session.statistics().slots == 2
        emulator.fail("acl.mdl.add_dataset_buffer", 500002, after=14 * 3, times=1000)
        numbers: set[int] = set()
        with caplog.at_level(logging.WARNING, "aioais"):
            while len(numbers) < 2:  # until both slots were to be shared; the suite's timeout ends it
                await round_of(session, 64)
                found = [re.search(r"at most (\d+) small requests share a slot", text) for text in caplog.messages]
                numbers = {int(match[1]) for match in found if match}
        emulator.disarm()
        assert numbers == {14, 1}, "three buffers for each place, then none"
        await round_of(session, 64)
        assert session.statistics().failed == 0


async def test_buffers_that_change(models: Models) -> None:
    """Device tensors, outputs that stay there and exchanged buffers give the slot other ones in between."""
    async with InferSession(0, models.add(SMALL)) as session:
        await grown(session)
        one, two = feeds(SMALL, 100)
        for turn in range(20):
            there = await session.to_device(one)
            (out,) = await session.infer([there, two], out_array=False)
            again = await session.infer_iteration([one, two], [0, -1], 3, mem_copy=turn % 2 == 0)
            np.testing.assert_array_equal(again[0], one + 3 * two)
            await round_of(session, 8)
            np.testing.assert_array_equal(await out.to_host(), one + two)
            out.close()
            there.close()


async def test_a_tensor_takes_its_memory_along(models: Models) -> None:
    async with InferSession(0, models.add(SMALL)) as session:
        await grown(session)
        held = session.statistics().device_bytes
        (out,) = await session.infer(feeds(SMALL, 1), out_array=False)
        await round_of(session, 4)
        assert session.statistics().device_bytes > held
        slots = session.statistics().slots
        out.close()
        del out
        while session.statistics().device_bytes != held:  # what was prepared holds no buffer
            assert session.statistics().slots == slots
            await asyncio.sleep(0.001)


async def test_kinds_of_feeds_take_turns(models: Models) -> None:
    path = models.convert(models.identity(["n", 4]), "gears", input_shape="x:-1,4", dynamic_batch_size="1,2,4")
    async with InferSession(0, path) as session:

        async def lane(lane: int) -> None:
            for turn in range(60):
                rows = (1, 2, 4)[(lane * 7 + turn) % 3]
                array = np.full((rows, 4), 1000 * lane + turn, np.float32)
                (result,) = await session.infer([array], "auto")
                np.testing.assert_array_equal(result, array)

        await asyncio.gather(*(lane(k) for k in range(48)))


async def test_lists_are_kept_for_so_many_waits(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    inside.chain_executions(monkeypatch)
    inside.limit_kept_waits(monkeypatch, 3)
    async with InferSession(0, models.add(SMALL), depth=8) as session:
        await grown(session)
        for turn in range(100):
            await round_of(session, 40 + turn % 37)
            assert inside.kept_with_waits(session) <= 3


async def test_all_that_share_a_slot_have_its_gear(models: Models) -> None:
    path = models.convert(models.identity(["n", 4]), "gears", input_shape="x:-1,4", dynamic_batch_size="1,2,4")
    async with InferSession(0, path, depth=2) as session:

        async def run(rows: int, number: int) -> bool:
            array = np.full((rows, 4), number, np.float32)
            try:
                (result,) = await session.infer([array], "auto")
            except AclError:
                return False
            np.testing.assert_array_equal(result, array)
            return True

        async def gears_set(fails: bool = False) -> int:
            """Run 15 that share a slot; return how often a gear was set for one of them."""
            with emulator.gate("execute") as gate:
                lonely = asyncio.create_task(run(4, 100))
                await gate_of(gate)
                tasks = [asyncio.create_task(run(4, k)) for k in range(15)]
                while session.statistics().queued < 15:
                    await asyncio.sleep(0)
                emulator.reset_counts()
                if fails:
                    emulator.fail("acl.mdl.execute_async", CODE, after=3, device_side=True)
            assert await lonely
            assert await asyncio.gather(*tasks) == [not fails] * 15
            return emulator.counts().get("acl.mdl.set_dynamic_batch_size", 0)

        for turn in range(60):
            assert all(await asyncio.gather(*(run(1 + turn % 2, 100 * turn + k) for k in range(40))))
        assert inside.places(session) == [inside.MOST_BATCHED] * 2
        # The slot itself has the gear already if it is the one that the lonely one frees.
        assert await gears_set(fails=True) in (15, 16)
        assert await gears_set() in (15, 16), "what is set is unknown after a failure"
        assert 0 in [await gears_set() for _ in range(4)], "set once in each slot"


async def test_a_batch_sets_the_gear_of_its_slot_too(models: Models) -> None:
    """All datasets of a slot share the hidden input, which a gear is written to."""
    path = models.convert(models.identity(["n", 4]), "gears", input_shape="x:-1,4", dynamic_batch_size="1,2,4")
    async with InferSession(0, path, depth=2) as session:
        while not inside.is_fast(session):
            await rows_of(session, 1, 4, 1)
        for _ in range(4):
            await rows_of(session, 2, 4, 64)
            with emulator.gate("execute") as gate:
                both = asyncio.create_task(rows_of(session, 1, 4, 2))
                await gate_of(gate)
                while session.statistics().in_flight < 2:
                    await asyncio.sleep(0.001)
            await both
        assert inside.places(session) == [inside.MOST_BATCHED] * 2


async def test_feeds_and_results_are_the_callers(models: Models) -> None:
    async with InferSession(0, models.add(SMALL)) as session:
        await grown(session)
        kept = []
        for seed in range(40):
            arrays = feeds(SMALL, seed)
            tasks = [asyncio.create_task(session.infer(arrays)) for _ in range(8)]
            await asyncio.gather(*tasks)
            for array in arrays:
                array.fill(-1)
            kept += [(seed, task.result()) for task in tasks]
        for seed, result in kept:
            check(SMALL, seed, result)
            result[0][:] = 0  # writable


async def test_memory_comes_back(models: Models) -> None:
    async with InferSession(0, models.add(SMALL)) as keeps_the_device_open:
        async with InferSession(0, models.add(SMALL)) as session:
            await grown(session)
        del session
        gc.collect()
        now = keeps_the_device_open.statistics()
        assert now.pinned_leased == 0


async def test_a_coroutine_that_is_closed_while_it_waits(models: Models) -> None:
    async with InferSession(0, models.add(SMALL), depth=1) as session:
        check(SMALL, 7, await session.infer(feeds(SMALL, 7)))
        async with waiting(session, 1) as tasks:
            given_up = session.infer(feeds(SMALL, 2))
            given_up.send(None)
            given_up.close()
        assert await outcomes(tasks) == []
        check(SMALL, 3, await session.infer(feeds(SMALL, 3)))
        now = session.statistics()
        assert (now.done, now.cancelled, session.summary().count) == (4, 1, 4)


async def test_a_log_that_is_kept_keeps_no_request(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    async with InferSession(0, models.add(SMALL), depth=2) as session:
        while not inside.is_fast(session):
            await round_of(session, 2)
        emulator.fail("acl.mdl.add_dataset_buffer", 500002, times=1000)
        with caplog.at_level(logging.WARNING, "aioais"):
            arrays = await asyncio.gather(*(session.infer(feeds(SMALL, seed)) for seed in range(64)))
        results = [weakref.ref(array[0]) for array in arrays]
        del arrays
        emulator.disarm()
    del session
    gc.collect()
    assert any("share a slot" in record.message for record in caplog.records)
    assert [ref for ref in results if ref() is not None] == []
