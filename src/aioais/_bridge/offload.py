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
        if waiter.done():
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
        try:
            loop.call_soon_threadsafe(settle, value, error)
        except RuntimeError:  # the loop is closed
            if error is None and undo is not None:
                undo(value)  # type: ignore[arg-type]

    threading.Thread(target=body, name=name, daemon=True).start()
    return await waiter


async def wait_future(future: Future[_T]) -> _T:
    """Wait for a thread's future without ever cancelling it."""
    return await asyncio.shield(asyncio.wrap_future(future))
