"""When the stages of a request were on the device, told in the host's clock."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter

from .._acl.library import Library
from .._acl.release import run_all
from .._acl.stream import Event, Stream
from ..errors import AclError
from ..timing import Span
from .request import Request
from .slot import Slot

__all__ = ["Recorder"]

_log = logging.getLogger("aioais")


class Recorder:
    """Reads the time stamps of requests that are recorded; everything in the D2H thread.

    ACL tells the time between two events and no absolute time. So when a request is home, one more event,
    the anchor, is recorded on its slot's stream, which is idle by then, and waited for: it lies between
    two readings of the host's clock, and behind all marks of the request.

    From anchor to anchor the time is the device's again, so all requests are placed on one line as exactly
    as events are, whatever the host does meanwhile. Where that line lies in the host's time is known better
    with each anchor; it is moved only if an anchor contradicts it, that is, when the two clocks drift.
    The distances stay short: ACL gives them as 32-bit floats.

    Two events are held from the first recorded request to the end of the session.

    Parameters
    ----------
    library
        The ACL in use.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._events: list[Event] = []
        self._has_anchor = False
        self._anchor_at = 0.0
        """The newest anchor on the device's line, in seconds since the first."""
        self._offset = 0.0
        """Where that line begins in the host's clock."""

    def measure(self, request: Request, slot: Slot) -> None:
        """Note when a request was on the device; nothing queued may use its slot any more.

        A failure leaves its times unknown and is none of the request.
        """
        draft = request.draft
        assert draft is not None
        draft.home_at = perf_counter()
        if request.error is not None or request.was_cancelled:
            return  # its marks may be those of an earlier request
        try:
            draft.stages = self._stages(request, slot)
        except AclError as exc:
            self._has_anchor = False
            _log.debug("request %d: its times cannot be read: %s", request.number, exc)

    def close(self) -> None:
        """Destroy the events; idempotent."""
        events, self._events = self._events, []
        run_all(event.close for event in events)

    def _stages(self, request: Request, slot: Slot) -> tuple[Span, Span, Span]:
        place = self._anchor(slot.stream)
        first, last_copy = slot.h2d_marks[0], request.last_copy
        assert last_copy is not None
        h2d = Span(place(first), place(last_copy))
        # On one stream the end of a stage is the start of the next, and has one mark only.
        is_joined = request.is_joined and not request.is_dynamic
        # The first mark of an iteration is that of its last step.
        begin = h2d.end if is_joined or request.is_iteration else place(slot.execute_marks[0])
        execute = Span(begin, place(slot.execute_marks[-1]))
        if not request.to_host or slot.device.is_shared:
            return h2d, execute, Span(execute.end, execute.end)
        begin = execute.end if request.is_joined else place(slot.d2h_marks[0])
        return h2d, execute, Span(begin, place(slot.d2h_marks[-1]))

    def _anchor(self, stream: Stream) -> Callable[[Event], float]:
        """Set an anchor, and give what places earlier events in the host's clock."""
        while len(self._events) < 2:
            self._events.append(Event(self._library))
        self._events.reverse()
        anchor, previous = self._events
        before = perf_counter()
        stream.record(anchor)
        stream.synchronize()
        after = perf_counter()
        if self._has_anchor:
            self._anchor_at += anchor.elapsed_ms(previous) * 1e-3
            low, high = before - self._anchor_at, after - self._anchor_at
            self._offset = min(max(self._offset, low), high)
        else:
            self._has_anchor = True
            self._anchor_at, self._offset = 0.0, (before + after) / 2
        host = self._offset + self._anchor_at
        return lambda event: host - anchor.elapsed_ms(event) * 1e-3
