"""Many requests in a row: a window over a source of feeds, results in the order of the source."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from typing import Any

import numpy as np

from ..errors import add_note
from .request import Request
from .source import open_source

__all__ = ["give_up", "stream_results"]

Start = Callable[[Any], "Request | Awaitable[Request]"]


async def stream_results(
    source: Iterable[Any] | AsyncIterable[Any],
    start: Start,
    depth: Callable[[], int],
    check: Callable[[], None],
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
    check
        Raises where no item can be started, whatever it is.
    """
    check()
    window = _Window(start, depth)
    feeder = open_source(source, window, "feeds_list")
    del source
    items, index = window.items, 0
    async with feeder:
        try:
            while True:
                await feeder.fill()
                while not items and feeder.has_more:
                    await window.wait()
                if not items:
                    return
                yield await _take(items, index)
                items.popleft()
                index += 1
        finally:
            window.give_up()  # before any await: that may be cancelled too


async def _take(items: deque[Request | BaseException | None], index: int) -> Any:
    """Wait for the oldest result, and keep no reference to it."""
    oldest = items[0]
    try:
        if isinstance(oldest, BaseException):
            raise oldest
        assert oldest is not None
        try:
            outputs = await oldest.future
        except Exception as exc:
            _note_place(exc, index)
            raise
    finally:
        del oldest  # an error would hold this frame, and the frame the error
    items[0] = None
    return outputs


def _note_place(error: Exception, index: int) -> None:
    add_note(error, f"item {index} of the source")


def give_up(request: Request) -> None:
    """Want a request no more: queued it never runs, on the device it is finished and dropped."""
    future = request.future
    if not future.cancel() and not future.cancelled():
        future.exception()  # nobody will ask for it any more
    request.abandon()


class _Window:
    """What is under way, oldest first: the sink of the source.

    Parameters
    ----------
    start, depth
        As in :func:`stream_results`.
    """

    def __init__(self, start: Start, depth: Callable[[], int]) -> None:
        self.items: deque[Request | BaseException | None] = deque()
        """Requests, what failed in place of one, ``None`` while the consumer has the result."""
        self._start = start
        self._depth = depth
        self._submitted = 0
        self._has_news = asyncio.Event()

    def has_room(self) -> bool:
        """Whether fewer than ``depth`` are under way."""
        return len(self.items) < self._depth()

    def submit(self, feeds: Any) -> Awaitable[None] | None:
        """Start a request."""
        index, self._submitted = self._submitted, self._submitted + 1
        try:
            request = self._start(feeds)
        except Exception as exc:
            _note_place(exc, index)
            raise
        if isinstance(request, Request):
            self.items.append(request)
            return None
        return self._append(request, index)

    async def _append(self, pending: Awaitable[Request], index: int) -> None:
        try:
            self.items.append(await pending)
        except Exception as exc:
            _note_place(exc, index)
            raise

    def fail(self, error: BaseException) -> None:
        """Have an error raised at its place."""
        self.items.append(error)

    def wake(self) -> None:
        """End a wait."""
        self._has_news.set()

    async def wait(self) -> None:
        """Wait until woken."""
        self._has_news.clear()
        await self._has_news.wait()

    def give_up(self) -> None:
        """Want nothing of it any more."""
        while self.items:
            item = self.items.popleft()
            if isinstance(item, Request):
                give_up(item)
