"""From a thread of a session to the event loop: one wake-up for all results that are ready."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from time import perf_counter, sleep
from typing import Final, Protocol

__all__ = ["Deliverable", "Delivery"]


class Deliverable(Protocol):
    """An item to deliver: ``settle`` sets its future on the loop's thread."""

    def settle(self) -> None: ...


_PATIENCE_S: Final = 0.0005
"""How long the loop may wait before a thread gives it a turn. A thread whose waits are very short takes the GIL back
before the loop has woken."""
_TURN_S: Final = 0.0001
"""A sleep long enough for the loop's thread to wake and take the GIL."""


class Delivery:
    """Delivers the results of one session's requests.

    A wake-up costs the loop 5 to 28 microseconds, so results that come while one is under way share it.

    Attributes
    ----------
    ready
        What the loop has not settled yet, the oldest first.
    """

    __slots__ = ("_armed", "_armed_at", "loop", "ready")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        self.ready: deque[Deliverable] = deque()
        self._armed = False
        self._armed_at = 0.0

    def post(self, items: Sequence[Deliverable]) -> None:
        """Settle items on the loop, in order; in a thread of the session."""
        self.ready.extend(items)
        self.send()

    def send(self) -> None:
        """Wake the loop for what is ready, or let it have its turn, if it was woken long ago.

        A thread that releases the GIL for a moment takes it again before another thread has woken; that one would get
        it only after Python's switch interval of 5 ms.
        """
        if self._armed:
            if perf_counter() - self._armed_at > _PATIENCE_S:
                sleep(_TURN_S)
        elif self.ready:
            # Two threads may both come here: the second wake-up finds nothing, which is harmless.
            self._armed = True
            self._armed_at = perf_counter()
            try:
                self.loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # the loop is closed: no caller is left
                self.ready.clear()

    def _drain(self) -> None:
        # First the flag, then the items: what is appended from here on wakes the loop again.
        self._armed = False
        ready = self.ready
        while ready:
            ready.popleft().settle()
