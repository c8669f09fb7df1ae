"""Many requests in a row: a window over a source of feeds, results in the order of the source."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ..errors import FeedError
from .request import Request

__all__ = ["stream_results"]

_Window = deque["Request | BaseException | None"]
"""Oldest first: requests, what failed in place of one, ``None`` while the consumer has the result."""
Start = Callable[[Any], "Request | Awaitable[Request]"]


async def stream_results(
    source: Iterable[Any] | AsyncIterable[Any],
    start: Start,
    depth: Callable[[], int],
) -> AsyncGenerator[list[np.ndarray], None]:
    """Yield the result of each feeds item, in order.

    An item is taken from the source only when fewer than ``depth`` others are under way, ready, or
    with the consumer, so a slow consumer stops the source. What fails raises at its place, after
    the results before it, and ends the generator. However it ends, requests under way are given up:
    the device finishes them and their results are dropped.

    Parameters
    ----------
    source
        Feeds items.
    start
        Checks an item and submits it.
    depth
        Most requests under way; raises when no more can be started.
    """
    window: _Window = deque()
    feeder: _Feeder | _AsyncFeeder
    if isinstance(source, AsyncIterable):
        feeder = _AsyncFeeder(window, start, depth, source)
    elif isinstance(source, Iterable):
        feeder = _Feeder(window, start, depth, iter(source))
    else:
        raise FeedError(
            f"feeds_list: came {type(source).__name__}, wanted an iterable or async iterable of feeds: [[x], [y]]"
        )
    del source
    try:
        while True:
            await feeder.fill()
            if not window:
                return
            yield await _take(window)
            window.popleft()
    finally:
        _give_up(window)  # before any await: that may be cancelled too
        await feeder.close()


async def _take(window: _Window) -> Any:
    """Wait for the oldest result, and keep no reference to it."""
    oldest = window[0]
    try:
        if isinstance(oldest, BaseException):
            raise oldest
        assert oldest is not None
        outputs = await oldest.future
    finally:
        del oldest  # an error would hold this frame, and the frame the error
    window[0] = None
    return outputs


def _give_up(window: _Window) -> None:
    while window:
        item = window.popleft()
        if isinstance(item, Request):
            future = item.future
            if not future.cancel() and not future.cancelled():
                future.exception()  # nobody will ask for it any more
            item.abandon()


class _Filler:
    """Keeps a window full.

    Parameters
    ----------
    window
        What is under way.
    start, depth
        As in :func:`stream_results`.
    """

    def __init__(self, window: _Window, start: Start, depth: Callable[[], int]) -> None:
        self._window = window
        self._start = start
        self._depth = depth
        self._has_more = True

    def _has_room(self) -> bool:
        try:
            return len(self._window) < self._depth()
        except Exception as exc:  # noqa: BLE001 - raised at its place
            self._fail(exc)
            return False

    async def _submit(self, feeds: Any) -> None:
        """Submit an item; one that does not fit ends the source."""
        try:
            request = self._start(feeds)
            self._window.append(request if isinstance(request, Request) else await request)
        except Exception as exc:  # noqa: BLE001 - raised at its place
            self._fail(exc)

    def _fail(self, error: BaseException) -> None:
        self._window.append(error)
        self._has_more = False


class _Feeder(_Filler):
    """Fills from a plain iterator, in the consumer's task."""

    def __init__(self, window: _Window, start: Start, depth: Callable[[], int], source: Iterator[Any]) -> None:
        super().__init__(window, start, depth)
        self._source = source

    async def fill(self) -> None:
        """Fill the window; it is empty afterwards if the source has ended."""
        while self._has_more and self._has_room():
            try:
                feeds = next(self._source)
            except StopIteration:
                self._has_more = False
            except Exception as exc:  # noqa: BLE001 - raised at its place
                self._fail(exc)
            else:
                await self._submit(feeds)

    async def close(self) -> None:
        """Leave the source where it is."""


class _AsyncFeeder(_Filler):
    """Fills from an async iterable in a task of its own, so a result that is ready never waits for the next feeds.

    One task runs the source from its first step to its last, as task groups, timeouts and context
    variables inside of it demand. It knows nothing of the generator, which may be collected any time.
    """

    def __init__(self, window: _Window, start: Start, depth: Callable[[], int], source: AsyncIterable[Any]) -> None:
        super().__init__(window, start, depth)
        self._source = source
        self._task: asyncio.Task[None] | None = None
        self._has_news = asyncio.Event()
        self._is_asked = asyncio.Event()

    async def fill(self) -> None:
        """Have the window filled, and wait until there is something in it or the source has ended."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())
        self._is_asked.set()
        while not self._window and self._has_more:
            self._has_news.clear()
            await self._has_news.wait()

    async def _run(self) -> None:
        try:
            source = aiter(self._source)
            while self._has_more:
                if not self._has_room():
                    self._is_asked.clear()
                    if self._has_more:
                        await self._is_asked.wait()
                    continue
                feeds = await anext(source)
                if self._has_more:
                    await self._submit(feeds)
                    self._has_news.set()
        except StopAsyncIteration:
            pass
        except Exception as exc:  # noqa: BLE001 - raised at its place
            self._fail(exc)
        except BaseException as exc:
            if self._has_more:
                self._fail(exc)  # not the cancellation that close() asked for
            raise
        finally:
            self._has_more = False
            self._has_news.set()

    async def close(self) -> None:
        """Stop the source where it waits for its next item."""
        self._has_more = False
        task, self._task = self._task, None  # its end holds its frame, its frame this object
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])
