"""What a session has measured and counted: filled by stage threads, read by anyone."""

from __future__ import annotations

from .._acl.constants import MemcpyKind
from .._acl.stream import Event
from ..summary import MemorySummary, Timeline
from ..types import StageTime
from .request import Request
from .slot import Slot

__all__ = ["SessionClock"]

STAGES = ("queue", "h2d", "execute", "d2h")

_LIGHT_MS = 0.12
_HEAVY_MS = 0.16
"""Two hops from thread to thread; below, what time stamps measure is mostly the submission itself."""
_WEIGHT = 0.2
"""Weight of the newest request in the running mean."""


class SessionClock:
    """Times of one session, added by the thread that completes its requests.

    Times on the device come from event time stamps in its own streams, so they hold what the
    device did and not how long threads took to notice.
    """

    def __init__(self) -> None:
        self.executions = Timeline()
        self.is_light = False
        """The device needs less time for a request than it takes to pass one from thread to thread."""
        self._device_ms = 1.0
        self._totals = {stage: [0, 0.0, 0.0] for stage in STAGES}

    def add(self, request: Request, slot: Slot) -> None:
        """Read the time stamps of a request that is complete on the device."""
        self._note("queue", (request.started_at - request.queued_at) * 1e3)
        # On one stream the end of a stage is the start of the next, and has one mark only.
        is_joined = request.is_express and not request.is_dynamic
        total, start = 0.0, slot.h2d_marks[0]
        for mark in slot.h2d_marks[1:]:
            if start is request.last_copy:
                break
            total += _copy(mark, start, MemcpyKind.HOST_TO_DEVICE)
            start = mark
        self._note("h2d", total)
        device_ms = total
        total, start = 0.0, start if is_joined else slot.execute_marks[0]
        for mark in slot.execute_marks[1:]:
            elapsed = mark.elapsed_ms(start)
            self.executions.add(elapsed)
            total += elapsed
            start = mark
        self._note("execute", request.earlier_ms + total)
        device_ms += total
        if request.to_host and not slot.device.is_shared:
            total, start = 0.0, start if request.is_express else slot.d2h_marks[0]
            for mark in slot.d2h_marks[1:]:
                total += _copy(mark, start, MemcpyKind.DEVICE_TO_HOST)
                start = mark
            self._note("d2h", total)
            device_ms += total
        self._device_ms += (device_ms - self._device_ms) * _WEIGHT
        self.is_light = self._device_ms < (_HEAVY_MS if self.is_light else _LIGHT_MS)

    def add_step(self, request: Request, slot: Slot) -> None:
        """Read the time stamps of a step that others follow; on the execute thread."""
        start = slot.execute_marks[0]
        for mark in slot.execute_marks[1:]:
            elapsed = mark.elapsed_ms(start)
            self.executions.add(elapsed)
            request.earlier_ms += elapsed
            start = mark

    def stages(self) -> dict[str, StageTime]:
        """Give count, total and maximum of each stage."""
        return {stage: StageTime(int(n), total, most) for stage, (n, total, most) in self._totals.items()}

    def _note(self, stage: str, ms: float) -> None:
        entry = self._totals[stage]
        entry[0] += 1
        entry[1] += ms
        if ms > entry[2]:
            entry[2] = ms


def _copy(end: Event, start: Event, kind: MemcpyKind) -> float:
    elapsed = end.elapsed_ms(start)
    MemorySummary.record(kind, elapsed)
    return elapsed
