"""Cancelling an await: the waiter goes at once, the buffers only when the device is done."""

from __future__ import annotations

import asyncio
import sys
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest
from tests.unit.sums import feeds, wanted

from aioais import InferSession, emulator
from aioais.types import SessionStatistics

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]

SMALL = (1, 8)
"""Submitted and awaited by one thread when it is alone."""
LARGE = (1, 1 << 17)
"""Goes through all threads, and its result leases pinned memory."""
WAYS = ["task", "wait_for", "anyio", *(["timeout"] if sys.version_info >= (3, 11) else [])]
STAGES = ["h2d", "execute", "d2h", "malloc"]


async def reaches(session: InferSession, condition: Callable[[SessionStatistics], bool]) -> None:
    """Wait until the session's statistics are as wanted."""
    deadline = time.monotonic() + 10
    while not condition(session.statistics()):
        assert time.monotonic() < deadline, session.statistics()
        await asyncio.sleep(0.0005)


class Victim:
    """A task that awaits a request and is cancelled in one of the ways there are."""

    def __init__(self, way: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.way = way
        self._strike: Callable[[], object] = lambda: None
        self.task = asyncio.ensure_future(self._run(call))
        if way == "task":
            self._strike = self.task.cancel

    async def _run(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        if self.way == "task":
            await call()
        elif self.way == "wait_for":
            await asyncio.wait_for(call(), 0.1)
        elif self.way == "anyio":
            with anyio.CancelScope() as scope:
                self._strike = scope.cancel
                await call()
            assert scope.cancelled_caught
            raise asyncio.CancelledError
        elif sys.version_info >= (3, 11):
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(None) as timeout:
                self._strike = lambda: timeout.reschedule(loop.time())
                await call()

    async def falls(self) -> None:
        """Cancel, and check that the await ends at once."""
        self._strike()
        done, _ = await asyncio.wait([self.task], timeout=5)
        assert done, "the await goes on although it was cancelled"
        error = None
        try:
            self.task.result()
        except (asyncio.CancelledError, asyncio.TimeoutError) as exc:
            error = exc
        is_timeout = self.way in ("wait_for", "timeout")
        assert isinstance(error, asyncio.TimeoutError if is_timeout else asyncio.CancelledError)


@pytest.fixture
async def session(models: Models, request: pytest.FixtureRequest) -> AsyncIterator[InferSession]:
    shape = request.node.callspec.params.get("shape", SMALL)
    async with InferSession(0, models.add(shape), depth=3) as opened:
        yield opened
    del opened


@pytest.mark.pairs
@pytest.mark.parametrize("company", [0, 2])
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("stage", "out_array"),
    [*((stage, True) for stage in STAGES), *((stage, False) for stage in STAGES if stage != "d2h")],
)
async def test_cancelled_on_the_device(
    session: InferSession, stage: str, way: str, shape: tuple[int, ...], company: int, out_array: bool
) -> None:
    if stage != "malloc":
        await session.infer(feeds(shape, 1))
    before = session.statistics()
    with emulator.gate(stage) as gate:
        victim = Victim(way, lambda: session.infer(feeds(shape, 5), out_array=out_array))
        await asyncio.sleep(0)
        others = [asyncio.ensure_future(session.infer(feeds(shape, 10 + i))) for i in range(company)]
        await reaches(session, lambda now: now.in_flight + now.queued == 1 + company)
        assert gate.wait_reached()
        await victim.falls()
        now = session.statistics()
        assert now.cancelled == before.cancelled, "its buffers are still the device's"
        # Before it has buffers it is out of the queue at once, with them it is in flight until they are free.
        assert now.in_flight + now.queued == (stage != "malloc") + company
        assert now.in_flight >= (stage != "malloc")
        assert not any(task.done() for task in others)
    for i, task in enumerate(others):
        np.testing.assert_array_equal((await task)[0], wanted(shape, 10 + i))
    await reaches(session, lambda now: now.cancelled == 1 and now.in_flight + now.queued == 0)
    now = session.statistics()
    assert (now.done, now.failed, now.cancelled) == (before.done + company, 0, 1)
    assert now.queued == 0
    held = now.pinned_leased
    result: Array | None = None
    for seed in range(20, 26):
        (result,) = await session.infer(feeds(shape, seed))
        np.testing.assert_array_equal(result, wanted(shape, seed))
    result = None
    del others
    await reaches(session, lambda now: now.pinned_leased <= held + 6)
    assert session.statistics().slots <= 3


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("way", WAYS)
async def test_cancelled_in_the_queue_never_runs(models: Models, way: str, shape: tuple[int, ...]) -> None:
    async with InferSession(0, models.add(shape), depth=1) as session:
        await session.infer(feeds(shape, 1))
        emulator.reset_counts()
        with emulator.gate("execute") as gate:
            first = asyncio.ensure_future(session.infer(feeds(shape, 2)))
            await asyncio.sleep(0)
            assert gate.wait_reached()
            victims, rest = [], []
            for i in range(4):
                victims.append(Victim(way, lambda: session.infer(feeds(shape, 99))))
                rest.append(asyncio.ensure_future(session.infer(feeds(shape, 3 + i))))
            await reaches(session, lambda now: now.in_flight + now.queued == 9)
            for victim in victims:
                await victim.falls()
            now = session.statistics()
            assert (now.in_flight, now.queued) == (1, 4)
        np.testing.assert_array_equal((await first)[0], wanted(shape, 2))
        for i, task in enumerate(rest):
            np.testing.assert_array_equal((await task)[0], wanted(shape, 3 + i))
        await reaches(session, lambda now: now.cancelled == 4 and now.in_flight + now.queued == 0)
        counts = emulator.counts()
        assert counts["acl.mdl.execute_async"] == 5
        assert counts["acl.rt.memcpy_async"] == 5 * 3


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
async def test_feeds_of_a_cancelled_request_are_let_go(models: Models, shape: tuple[int, ...]) -> None:
    """At once, though the device hangs and no thread of the session looks at the line."""
    async with InferSession(0, models.add(shape), depth=1) as session:
        await session.infer(feeds(shape, 1))
        with emulator.gate("execute") as gate:
            first = asyncio.ensure_future(session.infer(feeds(shape, 2)))
            await asyncio.sleep(0)
            assert gate.wait_reached()
            second = asyncio.ensure_future(session.infer(feeds(shape, 3)))
            given = feeds(shape, 4)
            watched = [weakref.ref(array) for array in given]
            victim = asyncio.ensure_future(session.infer(given))
            del given
            await asyncio.sleep(0)
            victim.cancel()
            await asyncio.wait([victim])
            del victim
            assert [ref() for ref in watched] == [None, None], (
                "a queued request that was cancelled still holds its feeds"
            )
        await first
        await second


@pytest.mark.parametrize("way", WAYS)
async def test_storm_of_cancels_at_full_depth(models: Models, way: str) -> None:
    async with InferSession(0, models.add(LARGE), depth=2) as session:
        await asyncio.gather(*(session.infer(feeds(LARGE, i)) for i in range(4)))
        with emulator.gate("d2h") as gate:
            victims = [Victim(way, lambda: session.infer(feeds(LARGE, 7))) for _ in range(16)]
            await reaches(session, lambda now: now.in_flight + now.queued == 16)
            assert gate.wait_reached()
            await reaches(session, lambda now: (now.in_flight, now.queued) == (2, 14))
            for victim in victims:
                await victim.falls()
            now = session.statistics()
            assert (now.in_flight, now.queued) == (2, 0)
        await reaches(session, lambda now: now.cancelled == 16)
        np.testing.assert_array_equal((await session.infer(feeds(LARGE, 9)))[0], wanted(LARGE, 9))
        now = session.statistics()
        assert (now.in_flight, now.queued, now.slots) == (0, 0, 2)


async def test_cancelled_as_the_result_arrives(models: Models) -> None:
    async with InferSession(0, models.add(SMALL)) as session:
        for _ in range(50):
            task = asyncio.ensure_future(session.infer(feeds(SMALL, 1)))
            await asyncio.sleep(0)
            while not session.statistics().done and not task.done():
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        np.testing.assert_array_equal((await session.infer(feeds(SMALL, 3)))[0], wanted(SMALL, 3))


async def test_cancelled_copies_between_host_and_device(models: Models) -> None:
    async with InferSession(0, models.add(SMALL)) as session:
        with emulator.gate("h2d") as gate:
            task: asyncio.Future[Any] = asyncio.ensure_future(session.to_device(np.ones(4, np.float32)))
            await asyncio.sleep(0)
            assert gate.wait_reached()
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=5)
            assert done
            assert task.cancelled()
        tensor = await session.to_device(np.full(4, 3, np.float32))
        with emulator.gate("d2h") as gate:
            copy = asyncio.ensure_future(tensor.to_host())
            await asyncio.sleep(0)
            assert gate.wait_reached()
            copy.cancel()
            done_too, _ = await asyncio.wait([copy], timeout=5)
            assert done_too
            assert copy.cancelled()
        np.testing.assert_array_equal(await tensor.to_host(), np.full(4, 3, np.float32))
        tensor.close()
        del tensor


async def test_a_tensor_given_up_lives_until_its_request_is_done(models: Models) -> None:
    async with InferSession(0, models.add(SMALL)) as session:
        tensor = await session.to_device(feeds(SMALL, 1)[0])
        held = session.statistics().device_bytes
        with emulator.gate("execute") as gate:
            task = asyncio.ensure_future(session.infer([tensor, feeds(SMALL, 1)[1]]))
            await asyncio.sleep(0)
            assert gate.wait_reached()
            tensor.close()
            assert session.statistics().device_bytes >= held
        np.testing.assert_array_equal((await task)[0], wanted(SMALL, 1))
        del task
