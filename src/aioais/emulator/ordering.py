"""Which executions are ordered behind which: by their streams, by events, or because the host has waited.

Two executions of one model must not overlap on a device: it has one argument table and one set of work memory.
Nor must an execution write memory that another one uses. A program keeps them apart by queueing both on one
stream, by letting the second stream wait for an event recorded behind the first execution, or by waiting on the
host in between. The emulator refuses what is not ordered in one of these ways, whatever order the work happens
to run in here.

One clock numbers everything that is submitted. A stream knows for each other stream up to which number it waits
for it (``behind``), and what of its own work the host knows to be finished (``known``). Recording an event takes
both along, waiting for it merges them into the waiting stream.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from threading import Lock

__all__ = ["Mark", "Ordered", "has_finished", "is_ordered", "note_finished", "note_wait", "tick"]

tick: Callable[[], int] = itertools.count(1).__next__
"""The next number of the clock; a C function, so that threads never get one number twice."""

_lock = Lock()
"""Guards the merging of what streams know: lost updates would refuse correct programs."""


class Ordered:
    """Work that runs in order: a stream, or the synchronous executions of a model."""

    __slots__ = ("behind", "known")

    def __init__(self) -> None:
        self.behind: dict[Ordered, int] = {}
        """For other streams: what they were given before this number runs before what comes next here. Replaced,
        never changed, so that records may keep it."""
        self.known: int = 0
        """The host knows that what was submitted before this number is finished."""


class Mark:
    """The present end of a stream: behind everything that was submitted to it before, and what that was behind."""

    __slots__ = ("behind", "number", "stream")

    def __init__(self, stream: Ordered) -> None:
        self.stream: Ordered = stream
        self.number: int = tick()
        self.behind: dict[Ordered, int] = stream.behind


def note_wait(stream: Ordered, mark: Mark) -> None:
    """Note that what is queued on a stream from now on runs behind a mark of another one."""
    with _lock:
        merged = {other: number for other, number in stream.behind.items() if other.known < number}
        for other, number in mark.behind.items():
            if other is not stream and number > other.known and number > merged.get(other, 0):
                merged[other] = number
        if mark.stream is not stream and mark.number > merged.get(mark.stream, 0):
            merged[mark.stream] = mark.number
        stream.behind = merged


def note_finished(mark: Mark) -> None:
    """Note that the host has seen a stream reach a mark."""
    stream, number, behind = mark.stream, mark.number, mark.behind
    with _lock:
        if stream.known < number:
            stream.known = number
        for other, earlier in behind.items():
            if other.known < earlier:
                other.known = earlier
        if stream.behind is behind:
            stream.behind = {}


def has_finished(last: tuple[Ordered, int] | None) -> bool:
    """Whether the host knows that an execution is finished, or there was none."""
    return last is None or last[0].known > last[1]


def is_ordered(last: tuple[Ordered, int] | None, stream: Ordered) -> bool:
    """Whether what is queued on a stream now runs behind an execution."""
    if last is None:
        return True
    other, number = last
    return other is stream or other.known > number or stream.behind.get(other, 0) > number
