"""Who goes which way: the express or the stages; counts what is under way."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

from ..errors import ClosedError
from .clock import SessionClock
from .request import Request

__all__ = ["Admission"]


class Admission:
    """The entrance and the exit of a session's pipeline.

    A model takes submissions from one thread at a time. Express requests are submitted by the execute
    thread, staged ones by the H2D thread; where they meet, one kind waits in the backlog until the
    other is through. Order is kept within the backlog. Iterations are long, so while one is under way
    all requests go by the stages, where they have their turn between its steps.

    Parameters
    ----------
    clock
        Knows whether requests are light.
    to_express, to_stages
        Put a request into the inbox of its way; never block.
    on_drained
        Called once, when the entrance is closed and nothing is under way any more.
    """

    def __init__(
        self,
        clock: SessionClock,
        to_express: Callable[[Request], None],
        to_stages: Callable[[Request], None],
        on_drained: Callable[[], None],
    ) -> None:
        self._active: set[Request] = set()
        self.done = self.failed = self.cancelled = 0
        self._clock = clock
        self._to_express = to_express
        self._to_stages = to_stages
        self._on_drained = on_drained
        self._lock = threading.Lock()  # guards everything here; never held across a device call
        self._staged = 0
        self._iterations = 0
        self._express_pending = 0
        self._backlog: deque[Request] = deque()
        self.is_closed = False
        """Nothing may enter any more."""
        self._refusal: Callable[[], BaseException] | None = None

    def check(self) -> None:
        """Raise if nothing may enter any more."""
        if self.is_closed:
            if self._refusal is not None:
                raise self._refusal()
            raise ClosedError("the session is closed: open a new one")

    def enter(self, request: Request) -> None:
        """Take a request; never blocks."""
        with self._lock:
            self.check()
            self._active.add(request)
            if self._backlog or not self._route(request):
                self._backlog.append(request)

    def express_submitted(self, count: int) -> None:
        """Tell that so many express requests have nothing more to submit."""
        with self._lock:
            self._express_pending -= count
            self._advance()

    def leave(self, requests: Iterable[Request]) -> None:
        """Count requests that have ended."""
        with self._lock:
            if self._refusal is not None:
                return  # counted when the session broke
            for request in requests:
                if request.is_abandoned or request.was_cancelled:
                    self.cancelled += 1
                elif request.error is not None:
                    self.failed += 1
                else:
                    self.done += 1
                self._active.discard(request)
                if not request.is_express:
                    self._staged -= 1
                    self._iterations -= request.is_iteration
                    self._advance()
            if self.is_closed and not self._active:
                self._on_drained()

    def under_way(self) -> tuple[int, int]:
        """Count the requests that own a set of buffers, and those that wait for one and that somebody waits for.

        They wait on the host, or small ones on the device's stream. No request is in both numbers.
        """
        in_flight = queued = 0
        for request in self._active.copy():  # one step under the GIL
            if request.slot is not None:
                in_flight += 1
            elif not request.is_abandoned and (not request.started_at or request.cell is not None):
                queued += 1
        return in_flight, queued

    def close(self) -> None:
        """Refuse what comes from now on; idempotent."""
        with self._lock:
            if self.is_closed:
                return
            self.is_closed = True
            if not self._active:
                self._on_drained()

    def break_off(self, refusal: Callable[[], BaseException]) -> list[Request]:
        """Refuse what comes from now on, count what is under way as ended, and give it.

        Parameters
        ----------
        refusal
            Makes the error that :meth:`enter` raises.
        """
        with self._lock:
            self._refusal = refusal  # before the flag: check() may be called without the lock
            self.is_closed = True
            requests, self._active = list(self._active), set()
            self._backlog.clear()
            abandoned = sum(request.is_abandoned for request in requests)
            self.cancelled += abandoned
            self.failed += len(requests) - abandoned
        return requests

    def _route(self, request: Request) -> bool:
        """Put a request on its way, unless one of the other kind is in its way; holds the lock."""
        is_quick = request.plan.is_small and (len(self._active) == 1 or self._clock.is_light)
        if is_quick and not request.is_iteration and not self._iterations:
            if self._staged:
                return False
            request.is_express = True
            self._express_pending += 1
            self._to_express(request)
        else:
            if self._express_pending:
                return False
            self._staged += 1
            self._iterations += request.is_iteration
            self._to_stages(request)
        return True

    def _advance(self) -> None:
        """Let go what waited for the other kind; holds the lock."""
        backlog = self._backlog
        while backlog and self._route(backlog[0]):
            backlog.popleft()
