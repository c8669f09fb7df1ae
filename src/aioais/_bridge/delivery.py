"""From a stage thread to the event loop: one wake-up for a burst of results."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol, TypeVar

__all__ = ["Deliverable", "Delivery"]


class Deliverable(Protocol):
    """What travels: it knows how to settle itself on the loop's thread."""

    def settle(self) -> None: ...


_T = TypeVar("_T", bound=Deliverable)


class Delivery:
    """The way back of one session's requests.

    ``post`` is called in stage threads, everything else on the loop. A wake-up costs the loop
    5 to 28 microseconds, so results that come while one is under way share it.
    """

    __slots__ = ("_armed", "_loop", "_ready")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready: deque[Deliverable] = deque()
        self._armed = False

    def post(self, items: list[_T]) -> None:
        """Have items settled on the loop, in order; after the loop is closed they are dropped.

        They are taken out of the list: what a thread still holds, its caller may have dropped already.
        """
        self._ready.extend(items)
        items.clear()
        if self._ready and not self._armed:
            # Two threads may both come here: the second wake-up finds nothing, which is harmless.
            self._armed = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # the loop is closed: nobody is left to tell
                self._ready.clear()

    def _drain(self) -> None:
        # First the flag, then the items: what is appended from here on wakes the loop again.
        self._armed = False
        ready = self._ready
        while ready:
            ready.popleft().settle()
