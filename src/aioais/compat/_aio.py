"""The awaitable session behind a blocking one: it lives on the loop thread and can be awaited on any event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import warnings
import weakref
from collections.abc import Awaitable
from typing import Any

from .._engine.core import SessionCore
from .._engine.iteration import Iteration
from .._engine.request import Request
from ..session import InferSession
from ._loop import Call, Hold, LoopThread, Started, hold, is_ending

__all__ = ["AioSession", "finalize_all", "live_sessions"]

_log = logging.getLogger("aioais")


class AioSession(InferSession):
    """:class:`aioais.InferSession`, opened on the loop thread, for coroutines on any event loop.

    All of its methods work on the event loop that calls them, :meth:`infer_pipeline` over sources of that loop
    included. A request that is awaited elsewhere costs one more hop from thread to thread in each direction, 50 to
    100 microseconds; where that counts, open an :class:`aioais.InferSession` on the loop itself.

    Parameters
    ----------
    holding
        The loop thread, held by the session until it is closed or collected.
    arguments, options
        As of :class:`aioais.InferSession`.
    """

    _is_closing = False

    def __init__(self, holding: Hold, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._core = self._elsewhere = _Core(self._core.options, holding.runner)
        self._hold: Hold | None = holding
        with _live_lock:
            _live.add(self)

    @property
    def elsewhere(self) -> _Core:
        """What starts requests, for the blocking calls."""
        return self._elsewhere

    @property
    def has_loop(self) -> bool:
        """Whether the session still has its hold on the loop thread."""
        return self._hold is not None

    async def aclose(self) -> None:
        """Free all that the session holds on the device; idempotent. See :meth:`aioais.InferSession.aclose`."""
        await super().aclose()
        holding, self._hold = self._hold, None
        if holding is None:
            return
        if holding.runner.is_here:
            holding.drop_here()
        else:
            holding.drop()

    def close_soon(self) -> None:
        """Have the session closed and do not wait; in any thread, and in finalisers of others."""
        holding = self._hold
        if holding is not None:
            self._is_closing = True
            core = self._elsewhere
            if not holding.runner.post(lambda: _close_dropped(core, holding, False)):
                core.abandon()

    def let_go(self) -> None:
        """Drop the hold on the loop thread; idempotent."""
        holding, self._hold = self._hold, None
        if holding is not None:
            holding.drop()

    def __del__(self) -> None:
        core, holding = getattr(self, "_elsewhere", None), getattr(self, "_hold", None)
        if core is None or holding is None or self._is_closing:
            return  # the constructor has raised, it is closed, or what was collected together with this closes it
        if not holding.runner.post(lambda: _close_dropped(core, holding, True)):
            core.abandon()


def _close_dropped(core: _Core, holding: Hold, warns: bool) -> None:
    """Close a session that was dropped; on the loop thread, where no signal handler can break in.

    It needs no loop from here on: the threads of the session end by themselves.
    """
    text = repr(core)
    try:
        if core.abandon() and warns:
            warnings.warn(f"{text} was never closed: call session.free_resource()", ResourceWarning, stacklevel=2)
    except ResourceWarning as exc:  # made an error, which no caller could catch
        _log.warning("%s", exc)
    finally:
        holding.drop_here()


class _Core(SessionCore):
    """What is behind a session whose requests come from many threads and event loops.

    Everything that changes the session happens on the loop thread. Elsewhere a request is a :class:`_Remote`.
    """

    def __init__(self, options: Any, runner: LoopThread) -> None:
        super().__init__(options)
        self.runner = runner
        self._ends: list[object] = []
        """Not empty once the session has ended."""

    @property
    def has_ended(self) -> bool:
        """Whether the session was closed, or ended by ``finalize``.

        It takes no lock: a signal handler that raises in the main thread might leave one locked.
        """
        return self.is_closed or bool(self._ends)

    async def open(self) -> None:
        """Open the session; on the loop thread."""
        await super().open()
        if self.pipeline is not None:
            self.pipeline.closed.add_done_callback(self._ends.append)

    def check_loop(self) -> None:
        """Allow any event loop."""

    def request(
        self,
        feeds: Any,
        mode: Any = "static",
        custom_sizes: Any = None,
        to_host: bool = True,
        iteration: Iteration | None = None,
    ) -> Request | Awaitable[Request]:
        """Check feeds and submit them; from another event loop than the session's by way of the loop thread."""
        if self.runner.is_here:
            return super().request(feeds, mode, custom_sizes, to_host, iteration)
        self.opened()
        return _Remote(self.runner, lambda: self.begin(feeds, mode, custom_sizes, to_host, iteration))

    def begin(
        self, feeds: Any, mode: Any, custom_sizes: Any, to_host: bool, iteration: Iteration | None = None
    ) -> Started[list[Any]]:
        """Start a request; on the loop thread."""
        request = super().request(feeds, mode, custom_sizes, to_host, iteration)
        return request if isinstance(request, Request) else _Pending(self, request)


class _Pending:
    """A request whose feeds are still being converted."""

    def __init__(self, core: SessionCore, request: Awaitable[Request]) -> None:
        self.future: asyncio.Future[list[Any]] = asyncio.ensure_future(core.result(request))

    def give_up(self) -> None:
        self.future.cancel()


class _Remote(Request):
    """A request that is awaited on another event loop than the session's: it stands for the real one."""

    def __init__(self, runner: LoopThread, begin: Any) -> None:
        # Not the constructor of Request: nothing of this is ever submitted.
        self._loop = asyncio.get_running_loop()
        self._runner = runner
        self.future = self._loop.create_future()
        self._call: Call[list[Any]] = Call(begin, self._wake)
        runner.start(self._call)

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._copy_outcome)
        except RuntimeError:
            pass  # the caller's loop is closed: no caller waits any more

    def _copy_outcome(self) -> None:
        future = self.future
        if future.done():
            return
        try:
            future.set_result(self._call.take())
        except BaseException as exc:  # noqa: BLE001 - the caller gets it
            future.set_exception(exc)

    def abandon(self) -> None:
        """Cancel the real request, if the caller has stopped waiting."""
        if self.future.cancelled():
            self._runner.post(self._call.give_up)

    def give_up(self) -> None:
        """Stop waiting."""
        future = self.future
        if not future.cancel() and not future.cancelled():
            future.exception()  # seen: no caller will ask for it
        self.abandon()


_live: weakref.WeakSet[AioSession] = weakref.WeakSet()
_live_lock = threading.RLock()  # a set must not grow while it is read; a finaliser may read it


def live_sessions() -> list[AioSession]:
    """List the sessions that are not collected yet."""
    with _live_lock:
        return list(_live)


def finalize_all() -> None:
    """Free every session of the process, reset the devices and finalise ACL; blocks.

    At the end of the interpreter the library does the same by itself, and there is nothing left to do.
    """
    if is_ending():
        return
    holding = hold()
    try:
        holding.runner.run_coroutine(InferSession.finalize)
    finally:
        for session in live_sessions():
            if session.closed:
                session.let_go()
        holding.drop()
        holding.runner.join()
