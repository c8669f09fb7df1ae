"""Abnormal termination of a session: a device that hangs or is lost, or an engine thread that dies."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from typing import Any, Final

from .._acl.model import LoadedModel
from .._acl.release import run_all
from .._bridge.delivery import Delivery
from .._buffers.results import Landing
from .._buffers.slot_pool import SlotPool
from .._device.device import Device
from ..blame import Seen, Streak, Verdict
from ..errors import AclError, AioaisError, BrokenSessionError, DeviceHangError
from .admission import Admission
from .event_times import Recorder
from .execute import Executions
from .request import Request

__all__ = ["Failure", "Holdings", "free_what_was_left"]

_log = logging.getLogger("aioais")

_PATIENCE_S: Final = 10.0
"""How long to wait at most, when a broken session is closed, for what is still under way on the device."""


class Holdings:
    """Everything that one session holds on a device, the session's reference to the device included.

    Parameters
    ----------
    executions, slots, recorder
        Owned, the model of the executions included, and freed in an order in which no child outlives its parent.
    """

    def __init__(self, device: Device, executions: Executions, slots: SlotPool, recorder: Recorder) -> None:
        self.device = device
        self.model: LoadedModel = executions.model
        self.executions = executions
        self.slots = slots
        self.recorder = recorder

    def wait_idle(self, seconds: float) -> bool:
        """Wait until no work of the session is left on the device; ``False`` if that takes longer.

        Needs the device's context. Where the release cannot bound a wait, it may take any time.
        """
        deadline = monotonic() + seconds
        shared = self.executions.stream
        for stream in [*([] if shared is None else [shared]), *self.slots.streams()]:
            try:
                if self.device.library.has_stream_timeout:
                    stream.synchronize_within(max(0.0, deadline - monotonic()))
                else:
                    stream.synchronize()
            except DeviceHangError:
                return False
            except AclError:
                pass  # the failure of a request that has its error already; the stream is idle
        return True

    def free(self) -> None:
        """Free all; nothing on the device may use it any more. A failure is raised when all else is freed."""
        run_all(
            [
                self.recorder.close,
                self.slots.close,
                self.model.close,
                self.executions.close,
                self.device.release_session,
            ]
        )


class Failure:
    """Ends a session at once and fails every request of it with the reason.

    :mod:`aioais.blame` says when a session breaks: the device hangs or is lost, or one of its threads dies. Then

    * every request under way fails, and every later one: none waits for a result that may never come;
    * what the device may still use is set aside, neither used again nor freed;
    * the engine threads end as soon as they come back from the device.

    When the session is closed, a thread of its own waits once more, for a bounded time. If the device is
    done by then all is freed; otherwise it stays with the device until ``finalize`` finds it idle, or to
    the end of the process.

    Parameters
    ----------
    interrupt
        Wakes the engine threads, so that they see that the session is broken; never blocks.
    join
        Waits for the engine threads, for so many seconds at most, and tells whether they have ended.

    Attributes
    ----------
    cause
        Why the session broke; ``None`` while it is whole.
    closing
        Set once the session is to be closed; what is set aside is freed then, if it is broken or breaks later.
    closed
        Done when the session has ended: all is freed, or is left because the device may still use it.
    """

    def __init__(
        self,
        holdings: Holdings,
        admission: Admission,
        delivery: Delivery,
        interrupt: Callable[[], None],
        join: Callable[[float], bool],
        hang_timeout: float | None,
    ) -> None:
        self.cause: BaseException | None = None
        self.closed: Future[None] = Future()
        self._holdings = holdings
        self._admission = admission
        self._delivery = delivery
        self._interrupt = interrupt
        self._join = join
        self._patience = _PATIENCE_S if hang_timeout is None else min(hang_timeout, _PATIENCE_S)
        self._lock = threading.Lock()  # guards which end comes first: the regular one, or this one
        self._has_ended = False
        self._streak = Streak()
        self.closing: threading.Event = threading.Event()
        self._blocks: list[list[Any]] = []  # of the requests; not these, whose errors would hold their callers

    def judge(self, error: BaseException, seen: Seen = Seen.WAIT) -> Verdict:
        """Look up who is at fault, and do what follows for the session and the context of its device."""
        _drop_frames(error)
        verdict = self._streak.blame(error, seen, self._admission.done)
        if verdict.drops_context:
            self._holdings.device.give_up()
        if verdict.breaks_session:
            self.strike(error)
        return verdict

    def strike(self, cause: BaseException) -> None:
        """Break the session; the first cause stays. In any thread of the session; never blocks."""
        with self._lock:
            if self._has_ended or self.cause is not None:
                return
            self.cause = cause
        if isinstance(cause, AclError):
            cause.__traceback__ = None  # frames of an engine thread: they hold its requests
        requests = self._admission.break_off(self.refusal)
        self._blocks = [request.blocks for request in requests]
        self._start_end()  # before the requests fail: their callers may end the process
        device, path = self._holdings.device, self._holdings.model.path
        _log.error(
            "the session of %s on device %d broke with %d requests under way; close it and open another: %s",
            path,
            device.id,
            len(requests),
            repr(cause),  # not the error itself: a handler that keeps records would keep its frames
        )
        self._delivery.post([_End(request, self._error_for(request)) for request in requests])
        self._interrupt()

    def disown(self) -> None:
        """Count the session as ended, with all that it holds: in a forked child, or where the process ends."""
        if not self.closed.done():
            self.closed.set_result(None)

    def end(self) -> None:
        """End a session that is not broken: free all, with nothing under way; on its finish thread."""
        with self._lock:
            if self.cause is not None:
                return  # the session broke first and is ended in its own thread
            self._has_ended = True
        try:
            self._holdings.free()
        except BaseException as exc:  # noqa: BLE001 - closing the session raises it
            self.closed.set_exception(exc)
        else:
            self.closed.set_result(None)

    def refusal(self) -> BrokenSessionError:
        """Return the error of a request that is submitted to a broken session."""
        holdings, cause = self._holdings, self.cause
        error = BrokenSessionError(
            f"the session of {holdings.model.path!r} on device {holdings.device.id} is broken, close it and open "
            f"another: {type(cause).__name__}: {cause}"
        )
        error.__cause__ = cause
        return error

    def try_to_free(self) -> bool:
        """Free all that the session holds, if the device is done with it, else return ``False``. May be tried again."""
        holdings = self._holdings
        try:
            if not self._join(self._patience):
                return False
            holdings.device.enter()
            if not holdings.wait_idle(self._patience):
                return False
            for blocks in self._blocks:
                for block in blocks:
                    if isinstance(block, Landing):  # an error's frames may hold it as well
                        block.close()
                blocks.clear()
            holdings.free()
        except BaseException as exc:  # noqa: BLE001 - it is broken anyway; what could be freed was
            _log.warning("closing a broken session on device %d: %s", holdings.device.id, repr(exc))
        return True

    def _start_end(self) -> None:
        try:
            threading.Thread(target=self._end, name=f"aioais-end-{self._holdings.device.id}", daemon=True).start()
        except RuntimeError as exc:  # the interpreter shuts down: what is set aside stays so to the end of the process
            _log.warning("a session that broke is not cleaned up: %s", exc)
            self.disown()

    def _end(self) -> None:
        self.closing.wait()
        if not self.try_to_free():
            holdings = self._holdings
            _log.error(
                "device %d still works for the broken session of %s: its model and %d bytes of buffers stay set aside; "
                "InferSession.finalize() frees them if the device is done by then, else the end of the process",
                holdings.device.id,
                holdings.model.path,
                holdings.slots.nbytes,
            )
            with _left_lock:
                _left.append(self)
        self.closed.set_result(None)

    def _error_for(self, request: Request) -> BaseException:
        """Return the failure itself for requests that the device had begun, and one that names it for all others."""
        if (request.state != "waiting" or request.error is self.cause) and isinstance(self.cause, AclError):
            return copy.copy(self.cause)
        return self.refusal()


class _End:
    """The error of a request whose session breaks, also if an engine thread completes the request later."""

    __slots__ = ("_error", "_request")

    def __init__(self, request: Request, error: BaseException) -> None:
        self._request = request
        self._error = error

    def settle(self) -> None:
        request = self._request
        request.result, request.error = None, self._error
        request.settle()


def _drop_frames(error: BaseException) -> None:
    """Drop the traceback of a library error; its text says which call failed.

    Frames of the engine, also those that called the ones in the traceback, hold batches, and these feeds and buffers,
    for as long as the caller keeps the error.
    """
    cause: BaseException | None = error
    while isinstance(cause, AioaisError):
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__


_left: list[Failure] = []
"""Broken sessions whose buffers the device may still use; kept, so that no finaliser frees them."""
_left_lock = threading.Lock()  # guards the list


def free_what_was_left() -> None:
    """Free the buffers of broken sessions if the device is done with them by now; blocks, for a bounded time."""
    with _left_lock:
        left = list(_left)
    for failure in left:
        if failure.try_to_free():
            with _left_lock:
                _left.remove(failure)
