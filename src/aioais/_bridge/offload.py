"""Awaiting a blocking function: in a thread of its own, or on a worker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["run_in_thread", "wait_future"]

_T = TypeVar("_T")


async def run_in_thread(name: str, function: Callable[[], _T], undo: Callable[[_T], None] | None = None) -> _T:
    """Run a blocking function in a fresh thread.

    The default executor is not used: it may be full of the application's own work.

    Parameters
    ----------
    name
        Name of the thread.
    function
        What to run. It is never interrupted.
    undo
        Given the result if nobody waits for it any more, in that thread or another one.

    Notes
    -----
    Cancelled: the wait ends at once, the function goes on, and its result is undone.
    """
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[_T] = loop.create_future()

    def settle(value: _T | None, error: BaseException | None) -> None:
        if waiter.done():  # given up after the thread had looked
            if error is None and undo is not None:
                threading.Thread(target=undo, args=(value,), name=name, daemon=True).start()
        elif error is not None:
            waiter.set_exception(error)
        else:
            waiter.set_result(value)  # type: ignore[arg-type]

    def body() -> None:
        value: _T | None = None
        error: BaseException | None = None
        try:
            value = function()
        except BaseException as exc:  # noqa: BLE001 - the waiter gets it
            error = exc
        is_wanted = not waiter.cancelled()
        if is_wanted:
            try:
                loop.call_soon_threadsafe(settle, value, error)
            except RuntimeError:  # the loop is closed
                is_wanted = False
        if not is_wanted and error is None and undo is not None:
            # Here and not by way of the loop, which may end any moment.
            undo(value)  # type: ignore[arg-type]

    threading.Thread(target=body, name=name, daemon=True).start()
    try:
        return await waiter
    except asyncio.CancelledError:
        # The result may have come in the very step of the loop in which the task was cancelled.
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None and undo is not None:
            threading.Thread(target=undo, args=(waiter.result(),), name=name, daemon=True).start()
        raise


async def wait_future(future: Future[_T]) -> _T:
    """Wait for a thread's future without ever cancelling it.

    Unlike with ``asyncio.wrap_future``, a loop that was closed meanwhile is no news to anybody.
    """
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def done(_: Future[_T]) -> None:
        try:
            loop.call_soon_threadsafe(wake)
        except RuntimeError:  # the loop is closed: nobody waits any more
            pass

    future.add_done_callback(done)
    await waiter
    return future.result()
