"""Streams and events: the order of work on a device, and the calls that queue it."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import starmap
from operator import itemgetter
from typing import Any, NoReturn

from .._cann.constants import EventFlag
from ..errors import AclError, DeviceHangError
from .library import Library

if sys.version_info >= (3, 11):
    from operator import call as _make
else:

    def _make(function: Callable[..., int], /, *arguments: int) -> int:
        return function(*arguments)


__all__ = ["Call", "Event", "Stream", "make_calls"]

_log = logging.getLogger("aioais")

Call = tuple[Any, ...]
"""A function of ACL that returns a code, and its arguments. It is recorded once and made again and again."""

_FLAGS = int(EventFlag.SYNC | EventFlag.TIME_LINE)

_time_of, _code_of = itemgetter(0), itemgetter(1)
_NO_TIME = frozenset({107006, 107007, 207000})
"""Codes of ACL for a time that it does not know. The work that was timed has not failed."""


def make_calls(calls: Iterator[Call]) -> int:
    """Make calls up to the first that fails, in one go; returns its code, or 0. What is left was not made."""
    return next(filter(None, starmap(_make, calls)), 0)


class Event:
    """A point in a stream that another stream or a thread can wait for. It keeps the time at which it was reached.

    An event is recorded again and again. Events of the ``ex`` kind allow that as they are. The older kind
    stays set until it is reset, which forgets its time (pyACL API pages of ``create_event_with_flag`` and
    ``reset_event``; in the published runtime a wait for one that was recorded again without a reset passes
    at once), so waits need events of their own, which are reset behind the wait.
    """

    __slots__ = ("_elapsed", "_library", "handle")

    def __init__(self, library: Library) -> None:
        rt = library.acl.rt
        if library.has_event_ex:
            created = rt.create_event_ex_with_flag(_FLAGS)
            name = "acl.rt.create_event_ex_with_flag"
        else:
            created = rt.create_event_with_flag(_FLAGS)
            name = "acl.rt.create_event_with_flag"
        self.handle: int = library.value(name, created)
        self._library = library
        self._elapsed = rt.event_elapsed_time

    def elapsed_ms(self, since: Event) -> float:
        """Return the milliseconds between ``since`` and this event; both must be complete."""
        elapsed, code = self._elapsed(since.handle, self.handle)
        if code:
            raise self._library.error("acl.rt.event_elapsed_time", code)
        return elapsed

    def close(self) -> None:
        """Destroy the event; idempotent."""
        handle, self.handle = self.handle, 0
        if handle:
            self._library.check("acl.rt.destroy_event", self._library.acl.rt.destroy_event(handle))


class Stream:
    """A queue of work on one device, made in the calling thread's current context.

    Parameters
    ----------
    library
        The ACL in use.
    hang_timeout
        Seconds after which :meth:`synchronize` gives up; ``None`` waits without a limit.
    """

    __slots__ = (
        "_copy",
        "_elapsed",
        "_library",
        "_query",
        "_record",
        "_reset",
        "_synchronize",
        "_timeout",
        "_wait",
        "handle",
    )

    def __init__(self, library: Library, hang_timeout: float | None = None) -> None:
        rt = library.acl.rt
        self.handle: int = library.value("acl.rt.create_stream", rt.create_stream())
        self._library = library
        self._timeout = hang_timeout
        self._copy = library.named("acl.rt.memcpy_async", rt.memcpy_async)
        self._record = library.named("acl.rt.record_event", rt.record_event)
        self._wait = library.named("acl.rt.stream_wait_event", rt.stream_wait_event)
        self._reset = library.named("acl.rt.reset_event", rt.reset_event)
        self._query = rt.stream_query
        self._elapsed = rt.event_elapsed_time
        self._synchronize = self._wait_call(hang_timeout)

    def copy(self, dst: int, dst_max: int, src: int, count: int, kind: int) -> None:
        """Queue a copy of ``count`` bytes; host memory must be pinned, or the call would block."""
        self.call(self.copy_call(dst, dst_max, src, count, kind))

    def copy_call(self, dst: int, dst_max: int, src: int, count: int, kind: int) -> Call:
        """Return the call that :meth:`copy` makes."""
        return self._copy, dst, dst_max, src, count, kind, self.handle

    def is_copy(self, call: Call) -> bool:
        """Whether a call is one of :meth:`copy_call`."""
        return call[0] is self._copy

    def record_call(self, event: Event) -> Call:
        """Return the call that :meth:`record` makes."""
        return self._record, event.handle, self.handle

    def wait_call(self, event: Event) -> Call:
        """Return the call that queues a wait for the newest record of an event."""
        return self._wait, self.handle, event.handle

    def reset_call(self, event: Event) -> Call:
        """Return the call that queues the moment from which ``event`` is as if it had not been recorded."""
        return self._reset, event.handle, self.handle

    def record(self, event: Event) -> None:
        """Queue the moment at which everything before it is done."""
        self.call(self.record_call(event))

    def reset(self, event: Event) -> None:
        """Queue the reset of an event; only for events that are not of the ``ex`` kind."""
        self.call(self.reset_call(event))

    def call(self, call: Call) -> None:
        """Make one recorded call.

        Raises
        ------
        AclError
            It failed.
        """
        code = _make(*call)
        if code:
            raise self._library.call_error(call[0], code)

    def synchronize(self) -> None:
        """Block, without the GIL, until all queued work is done.

        Raises
        ------
        DeviceHangError
            The work is not done within the stream's ``hang_timeout``; it may still be running.
        AclError
            Work of this stream failed, or ACL refused to wait. No work is running any more.
        """
        self._wait_by(self._synchronize, self._timeout)

    def synchronize_within(self, seconds: float) -> None:
        """Do the same as :meth:`synchronize`, with another limit in seconds."""
        self._wait_by(self._wait_call(seconds), seconds)

    def read_times(self, spans: Iterable[tuple[int, int]]) -> list[float]:
        """Return the milliseconds between events that are complete; NaN where ACL has no time for one of them.

        A request does not fail because its times are unknown; the first such case is logged.

        Parameters
        ----------
        spans
            Handles of the events at the begin and the end of each span.

        Raises
        ------
        AclError
            A call failed for another reason.
        """
        found = [*starmap(self._elapsed, spans)]
        if any(map(_code_of, found)):
            return [self._unknown_time(code) if code else ms for ms, code in found]
        return [*map(_time_of, found)]

    def _unknown_time(self, code: int) -> float:
        library = self._library
        error = library.error("acl.rt.event_elapsed_time", code)
        if code not in _NO_TIME:
            raise error
        if library.tells_times:
            library.tells_times = False
            _log.warning("some times are unknown and count as 0: %s", error)
        return math.nan

    def is_complete(self) -> bool:
        """Whether all queued work is done, also where it failed; ``False`` where ACL does not say."""
        status, code = self._query(self.handle)
        return not (code or status)

    def close(self) -> None:
        """Destroy the stream; idempotent. Its context must be current in the calling thread."""
        handle, self.handle = self.handle, 0
        if handle:
            self._library.check("acl.rt.destroy_stream", self._library.slow.destroy_stream(handle))

    def _wait_call(self, seconds: float | None) -> Call:
        slow = self._library.slow
        if seconds is None:
            return self._library.named("acl.rt.synchronize_stream", slow.synchronize_stream), self.handle
        name, most = "acl.rt.synchronize_stream_with_timeout", max(1, math.ceil(seconds * 1e3))
        return self._library.named(name, slow.synchronize_stream_with_timeout), self.handle, most

    def _wait_by(self, call: Call, seconds: float | None) -> None:
        code = _make(*call)
        if code:
            self._wait_again(self._library.call_error(call[0], code), call, seconds)

    def _wait_again(self, error: AclError, call: Call, seconds: float | None) -> NoReturn:
        """Raise the failure of a wait, once no work is running any more."""
        again = None
        try:
            if seconds is None or not isinstance(error, DeviceHangError):
                # The wait itself may have failed while the work continues. The caller uses or frees the buffers
                # after this error, so wait again until the work is done.
                code = _make(*call)
                again = self._library.call_error(call[0], code) if code else None
                if isinstance(again, DeviceHangError):
                    raise _with_hint(again, seconds) from error
                if again is not None and again.code != error.code:
                    _log.warning("after %s: waiting again failed too: %s", error.name or error.code, str(again))
            raise _with_hint(error, seconds)
        finally:
            del error, again  # their traceback holds this frame


def _with_hint(error: AclError, seconds: float | None) -> AclError:
    if seconds is None or not isinstance(error, DeviceHangError):
        return error
    hint = (
        f"the work was not done within hang_timeout={seconds:g} s and may never be: reset the device, or "
        "raise hang_timeout"
    )
    return DeviceHangError(error.call, error.code, error.name, hint, error.message)
