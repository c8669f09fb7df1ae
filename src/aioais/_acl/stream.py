"""Streams and events: the order of work on a device."""

from __future__ import annotations

import math

from ..errors import DeviceHangError
from .constants import EventFlag
from .library import Library

__all__ = ["Event", "Stream"]

_FLAGS = int(EventFlag.SYNC | EventFlag.TIME_LINE)


class Event:
    """A point in a stream that another stream, or a thread, can wait for; it keeps its time.

    An event is recorded again and again. Events of the ``ex`` kind allow that as they are; the
    older kind must be reset on the waiting stream after each wait, which forgets its time
    (pyACL API pages of ``create_event_with_flag`` and ``reset_event``). ``needs_reset`` tells.
    """

    __slots__ = ("_elapsed", "_library", "handle", "needs_reset")

    def __init__(self, library: Library) -> None:
        rt = library.acl.rt
        if library.has_event_ex:
            created = rt.create_event_ex_with_flag(_FLAGS)
            name = "acl.rt.create_event_ex_with_flag"
        else:
            created = rt.create_event_with_flag(_FLAGS)
            name = "acl.rt.create_event_with_flag"
        self.handle = library.value(name, created)
        self.needs_reset = not library.has_event_ex
        self._library = library
        self._elapsed = rt.event_elapsed_time

    def elapsed_ms(self, since: Event) -> float:
        """Give the milliseconds from ``since`` to this event; both must be complete."""
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
        Most seconds that :meth:`synchronize` waits; ``None`` for ever.
    """

    __slots__ = ("_copy", "_library", "_record", "_reset", "_timeout", "_wait", "handle")

    def __init__(self, library: Library, hang_timeout: float | None = None) -> None:
        rt = library.acl.rt
        self.handle = library.value("acl.rt.create_stream", rt.create_stream())
        self._library = library
        self._timeout = hang_timeout
        self._copy = rt.memcpy_async
        self._record = rt.record_event
        self._wait = rt.stream_wait_event
        self._reset = rt.reset_event

    def copy(self, dst: int, dst_max: int, src: int, count: int, kind: int) -> None:
        """Queue a copy of ``count`` bytes; host memory must be pinned, or the call would block."""
        code = self._copy(dst, dst_max, src, count, kind, self.handle)
        if code:
            raise self._library.error("acl.rt.memcpy_async", code)

    def record(self, event: Event) -> None:
        """Queue the moment at which everything before it is done."""
        code = self._record(event.handle, self.handle)
        if code:
            raise self._library.error("acl.rt.record_event", code)

    def wait(self, event: Event) -> None:
        """Queue a wait of this stream for the last record of ``event``."""
        code = self._wait(self.handle, event.handle)
        if code:
            raise self._library.error("acl.rt.stream_wait_event", code)
        if event.needs_reset:
            code = self._reset(event.handle, self.handle)
            if code:
                raise self._library.error("acl.rt.reset_event", code)

    def synchronize(self) -> None:
        """Block, without the GIL, until everything queued is done.

        Raises
        ------
        DeviceHangError
            It is not done within the stream's ``hang_timeout``, and may go on.
        AclError
            Work of this stream failed; all of it is done.
        """
        if self._timeout is not None:
            self.synchronize_within(self._timeout)
            return
        code = self._library.slow.synchronize_stream(self.handle)
        if code:
            raise self._library.error("acl.rt.synchronize_stream", code)

    def synchronize_within(self, seconds: float) -> None:
        """Do as :meth:`synchronize`, for so many seconds at most."""
        library = self._library
        code = library.slow.synchronize_stream_with_timeout(self.handle, max(1, math.ceil(seconds * 1e3)))
        if not code:
            return
        error = library.error("acl.rt.synchronize_stream_with_timeout", code)
        if isinstance(error, DeviceHangError):
            hint = (
                f"not done within hang_timeout={seconds:g} s, and maybe never: reset the device, or give it more time"
            )
            error = DeviceHangError(error.call, error.code, error.name, hint, error.message)
        raise error

    def close(self) -> None:
        """Destroy the stream, in the thread context that made it; idempotent."""
        handle, self.handle = self.handle, 0
        if handle:
            self._library.check("acl.rt.destroy_stream", self._library.slow.destroy_stream(handle))
