"""Lanes: one task for each, on the warm session of its device; the first failure ends them all."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NoReturn

import anyio
import numpy as np

from .._engine.core import SessionCore
from .._sources.source import is_iterable
from ..blame import blame
from ..errors import BrokenSessionError, ClosedError, FeedError, add_note
from ..types import PipelineOutput
from .failures import describe, root
from .pool import SessionPool

__all__ = ["Lane", "PipelineRun", "Times", "make_lanes", "run_lanes"]

Times = dict[int, list[float]]
"""Milliseconds of each lane, by device."""

_Results = dict[int, list[list[list[np.ndarray]]]]


@dataclass(eq=False)
class Lane:
    """One entry of a device's list."""

    device_id: int
    number: int
    """Its place in the list."""
    feeds: Any
    result: Any = None
    ms: float = 0.0
    """End to end, opening the session included."""

    def __str__(self) -> str:
        return f"device {self.device_id}, lane {self.number}"


@dataclass
class _Failures:
    lanes: list[tuple[Lane, Exception]] = field(default_factory=list)

    def first(self) -> Exception:
        """The first error, with its lane and all the others in the notes.

        Lanes that fail because their session is broken come after the one that broke it.
        """
        (lane, error), *others = sorted(self.lanes, key=lambda failed: isinstance(failed[1], BrokenSessionError))
        add_note(error, f"{lane}")
        for other, its_error in others:
            add_note(error, f"{other} failed too: {'the same' if its_error is error else describe(its_error)}")
        return error


def make_lanes(devices_feeds: object, name: str, example: str) -> dict[int, list[Lane]]:
    """Read a mapping of devices to lists.

    Raises
    ------
    FeedError
        It is none.
    """
    if not isinstance(devices_feeds, Mapping):
        raise FeedError(f"{name}: got {type(devices_feeds).__name__}; expected a mapping of lists by device: {example}")
    made: dict[int, list[Lane]] = {}
    for device_id, entries in devices_feeds.items():
        if isinstance(entries, (Mapping, np.ndarray, str, bytes)) or not is_iterable(entries):
            raise FeedError(
                f"{name}[{device_id!r}]: got {type(entries).__name__}; expected a list, one entry per lane: {example}"
            )
        made[device_id] = [Lane(device_id, number, feeds) for number, feeds in enumerate(entries)]
    return made


async def run_lanes(
    pool: SessionPool,
    by_device: Mapping[int, Sequence[Lane]],
    work: Callable[[SessionCore, Lane], Awaitable[None]],
    is_awaited: bool = True,
) -> None:
    """Run all lanes at once.

    A lane that fails cancels the others, and its error is raised, with its device and its place in the
    notes; lanes that failed before they could be cancelled are named there too. An error that takes
    its device out closes the session of that device only.

    Parameters
    ----------
    pool
        The sessions.
    by_device
        What to run; their times are set also where they fail.
    work
        Runs one lane.
    is_awaited
        As in ``SessionPool.call``.
    """
    failures = _Failures()
    started = perf_counter()
    group = anyio.create_task_group()
    was_cut_short = False

    async def run(lane: Lane) -> None:
        session: SessionCore | None = None
        try:
            session = await pool.session(lane.device_id, is_awaited)
            await work(session, lane)
        except Exception as exc:  # noqa: BLE001 - raised below
            if session is not None and blame(exc).takes_device_out:
                pool.retire(lane.device_id, session, root(exc))
            failures.lanes.append((lane, pool.explain(lane.device_id, session, exc)))
            group.cancel_scope.cancel()
        finally:
            lane.ms = (perf_counter() - started) * 1e3

    def cut_short() -> None:
        nonlocal was_cut_short
        was_cut_short = True
        group.cancel_scope.cancel()

    with pool.call(cut_short, is_awaited):
        if by_device:
            await pool.resolve(list(by_device))
        try:
            async with group:
                for lane in itertools.chain(*by_device.values()):
                    group.start_soon(run, lane)
        except asyncio.CancelledError as exc:
            for lane, error in failures.lanes:
                add_note(exc, f"{lane} had failed: {describe(error)}")
            raise
    try:
        if failures.lanes:
            raise failures.first()
        if was_cut_short:
            raise ClosedError(f"{pool!r} was closed while this ran, by aclose(cancel=True)")
    finally:
        failures.lanes.clear()  # an error would hold this frame, and the frame the error


class PipelineRun(Coroutine[Any, Any, _Results]):
    """A pipeline in every lane: awaited for all results, or iterated over for each as it is ready.

    A coroutine, so that ``asyncio.create_task`` takes it too. Used once, in one of the two ways. Leaving the iteration
    early gives up what is under way, as with :meth:`aioais.InferSession.infer_pipeline`.
    """

    def __init__(
        self,
        pool: SessionPool,
        prepare: Callable[[], dict[int, list[Lane]]],
        work: Callable[[SessionCore, Any], AsyncGenerator[list[np.ndarray], None]],
        report: Callable[[dict[int, list[Lane]]], None],
    ) -> None:
        self._pool = pool
        self._prepare = prepare
        self._work = work
        self._report = report
        self._is_used = False
        self._coroutine: Coroutine[Any, Any, _Results] | None = None
        self._results: AsyncGenerator[PipelineOutput, None] | None = None

    def __await__(self) -> Generator[Any, None, _Results]:
        self._use("awaited")
        return self._collect().__await__()

    def send(self, value: Any) -> Any:
        """Go on, as a coroutine; what a task calls."""
        return self._started().send(value)

    def throw(self, *error: Any) -> Any:
        """Raise an error where the coroutine waits; what a task calls."""
        return self._started().throw(*error)

    def close(self) -> None:
        """End the coroutine, if it runs; what ``asyncio`` calls for one that it does not start."""
        self._is_used = True
        if self._coroutine is not None:
            self._coroutine.close()

    def _started(self) -> Coroutine[Any, Any, _Results]:
        if self._coroutine is None:
            self._use("awaited")
            self._coroutine = self._collect()
        return self._coroutine

    def __iter__(self) -> NoReturn:
        raise TypeError(
            "session.infer_pipeline(...) needs 'async for', inside of an 'async def'; got 'for', or list(); or write "
            "'await session.infer_pipeline(...)' for all results at once"
        )

    def __aiter__(self) -> PipelineRun:
        if self._results is None:
            self._use("iterated over")
            self._results = _iterate(self._pool, self._prepare, self._work, self._report)
        return self

    async def __anext__(self) -> PipelineOutput:
        """Wait for the next result of any lane."""
        self.__aiter__()
        assert self._results is not None
        return await self._results.__anext__()

    async def aclose(self) -> None:
        """Stop the iteration and give up what is under way; idempotent."""
        self._is_used = True
        if self._results is not None:
            await self._results.aclose()

    def _use(self, how: str) -> None:
        if self._is_used:
            raise RuntimeError(f"this infer_pipeline was used already and cannot be {how}: call infer_pipeline again")
        self._is_used = True

    async def _collect(self) -> _Results:
        by_device = self._prepare()

        async def run(session: SessionCore, lane: Lane) -> None:
            lane.result = []

            async def keep(outputs: list[np.ndarray]) -> None:
                lane.result.append(outputs)

            await _pour(self._work(session, lane.feeds), keep)

        try:
            await run_lanes(self._pool, by_device, run)
        finally:
            self._report(by_device)
        return {device_id: [lane.result for lane in lanes] for device_id, lanes in by_device.items()}


async def _pour(
    results: AsyncGenerator[list[np.ndarray], None], take: Callable[[list[np.ndarray]], Awaitable[None]]
) -> None:
    """Hand over each result, and close the generator whatever happens."""
    try:
        async for outputs in results:
            await take(outputs)
    finally:
        with anyio.CancelScope(shield=True):  # a cancelled scope would not let the source end
            await results.aclose()


async def _iterate(
    pool: SessionPool,
    prepare: Callable[[], dict[int, list[Lane]]],
    work: Callable[[SessionCore, Any], AsyncGenerator[list[np.ndarray], None]],
    report: Callable[[dict[int, list[Lane]]], None],
) -> AsyncGenerator[PipelineOutput, None]:
    """Yield the results of all lanes; they stop while one result per lane waits for the consumer.

    A generator must not yield inside of a task group: the group lives in a task of its own.
    """
    by_device = prepare()
    count = sum(map(len, by_device.values()))
    ready: asyncio.Queue[PipelineOutput] = asyncio.Queue(max(1, count))
    has_news = asyncio.Event()

    async def run(session: SessionCore, lane: Lane) -> None:
        numbers = itertools.count()

        async def put(outputs: list[np.ndarray]) -> None:
            await ready.put(PipelineOutput(lane.device_id, lane.number, next(numbers), outputs))
            has_news.set()

        await _pour(work(session, lane.feeds), put)

    task = asyncio.ensure_future(run_lanes(pool, by_device, run, is_awaited=False))
    task.add_done_callback(lambda _: has_news.set())
    try:
        while True:
            while not ready.empty():
                yield ready.get_nowait()
            if task.done():
                task.result()
                return
            has_news.clear()
            await has_news.wait()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        del task  # its error holds this frame
        report(by_device)
