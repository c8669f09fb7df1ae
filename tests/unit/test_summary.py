"""Timing data: one entry per execution, one per tensor copied, bounded, and the session's own counters."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import inside

import aioais
from aioais import FeedError, InferSession, InferSummary, MemorySummary, SessionStatistics, StageTime, emulator
from aioais.summary import Timeline

if TYPE_CHECKING:
    from tests.unit.conftest import Models

KEPT = 65536


def ones(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, np.float32)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    MemorySummary.reset()
    yield
    MemorySummary.reset()


# --- InferSummary -------------------------------------------------------------------------------


def test_it_is_a_sequence_of_floats() -> None:
    summary = InferSummary([4.0, 1.0, 3.0, 2.0], 4, 10.0)
    assert isinstance(summary, Sequence)
    assert (len(summary), list(summary)) == (4, [4.0, 1.0, 3.0, 2.0])
    assert (summary[0], summary[-1], summary[1:3], summary[::-2]) == (4.0, 2.0, [1.0, 3.0], [2.0, 1.0])
    assert (3.0 in summary, 9.0 in summary, summary.index(3.0)) == (True, False, 2)
    assert list(reversed(summary)) == [2.0, 3.0, 1.0, 4.0]
    assert summary.exec_time_list == [4.0, 1.0, 3.0, 2.0]
    assert summary.exec_time_list[-1] == 2.0
    assert (summary.count, summary.total, summary.mean) == (4, 10.0, 2.5)
    assert "4 executions" in repr(summary)
    with pytest.raises(IndexError):
        summary[4]


def test_it_compares_as_a_list() -> None:
    summary = InferSummary([1.0, 2.0], 2, 3.0)
    assert summary == [1.0, 2.0]
    assert summary == InferSummary([1.0, 2.0], 2, 3.0)
    assert summary != InferSummary([1.0, 2.0], 3, 5.0), "an entry was forgotten"
    assert summary not in ([1.0], (1.0, 2.0), None)
    assert InferSummary([], 0, 0.0) == []


def test_numpy_takes_it_for_a_list() -> None:
    summary: Any = InferSummary([1.0, 2.0, 6.0], 3, 9.0)
    assert (np.mean(summary), np.median(summary), np.max(a=summary)) == (3.0, 2.0, 6.0)
    assert np.concatenate([summary, [0.0]]).tolist() == [1.0, 2.0, 6.0, 0.0]
    assert np.asarray(summary).tolist() == summary


@pytest.mark.parametrize(("p", "wanted"), [(0, 1.0), (50, 2.5), (100, 4.0), (25.0, 1.75)])
def test_percentiles(p: float, wanted: float) -> None:
    assert InferSummary([4.0, 1.0, 3.0, 2.0], 4, 10.0).percentile(p) == wanted


@pytest.mark.parametrize("p", [-1, 100.1, float("nan")])
def test_percentiles_out_of_range(p: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        InferSummary([1.0], 1, 1.0).percentile(p)


def test_nothing_executed_yet() -> None:
    empty = InferSummary([], 0, 0.0)
    assert (len(empty), empty.count, empty.total, empty.mean, empty.exec_time_list) == (0, 0, 0.0, 0.0, [])
    assert not empty
    with pytest.raises(ValueError, match="before the first execution"):
        empty.percentile(50)


def test_memory_is_bounded_and_totals_stay_exact() -> None:
    timeline = Timeline()
    for k in range(KEPT + 10):
        timeline.add([float(k)])
    summary = timeline.snapshot()
    assert (len(summary), summary.count) == (KEPT, KEPT + 10)
    assert summary.total == sum(range(KEPT + 10))
    assert summary.mean == summary.total / summary.count
    assert (summary[0], summary[-1]) == (10.0, KEPT + 9.0)
    timeline.clear()
    assert (summary.count, timeline.snapshot().count, timeline.snapshot().total) == (KEPT + 10, 0, 0.0)


# --- of a session -------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", [1, 3])
@pytest.mark.parametrize("dims", [[2, 3], ["n", 3], [300, 300]], ids=["static", "dymshape", "large"])
async def test_loop_entries_per_request(models: Models, loop: int, dims: list[int | str]) -> None:
    path = models.add(dims)
    x = ones(*(dim if isinstance(dim, int) else 2 for dim in dims))
    async with InferSession(0, path, loop=loop) as session:
        assert session.loop == loop
        assert len(session.summary()) == 0
        emulator.reset_counts()
        for _ in range(4):
            np.testing.assert_array_equal((await session.infer([x, x], "auto"))[0], x + x)
        assert emulator.counts()["acl.mdl.execute_async"] == 4 * loop
        summary = session.summary()
        assert (len(summary), summary.count) == (4 * loop, 4 * loop)
        assert all(type(ms) is float and ms >= 0 for ms in summary)
        assert summary.total == pytest.approx(sum(summary))
        assert summary.exec_time_list == list(summary)
        session.reset_summaryinfo()
        assert (session.summary().count, session.summary().total, summary.count) == (0, 0.0, 4 * loop)
        await session.infer([x, x], "auto")
        assert session.summary().count == loop


async def test_times_are_those_of_the_device_in_order(models: Models) -> None:
    x = ones(2, 3)
    async with InferSession(0, models.add([2, 3])) as session:
        for wanted in (20, 0, 60):
            with emulator.configure(execute_ms=wanted):
                await session.infer([x, x])
        first, second, third = session.summary()
    assert second < first < third
    assert first >= 19.9
    assert third >= 59.9


async def test_requests_that_fail_have_no_entry(models: Models) -> None:
    x = ones(2, 3)
    async with InferSession(0, models.add([2, 3])) as session:
        with pytest.raises(FeedError):
            await session.infer([x])
        assert session.summary().count == 0
        assert session.statistics().stages["execute"].count == 0


async def test_sessions_have_summaries_of_their_own(models: Models) -> None:
    x, path = ones(2, 3), models.add([2, 3])
    async with InferSession(0, path) as one, InferSession(0, path, loop=2) as two:
        await asyncio.gather(one.infer([x, x]), two.infer([x, x]), one.infer([x, x]))
        assert (one.summary().count, two.summary().count) == (2, 2)


# --- MemorySummary ------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [[1, 3, 8, 8], [1, 3, 400, 400]], ids=["small", "large"])
async def test_one_entry_per_tensor_copied(models: Models, dims: list[int]) -> None:
    add, conv = models.add(dims), models.conv(dims)
    x = ones(*dims)
    async with InferSession(0, add) as two_in, InferSession(0, conv) as two_out:
        assert (MemorySummary.get_h2d_time_list(), MemorySummary.get_d2h_time_list()) == ([], [])
        await two_in.infer([x, x])
        assert (len(MemorySummary.get_h2d_time_list()), len(MemorySummary.get_d2h_time_list())) == (2, 1)
        await two_out.infer([x])
        assert (len(MemorySummary.get_h2d_time_list()), len(MemorySummary.get_d2h_time_list())) == (3, 3)
        tensor = await two_in.to_device(x)
        assert (len(MemorySummary.get_h2d_time_list()), len(MemorySummary.get_d2h_time_list())) == (4, 3)
        (out,) = await two_in.infer([tensor, x], out_array=False)
        assert (len(MemorySummary.get_h2d_time_list()), len(MemorySummary.get_d2h_time_list())) == (5, 3)
        await out.to_host()
        assert (len(MemorySummary.get_h2d_time_list()), len(MemorySummary.get_d2h_time_list())) == (5, 4)
        times = MemorySummary.get_h2d_time_list() + MemorySummary.get_d2h_time_list()
        assert all(type(ms) is float and ms >= 0 for ms in times)
        MemorySummary.reset()
        assert (MemorySummary.get_h2d_time_list(), MemorySummary.get_d2h_time_list()) == ([], [])
        await two_in.infer([tensor, tensor])
        assert (len(MemorySummary.get_h2d_time_list()), len(MemorySummary.get_d2h_time_list())) == (0, 1)


async def test_copies_are_counted_once_whatever_the_loop(models: Models) -> None:
    x = ones(2, 3)
    async with InferSession(0, models.add([2, 3]), loop=3) as session:
        await session.infer([x, x])
    assert (len(MemorySummary.get_h2d_time_list()), len(MemorySummary.get_d2h_time_list())) == (2, 1)


def test_the_lists_are_the_callers_own() -> None:
    MemorySummary.record(2.5, True)
    MemorySummary.get_h2d_time_list().append(9.0)
    assert MemorySummary.get_h2d_time_list() == [2.5]


def test_copies_are_bounded() -> None:
    for k in range(KEPT + 3):
        MemorySummary.record(float(k), False)
    times = MemorySummary.get_d2h_time_list()
    assert (len(times), times[0], times[-1]) == (KEPT, 3.0, KEPT + 2.0)


# --- statistics ---------------------------------------------------------------------------------


async def test_statistics(models: Models) -> None:
    x = ones(2, 3)
    async with InferSession(0, models.add([2, 3]), depth=2) as session:
        fresh = session.statistics()
        assert isinstance(fresh, SessionStatistics)
        assert (fresh.in_flight, fresh.queued, fresh.done, fresh.failed, fresh.cancelled) == (0, 0, 0, 0, 0)
        assert fresh.depth == 2
        assert set(fresh.stages) == {"queue", "h2d", "execute", "d2h"}
        assert all(stage == StageTime(0, 0.0, 0.0) and stage.mean_ms == 0.0 for stage in fresh.stages.values())
        for _ in range(3):
            await session.infer([x, x])
        after = session.statistics()
        assert (after.in_flight, after.queued, after.done) == (0, 0, 3)
        assert 1 <= after.slots <= 2
        assert after.device_bytes >= 3 * x.nbytes
        assert after.pinned_bytes > 0
        assert after.pinned_leased > 0
        assert after.pinned_idle >= 0
        for name, stage in after.stages.items():
            assert stage.count == 3, name
            assert stage.total_ms >= stage.max_ms >= stage.mean_ms >= 0, name
            assert stage.mean_ms == stage.total_ms / 3, name
        assert fresh.done == 0
        with pytest.raises(AttributeError):
            after.done = 9  # type: ignore[misc]


async def test_statistics_under_load(models: Models) -> None:
    x = ones(2, 3)
    async with InferSession(0, models.add([2, 3]), depth=2) as session:
        with emulator.gate("execute") as gate:
            tasks = [asyncio.create_task(session.infer([x, x])) for _ in range(5)]
            assert await asyncio.to_thread(gate.wait_reached)
            await asyncio.sleep(0)
            busy = session.statistics()
            assert busy.in_flight + busy.queued == 5
            assert busy.in_flight <= 2
            gate.open()
        await asyncio.gather(*tasks)
        assert session.statistics()[:5] == (0, 0, 5, 0, 0)


async def test_leased_results_are_counted(models: Models) -> None:
    x = ones(300, 300)
    async with InferSession(0, models.add([300, 300])) as session:
        kept = [await session.infer([x, x]) for _ in range(3)]
        leased = session.statistics().pinned_leased
        assert leased >= 2 + len(kept)  # two inputs have a staging area each
        kept.clear()
        for _ in range(5):
            await session.infer([x, x])
        assert session.statistics().pinned_leased <= leased
        assert session.statistics().pinned_bytes <= 8 * 4 * x.nbytes


async def test_statistics_of_a_failed_request(models: Models) -> None:
    x = ones(2, 3)
    async with InferSession(0, models.add([2, 3])) as session:
        await session.infer([x, x])
        emulator.fail("acl.mdl.execute_async", 500002)
        with pytest.raises(aioais.AclError, match="500002"):
            await session.infer([x, x])
        await session.infer([x, x])
        assert session.statistics()[:5] == (0, 0, 2, 1, 0)


# --- times that ACL does not know ---------------------------------------------------------------


@pytest.mark.parametrize("code", [107006, 107007, 207000])
@pytest.mark.parametrize("kind", ["small", "large", "device", "iteration"])
async def test_an_unknown_time_fails_no_request(
    models: Models, kind: str, code: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (1, 40_000 if kind == "large" else 4)
    async with InferSession(0, models.identity(list(shape))) as session:
        monkeypatch.setattr(inside.cpu_library(), "tells_times", True)
        for _ in range(12):
            await session.infer([ones(*shape)])
        before = session.summary()
        emulator.fail("acl.rt.event_elapsed_time", code, times=1000)
        try:
            for _ in range(12):
                if kind == "device":
                    (tensor,) = await session.infer([ones(*shape)], out_array=False)
                    result = await tensor.to_host()
                    tensor.close()
                elif kind == "iteration":
                    (result,) = await session.infer_iteration([ones(*shape)], [0], 1)
                else:
                    (result,) = await session.infer([ones(*shape)])
                np.testing.assert_array_equal(result, ones(*shape))
        finally:
            emulator.disarm()
        after = session.summary()
        assert after.count == before.count + 12
        assert list(after)[-12:] == [0.0] * 12
        assert after.total == pytest.approx(before.total)
        assert not inside.is_known_as_brief(session), "what is unknown is not fast"
        stages = session.statistics().stages
        assert all(np.isfinite(stage.total_ms) and np.isfinite(stage.max_ms) for stage in stages.values())
        assert np.isfinite(MemorySummary.get_h2d_time_list()).all()
        assert session.statistics().failed == 0
    warned = [record.message for record in caplog.records if "times are unknown" in record.message]
    assert len(warned) == 1
    assert str(code) in warned[0]


async def test_another_failure_of_the_clock_is_the_requests(models: Models) -> None:
    async with InferSession(0, models.identity([1, 4])) as session:
        await session.infer([ones(1, 4)])
        emulator.fail("acl.rt.event_elapsed_time", 507899)
        with pytest.raises(aioais.AclError, match="507899"):
            await session.infer([ones(1, 4)])


# --- many executions per request ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lonely", "at once", "dynamic", "iteration"])
@pytest.mark.parametrize(("loop", "marks"), [(64, 64), (65, 64), (1000, 64)])
async def test_many_executions_need_few_events(models: Models, kind: str, loop: int, marks: int) -> None:
    path = models.identity(["n", 4]) if kind == "dynamic" else models.identity([1, 4])
    emulator.reset_counts()
    before = emulator.live()["events"]
    async with InferSession(0, path, loop=loop, depth=2) as session:

        async def infer() -> list[np.ndarray[Any, Any]]:
            return await session.infer([ones(1, 4)], "auto")

        steps = 1
        if kind == "at once":
            steps = 6
            for result in await asyncio.gather(*(infer() for _ in range(steps))):
                np.testing.assert_array_equal(result[0], ones(1, 4))
        elif kind == "iteration":
            steps = 3
            await session.infer_iteration([ones(1, 4)], [0], steps)
        else:
            await infer()
        assert emulator.live()["events"] - before <= 3 * (marks + 8)
        times = session.summary()
        assert (len(times), times.count) == (steps * loop, steps * loop)
        assert times.total == pytest.approx(session.statistics().stages["execute"].total_ms)
        assert all(len(set(times[k * loop : (k + 1) * loop])) <= marks for k in range(steps))
        assert emulator.counts()["acl.mdl.execute_async"] >= steps * loop


# --- what is noted and not booked yet -----------------------------------------------------------


async def test_who_looks_sees_every_request_that_has_ended(models: Models) -> None:
    async with InferSession(0, models.identity([1, 4])) as session:
        for count in range(1, 30):
            await session.infer([ones(1, 4)])
            if count % 3 == 0:
                assert session.summary().count == count
            elif count % 3 == 1:
                assert len(MemorySummary.get_h2d_time_list()) == len(MemorySummary.get_d2h_time_list()) == count
            else:
                assert session.statistics().stages["execute"].count == count
        await session.infer([ones(1, 4)])
        session.reset_summaryinfo()
        assert len(session.summary()) == 0
        await session.infer([ones(1, 4)])
    assert len(MemorySummary.get_h2d_time_list()) == 31, "those of closed sessions too"


@pytest.mark.engine
async def test_a_closed_session_leaves_no_times_behind(models: Models) -> None:
    async with InferSession(0, models.identity([1, 4])) as session:
        for _ in range(3):
            await session.infer([ones(1, 4)])
        clock = weakref.ref(inside.times_of(session))
    del session
    while clock() is not None:  # a thread of the session may live a moment longer
        gc.collect()
        await asyncio.sleep(0.001)


async def test_copies_are_in_order(models: Models) -> None:
    async with InferSession(0, models.identity([1, 4])) as session:
        for _ in range(3):
            await session.infer([ones(1, 4)])
        MemorySummary.record(-1.0, True)
        await session.infer([ones(1, 4)])
    assert MemorySummary.get_h2d_time_list().index(-1.0) == 3


async def test_sessions_note_at_the_same_time(models: Models) -> None:
    path = models.identity([1, 4])

    async def use(session: InferSession, count: int) -> None:
        for _ in range(count):
            await session.infer([ones(1, 4)])

    async with InferSession(0, path) as one, InferSession(1, path) as two:
        await asyncio.gather(*(use(session, 50) for session in (one, two) for _ in range(6)))
        assert (one.summary().count, two.summary().count) == (300, 300)
        assert len(MemorySummary.get_d2h_time_list()) == 600


# --- booking ------------------------------------------------------------------------------------


async def test_what_cannot_be_booked_fails_nobody(
    models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = models.identity([1, 4])
    async with InferSession(0, path) as session, InferSession(1, path) as other:
        for _ in range(3):
            await session.infer([ones(1, 4)])
        assert session.summary().count == 3
        inside.refuse_memory_for_times(monkeypatch)
        await asyncio.gather(*(other.infer([ones(1, 4)]) for _ in range(20)))
        assert other.summary() == []
        for _ in range(3):
            await session.infer([ones(1, 4)])
        assert session.summary().count == 6
        await session.aclose()
        monkeypatch.undo()
        await other.infer([ones(1, 4)])
        assert other.statistics().done == 21
    assert {record.getMessage() for record in caplog.records} == {"times of requests could not be booked"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_while_times_are_booked() -> None:
    """The child has no thread that would release the locks, and reads and adds times all the same."""
    is_held, is_over = threading.Event(), threading.Event()

    def book() -> None:
        with inside.times_of_copies_held():
            is_held.set()
            is_over.wait()

    MemorySummary.record(1.0, True)
    MemorySummary.record(2.0, False)
    thread = threading.Thread(target=book)
    thread.start()
    is_held.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what this is about
        child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        MemorySummary.record(3.0, True)
        MemorySummary.record(4.0, False)
        times = MemorySummary.get_h2d_time_list(), MemorySummary.get_d2h_time_list()
        os._exit(0 if times == ([1.0, 3.0], [2.0, 4.0]) else 1)
    status = os.waitpid(child, 0)[1]
    is_over.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0


async def test_a_handler_of_signals_may_look_while_times_are_read(models: Models) -> None:
    async with InferSession(0, models.identity([1, 4])) as session:
        for _ in range(3):
            await session.infer([ones(1, 4)])
        seen = []

        def look(*_: object) -> None:
            seen.append((session.summary().count, session.statistics().stages["execute"].count))

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            if frame.f_code.co_name == "_kept" and frame.f_code.co_filename.endswith("summary.py"):
                return trace_line  # it is called with the lock
            return trace

        def trace_line(frame: FrameType, event: str, arg: object) -> Any:
            if not seen:
                look()  # where Python would run a handler
            return trace_line

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            assert session.summary().count == 3
        finally:
            sys.settrace(before)
        assert len(seen) == 1
        assert session.statistics().stages["execute"].count == 3
