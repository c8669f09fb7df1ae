"""Awaiting a blocking function: in a thread of its own, or on a worker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from typing import Generic, TypeVar

__all__ = ["run_in_thread", "wait_future", "wait_given_up"]

_T = TypeVar("_T")

_given_up: set[threading.Thread] = set()


async def run_in_thread(
    name: str, function: Callable[[], _T], undo: Callable[[_T], None] | None = None, uses_acl: bool = False
) -> _T:
    """Run a blocking function in a fresh thread.

    The default executor is not used: it may be full of the application's own work.

    Parameters
    ----------
    name
        Name of the thread.
    function
        What to run. It is never interrupted.
    undo
        Called with the result if the caller has stopped waiting, in that thread or another one.
    uses_acl
        :func:`wait_given_up` waits for it if the caller has stopped waiting.

    Notes
    -----
    Cancelled: the wait ends at once, the function goes on, and its result is undone.
    """
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[_Outcome[_T]] = loop.create_future()

    def receive(outcome: _Outcome[_T]) -> None:
        if not waiter.done():
            waiter.set_result(outcome)
        else:  # cancelled after the thread had checked
            undo_in_thread(outcome)

    def undo_in_thread(outcome: _Outcome[_T]) -> None:
        if undo is not None:
            threading.Thread(target=outcome.undo, args=(undo,), name=name, daemon=True).start()

    def body() -> None:
        outcome = _Outcome(function)
        is_awaited = not waiter.cancelled()
        if is_awaited:
            try:
                loop.call_soon_threadsafe(receive, outcome)
            except RuntimeError:  # the loop is closed
                is_awaited = False
        if not is_awaited:
            outcome.undo(undo)  # here and not by way of the loop, which may end any moment
        _given_up.discard(threading.current_thread())
        del outcome  # the traceback of an error holds this frame

    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    try:
        outcome = await waiter
    except asyncio.CancelledError:
        if uses_acl:
            _given_up.add(thread)
        # The result may have come in the very step of the loop in which the task was cancelled.
        if waiter.done() and not waiter.cancelled():
            undo_in_thread(waiter.result())
        raise
    return outcome.take()


def wait_given_up(seconds: float) -> None:
    """Wait, for a bounded time, for threads that use ACL and whose callers have stopped waiting."""
    deadline = monotonic() + seconds
    for thread in list(_given_up):
        thread.join(max(0.0, deadline - monotonic()))
        _given_up.discard(thread)


async def wait_future(future: Future[_T]) -> _T:
    """Wait for a thread's future without ever cancelling it.

    Unlike with ``asyncio.wrap_future``, it ignores a loop that is closed by then.
    """
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def done(_: Future[_T]) -> None:
        try:
            loop.call_soon_threadsafe(wake)
        except RuntimeError:  # the loop is closed: no caller waits any more
            pass

    future.add_done_callback(done)
    try:
        await waiter
        return future.result()
    finally:
        del future  # the traceback of its error holds this frame


class _Outcome(Generic[_T]):
    """The outcome of a function: its value or its error."""

    def __init__(self, function: Callable[[], _T]) -> None:
        self._error: BaseException | None = None
        try:
            self._value = function()
        except BaseException as exc:  # noqa: BLE001 - the caller gets it
            self._error = exc

    def take(self) -> _T:
        """Return the value or raise the error, which is not kept: its traceback holds the caller's frame."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._value
        finally:
            del error

    def undo(self, function: Callable[[_T], object] | None) -> None:
        """Call a function with the value, if there is one; an error is forgotten."""
        if self._error is None and function is not None:
            function(self._value)
        self._error = None
