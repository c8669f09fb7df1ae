"""Many requests in a row: a window over a source of feeds, results in the order of the source."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Iterable
from typing import Any, Final

import numpy as np

from .._engine.core import SessionCore
from .._engine.request import Request
from ..errors import add_note
from .source import open_source

__all__ = ["LONG", "session_results"]

LONG: Final = 128
"""After so many results a source is read further ahead than ``depth`` asks for, where small requests share slots."""


async def session_results(
    core: SessionCore,
    source: Iterable[Any] | AsyncIterable[Any],
    mode: Any,
    custom_sizes: Any,
    prefetch: int | None,
) -> AsyncGenerator[list[np.ndarray], None]:
    """Yield the results of one session for each feeds item, in order; see ``InferSession.infer_pipeline``.

    An item is taken from the source only when fewer than ``depth`` and ``prefetch`` together are under way, ready, or
    with the consumer, so a slow consumer stops the source. What fails raises at its place, after the results before
    it, and ends the generator. However it ends, requests under way are given up: the device finishes them and their
    results are dropped.
    """
    core.opened().planner.check(mode, custom_sizes)
    window = _Window(core, mode, custom_sizes, prefetch)
    feeder = open_source(source, window, "feeds_list")
    del source
    items = window.items
    async with feeder:
        try:
            while True:
                window.look()
                while (pending := feeder.fill()) is not None:
                    await pending
                while not items and feeder.has_more:
                    await window.wait()
                if not items:
                    return
                oldest = items[0]
                try:
                    if isinstance(oldest, BaseException):
                        raise oldest
                    assert oldest is not None
                    outputs = [await oldest.future]
                except Exception as exc:
                    if exc is not oldest:
                        _note_place(exc, window.taken)
                    raise
                finally:
                    del oldest  # an error would hold this frame, and the frame the error
                items[0] = None
                yield outputs.pop()  # not held here while the consumer has it
                items.popleft()
                window.taken += 1
        finally:
            window.give_up()  # before any await: that may be cancelled too


def _note_place(error: Exception, index: int) -> None:
    add_note(error, f"item {index} of the source")


class _Window:
    """What is under way, oldest first: the sink of the source."""

    def __init__(self, core: SessionCore, mode: Any, custom_sizes: Any, prefetch: int | None) -> None:
        self.items: deque[Request | BaseException | None] = deque()
        """Requests, what failed in place of one, ``None`` while the consumer has the result."""
        self._core = core
        self._pipeline = core.opened()
        self._mode = mode
        self._custom_sizes = custom_sizes
        self._prefetch = prefetch
        self.is_awaited = False
        """The consumer waits for the device."""
        self.taken: int = 0
        """Items that have left the window."""
        self._has_news = asyncio.Event()

    def has_room(self) -> bool:
        """Whether to take one more item."""
        return len(self.items) < self._pipeline.window(self._prefetch, self.is_awaited and self.taken >= LONG)

    def look(self) -> None:
        """Notice whether the consumer, which wants the next result, has to wait for the device."""
        oldest = self.items[0] if self.items else None
        self.is_awaited = isinstance(oldest, Request) and not oldest.future.done()

    def submit(self, feeds: Any) -> Awaitable[None] | None:
        """Start a request."""
        try:
            request = self._core.request(feeds, self._mode, self._custom_sizes)
        except Exception as exc:
            _note_place(exc, self.taken + len(self.items))
            raise
        if isinstance(request, Request):
            self.items.append(request)
            return None
        return self._append(request)

    async def _append(self, pending: Awaitable[Request]) -> None:
        try:
            self.items.append(await pending)
        except Exception as exc:
            _note_place(exc, self.taken + len(self.items))
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
        """Abandon the requests under way."""
        while self.items:
            item = self.items.popleft()
            if isinstance(item, Request):
                item.give_up()
