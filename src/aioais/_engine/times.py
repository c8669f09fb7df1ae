"""Times: what a session has measured, booked by its finish thread and read by any thread."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, cycle, groupby
from math import inf
from operator import itemgetter
from typing import Final

from ..summary import InferSummary, MemorySummary, Timeline, known_times, sources
from ..types import StageTime

__all__ = ["Speed", "Times"]

_log = logging.getLogger("aioais")

STAGES = ("queue", "h2d", "execute", "d2h")

_NOTED: Final = 16
"""So many submissions are booked together: booking one takes longer than making its result."""

_INSTANT_MS: Final = 0.02
"""About what the host needs for one of many requests."""
_LIGHT_MS: Final = 0.08
"""About the time that a thread needs to wake."""
_BRIEF_MS: Final = 0.3
_SLOW_MS: Final = 0.6
_MOST_OVERLAPPED: Final = 16
"""Requests of a batch beside which the device is to have others, while the results of these go home."""
_REMEMBERED: Final = 9
"""Newest requests whose median counts. A single request seems slow if its thread is preempted while it submits."""

_Note = tuple[tuple[int, int], tuple[float, float] | None, list[float], float, list[float]]
"""What is not booked yet of requests that were submitted together, or of a step of one; see :meth:`Times.add`."""
_kind_of = itemgetter(0, 1)


class Times:
    """Times of one session: noted by its finish thread, booked now and then, and whenever a thread reads them.

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
        self._notes: deque[_Note] = deque()
        self._lock = threading.RLock()  # guards the totals; re-entrant, as a signal handler may read them
        self._queue, self._h2d, self._execute, self._d2h = self._totals = tuple(_Total() for _ in STAGES)
        sources.add(self)

    def add(
        self,
        times: list[float],
        started_at: float,
        queued_at: list[float],
        copies: tuple[int, int],
        earlier: tuple[float, float] | None,
    ) -> None:
        """Note the times of requests that are complete, or of a step of one that others follow.

        Parameters
        ----------
        times
            The row of each request, one behind the other: milliseconds of each copy to the device, each group of
            executions, and each copy to the host.
        started_at, queued_at
            When they got their slot, and when each had joined the line, in seconds; none for a step.
        copies
            Copies to the device and to the host in each row.
        earlier
            Of an iteration, whose row is that of its last step: milliseconds of the copies to the device and of the
            executions of the steps before. ``None`` for one of these steps: it counts in the stages with the last one.
        """
        notes = self._notes
        notes.append((copies, earlier, times, started_at, queued_at))
        if len(notes) >= _NOTED:
            self.book()

    def book(self) -> None:
        """Book what was noted; in any thread. What cannot be booked is lost, and logged."""
        notes: list[_Note] = []
        with self._lock:
            with suppress(IndexError):  # a signal handler may take notes as well
                while self._notes:
                    notes.append(self._notes.popleft())
            try:
                for (copies, earlier), group in groupby(notes, _kind_of):
                    _, _, rows, starts, entries = zip(*group, strict=True)
                    waits = [map(start.__sub__, queued) for start, queued in zip(starts, entries, strict=True)]
                    queued_ms = [*map((1e3).__mul__, chain.from_iterable(waits))]
                    self._book(copies, earlier, [*chain.from_iterable(rows)], queued_ms)
            except Exception:  # noqa: BLE001 - no request fails because of that
                _log.exception("times of requests could not be booked")

    def executions(self) -> InferSummary:
        """Return the time of each execution."""
        self.book()
        return self._executions.snapshot()

    def forget_executions(self) -> None:
        """Empty what :meth:`executions` returns."""
        self.book()
        self._executions.clear()

    def stages(self) -> dict[str, StageTime]:
        """Return count, total and maximum of each stage."""
        self.book()
        pairs = zip(STAGES, self._totals, strict=True)
        return {stage: StageTime(total.count, total.ms, total.most) for stage, total in pairs}

    def end(self) -> None:
        """Book the rest: no more will come."""
        self.book()
        sources.discard(self)

    def _book(
        self,
        copies: tuple[int, int],
        earlier: tuple[float, float] | None,
        times: list[float],
        queued: list[float],
    ) -> None:
        back = copies[0] + len(self._per_mark)
        width = back + copies[1]
        newest = times[-_REMEMBERED * width :]
        self.speed.learn([sum(newest[k : k + width]) for k in range(0, len(newest), width)])
        times = known_times(times)
        h2d, h2d_sums = _columns(times, width, 0, copies[0])
        execute, execute_sums = _columns(times, width, copies[0], back)
        d2h, d2h_sums = _columns(times, width, back, width)
        self._book_each(h2d, execute, d2h)
        if earlier is not None:
            self._queue.add(queued)
            self._h2d.add(h2d_sums, earlier[0])
            self._execute.add(execute_sums, earlier[1])
            if copies[1]:
                self._d2h.add(d2h_sums)

    def _book_each(self, h2d: list[float], execute: list[float], d2h: list[float]) -> None:
        if h2d:
            MemorySummary.add_h2d(h2d)
        if self._per_mark[0] != 1:
            per_mark = cycle(self._per_mark)
            execute = [ms / count for ms, count in zip(execute, per_mark, strict=False) for _ in range(count)]
        self._executions.add(execute)
        if d2h:
            MemorySummary.add_d2h(d2h)


def _columns(times: list[float], width: int, first: int, end: int) -> tuple[list[float], list[float]]:
    """Return the entries of some columns, row by row, and their sum for each row."""
    if end == first + 1:  # most models have one input and one output
        column = times[first::width]
        return column, column
    parts = [times[k + first : k + end] for k in range(0, len(times), width)]
    return [*chain.from_iterable(parts)], [*map(sum, parts)]


class _Total:
    """Count, sum and maximum of one stage."""

    __slots__ = ("count", "most", "ms")

    def __init__(self) -> None:
        self.count = 0
        self.ms = 0.0
        self.most = 0.0

    def add(self, times: list[float], earlier: float = 0.0) -> None:
        """Add the times of requests, which come on top of an earlier time of each."""
        self.count += len(times)
        self.ms += sum(times) + earlier * len(times)
        self.most = max(self.most, max(times) + earlier)


class Speed:
    """The typical time of a request on the device: its copies and executions.

    Attributes
    ----------
    is_instant
        The device needs less time for a request than the host, so it waits for the host.
    is_light
        It needs less than a thread needs to wake.
    is_brief
        It needs little more than that: sharing slots pays, or more slots, and one wake-up of the loop for several
        results.
    is_slow
        It needs so long that a thread is woken for a request that comes while the finish thread waits. Before enough
        requests were timed, a device counts as slow.
    """

    def __init__(self) -> None:
        self._newest: deque[float] = deque([inf] * _REMEMBERED, _REMEMBERED)
        self.is_instant: bool = False
        self.is_light: bool = False
        self.is_brief: bool = False
        self.is_slow: bool = True

    def learn(self, times: list[float]) -> None:
        """Judge anew, with the milliseconds of requests that were complete after all others; NaN counts as slow."""
        self._newest.extend(times)
        typical = sorted([ms if ms == ms else inf for ms in self._newest])[_REMEMBERED // 2]
        self.is_instant = typical <= _INSTANT_MS
        self.is_light = typical <= _LIGHT_MS
        self.is_brief = typical <= _BRIEF_MS
        self.is_slow = typical > _SLOW_MS

    def partners(self, waiting: int) -> int:
        """Return how many of the requests that wait behind the first are to share its slot."""
        if self.is_instant:
            return waiting  # the fewer batches, the less the host has to do
        # Half of them, unless waking a thread takes longer than one of them: the device works on the other half while
        # these results go home and their callers ask again.
        return min(waiting if self.is_light else (waiting + 1) // 2, _MOST_OVERLAPPED - 1)
