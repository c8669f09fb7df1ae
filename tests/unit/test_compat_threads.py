"""Blocking sessions and the awaitable ones behind them: from many threads and event loops at once."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import inside

import aioais
from aioais import emulator
from aioais.compat import aclruntime
from aioais.compat.ais_bench import InferSession, MultiDeviceSession
from aioais.testing import LoopLag

if TYPE_CHECKING:
    from tests.unit.conftest import Models

SHAPE = (1, 8)


def row(value: float) -> Any:
    return np.full(SHAPE, value, np.float32)


def loop_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "aioais-compat"]


@pytest.fixture
def session(path: str) -> Iterator[InferSession]:
    with InferSession(0, path) as opened:
        yield opened


def test_many_threads_at_once(path: str) -> None:
    with InferSession(0, path) as first, InferSession(1, path) as second:
        assert len(loop_threads()) == 1, "one loop for all sessions"

        def work(k: int) -> None:
            session = (first, second)[k % 2]
            for j in range(20):
                value = 100 * k + j
                assert session.infer([row(value)])[0][0, 0] == value
            assert [one[0][0, 0] for one in session.infer_pipeline([[row(k)]] * 5)] == [k] * 5

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(16)))
        assert len(first.summary().exec_time_list) == 8 * 25
    for thread in loop_threads():
        thread.join(5)
    assert not loop_threads()


def test_each_thread_has_the_gear_that_it_has_set(models: Models) -> None:
    with InferSession(0, models.add_in("dymbatch", (1, 4))) as session:

        def work(k: int) -> None:
            batch = (1, 2, 4)[k % 3]
            for _ in range(10):
                session.set_dynamic_batchsize(batch)
                flat = np.zeros(4 * batch, np.float32)
                assert session.run([flat, flat], out_array=True)[0].shape == (batch, 4)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(12)))
        session.set_dynamic_batchsize(2)
        with ThreadPoolExecutor(1) as pool:  # a thread that has set nothing has what was set last
            flat = np.zeros(8, np.float32)
            assert pool.submit(session.run, [flat, flat], True).result()[0].shape == (2, 4)


def test_the_gil_is_released(session: InferSession) -> None:
    seen: list[float] = []
    with emulator.configure(execute_ms=200):
        thread = threading.Thread(target=session.infer, args=([row(1)],))
        thread.start()
        start = time.perf_counter()
        while thread.is_alive():
            time.sleep(0.001)
            seen.append(time.perf_counter())
        thread.join()
    assert len(seen) > 50 or time.perf_counter() - start > 1


async def test_blocking_calls_beside_a_loop_of_ones_own(session: InferSession) -> None:
    assert session.infer([row(1)])[0][0, 0] == 1, "a coroutine may block, at its own cost"
    assert session.get_inputs()[0].name == "x"
    assert session.summary().count == 1
    outputs = await asyncio.to_thread(session.infer, [row(2)])
    assert outputs[0][0, 0] == 2


async def test_aio_on_another_loop(session: InferSession) -> None:
    aio = session.aio
    results = await asyncio.gather(*(aio.infer([row(k)]) for k in range(20)))
    assert [outputs[0][0, 0] for outputs in results] == list(range(20))
    (tensor,) = await aio.infer([row(3)], out_array=False)
    there = await aio.to_device(row(4))
    assert (await aio.infer([there]))[0][0, 0] == 4
    assert (await tensor.to_host())[0, 0] == 3
    assert (await aio.infer_iteration([row(5)], [0], 3))[0][0, 0] == 5
    assert aio.get_outputs()[0].name == "y"
    assert aio.statistics().in_flight == 0
    with aio.record() as times:
        await aio.infer([row(1)])
    assert len(times) == 1
    with pytest.raises(aioais.FeedError) as caught:
        await aio.infer([])
    assert not isinstance(caught.value, RuntimeError), "the errors of the awaitable session"


async def test_pipelines_read_sources_of_another_loop(session: InferSession) -> None:
    mine = asyncio.get_running_loop()

    async def source() -> AsyncIterator[list[Any]]:
        for k in range(30):
            assert asyncio.get_running_loop() is mine
            await asyncio.sleep(0)
            yield [row(k)]

    assert [outputs[0][0, 0] async for outputs in session.aio.infer_pipeline(source())] == list(range(30))
    seen = []
    async for outputs in session.aio.infer_pipeline([row(k)] for k in range(1000)):
        seen.append(outputs[0][0, 0])
        if len(seen) == 5:
            break
    assert seen == list(range(5))
    with pytest.raises(aioais.FeedError) as caught:
        async for _ in session.aio.infer_pipeline([[row(1)], [row(2)[:, :1]]]):
            pass
    assert "item 1 of the source" in getattr(caught.value, "__notes__", ())


async def test_cancelling_on_another_loop(session: InferSession) -> None:
    with emulator.gate("execute") as gate:
        tasks = [asyncio.ensure_future(session.aio.infer([row(k)])) for k in range(12)]
        await asyncio.to_thread(gate.wait_reached)
        for task in tasks[:8]:
            task.cancel()
        for task in tasks[:8]:
            with pytest.raises(asyncio.CancelledError):
                await task
        gate.open()
        for k, task in enumerate(tasks[8:], 8):
            assert (await task)[0][0, 0] == k
    assert session.aio.statistics().in_flight == 0


def test_two_loops_and_threads_share_a_session(session: InferSession, loop_factory: Callable[[], Any]) -> None:
    def run_loop(k: int) -> None:
        async def main() -> None:
            for j in range(10):
                results = await asyncio.gather(*(session.aio.infer([row(k + j)]) for _ in range(4)))
                assert all(outputs[0][0, 0] == k + j for outputs in results)

        loop = loop_factory()
        try:
            loop.run_until_complete(main())
        finally:
            loop.close()

    def block() -> None:
        for _ in range(40):
            session.infer([row(1)])

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(run_loop, 100), pool.submit(run_loop, 200)]
        jobs += [pool.submit(block)]
        for job in jobs:
            job.result()


async def test_closing_from_another_loop(path: str) -> None:
    session = InferSession(0, path)
    async with session.aio as aio:
        await aio.infer([row(1)])
    assert session.aio.closed
    with pytest.raises(RuntimeError, match="closed"):
        session.infer([row(1)])
    with pytest.raises(aioais.ClosedError):
        await session.aio.infer([row(1)])
    session.free_resource()


async def test_the_callers_loop_is_not_held_up(session: InferSession) -> None:
    with emulator.configure(execute_ms=5):
        async with LoopLag(limit_ms=500):
            await asyncio.gather(*(session.aio.infer([row(k)]) for k in range(20)))


def test_a_call_on_the_loop_thread_is_refused(session: InferSession) -> None:
    async def wrong() -> None:
        session.infer([row(1)])

    runner = session.aio.elsewhere.runner
    with pytest.raises(RuntimeError, match="a blocking call on a thread of this library"):
        runner.run_coroutine(wrong)


def test_freed_while_others_call(path: str) -> None:
    session = InferSession(0, path)
    ends: list[BaseException | None] = []

    def work() -> None:
        try:
            while True:
                session.infer([row(1)])
        except RuntimeError as exc:
            ends.append(exc)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    session.free_resource()
    for thread in threads:
        thread.join(10)
    assert len(ends) == 6
    assert all(isinstance(error, aioais.ClosedError) for error in ends)


class Model:
    """A program's own class: it frees its session when it is collected, which a cycle puts off."""

    def __init__(self, path: str) -> None:
        self.session = InferSession(0, path)
        self.multi = MultiDeviceSession(path)
        self.multi.infer({1: [[row(1)]]})
        self.me = self

    def __del__(self) -> None:
        self.session.free_resource()
        self.multi.free_resource()


# The collector may call the finaliser of the session before that of the object which frees it: Python has no order.
@pytest.mark.filterwarnings("ignore:.*was never closed:ResourceWarning")
def test_collected_on_the_loop_thread(session: InferSession, path: str) -> None:
    models = [Model(path)]
    models.clear()

    async def collect() -> None:
        gc.collect()

    session.aio.elsewhere.runner.run_coroutine(collect)
    assert session.infer([row(1)])[0][0, 0] == 1


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore:.*was never closed:ResourceWarning")
def test_collected_on_a_stage_thread(session: InferSession, path: str) -> None:
    """Where the locks of a session are held, its own included."""
    models = [Model(path)]
    inside.collect_where_locks_are_held(session.aio, gc.collect)
    inside.collect_where_locks_are_held(models[0].session.aio, gc.collect)
    models[0].session.infer([row(2)])
    models.clear()
    for k in range(5):
        assert session.infer([row(k)])[0][0, 0] == k


@pytest.mark.filterwarnings("ignore:.*was never closed:ResourceWarning")
def test_collected_while_another_session_is_opened(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finaliser waits for the end of its session in the thread that is about to start the loop."""
    models = [Model(path)]

    def collect() -> None:
        models.clear()
        gc.collect()

    monkeypatch.setattr(aclruntime, "hold", inside.hold_with_lock(collect))
    with InferSession(2, path) as session:
        assert session.infer([row(3)])[0][0, 0] == 3


def test_opening_and_freeing_from_many_threads(path: str) -> None:
    def work(k: int) -> None:
        with InferSession(k % 4, path) as session:
            assert session.infer([row(k)])[0][0, 0] == k

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(18)))


def test_a_dropped_session_is_closed(path: str) -> None:
    session = InferSession(0, path)
    session.infer([row(1)])
    (thread,) = loop_threads()
    sessions = [session]
    del session

    def drop() -> None:
        sessions.clear()
        thread.join(5)

    with pytest.warns(ResourceWarning, match=r"never closed: call session.free_resource\(\)"):
        drop()
    assert not thread.is_alive()


def test_a_kept_aio_keeps_the_loop(path: str, loop_factory: Callable[[], Any]) -> None:
    session = InferSession(0, path)
    aio = session.aio
    del session
    gc.collect()
    loop = loop_factory()
    try:
        assert loop.run_until_complete(aio.infer([row(7)]))[0][0, 0] == 7
        loop.run_until_complete(aio.aclose())
    finally:
        loop.close()


def test_a_failed_opening_leaves_nothing(path: str) -> None:
    emulator.fail("acl.mdl.load_from_file", 145000)
    with pytest.raises(RuntimeError):
        InferSession(0, path)
    for thread in loop_threads():
        thread.join(5)
    assert not loop_threads()


def test_errors_of_the_device(session: InferSession) -> None:
    emulator.fail("acl.mdl.execute_async", 507015, device_side=True)
    with pytest.raises(RuntimeError, match="507015"):
        session.infer([row(1)])


def test_several_devices_from_many_threads(path: str) -> None:
    session = MultiDeviceSession(path)

    def work(k: int) -> None:
        results = session.infer({0: [[row(k)], [row(k)]], 1: [[row(k)]]})
        assert [lane[0][0, 0] for lanes in results.values() for lane in lanes] == [k] * 3

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(12)))
    session.free_resource()


class Alarm(Exception):
    pass


def test_what_a_signal_handler_raises_comes_out_of_free_resource(path: str) -> None:
    def strike(*_: object) -> None:
        raise Alarm

    def signal_once_it_waits() -> None:
        while not opened.aio.closed:
            time.sleep(0.001)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    opened = InferSession(0, path)
    before = signal.signal(signal.SIGUSR1, strike)
    try:
        with emulator.gate("execute") as gate:
            helpers = [threading.Thread(target=opened.infer, args=([row(1)],))]
            helpers[0].start()
            assert gate.wait_reached(60)
            helpers.append(threading.Thread(target=signal_once_it_waits))
            helpers[1].start()
            with pytest.raises(Alarm):
                opened.free_resource()
        for helper in helpers:
            helper.join()
        opened.free_resource()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_loop_that_ends_is_not_stopped_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last session is freed right before the end of the process, which stops the loop as well."""
    assert inside.stop_a_loop_that_ends(monkeypatch) == []
