"""A source of feeds items: read as far as its consumer has room, and no further."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol

from ..errors import FeedError

__all__ = ["AsyncFeeder", "Feeder", "Sink", "is_iterable", "open_source"]

_log = logging.getLogger("aioais")


class Sink(Protocol):
    """Takes the items of a source; all on the loop's thread."""

    def has_room(self) -> bool:
        """Whether to take one more item; what it raises ends the source and goes to :meth:`fail`."""
        ...

    def submit(self, feeds: Any) -> Awaitable[None] | None:
        """Take an item, to be awaited where that may take long; what it raises goes to :meth:`fail`."""
        ...

    def fail(self, error: BaseException) -> None:
        """Take what failed in place of an item; none follows."""
        ...

    def wake(self) -> None:
        """Look again: there is something new, or the source has ended."""
        ...


class Feeder:
    """Reads a plain iterator, in the consumer's task; leaves it where it is."""

    def __init__(self, sink: Sink, source: Iterator[Any]) -> None:
        self.has_more = True
        self._sink = sink
        self._source = source

    def fill(self) -> Awaitable[None] | None:
        """Read items while there is room; to be awaited and called again where one takes long."""
        sink = self._sink
        try:
            while self.has_more and sink.has_room():
                try:
                    feeds = next(self._source)
                except StopIteration:
                    self.has_more = False
                else:
                    pending = sink.submit(feeds)
                    if pending is not None:
                        return self._finish(pending)
        except Exception as exc:  # noqa: BLE001 - raised at its place
            self._fail(exc)
        return None

    async def _finish(self, pending: Awaitable[None]) -> None:
        try:
            await pending
        except Exception as exc:  # noqa: BLE001 - raised at its place
            self._fail(exc)

    def _fail(self, error: Exception) -> None:
        self.has_more = False
        self._sink.fail(error)

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.has_more = False


class AsyncFeeder:
    """Reads an async iterable in a task of its own, so a result that is ready never waits for the next feeds.

    One task runs the source from its first step to its last, as task groups, timeouts and context
    variables inside of it demand. It knows nothing of the consumer, which may be collected any time.

    Leaving the ``async with`` block early cancels the source where it is, a generator also at its ``yield``. What
    its clean-up raises is raised there, or logged if another error is being raised.
    """

    def __init__(self, sink: Sink, source: AsyncIterable[Any]) -> None:
        self.has_more = True
        self._sink = sink
        self._source = source
        self._task: asyncio.Task[None] | None = None
        self._is_asked = asyncio.Event()
        self._is_ending = False
        """The source cleans up, which no second cancellation is to cut short."""

    async def __aenter__(self) -> None:
        pass

    def fill(self) -> None:
        """Have items read while there is room; the sink is woken for each."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())
        self._is_asked.set()

    async def _run(self) -> None:
        sink = self._sink
        try:
            source = aiter(self._source)
            try:
                await self._read(source)
            finally:
                self._is_ending = True
                await _end(source)  # a task group in it that had this task cancelled raises its own error now
        except StopAsyncIteration:
            pass
        except Exception as exc:
            if not self.has_more:
                raise  # for __aexit__
            sink.fail(exc)
        except BaseException as exc:
            if self.has_more:
                sink.fail(exc)  # not the cancellation that __aexit__ asked for
            raise
        finally:
            self.has_more = False
            sink.wake()

    async def _read(self, source: AsyncIterator[Any]) -> None:
        sink = self._sink
        while self.has_more:
            if not sink.has_room():
                self._is_asked.clear()
                await self._is_asked.wait()
                continue
            feeds = await anext(source)
            if self.has_more:
                pending = sink.submit(feeds)
                if pending is not None:
                    await pending
                sink.wake()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.has_more = False
        task, self._task = self._task, None  # its end holds its frame, its frame this object
        if task is None:
            return
        if not self._is_ending:
            task.cancel()
        await asyncio.wait([task])
        failure = None if task.cancelled() else task.exception()
        try:
            if failure is not None:
                if kind is None or kind is GeneratorExit:
                    raise failure
                _log.error("a source of feeds failed when it was given up: %s", repr(failure))
        finally:
            del task, failure  # an error would hold this frame, and the frame the error


async def _end(source: AsyncIterator[Any]) -> None:
    """Have a generator clean up: it is cancelled at its ``yield``, as it would be at an ``await``.

    Closing it is not enough: task groups wrap ``GeneratorExit`` in an error of their own.
    """
    if isinstance(source, AsyncGenerator):
        try:
            await source.athrow(asyncio.CancelledError())
        except (asyncio.CancelledError, StopAsyncIteration):
            pass
        finally:
            await source.aclose()  # it may have swallowed that


def is_iterable(value: object) -> bool:
    """Whether ``iter`` takes it; by its items too, as a data set of torch."""
    return isinstance(value, Iterable) or hasattr(type(value), "__getitem__")


def open_source(source: Iterable[Any] | AsyncIterable[Any], sink: Sink, name: str) -> Feeder | AsyncFeeder:
    """Make the feeder of a source.

    Parameters
    ----------
    name
        What the caller calls the source, for the message.

    Raises
    ------
    FeedError
        It cannot be iterated over.
    """
    if isinstance(source, AsyncIterable):
        return AsyncFeeder(sink, source)
    if is_iterable(source):
        return Feeder(sink, iter(source))
    raise FeedError(f"{name}: got {type(source).__name__}; expected an iterable or async iterable of feeds: [[x], [y]]")
