"""The end that nobody asked for: a device that hangs or is lost, or a stage thread that dies."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from .._bridge.delivery import Delivery
from ..errors import AclError, BrokenSessionError, DeviceHangError, blames_device
from .admission import Admission
from .holdings import Holdings
from .request import Request

__all__ = ["Breakage", "free_what_was_left"]

_log = logging.getLogger("aioais")

_DEVICE_LOST: Final = frozenset({507010, 507053, 507054, 507901})
"""Lost heartbeat, device memory error, uncorrectable ECC error, closed connection to the device.

All other codes may concern one task only: whether the context survived, the next request finds out."""

_PATIENCE_S: Final = 10.0
"""How long to wait at most, when a broken session is closed, for what is still under way on the device."""


class Breakage:
    """Ends a session at once, and tells everybody why.

    A session breaks when the device hangs or is lost, or when one of its threads dies. Then

    * every request under way is told, and every later one: none waits for what may never come;
    * what the device may still use is set aside, neither used again nor freed;
    * the stage threads end as soon as they come back from the device.

    When the session is closed, a thread of its own waits once more, for a bounded time. If the device is
    through by then all is freed; otherwise it stays with the device until ``finalize`` finds it idle, or to
    the end of the process.

    Parameters
    ----------
    holdings
        What to free.
    admission, delivery
        Of the session.
    interrupt
        Makes stage threads look up from their queues; never blocks.
    join
        Waits for the stage threads, for so many seconds at most, and tells whether they have ended.
    on_end
        Called when the session has ended, before ``closed`` is done.
    hang_timeout
        As in ``InferSession``.

    Attributes
    ----------
    cause
        Why the session broke; ``None`` while it is whole.
    closed
        Done when the session has ended: all is freed, or is left because the device does not let go of it.
    """

    def __init__(
        self,
        holdings: Holdings,
        admission: Admission,
        delivery: Delivery,
        interrupt: Callable[[], None],
        join: Callable[[float], bool],
        on_end: Callable[[], None],
        hang_timeout: float | None,
    ) -> None:
        self.cause: BaseException | None = None
        self.closed: Future[None] = Future()
        self._holdings = holdings
        self._admission = admission
        self._delivery = delivery
        self._interrupt = interrupt
        self._join = join
        self._on_end = on_end
        self._patience = _PATIENCE_S if hang_timeout is None else min(hang_timeout, _PATIENCE_S)
        self._lock = threading.Lock()  # guards who ends the session: the regular way, or this one
        self._has_ended = False
        self._is_wanted = threading.Event()
        self._blocks: list[list[Any]] = []  # of the requests; not these, whose errors would hold their callers

    def judge(self, error: BaseException) -> None:
        """Break the session if it cannot go on after an error; give the context up if it may be lost."""
        if blames_device(error):
            self._holdings.device.give_up()
        if isinstance(error, DeviceHangError) or (isinstance(error, AclError) and error.code in _DEVICE_LOST):
            self.strike(error)

    def strike(self, cause: BaseException) -> None:
        """Break the session; the first cause stays. In any thread of the session; never blocks."""
        with self._lock:
            if self._has_ended or self.cause is not None:
                return
            self.cause = cause
        if isinstance(cause, AclError):
            cause.__traceback__ = None  # frames of a stage thread: they say nothing, and hold its requests
        requests = self._admission.break_off(self.refusal)
        self._blocks = [request.blocks for request in requests]
        self._start_end()  # before anybody is told, and may end the process
        device, path = self._holdings.device, self._holdings.model.path
        _log.error(
            "the session of %s on device %d broke with %d requests under way; close it and open another: %s",
            path,
            device.id,
            len(requests),
            repr(cause),  # not the error itself: a handler that keeps records would keep its frames
        )
        self._delivery.post([_Verdict(request, self._error_for(request)) for request in requests])
        self._interrupt()

    def close(self) -> None:
        """Let what is set aside be freed, if the session is broken or breaks later; idempotent, never blocks."""
        self._is_wanted.set()

    @property
    def is_closing(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._is_wanted.is_set()

    @property
    def ends_whole(self) -> bool:
        """Whether the session was closed and did not break."""
        return self.cause is None and self.is_closing

    def disown(self) -> None:
        """Call the session ended with all that it holds: in a forked child, or where the process ends."""
        if not self.closed.done():
            self.closed.set_result(None)

    def end(self) -> None:
        """End a whole session: free all, with nothing under way; on its last stage thread."""
        with self._lock:
            if self.cause is not None:
                return  # the other way has begun
            self._has_ended = True
        failure: BaseException | None = None
        try:
            self._holdings.free()
        except BaseException as exc:  # noqa: BLE001 - whoever closes the session gets it
            failure = exc
        try:
            self._on_end()
        except BaseException as exc:  # noqa: BLE001 - as above
            failure = failure or exc
        if failure is not None:
            self.closed.set_exception(failure)
        else:
            self.closed.set_result(None)

    def refusal(self) -> BrokenSessionError:
        """Make the error of a request that comes to a broken session."""
        holdings, cause = self._holdings, self.cause
        error = BrokenSessionError(
            f"the session of {holdings.model.path!r} on device {holdings.device.id} is broken, close it and open "
            f"another: {type(cause).__name__}: {cause}"
        )
        error.__cause__ = cause
        return error

    def free_again(self) -> bool:
        """Free what an earlier attempt had to leave, if the device is through now; ``False`` if it is not."""
        holdings = self._holdings
        try:
            if not self._join(self._patience):
                return False
            holdings.device.enter()
            if not holdings.wait_idle(self._patience):
                return False
            for blocks in self._blocks:
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
        self._is_wanted.wait()
        if not self.free_again():
            holdings = self._holdings
            _log.error(
                "device %d still works for the broken session of %s: its model and %d bytes of buffers stay set aside; "
                "InferSession.finalize() frees them if the device is through by then, else the end of the process",
                holdings.device.id,
                holdings.model.path,
                holdings.slots.nbytes,
            )
            with _left_lock:
                _left.append(self)
        try:
            self._on_end()
        finally:
            self.closed.set_result(None)

    def _error_for(self, request: Request) -> BaseException:
        """Tell the failure itself to those whom the device worked for, and of it to all others."""
        if (request.started_at or request.error is self.cause) and isinstance(self.cause, AclError):
            return copy.copy(self.cause)
        return self.refusal()


class _Verdict:
    """What a request is told when its session breaks, whatever its stage thread makes of it later."""

    __slots__ = ("_error", "_request")

    def __init__(self, request: Request, error: BaseException) -> None:
        self._request = request
        self._error = error

    def settle(self) -> None:
        request = self._request
        request.result, request.error = None, self._error
        request.settle()


_left: list[Breakage] = []
"""Broken sessions whose buffers the device would not let go of; kept, so that no finaliser frees them."""
_left_lock = threading.Lock()  # guards the list


def free_what_was_left() -> None:
    """Free the buffers of broken sessions where the device is through with them by now; blocks, for a bounded time."""
    with _left_lock:
        left = list(_left)
    for breakage in left:
        if breakage.free_again():
            with _left_lock:
                _left.remove(breakage)
