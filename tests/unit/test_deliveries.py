"""How many results the loop is woken for: two where a fast device has both, else one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from tests import inside

from aioais import AclError, BrokenSessionError, InferSession, emulator

if TYPE_CHECKING:
    import pytest
    from tests.unit.conftest import Models

Tasks = list[asyncio.Task[list[np.ndarray[Any, Any]]]]

FEED = np.ones((1, 1 << 17), np.float32)
"""Too large to share a slot with others."""


@asynccontextmanager
async def under_way(models: Models, count: int) -> AsyncIterator[tuple[InferSession, Tasks, emulator.Gate]]:
    """Give requests of which the first stands at a gate, two have slots, and the others wait in the line."""
    async with InferSession(0, models.identity(FEED.shape), depth=2) as session:
        for _ in range(16):
            await session.infer([FEED])
        with emulator.gate("execute") as gate:
            tasks = [asyncio.create_task(session.infer([FEED])) for _ in range(count)]
            await asyncio.to_thread(gate.wait_reached)
            while not inside.submitted(session):
                await asyncio.sleep(0)
            yield session, tasks, gate


async def test_two_that_are_complete_wake_the_loop_once(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    inside.treat_as_fast(monkeypatch)
    async with under_way(models, 6) as (session, tasks, gate):
        counts = inside.note_deliveries(session)
        gate.open()
        for (result,) in await asyncio.gather(*tasks):
            assert result.sum() == FEED.size
        assert counts[0] == 2


async def test_a_result_never_waits_for_one_that_is_not_complete(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside.treat_as_fast(monkeypatch)
    async with under_way(models, 6) as (session, tasks, gate):
        counts = inside.note_deliveries(session)
        with emulator.gate("execute") as next_gate:  # the first is at the other one already
            gate.open()
            await tasks[0]
            await asyncio.to_thread(next_gate.wait_reached)
            assert [task.done() for task in tasks] == [True, *[False] * 5]
            assert counts == [1]
        await asyncio.gather(*tasks)


async def test_the_last_results_wait_for_nothing(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing in the line the loop may have something to do for the device."""
    inside.treat_as_fast(monkeypatch)
    async with under_way(models, 2) as (session, tasks, gate):
        counts = inside.note_deliveries(session)
        gate.open()
        await asyncio.gather(*tasks)
        assert counts[0] == 1


async def test_a_slow_device_is_not_asked(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    inside.treat_as_slow(monkeypatch)
    with emulator.configure(execute_ms=3):
        async with under_way(models, 6) as (_, tasks, gate):
            emulator.reset_counts()
            gate.open()
            await asyncio.gather(*tasks)
            assert "acl.rt.stream_query" not in emulator.counts()


async def test_a_result_that_is_kept_comes_with_a_failure(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    inside.treat_as_fast(monkeypatch)
    inside.chain_executions(monkeypatch)  # on one stream a failure concerns all that was queued
    async with under_way(models, 6) as (session, tasks, gate):
        counts = inside.note_deliveries(session)
        emulator.fail("acl.rt.synchronize_stream", 500002)  # the first is in that call already
        gate.open()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(outcome, AclError) for outcome in outcomes] == [False, True, *[False] * 4]
        assert counts[0] == 2


async def test_no_result_is_kept_once_the_session_is_broken(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other wake-up of the loop would follow."""
    inside.treat_as_fast(monkeypatch)
    inside.chain_executions(monkeypatch)
    async with under_way(models, 6) as (session, tasks, gate):
        inside.break_once_left(session, AclError("acl.rt.synchronize_stream", 507899, "", "", "lost"))
        gate.open()
        await asyncio.wait(tasks)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes[:2]] == [list, AclError]
        assert all(isinstance(outcome, BrokenSessionError) for outcome in outcomes[3:])
