"""Admission: which requests of a session are under way, how the others ended, and when the session is drained."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from operator import attrgetter, methodcaller

from ..errors import ClosedError
from .request import Request

__all__ = ["Admission"]

_error_of, _future_of = attrgetter("error"), attrgetter("future")
_is_cancelled = methodcaller("cancelled")


class Admission:
    """The entrance and the exit of a session.

    Parameters
    ----------
    on_drained
        Called when the entrance is closed and nothing is under way any more; sometimes more than once.

    Attributes
    ----------
    done, failed, cancelled
        Requests that have ended.
    is_closed
        Nothing may enter any more.
    """

    cancelled: int
    done: int
    failed: int

    def __init__(self, on_drained: Callable[[], None]) -> None:
        self._active: set[Request] = set()
        self.done = self.failed = self.cancelled = 0
        self._on_drained = on_drained
        self._lock = threading.Lock()  # guards everything here but an addition; never held across a device call
        self.is_closed: bool = False
        self._refusal: Callable[[], BaseException] | None = None

    def check(self) -> None:
        """Raise if nothing may enter any more."""
        if self.is_closed:
            if self._refusal is not None:
                raise self._refusal()
            raise ClosedError("the session is closed: open a new one")

    def enter(self, request: Request) -> None:
        """Count a request as under way; raises as :meth:`check`."""
        self._active.add(request)  # before the check: a thread that closes the entrance sees it from now on
        if self.is_closed:
            self._turn_away(request)

    def _turn_away(self, request: Request) -> None:
        with self._lock:
            if request not in self._active:
                return  # the session broke at this moment, and has failed it with the others
            self._active.remove(request)
            if self._refusal is None and not self._active:
                self._on_drained()
        self.check()

    def leave(self, requests: Sequence[Request]) -> None:
        """Count requests that have ended."""
        with self._lock:
            if self._refusal is not None:
                return  # counted when the session broke
            done = len(requests)
            if any(map(_error_of, requests)) or any(map(_is_cancelled, map(_future_of, requests))):
                cancelled = sum(request.is_abandoned for request in requests)
                failed = sum(request.error is not None and not request.is_abandoned for request in requests)
                self.cancelled += cancelled
                self.failed += failed
                done -= cancelled + failed
            self.done += done
            self._active.difference_update(requests)
            if self.is_closed and not self._active:
                self._on_drained()

    def under_way(self) -> tuple[int, int]:
        """Count the requests that own a slot, and those that wait for one or share one and whose caller still waits.

        No request is in both numbers.
        """
        in_flight = queued = 0
        for request in self._active.copy():  # one step under the GIL
            if request.state == "started":
                in_flight += 1
            elif not request.is_abandoned:
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
        """Refuse what comes from now on, count what is under way as ended, and return it.

        Parameters
        ----------
        refusal
            Makes the error that :meth:`enter` raises.
        """
        with self._lock:
            self._refusal = refusal  # before the flag: check() may be called without the lock
            self.is_closed = True
            requests: list[Request] = []
            while self._active:  # the same set remains: a request may be added at any time
                requests.append(self._active.pop())
            abandoned = sum(request.is_abandoned for request in requests)
            self.cancelled += abandoned
            self.failed += len(requests) - abandoned
        return requests
