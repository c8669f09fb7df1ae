"""Async sources of pipelines and streams that are left early: they end in their own task, no error is lost."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest

from aioais import FeedError, InferSession, MultiDeviceSession

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]
Source = AsyncIterator[list[Array]]
Results = AsyncGenerator[Any, None]
Start = Callable[[Source], Results]

X = np.arange(4, dtype=np.float32)
WITHIN = contextvars.ContextVar("WITHIN", default="nowhere")
DOORS = ["pipeline", "stream"]


@asynccontextmanager
async def opened(models: Models, door: str) -> AsyncIterator[Start]:
    path = models.identity([4])
    if door == "pipeline":
        async with InferSession(0, path) as session:
            yield session.infer_pipeline
        return
    async with MultiDeviceSession(path) as sessions:
        yield lambda source: sessions.stream(source, [0])


class Careful:
    """Sources that end well only in the task and the context in which they began."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any] | None] = set()
        self.ended = asyncio.Event()

    async def group(self) -> Source:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                async for feeds in self.items():
                    yield feeds
        finally:
            self.ended.set()

    async def variable(self) -> Source:
        token = WITHIN.set("a source")
        try:
            async for feeds in self.items():
                yield feeds
        finally:
            WITHIN.reset(token)
            self.ended.set()

    async def items(self) -> Source:
        for _ in itertools.count():
            self.tasks.add(asyncio.current_task())
            yield [X]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", ["group", "variable"])
@pytest.mark.parametrize("way", ["break", "aclose", "exception", "cancel", "drop", "bad item"])
async def test_the_task_that_began_a_source_ends_it(models: Models, door: str, kind: str, way: str) -> None:
    careful = Careful()
    inner: Callable[[], Source] = getattr(careful, kind)
    is_taken = asyncio.Event()

    async def use(results: Results) -> None:
        async for _ in results:
            is_taken.set()
            if way == "break":
                break
            if way == "exception":
                raise KeyError("mine")
            if way == "cancel":
                await asyncio.sleep(30)
            if way == "aclose":
                await results.aclose()
                return
            if way == "drop":
                return

    async with opened(models, door) as start:
        source = inner()
        results = start(source)
        if way == "bad item":
            careful.items = bad_items  # type: ignore[method-assign]
        task = asyncio.ensure_future(use(results))
        if way != "bad item":
            await is_taken.wait()
        if way == "cancel":
            task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        wanted = {"exception": KeyError, "cancel": asyncio.CancelledError, "bad item": FeedError}
        assert isinstance(outcome, wanted.get(way, type(None)))
        if way == "aclose":
            assert careful.ended.is_set()
        del task, results, outcome
        gc.collect()
        await asyncio.wait_for(careful.ended.wait(), 10)
        with pytest.raises(StopAsyncIteration):
            await anext(source)
    assert len(careful.tasks) == (way != "bad item")


async def bad_items() -> Source:
    yield [X]
    yield [X[:3]]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("where", ["await", "yield"])
@pytest.mark.parametrize("way", ["aclose", "cancel"])
async def test_a_failing_clean_up_is_heard_of(
    models: Models, door: str, where: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is raised by ``aclose``, and logged where that would hide the cancellation."""

    async def source() -> Source:
        try:
            yield [X]
            while True:
                if where == "await":
                    is_there.set()
                    await asyncio.sleep(30)
                yield [X]
        finally:
            raise ValueError("could not commit")

    is_there = asyncio.Event()
    async with opened(models, door) as start:
        results = start(source())
        await anext(results)
        if where == "await":
            await is_there.wait()
        if way == "aclose":
            with pytest.raises(ValueError, match="could not commit"):
                await results.aclose()
            assert "could not commit" not in caplog.text
            return
        task = asyncio.ensure_future(hold(results))
        await asyncio.sleep(0)
        with caplog.at_level(logging.ERROR, "aioais"):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert "failed when it was given up: ValueError('could not commit')" in caplog.text


async def hold(results: Results) -> None:
    """Take all, until cancelled."""
    try:
        async for _ in results:
            pass
    finally:
        await results.aclose()


@pytest.mark.parametrize("door", DOORS)
async def test_a_source_that_swallows_its_cancellation_at_a_yield(models: Models, door: str) -> None:
    seen: list[str] = []

    async def source() -> Source:
        try:
            while True:
                try:
                    yield [X]
                except asyncio.CancelledError:
                    seen.append("cancelled")
        finally:
            seen.append("closed")

    async with opened(models, door) as start:
        results = start(source())
        await anext(results)
        await results.aclose()
        assert seen == ["cancelled", "closed"]


@pytest.mark.parametrize("door", DOORS)
async def test_a_task_group_in_a_source_fails_at_its_yield(models: Models, door: str) -> None:
    """It cancels its task, which is not in the source then: the consumer hears why."""
    fails = asyncio.Event()

    async def fail() -> None:
        await fails.wait()
        raise KeyError("of the child")

    async def source() -> Source:
        async with anyio.create_task_group() as group:
            group.start_soon(fail)
            while True:
                yield [X]

    async with opened(models, door) as start:
        results = start(source())
        await anext(results)
        fails.set()
        with pytest.raises(BaseException, match="unhandled errors in a TaskGroup"):
            await hold(results)


@pytest.mark.parametrize("door", DOORS)
async def test_a_clean_up_is_cancelled_once(models: Models, door: str) -> None:
    """All tasks are cancelled at once, as ``asyncio.run`` does it in the end."""
    seen: list[str] = []
    goes_on, cleans = asyncio.Event(), asyncio.Event()

    async def source() -> Source:
        try:
            while True:
                yield [X]
        finally:
            cleans.set()
            await goes_on.wait()
            seen.append("clean")

    async with opened(models, door) as start:
        before = asyncio.all_tasks()
        results = start(source())
        await anext(results)
        (feeder,) = asyncio.all_tasks() - before
        task = asyncio.ensure_future(hold(results))
        await asyncio.sleep(0)
        feeder.cancel()
        await asyncio.wait_for(cleans.wait(), 10)
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["clean"]


@pytest.mark.parametrize("door", DOORS)
async def test_an_iterator_that_is_no_generator_is_only_cancelled(models: Models, door: str) -> None:
    class Reader:
        taken = 0

        def __aiter__(self) -> Reader:
            return self

        async def __anext__(self) -> list[Array]:
            self.taken += 1
            return [X]

    async with opened(models, door) as start:
        reader = Reader()
        results = start(reader)
        await anext(results)
        await results.aclose()
        taken = reader.taken
        await anext(reader)
        assert reader.taken == taken + 1
