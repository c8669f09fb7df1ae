"""Executions of one model never overlap, whichever streams they are on, and whatever fails in between.

The emulator refuses executions that streams and events do not order, so every result here is a proof of the order.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import inside
from tests.unit.sums import check, feeds

from aioais import AclError, InferSession, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

pytestmark = pytest.mark.usefixtures("clean_slate")

SMALL = (1, 8)
LARGE = (1, 1 << 17)
BOTH = pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
REFUSED = 100000


@pytest.fixture(autouse=True)
def chained(monkeypatch: pytest.MonkeyPatch) -> None:
    inside.chain_executions(monkeypatch)


async def rounds(session: InferSession, shape: tuple[int, ...], count: int) -> None:
    results = await asyncio.gather(*(session.infer(feeds(shape, seed)) for seed in range(count)))
    for seed, result in enumerate(results):
        check(shape, seed, result)


async def refuse_a_chained_execution(
    session: InferSession, shape: tuple[int, ...], code: int = REFUSED, after: int = 0
) -> list[Any]:
    """Have ACL refuse an execution that waits for one on another stream; returns what became of both.

    With ``after`` it refuses a later execution of the same request.
    """
    with emulator.gate("execute") as gate:
        first = asyncio.ensure_future(session.infer(feeds(shape, 1)))
        assert await asyncio.to_thread(gate.wait_reached)
        emulator.fail("acl.mdl.execute_async", code, after=after)
        second = asyncio.ensure_future(session.infer(feeds(shape, 2)))
        while emulator.pending():  # the suite's timeout ends it
            await asyncio.sleep(0.001)
    results = await asyncio.gather(first, second, return_exceptions=True)
    return [*results]


@BOTH
async def test_a_refused_execution_ends_chaining(
    models: Models, shape: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    async with InferSession(0, models.add(shape), depth=4) as session:
        await rounds(session, shape, 16)
        with caplog.at_level(logging.WARNING, "aioais"):
            first, second = await refuse_a_chained_execution(session, shape)
        check(shape, 1, first)
        assert isinstance(second, AclError)
        assert (second.call, second.code) == ("acl.mdl.execute_async", REFUSED)
        assert sum("share one stream from now on" in text for text in caplog.messages) == 1
        await rounds(session, shape, 64)
        assert session.statistics().failed == 1


@pytest.mark.usefixtures("patient")
async def test_batches_follow_when_chaining_ends(models: Models) -> None:
    """What was recorded for the streams of the slots is not used any more."""
    async with InferSession(0, models.add(SMALL), depth=4) as session:
        while not inside.is_fast(session):
            await rounds(session, SMALL, 64)
        for _ in range(3):
            await rounds(session, SMALL, 128)
        first, second = await refuse_a_chained_execution(session, SMALL)
        check(SMALL, 1, first)
        assert isinstance(second, AclError)
        for _ in range(3):
            await rounds(session, SMALL, 128)
        assert session.statistics().failed == 1


@pytest.mark.parametrize("code", [207001, 507899])
async def test_no_memory_and_a_failing_device_say_nothing_of_chaining(
    models: Models, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with InferSession(0, models.add(SMALL), depth=4) as session:
        await rounds(session, SMALL, 16)
        with caplog.at_level(logging.WARNING, "aioais"):
            first, second = await refuse_a_chained_execution(session, SMALL, code)
        check(SMALL, 1, first)
        assert isinstance(second, AclError)
        assert "share one stream" not in caplog.text
        await rounds(session, SMALL, 16)


async def test_a_later_execution_says_nothing_of_chaining(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    """Only the one right behind the wait is on another stream than the execution before it."""
    async with InferSession(0, models.add(SMALL), loop=3, depth=4) as session:
        await rounds(session, SMALL, 16)
        with caplog.at_level(logging.WARNING, "aioais"):
            first, second = await refuse_a_chained_execution(session, SMALL, after=1)
        check(SMALL, 1, first)
        assert isinstance(second, AclError)
        assert "share one stream" not in caplog.text
        await rounds(session, SMALL, 16)


@pytest.mark.engine
async def test_a_slot_is_kept_while_a_wait_for_it_may_be_queued(models: Models) -> None:
    """Its event would be destroyed under the stream that waits."""
    async with InferSession(0, models.add(SMALL), depth=2) as session:
        await rounds(session, SMALL, 16)
        assert session.statistics().slots == 2
        gate = emulator.gate("execute")
        first = asyncio.ensure_future(session.infer(feeds(SMALL, 1)))
        assert await asyncio.to_thread(gate.wait_reached)
        second = asyncio.ensure_future(session.infer(feeds(SMALL, 2)))
        while session.statistics().in_flight < 2:
            await asyncio.sleep(0.001)
        with emulator.gate("execute") as other:
            gate.open()
            check(SMALL, 1, await first)
            assert await asyncio.to_thread(other.wait_reached)
            await inside.reclaim(session)
            assert session.statistics().slots == 2
        check(SMALL, 2, await second)
        await inside.reclaim(session)
        assert session.statistics().slots == 0


@BOTH
@pytest.mark.parametrize("nth", range(4))
@pytest.mark.parametrize("call", ["acl.rt.record_event", "acl.rt.memcpy_async", "acl.rt.stream_wait_event"])
async def test_the_next_execution_waits_whatever_failed(
    models: Models, call: str, nth: int, shape: tuple[int, ...]
) -> None:
    """A call fails at each place of a request that others follow: the emulator refuses what would overlap."""
    async with InferSession(0, models.add(shape), depth=4) as session:
        await rounds(session, shape, 16)
        with emulator.gate("execute") as gate:
            first = asyncio.ensure_future(session.infer(feeds(shape, 1)))
            assert await asyncio.to_thread(gate.wait_reached)
            emulator.fail(call, 107000, after=nth)
            others = [asyncio.ensure_future(session.infer(feeds(shape, seed))) for seed in range(2, 6)]
            while emulator.pending() and session.statistics().in_flight < 4:
                await asyncio.sleep(0.001)
        check(shape, 1, await first)
        results = await asyncio.gather(*others, return_exceptions=True)
        emulator.disarm()
        for seed, result in enumerate(results, 2):
            if isinstance(result, AclError):
                assert result.code == 107000
            else:
                assert isinstance(result, list)
                check(shape, seed, result)
        await rounds(session, shape, 32)


async def test_one_request_waits_once(models: Models) -> None:
    async with InferSession(0, models.identity(LARGE), depth=2) as session:
        x = np.ones(LARGE, np.float32)
        await asyncio.gather(*(session.infer([x]) for _ in range(8)))
        emulator.reset_counts()
        await session.infer([x])
        counts = emulator.counts()
        # A record behind each copy and execution, one before the first copy, one before the execution.
        assert counts["acl.rt.record_event"] == 5
        assert counts["acl.rt.memcpy_async"] == 2
        assert counts["acl.rt.synchronize_stream"] == 1
        assert counts.get("acl.rt.stream_wait_event", 0) == 0, "the execution before is known to be complete"
