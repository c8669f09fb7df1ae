"""BatchingSession: who waits, who goes first, who leaves, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import os
import warnings
import weakref
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from tests.unit.batching_models import WIDTH, doubled, reached, rows, turns, until
from tests.unit.conftest import Models, assert_same

from aioais import (
    AioaisError,
    ArgumentError,
    BatchingSession,
    ClosedError,
    DeadlineExceededError,
    ForkError,
    InferSession,
    ModelError,
    QueueFullError,
    WrongLoopError,
)
from aioais.testing import EmulatedDevices

pytestmark = pytest.mark.usefixtures("aioais_no_leaks")

Task = asyncio.Task[list[Any]]


@pytest.fixture
async def session(models: Models) -> AsyncIterator[InferSession]:
    async with InferSession(0, doubled(models)) as session:
        yield session


def call(batching: BatchingSession, k: int, count: int = 1, **options: Any) -> Task:
    return asyncio.create_task(batching.infer([rows(k, count)], **options))


async def check(task: Task, k: int, count: int = 1) -> None:
    assert_same(await task, [rows(k, count) * 2])


async def hold(batching: BatchingSession, devices: EmulatedDevices) -> tuple[Any, Task]:
    """Occupy the device with one call; what comes then waits."""
    gate = devices.gate("execute")
    blocker = call(batching, 99)
    await reached(gate)
    return gate, blocker


async def test_an_idle_device_runs_at_once(session: InferSession) -> None:
    async with BatchingSession(session, max_delay=3600) as batching:
        for k in range(5):
            await check(call(batching, k), k)
        assert {size: use.batches for size, use in batching.statistics().batches.items()} == {1: 5}


async def test_calls_of_one_turn_of_the_loop_ride_together(session: InferSession) -> None:
    async with BatchingSession(session) as batching:
        await asyncio.gather(*[check(call(batching, k), k) for k in range(4)])
        assert {size: use.batches for size, use in batching.statistics().batches.items()} == {4: 1}


async def test_calls_gather_while_the_device_is_busy(session: InferSession, aioais_devices: EmulatedDevices) -> None:
    async with BatchingSession(session, max_delay=3600) as batching:
        gate, blocker = await hold(batching, aioais_devices)
        tasks = []
        for k in range(3):
            tasks.append(call(batching, k))
            await turns()
        assert batching.statistics().waiting == 3
        assert batching.statistics().in_flight == 1
        gate.open()
        await blocker
        for k, task in enumerate(tasks):
            await check(task, k)
        assert {size: use.batches for size, use in batching.statistics().batches.items()} == {1: 1, 4: 1}


async def test_a_full_batch_is_submitted_behind_the_one_that_runs(
    session: InferSession, aioais_devices: EmulatedDevices
) -> None:
    async with BatchingSession(session, max_delay=3600) as batching:
        gate, blocker = await hold(batching, aioais_devices)
        tasks = [call(batching, k) for k in range(11)]
        await turns()
        found = batching.statistics()
        assert (found.in_flight, found.waiting) == (2, 3)
        gate.open()
        await asyncio.gather(blocker, *[check(task, k) for k, task in enumerate(tasks)])


async def test_a_request_may_be_spread_over_batches(session: InferSession, aioais_devices: EmulatedDevices) -> None:
    async with BatchingSession(session, max_delay=3600) as batching:
        gate, blocker = await hold(batching, aioais_devices)
        tasks = [call(batching, k, 5) for k in range(5)]
        await turns()
        assert batching.statistics().waiting == 17  # 8 of the 25 are in the next batch
        gate.open()
        await asyncio.gather(blocker, *[check(task, k, 5) for k, task in enumerate(tasks)])
        assert_same(await batching.infer([rows(7, 30)]), [rows(7, 30) * 2])


async def test_smaller_priorities_first(session: InferSession, aioais_devices: EmulatedDevices) -> None:
    order: list[int] = []

    def note(k: int, _: Task) -> None:
        order.append(k)

    async with BatchingSession(session, max_batch_size=1, max_delay=3600) as batching:
        gate, blocker = await hold(batching, aioais_devices)
        second = call(batching, 50)  # is submitted behind the first
        await turns()
        tasks = []
        for k, priority in enumerate((5, 0, -3, 0, 5)):
            task = call(batching, k, priority=priority)
            task.add_done_callback(partial(note, k))
            tasks.append(task)
        await turns()
        gate.open()
        await asyncio.gather(blocker, second, *tasks)
        await turns()
    assert order == [2, 1, 3, 0, 4]


async def test_a_caller_leaves_while_it_waits(session: InferSession, aioais_devices: EmulatedDevices) -> None:
    async with BatchingSession(session, max_delay=3600) as batching:
        gate, blocker = await hold(batching, aioais_devices)
        tasks = [call(batching, k) for k in range(3)]
        await turns()
        tasks[1].cancel()
        await turns()
        assert batching.statistics().waiting == 2
        gate.open()
        await asyncio.gather(blocker, check(tasks[0], 0), check(tasks[2], 2))
        found = batching.statistics()
        assert found.cancelled == 1
        assert sum(use.rows for use in found.batches.values()) == 3


async def test_a_caller_leaves_a_batch_that_waits_for_the_device(
    session: InferSession, aioais_devices: EmulatedDevices
) -> None:
    async with BatchingSession(session, max_delay=3600) as batching:
        gate, blocker = await hold(batching, aioais_devices)
        tasks = [call(batching, k) for k in range(8)]
        await turns()
        assert batching.statistics().in_flight == 2
        for task in tasks[::2]:
            task.cancel()
        await turns()
        gate.open()
        await asyncio.gather(blocker, *[check(tasks[k], k) for k in range(1, 8, 2)])
        assert batching.statistics().cancelled == 4


async def test_a_caller_leaves_a_batch_on_the_device(session: InferSession, aioais_devices: EmulatedDevices) -> None:
    async with BatchingSession(session) as batching:
        gate = aioais_devices.gate("execute")
        tasks = [call(batching, k) for k in range(4)]
        await reached(gate)
        tasks[2].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[2]
        gate.open()
        await asyncio.gather(*[check(tasks[k], k) for k in (0, 1, 3)])


async def test_a_coroutine_that_is_closed_leaves(session: InferSession, aioais_devices: EmulatedDevices) -> None:
    async with BatchingSession(session, max_delay=3600) as batching:
        gate, blocker = await hold(batching, aioais_devices)
        coroutine = batching.infer([rows(1)])
        coroutine.send(None)
        assert batching.statistics().waiting == 1
        coroutine.close()
        assert batching.statistics().waiting == 0
        gate.open()
        await blocker


async def test_a_batch_that_all_have_left_does_not_run(models: Models, aioais_devices: EmulatedDevices) -> None:
    async with InferSession(0, doubled(models), depth=1) as session:
        async with BatchingSession(session, max_delay=3600) as batching:
            gate, blocker = await hold(batching, aioais_devices)
            tasks = [call(batching, k) for k in range(8)]
            await turns()
            assert batching.statistics().in_flight == 2  # the second waits for the one set of buffers
            for task in tasks:
                task.cancel()
            await turns()
            assert batching.statistics().in_flight == 1
            gate.open()
            await blocker
        await until(lambda: session.statistics().cancelled == 1)
        assert session.statistics().done == 1


async def test_a_deadline_that_passes_while_it_waits(session: InferSession, aioais_devices: EmulatedDevices) -> None:
    async with BatchingSession(session, max_delay=3600) as batching:
        gate, blocker = await hold(batching, aioais_devices)
        late, patient = call(batching, 1, timeout=0.01), call(batching, 2, timeout=3600)
        with pytest.raises(DeadlineExceededError, match="was not run") as caught:
            await late
        assert isinstance(caught.value, TimeoutError)
        assert isinstance(caught.value, AioaisError)
        gate.open()
        await asyncio.gather(blocker, check(patient, 2))
        found = batching.statistics()
        assert (found.expired, found.done, found.cancelled) == (1, 2, 0)


async def test_a_deadline_does_not_concern_what_runs(session: InferSession, aioais_devices: EmulatedDevices) -> None:
    async with BatchingSession(session) as batching:
        gate = aioais_devices.gate("execute")
        task = call(batching, 1, timeout=1)
        await reached(gate)
        await asyncio.sleep(1.1)
        assert not task.done()
        gate.open()
        await check(task, 1)


async def test_a_full_queue_that_raises(session: InferSession, aioais_devices: EmulatedDevices) -> None:
    async with BatchingSession(session, max_queue=4, on_full="raise", max_delay=3600) as batching:
        gate, blocker = await hold(batching, aioais_devices)
        tasks = [call(batching, 0, 2), call(batching, 1, 2)]
        await turns()
        with pytest.raises(QueueFullError, match=r"got 1 rows while 4 wait.*max_queue=4"):
            await batching.infer([rows(2)])
        tasks[0].cancel()
        await turns()
        tasks.append(call(batching, 3, 2))
        gate.open()
        await asyncio.gather(blocker, check(tasks[1], 1, 2), check(tasks[2], 3, 2))
        assert batching.statistics().refused == 1
        await check(call(batching, 4, 9), 4, 9)  # more than the limit, while no others wait


async def test_a_full_queue_that_waits(session: InferSession, aioais_devices: EmulatedDevices) -> None:
    async with BatchingSession(session, max_queue=2, max_delay=3600) as batching:
        gate, blocker = await hold(batching, aioais_devices)
        tasks = [call(batching, k, priority=-k) for k in range(6)]
        await turns()
        found = batching.statistics()
        assert (found.waiting, found.waiting_outside) == (2, 4)
        tasks[3].cancel()
        late = call(batching, 9, timeout=0.005)
        with pytest.raises(DeadlineExceededError):
            await late
        gate.open()
        await asyncio.gather(blocker, *[check(tasks[k], k) for k in (0, 1, 2, 4, 5)])


async def test_what_an_idle_device_takes_does_not_fill_the_queue(session: InferSession) -> None:
    async with BatchingSession(session, max_queue=1, on_full="raise") as batching:
        await asyncio.gather(check(call(batching, 0), 0), check(call(batching, 1), 1))


async def test_leaving_waits_for_calls(session: InferSession, aioais_devices: EmulatedDevices) -> None:
    batching = BatchingSession(session, max_delay=3600, max_queue=1)
    async with batching:
        gate, blocker = await hold(batching, aioais_devices)
        tasks = [call(batching, k) for k in range(3)]
        await turns()
        closing = asyncio.create_task(batching.aclose())
        await turns()
        assert batching.closed
        with pytest.raises(ClosedError, match="is closed"):
            await batching.infer([rows(0)])
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        again = asyncio.create_task(batching.aclose())
        await turns()
        assert not again.done()
        gate.open()
        await again
        assert all(task.done() for task in (*tasks, blocker))
        for k, task in enumerate(tasks):
            await check(task, k)
    await batching.aclose()
    assert batching.statistics().done == 4
    assert_same(await session.infer([rows(1)], "auto"), [rows(1) * 2])  # it does not own the session


async def test_it_is_entered_once_and_on_its_own_loop(session: InferSession) -> None:
    batching = BatchingSession(session)
    assert "not open" in repr(batching)
    with pytest.raises(ClosedError, match="not open"):
        await batching.infer([rows(0)])
    with pytest.raises(ClosedError, match="not open"):
        batching.statistics()
    async with batching:
        assert batching.session is session
        with pytest.raises(ClosedError, match="entered before"):
            await batching.__aenter__()

        def elsewhere() -> None:
            with pytest.raises(WrongLoopError):
                asyncio.run(batching.infer([rows(0)]))
            with pytest.raises(WrongLoopError):
                asyncio.run(batching.aclose())

        await asyncio.to_thread(elsewhere)
        await check(call(batching, 1), 1)


async def test_a_forked_child_gets_a_clear_error(session: InferSession) -> None:
    async with BatchingSession(session) as batching:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what this is about
            child = os.fork()
        if not child:
            try:
                asyncio.run(batching.infer([rows(0)]))
            except ForkError:
                os._exit(0)
            finally:
                os._exit(1)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        await check(call(batching, 1), 1)


async def test_a_session_that_is_not_open(models: Models) -> None:
    session = InferSession(0, doubled(models))
    batching = BatchingSession(session)
    with pytest.raises(ClosedError, match="not open"):
        await batching.__aenter__()
    async with session, batching:
        await check(call(batching, 1), 1)
    with pytest.raises(ClosedError):
        await BatchingSession(session).__aenter__()


async def test_a_session_that_is_closed_below(models: Models) -> None:
    async with InferSession(0, doubled(models)) as session, BatchingSession(session) as batching:
        await session.aclose()
        with pytest.raises(ClosedError):
            await batching.infer([rows(1)])


async def test_models_without_rows(models: Models) -> None:
    async with InferSession(0, models.identity([])) as session:
        with pytest.raises(ModelError, match="no input with a batch dimension"):
            await BatchingSession(session).__aenter__()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_batch_size": 0}, "max_batch_size=0"),
        ({"max_batch_size": True}, "max_batch_size=True"),
        ({"max_delay": -1}, "max_delay=-1"),
        ({"max_delay": "1"}, "max_delay='1'"),
        ({"max_delay": float("inf")}, "max_delay=inf"),
        ({"max_queue": 0}, "max_queue=0"),
        ({"on_full": "drop"}, "on_full='drop'"),
        ({"batch_axes": "x"}, "batch_axes='x'"),
        ({"batch_axes": {"x": "0"}}, "batch_axes="),
    ],
)
def test_arguments(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        BatchingSession(InferSession(0, "model.onnx"), **options)


@pytest.mark.parametrize(
    ("axes", "match"), [({"z": 0}, "names 'z'.*y, x"), ({"x": 2}, "got 2 for 'x'"), (-3, "got -3 for")]
)
async def test_axes_that_the_model_does_not_have(session: InferSession, axes: Any, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        await BatchingSession(session, batch_axes=axes).__aenter__()


def test_it_takes_sessions_only() -> None:
    with pytest.raises(ArgumentError, match="expected an InferSession"):
        BatchingSession(object())  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"priority": 0.5}, {"priority": True}, {"timeout": 0}, {"timeout": "1"}])
async def test_arguments_of_a_call(session: InferSession, options: dict[str, Any]) -> None:
    async with BatchingSession(session) as batching:
        with pytest.raises(ArgumentError, match=next(iter(options))):
            await batching.infer([rows(0)], **options)


async def test_feeds_and_results_are_not_kept(session: InferSession) -> None:
    class Rows(np.ndarray[Any, np.dtype[Any]]):
        pass

    async with BatchingSession(session) as batching:
        feed = rows(0).view(Rows)
        (result,) = await batching.infer([feed])
        refs = weakref.ref(feed)
        del feed, result
        await turns()
        gc.collect()
        assert refs() is None


async def test_feeds_that_convert_slowly(session: InferSession) -> None:
    class Wrapped:
        def __init__(self, array: Any) -> None:
            self._array = array

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return self._array

    async with BatchingSession(session) as batching:
        results = await asyncio.gather(*[batching.infer([Wrapped(rows(k))]) for k in range(3)])
        for k, result in enumerate(results):
            assert_same(result, [rows(k) * 2])


async def test_traces_name_who_rode_together(session: InferSession) -> None:
    async with BatchingSession(session) as batching:
        with session.record() as recording:
            await asyncio.gather(*[check(call(batching, k), k) for k in range(4)])
            await session.infer([rows(1)], "auto")
        together, alone = recording
        assert len(set(together.riders)) == 4
        assert alone.riders == ()


async def test_other_calls_of_the_session_go_on(session: InferSession) -> None:
    async with BatchingSession(session) as batching:
        alone = [asyncio.create_task(session.infer([rows(k, 2)], "auto")) for k in range(8)]
        await asyncio.gather(*[check(call(batching, k), k) for k in range(20)])
        for k, task in enumerate(alone):
            await check(task, k, 2)


async def test_waiting_times_are_told(session: InferSession) -> None:
    async with BatchingSession(session) as batching:
        await asyncio.gather(*[check(call(batching, k), k) for k in range(20)])
        found = batching.statistics()
        assert 0 <= found.waiting_ms.p50 <= found.waiting_ms.p90 <= found.waiting_ms.p99 <= found.waiting_ms.max
        assert found.mean_batch > 1
        assert "fill" in repr(found)
        assert all(use.mean_ms >= 0 for use in found.batches.values())
        assert rows(0).shape[1] == WIDTH
