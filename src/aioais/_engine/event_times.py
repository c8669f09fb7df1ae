"""When a request was on the device, on the host's clock: read from the time stamps of events, for recordings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter

from .._acl.library import Library
from .._acl.release import run_all
from .._acl.stream import Event, Stream
from .._buffers.commands import Marks
from ..errors import AclError
from ..timing import Outcome, Recording, RequestTiming, Span

__all__ = ["Draft", "Recorder"]

_log = logging.getLogger("aioais")


class Draft:
    """What is known of a request that is recorded; travels with it."""

    __slots__ = ("_mode", "_recordings", "_shapes", "finished_at", "riders", "stages")

    def __init__(self, recordings: tuple[Recording, ...], mode: str, shapes: tuple[tuple[int, ...], ...]) -> None:
        self._recordings = recordings
        self._mode = mode
        self._shapes = shapes
        self.stages: tuple[Span, Span, Span] | None = None
        """H2D, execute and D2H, once they are known."""
        self.finished_at: float = 0.0
        """When the finish thread completed it."""
        self.riders: tuple[int, ...] = ()
        """As in ``RequestTiming``; set on the loop's thread."""
        for recording in recordings:
            recording.begin()

    def publish(self, number: int, queued_at: float, started_at: float, outcome: Outcome) -> None:
        """Add the record to the recordings, once; on the loop's thread, right before the future is set."""
        recordings, self._recordings = self._recordings, ()
        if not recordings:
            return
        now = perf_counter()
        started = started_at or now
        h2d, execute, d2h = self.stages or (Span(started, started),) * 3
        end = d2h.end if self.stages is not None else self.finished_at or now
        timing = RequestTiming(
            number,
            outcome,
            self.stages is not None,
            self._mode,
            self._shapes,
            Span(queued_at, started),
            h2d,
            execute,
            d2h,
            Span(min(end, now), now),
            self.riders,
        )
        for recording in recordings:
            recording.add(timing)


class Recorder:
    """Reads the time stamps of requests that are recorded; everything on the finish thread.

    ACL tells the time between two events and no absolute time. So when a request is finished, one more event,
    the anchor, is recorded on its slot's stream, which is idle by then, and waited for: it lies between
    two readings of the host's clock, and behind all marks of the request.

    From anchor to anchor the time is the device's again, so all requests are placed on one line as exactly
    as events are, whatever the host does. Where that line lies in the host's time is known better
    with each anchor; it is moved only if an anchor contradicts it, that is, when the two clocks drift.
    The distances stay short: ACL returns them as 32-bit floats.

    Two events are held from the first recorded request to the end of the session.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._events: list[Event] = []
        self._has_anchor = False
        self._anchor_at = 0.0
        """The newest anchor on the device's line, in seconds since the first."""
        self._offset = 0.0
        """Where that line begins in the host's clock."""

    def measure(self, draft: Draft, number: int, marks: Marks, stream: Stream, copies: tuple[int, int]) -> None:
        """Note when a request was on the device; nothing queued may use its slot any more.

        A failure leaves its times unknown; the request does not fail.

        Parameters
        ----------
        draft, number
            Of the request.
        marks, stream
            Those of its slot.
        copies
            How many copies it had to the device, and to the host.
        """
        try:
            draft.stages = self._stages(marks, stream, *copies)
        except AclError as exc:
            self._has_anchor = False
            _log.debug("request %d: its times cannot be read: %s", number, str(exc))

    def close(self) -> None:
        """Destroy the events; idempotent."""
        events, self._events = self._events, []
        run_all(event.close for event in events)

    def _stages(self, marks: Marks, stream: Stream, copies_in: int, copies_back: int) -> tuple[Span, Span, Span]:
        place = self._anchor(stream)
        # The first execution of an iteration is that of its last step.
        execute = Span(place(marks.ready), place(marks.executions[-1]))
        h2d, d2h = Span(execute.begin, execute.begin), Span(execute.end, execute.end)
        if copies_in:
            h2d = Span(place(marks.start), place(marks.inputs[copies_in - 1]))
        if copies_back:
            d2h = Span(execute.end, place(marks.outputs[copies_back - 1]))
        return h2d, execute, d2h

    def _anchor(self, stream: Stream) -> Callable[[Event], float]:
        """Set an anchor, and return what places earlier events on the host's clock."""
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
