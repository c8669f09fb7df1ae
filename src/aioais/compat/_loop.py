"""One event loop in a thread of its own, for all blocking sessions of the process, and blocking calls into it."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, Protocol, TypeVar

from ..errors import ClosedError, ForkError, open_error
from ._errors import as_runtime_error

__all__ = ["Call", "Hold", "LoopThread", "Started", "before_exit", "hold", "is_ending", "is_in_library"]

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)

_RETRY_S: Final = 0.001
_PATIENCE_S: Final = 10.0
"""How long the end of the thread is waited for: it comes at once, or something is wrong."""


class Started(Protocol[_T_co]):
    """Work that runs on the loop."""

    @property
    def future(self) -> asyncio.Future[Any]:
        """Its end."""
        ...

    def give_up(self) -> None:
        """Stop waiting for it."""
        ...


class _Task(Generic[_T]):
    """A coroutine on the loop."""

    def __init__(self, coroutine: Coroutine[Any, Any, _T]) -> None:
        self.future: asyncio.Future[_T] = asyncio.ensure_future(coroutine)

    def give_up(self) -> None:
        self.future.cancel()


class Call(Generic[_T]):
    """One call into the loop, and the way back.

    Parameters
    ----------
    begin
        Starts the work, on the loop's thread.
    wake
        Told of the end, on the loop's thread; called once.
    """

    __slots__ = ("_begin", "_error", "_is_given_up", "_is_over", "_result", "_started", "_wake", "runner")

    def __init__(self, begin: Callable[[], Started[_T]], wake: Callable[[], object]) -> None:
        self._begin: Callable[[], Started[_T]] | None = begin
        self._wake = wake
        self._started: Started[_T] | None = None
        self._error: BaseException | None = None
        self._is_given_up = self._is_over = False
        self.runner: LoopThread | None = None

    def begin(self) -> None:
        """Start the work; on the loop's thread."""
        begin, self._begin = self._begin, None
        if self._is_given_up or begin is None:
            self._end()
            return
        try:
            started = begin()
        except BaseException as exc:  # noqa: BLE001 - the caller gets it
            self._error = exc
            self._end()
            return
        self._started = started
        started.future.add_done_callback(self._done)

    def give_up(self) -> None:
        """Have the work cancelled, as no caller waits any more; on the loop's thread."""
        self._is_given_up = True
        if self._started is not None:
            self._started.give_up()

    def fail(self, error: BaseException) -> None:
        """End the wait with an error if it has not ended; on the loop's thread, or after that has ended."""
        if not self._is_over:
            self._error = error
            self._end()

    def take(self) -> _T:
        """Return the result or raise the error, which is not kept: its traceback holds the caller's frame."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._result
        finally:
            del error

    def take_or_raise_runtime_error(self) -> _T:
        """Return the result, or raise the error as one that ``except RuntimeError`` catches."""
        self._error = self._error and as_runtime_error(self._error)
        return self.take()

    def _done(self, future: asyncio.Future[_T]) -> None:
        self._started = None
        if future.cancelled():
            self._error = ClosedError("the call was cancelled: the session is being closed; open a new one")
        else:
            self._error = future.exception()
            if self._error is None:
                self._result = future.result()
        self._end()

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            if self.runner is not None:
                self.runner.calls.discard(self)
            self._wake()


class LoopThread:
    """An event loop in a daemon thread, which ends when nothing holds it any more.

    Made by :func:`hold`. It is a daemon so that a program may end while sessions are open, as programs for ais_bench
    do. ``_at_exit`` stops it before the interpreter goes.

    Attributes
    ----------
    loop
        The loop.
    calls
        Calls under way. The end of the thread fails those that are left, so that no caller waits for ever.
    is_forked
        This process is a child of the one that has the thread.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
        self.calls: set[Call[Any]] = set()
        self.is_forked = False
        self.holds: int = 0
        self._is_over = self._is_stopping = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="aioais-compat", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as exc:
            self.loop.close()
            raise as_runtime_error(open_error("the event loop of this process", exc)) from exc

    @property
    def is_here(self) -> bool:
        """Whether the caller is on the loop's thread."""
        return threading.get_ident() == self._thread.ident

    @property
    def is_over(self) -> bool:
        """Whether nothing can run here any more."""
        return self._is_over or self.is_forked

    def run(self, begin: Callable[[], Started[_T]]) -> _T:
        """Start work on the loop and block until its end.

        Parameters
        ----------
        begin
            Starts the work, on the loop's thread.

        Raises
        ------
        RuntimeError
            The work failed; an :class:`aioais.AioaisError` is raised as one that is a ``RuntimeError`` too.
        """
        lock = threading.Lock()  # a wait for it releases the GIL, and a signal handler that raises (Ctrl-C) ends it
        lock.acquire()
        call = Call(begin, lock.release)
        try:
            self.start(call)
            lock.acquire()
        except BaseException:  # a signal handler has raised, or the call cannot start
            self.post(call.give_up)
            _end_with_the_process()
            raise
        _end_with_the_process()
        return call.take_or_raise_runtime_error()

    def run_coroutine(self, make: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Run a coroutine on the loop and block until its end; see :meth:`run`."""
        return self.run(lambda: _Task(make()))

    def start(self, call: Call[Any]) -> None:
        """Begin a call on the loop.

        Raises
        ------
        RuntimeError
            This is a forked child, the loop has ended, or the caller is on a thread of this library.
        """
        if self.is_forked:
            raise ForkError(
                f"this process {os.getpid()} was forked from process {self._pid}, which has the sessions; ACL does not "
                "survive a fork: open sessions after forking, or use the 'spawn' start method"
            )
        if is_in_library():
            raise RuntimeError(
                "a blocking call on a thread of this library would wait for itself for ever; await the same method of "
                "session.aio, or make the call in another thread"
            )
        call.runner = self
        self.calls.add(call)  # before the flag is read: the thread sets the flag before it looks at the calls
        if self._is_over or not self.post(call.begin):
            self.calls.discard(call)
            if _is_ending and threading.current_thread().daemon:
                threading.Event().wait()  # as Python does with a daemon thread at its end
            raise as_runtime_error(ClosedError("the session is closed, or the interpreter is ending; open a new one"))

    def post(self, function: Callable[[], object]) -> bool:
        """Run a function soon on the loop's thread; safe in a finaliser. ``False`` if it cannot run any more."""
        if self.is_over:
            return False
        try:
            self.loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def join(self) -> None:
        """Wait for the end of the thread if it is about to end."""
        if not self.is_forked and not self.holds and not self.is_here:
            self._thread.join(_PATIENCE_S)

    def stop(self) -> None:
        """End the thread, whatever it holds."""
        if self.post(self._stop):
            self._thread.join(_PATIENCE_S)

    def drop(self) -> None:
        """Drop one hold; on the loop's thread."""
        global _current
        # The thread that has the lock may be in a finaliser that waits for this thread, so this one never waits.
        if not _lock.acquire(blocking=False):
            self.loop.call_later(_RETRY_S, self.drop)
            return
        try:
            self.holds -= 1
            if self.holds:
                return
            if _current is self:
                _current = None
        finally:
            _lock.release()
        self._stop()

    def _stop(self) -> None:
        if not self._is_stopping:  # a second stop would cut off what the thread still runs at its end
            self._is_stopping = True
            self.loop.stop()

    def _run(self) -> None:
        loop = self.loop
        try:
            loop.run_forever()
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            self._is_over = True
            loop.run_until_complete(asyncio.sleep(0))  # what was posted before that
            # Only daemon threads still call at the end of the interpreter: they end with it, without a traceback.
            for call in [] if _is_ending else list(self.calls):
                call.fail(ClosedError("the session was closed while a call was under way; open a new one"))
            loop.close()


def is_in_library() -> bool:
    """Whether this is a thread of the library, where a blocking call would wait for itself.

    The collector runs finalisers in any thread, those of programs that free a session included.
    """
    return threading.current_thread().name.startswith("aioais-")


class Hold:
    """One reason for the loop to run; dropped once, at the latest when it is collected.

    Attributes
    ----------
    runner
        The loop.
    is_dropped
        It holds no more.
    """

    __slots__ = ("is_dropped", "runner")

    def __init__(self, runner: LoopThread) -> None:
        self.is_dropped: bool = True  # it counts when hold() has counted it
        self.runner: LoopThread = runner

    def count(self) -> None:
        """Begin to hold; where the lock is held."""
        self.runner.holds += 1
        self.is_dropped = False

    def drop(self) -> None:
        """Let the loop end, if nothing else holds it; idempotent, in any thread and in finalisers."""
        if not self.is_dropped:
            self.is_dropped = True
            self.runner.post(self.runner.drop)

    def drop_here(self) -> None:
        """Do the same at once; on the loop's thread, not in a finaliser."""
        if not self.is_dropped:
            self.is_dropped = True
            self.runner.drop()

    def __del__(self) -> None:
        self.drop()


_lock = threading.RLock()  # guards what follows and the number of holds; a finaliser may take it where it is held
_current: LoopThread | None = None
_is_ending = False


def is_ending() -> bool:
    """Whether the loop was stopped for good, as the interpreter ends."""
    return _is_ending


def hold() -> Hold:
    """Hold the loop of this process, which runs until each hold is dropped; raises if it cannot be started."""
    global _current
    if _is_ending:
        raise as_runtime_error(ClosedError("the interpreter is ending: sessions can be opened no more"))
    with _lock:
        runner = _current
        if runner is None or runner.is_over:
            runner = _current = LoopThread()
        made = Hold(runner)
        made.count()
    return made


def _in_forked_child() -> None:
    global _current, _lock
    _lock = threading.RLock()  # another thread may have held it
    if _current is not None:
        _current.is_forked = True
        _current = None


_before_exit: list[Callable[[LoopThread], None]] = []
"""What to do with the loop before it is stopped at the end of the interpreter."""


def before_exit(function: Callable[[LoopThread], None]) -> None:
    """Have a function called with the loop before that is stopped at the end of the interpreter."""
    _before_exit.append(function)


def _at_exit() -> None:
    """Stop the loop while threads still run: a thread that wakes later may crash the interpreter.

    It runs before the library's own hook, which closes the sessions that are left and needs no loop for it.
    """
    global _is_ending
    runner, _is_ending = _current, True
    if runner is not None:
        for function in _before_exit:
            function(runner)
        runner.stop()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


def _end_with_the_process() -> None:
    """Where the interpreter exits, leave a daemon thread asleep, as a call of ACL would.

    Its session is being closed, and an error would only be printed amid the exit.
    """
    if _is_ending and threading.current_thread().daemon:
        asleep = threading.Lock()
        asleep.acquire()
        asleep.acquire()
