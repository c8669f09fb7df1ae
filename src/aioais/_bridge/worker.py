"""A thread that runs functions one after the other."""

from __future__ import annotations

import contextlib
import logging
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TypeVar

from ..errors import ClosedError

__all__ = ["Worker"]

_T = TypeVar("_T")
_log = logging.getLogger("aioais")


class Worker:
    """A daemon thread with an inbox of functions.

    Parameters
    ----------
    name
        Name of the thread, at most 15 bytes so that the system shows all of it.
    chore
        Run again and again between the functions, with so many seconds in between.
    period
        These seconds.
    """

    def __init__(self, name: str, chore: Callable[[], None] | None = None, period: float = 0.0) -> None:
        self._chore = chore
        self._period = period
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._is_stopped = False
        self._lock = threading.Lock()  # guards the flag: nothing may be submitted behind the end
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def thread(self) -> threading.Thread:
        """The thread itself."""
        return self._thread

    def post(self, function: Callable[[], None]) -> None:
        """Run a function soon; never blocks, and is safe in a finaliser. An error is logged."""
        self._inbox.put(function)

    def submit(self, function: Callable[[], _T]) -> Future[_T]:
        """Run a function soon and set its result on the returned future, unless that is cancelled.

        Once the worker is stopped, the future has a ``ClosedError``.
        """
        future: Future[_T] = Future()
        with self._lock:
            if not self._is_stopped:
                self._inbox.put(partial(self._fulfil, future, function))
                return future
        future.set_exception(_gone())
        return future

    def stop(self) -> None:
        """End the thread after what was posted until now, and refuse what was submitted; does not wait."""
        with self._lock:
            self._is_stopped = True
            self._inbox.put(None)

    def _fulfil(self, future: Future[_T], function: Callable[[], _T]) -> None:
        try:
            if not future.set_running_or_notify_cancel():
                return
            if self._is_stopped:  # while this waited for its turn
                raise _gone()
            future.set_result(function())
        except BaseException as exc:  # noqa: BLE001 - the caller gets it
            traceback.clear_frames(exc.__traceback__)  # they hold memory of the device, and a caller may keep the error
            future.set_exception(exc)
        finally:
            del future, function  # the traceback of an error holds this frame

    def _run(self) -> None:
        due = monotonic() + self._period
        while (job := self._next(due)) is not None:
            if job is self._chore:
                due = monotonic() + self._period
            try:
                job()
            except Exception:  # noqa: BLE001 - there is no caller to raise to, and the thread must go on
                _log.exception("a clean-up step failed on thread %s", self._thread.name)
            del job

    def _next(self, due: float) -> Callable[[], None] | None:
        if self._chore is None:
            return self._inbox.get()
        left = due - monotonic()
        if left > 0:
            with contextlib.suppress(Empty):
                return self._inbox.get(timeout=left)
        return self._chore


def _gone() -> ClosedError:
    return ClosedError("the device was released with the last session on it: open a new session")
