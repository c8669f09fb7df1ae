"""What a session has measured and counted: filled by stage threads, read by anyone."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain, cycle, pairwise

from .._acl.stream import Event
from ..summary import InferSummary, MemorySummary, Timeline, known_times, ledger
from ..types import StageTime
from .request import Request
from .slot import Slot

__all__ = ["SessionClock"]

STAGES = ("queue", "h2d", "execute", "d2h")

_LIGHT_MS = 0.12
_HEAVY_MS = 0.16
"""Two hops from thread to thread; below, what time stamps measure is mostly the submission itself."""
_BRIEF_MS = 0.4
"""Waiting for the copies back takes no longer than passing a request to the thread that would do it meanwhile."""
_LONG_MS = 3.0
"""Many hops; the device may idle for some of them where the next execution was queued too late."""
_REMEMBERED = 9
"""Newest requests whose median is typical. Where a thread loses its turn while it submits, one seems slow."""


class SessionClock:
    """Times of one session, added by the threads that complete its requests.

    Times on the device come from event time stamps in its own streams, so they hold what the
    device did and not how long threads took to notice.

    Parameters
    ----------
    per_mark
        How many executions of a request each event is behind; those of one pass for equally long.
    """

    def __init__(self, per_mark: Sequence[int]) -> None:
        self._executions = Timeline()
        self._per_mark = per_mark
        self._lock = threading.RLock()  # guards totals and what is remembered; a handler of signals may look meanwhile
        self.is_light = False
        """The device needs less time for a request than it takes to pass one from thread to thread."""
        self.is_brief = False
        """The device needs little time for a request, so each hop from thread to thread counts."""
        self.is_long = False
        """The device needs so long for an execution that results need not come home in halves."""
        # Before there were enough, the device passes for neither fast nor slow.
        self._device_ms = deque([1.0] * _REMEMBERED, _REMEMBERED)
        self._execute_ms = deque([1.0] * _REMEMBERED, _REMEMBERED)
        self._queue, self._h2d, self._execute, self._d2h = self._totals = tuple(_Total() for _ in STAGES)

    def add(self, request: Request, slot: Slot) -> None:
        """Read the time stamps of a request that is complete on the device."""
        ledger.settle()  # those before it come first
        # On one stream the end of a stage is the start of the next, and has one mark only.
        is_joined = request.is_joined and not request.is_dynamic
        h2d, start = 0.0, slot.h2d_marks[0]
        for mark in slot.h2d_marks[1:]:
            if start is request.last_copy:
                break
            elapsed = mark.known_ms(start)
            MemorySummary.record_h2d(elapsed)
            h2d += elapsed
            start = mark
        start = start if is_joined else slot.execute_marks[0]
        execute = self._add_executions([start, *slot.execute_marks[1:]])
        start = slot.execute_marks[-1]
        d2h = 0.0
        is_copied_back = request.to_host and not slot.device.is_shared
        if is_copied_back:
            start = start if request.is_joined else slot.d2h_marks[0]
            for mark in slot.d2h_marks[1:]:
                elapsed = mark.known_ms(start)
                MemorySummary.record_d2h(elapsed)
                d2h += elapsed
                start = mark
        with self._lock:
            self._queue.add(request.queued_ms)
            self._h2d.add(h2d)
            self._execute.add(request.earlier_ms + execute)
            if is_copied_back:
                self._d2h.add(d2h)
            self._judge([h2d + execute + d2h], [execute])

    def add_rows(self, rows: list[list[float]], queued: list[float], inputs: int, outputs: int) -> None:
        """Note requests that are complete on the device.

        Parameters
        ----------
        rows
            For each the milliseconds of its copies to the device, its executions, and its copies back.
        queued
            How long each waited before.
        inputs, outputs
            Copies to the device, and back.
        """
        ledger.note(partial(self._book, rows, queued, inputs, outputs), len(rows))

    def _book(self, rows: list[list[float]], queued: list[float], inputs: int, outputs: int) -> None:
        back = len(rows[0]) - outputs
        h2d, h2d_sums = _columns(rows, 0, inputs)
        execute, execute_sums = _columns(rows, inputs, back)
        d2h, d2h_sums = _columns(rows, back, back + outputs)
        MemorySummary.record_all_h2d(h2d)
        self._executions.extend(self._each(execute))
        MemorySummary.record_all_d2h(d2h)
        with self._lock:
            self._queue.extend(queued)
            self._h2d.extend(h2d_sums)
            self._execute.extend(execute_sums)
            self._d2h.extend(d2h_sums)
            self._judge(map(sum, rows[-_REMEMBERED:]), execute_sums[-_REMEMBERED:])

    def add_step(self, request: Request, slot: Slot) -> None:
        """Read the time stamps of a step that others follow; on the execute thread."""
        ledger.settle()
        request.earlier_ms += self._add_executions(slot.execute_marks)

    def _add_executions(self, marks: Sequence[Event]) -> float:
        """Add what is between these; gives the sum."""
        times = [behind.known_ms(before) for before, behind in pairwise(marks)]
        self._executions.extend(self._each(times))
        return sum(times)

    def _each(self, times: list[float]) -> list[float]:
        """Give the time of each execution; of one request, or of several in a row."""
        if self._per_mark[0] == 1:
            return times
        return [ms / count for ms, count in zip(times, cycle(self._per_mark), strict=False) for _ in range(count)]

    def _judge(self, device: Iterable[float], execute: Iterable[float]) -> None:
        """Learn from requests what the next will take; holds the lock."""
        # What is unknown, NaN, has no place in an order, and is not taken for fast.
        self._device_ms.extend([math.inf if math.isnan(ms) else ms for ms in device])
        self._execute_ms.extend([math.inf if math.isnan(ms) else ms for ms in execute])
        typical = sorted(self._device_ms)[_REMEMBERED // 2]
        self.is_long = sorted(self._execute_ms)[_REMEMBERED // 2] > _LONG_MS
        self.is_brief = typical < _BRIEF_MS
        self.is_light = typical < (_HEAVY_MS if self.is_light else _LIGHT_MS)

    def settle(self) -> None:
        """Have nothing noted any more, which would keep the times in memory."""
        ledger.settle()

    def executions(self) -> InferSummary:
        """Give the time of each execution."""
        ledger.settle()
        return self._executions.snapshot()

    def forget_executions(self) -> None:
        """Begin anew what :meth:`executions` gives."""
        ledger.settle()
        self._executions.clear()

    def stages(self) -> dict[str, StageTime]:
        """Give count, total and maximum of each stage."""
        ledger.settle()
        pairs = zip(STAGES, self._totals, strict=True)
        return {stage: StageTime(total.count, total.ms, total.most) for stage, total in pairs}


def _columns(rows: list[list[float]], first: int, end: int) -> tuple[list[float], list[float]]:
    """Give the entries of some columns, row by row, and their sum for each row."""
    if end == first + 1:  # most models have one input and one output
        column = [row[first] for row in rows]
        return column, column
    parts = [row[first:end] for row in rows]
    return [*chain.from_iterable(parts)], [*map(sum, parts)]


class _Total:
    """Count, sum and maximum of one stage."""

    __slots__ = ("count", "most", "ms")

    def __init__(self) -> None:
        self.count = 0
        self.ms = 0.0
        self.most = 0.0

    def add(self, ms: float) -> None:
        self.extend([ms])

    def extend(self, times: list[float]) -> None:
        self.count += len(times)
        known = known_times(times)
        self.ms += sum(known)
        self.most = max(self.most, *known)
