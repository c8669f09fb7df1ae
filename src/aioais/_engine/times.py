"""Times: what a session has measured, booked by its finish thread and read by any thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import chain, cycle

from ..summary import InferSummary, MemorySummary, Timeline, known_times
from ..types import StageTime
from .speed import Speed

__all__ = ["Row", "Times"]

STAGES = ("queue", "h2d", "execute", "d2h")

Row = list[float]
"""Milliseconds of each copy to the device, each group of executions, and each copy to the host of one request."""


class Times:
    """Times of one session.

    Times on the device come from events on the streams of its slots, so they are those of the
    device, however long a thread takes to notice.

    Parameters
    ----------
    per_mark
        How many executions of a request each event is behind; those of one event count as equally long.

    Attributes
    ----------
    speed
        What they say about the speed of the device.
    """

    def __init__(self, per_mark: Sequence[int]) -> None:
        self.speed: Speed = Speed()
        self._executions = Timeline()
        self._per_mark = per_mark
        self._lock = threading.RLock()  # guards the totals; re-entrant, as a signal handler may read them
        self._queue, self._h2d, self._execute, self._d2h = self._totals = tuple(_Total() for _ in STAGES)

    def add(self, rows: list[Row], queued: list[float], inputs: int, outputs: int) -> None:
        """Book requests that are complete.

        Parameters
        ----------
        rows
            One for each request; all have the same length.
        queued
            How long each waited before, in milliseconds.
        inputs, outputs
            Copies to the device and to the host in each.
        """
        if len(rows) == 1:
            self._add_one(rows[0], queued[0], inputs, outputs)
            return
        back = len(rows[0]) - outputs
        h2d, h2d_sums = _columns(rows, 0, inputs)
        execute, execute_sums = _columns(rows, inputs, back)
        d2h, d2h_sums = _columns(rows, back, back + outputs)
        self._book_each(h2d, execute, d2h)
        with self._lock:
            self._queue.extend(queued)
            self._h2d.extend(h2d_sums)
            self._execute.extend(execute_sums)
            if outputs:
                self._d2h.extend(d2h_sums)
        self.speed.learn(map(sum, rows[-9:]))

    def _add_one(self, row: Row, queued: float, inputs: int, outputs: int) -> None:
        """Do the same as :meth:`add` for one request, the most frequent case, with less work."""
        back = len(row) - outputs
        if len(row) == 3 and inputs == outputs == self._per_mark[0] == 1:  # most models have one input and one output
            h2d, execute, d2h = row
            MemorySummary.record_h2d(h2d)
            self._executions.add(execute)
            MemorySummary.record_d2h(d2h)
        else:
            h2d, execute, d2h = sum(row[:inputs]), sum(row[inputs:back]), sum(row[back:])
            self._book_each(row[:inputs], row[inputs:back], row[back:])
        with self._lock:
            self._queue.add(queued)
            self._h2d.add(h2d)
            self._execute.add(execute)
            if outputs:
                self._d2h.add(d2h)
        self.speed.learn([h2d + execute + d2h])

    def add_step(self, row: Row, inputs: int) -> None:
        """Book a step of an iteration that others follow; it counts in the stages with the last one."""
        self._book_each(row[:inputs], row[inputs:], [])

    def add_last_step(self, row: Row, queued: float, h2d: float, execute: float) -> None:
        """Book the last step of an iteration of more than one: its executions and its copies to the host.

        Parameters
        ----------
        row
            Of that step.
        queued
            How long the request waited before.
        h2d, execute
            Milliseconds of the steps before.
        """
        count = len(self._per_mark)
        self._book_each([], row[:count], row[count:])
        with self._lock:
            self._queue.add(queued)
            self._h2d.add(h2d)
            self._execute.add(execute + sum(row[:count]))
            if len(row) > count:
                self._d2h.add(sum(row[count:]))
        self.speed.learn([sum(row)])

    def executions(self) -> InferSummary:
        """Return the time of each execution."""
        return self._executions.snapshot()

    def forget_executions(self) -> None:
        """Empty what :meth:`executions` returns."""
        self._executions.clear()

    def stages(self) -> dict[str, StageTime]:
        """Return count, total and maximum of each stage."""
        pairs = zip(STAGES, self._totals, strict=True)
        return {stage: StageTime(total.count, total.ms, total.most) for stage, total in pairs}

    def _book_each(self, h2d: list[float], execute: list[float], d2h: list[float]) -> None:
        if h2d:
            MemorySummary.record_all_h2d(h2d)
        if self._per_mark[0] != 1:
            per_mark = cycle(self._per_mark)
            execute = [ms / count for ms, count in zip(execute, per_mark, strict=False) for _ in range(count)]
        self._executions.extend(execute)
        if d2h:
            MemorySummary.record_all_d2h(d2h)


def _columns(rows: list[Row], first: int, end: int) -> tuple[list[float], list[float]]:
    """Return the entries of some columns, row by row, and their sum for each row."""
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
        self.count += 1
        if ms == ms:  # not NaN, which is unknown
            self.ms += ms
            if ms > self.most:
                self.most = ms

    def extend(self, times: list[float]) -> None:
        self.count += len(times)
        known = known_times(times)
        self.ms += sum(known)
        self.most = max(self.most, *known)
