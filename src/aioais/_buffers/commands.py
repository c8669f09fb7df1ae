"""CommandList: the ACL calls of what is submitted together, recorded. Pure: nothing here calls ACL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np

from .._acl.stream import Call, Event, Stream
from .._cann.constants import MemcpyKind

__all__ = ["CommandList", "Copy", "Marks", "Streams", "Work", "record_commands"]

_H2D: Final = int(MemcpyKind.HOST_TO_DEVICE)
_D2H: Final = int(MemcpyKind.DEVICE_TO_HOST)


class Copy(NamedTuple):
    """One copy."""

    dst: int
    room: int
    """Bytes from ``dst`` on that belong to the target."""
    src: int
    nbytes: int


class Marks(NamedTuple):
    """The events of one request; the times between them are its times.

    Requests that share a slot have the first one's ``start`` and ``ready``.
    """

    start: Event
    """Before the first copy."""
    inputs: list[Event]
    """Behind each copy to the device."""
    ready: Event
    """Before the first execution, behind the wait for the execution before."""
    executions: Sequence[Event]
    outputs: Sequence[Event]
    """Behind each copy to the host."""


class Streams(NamedTuple):
    """Where the calls of a request are queued.

    Where executions are chained both are the slot's own stream. Else all executions of the model share one stream,
    and each of the two waits needs an event of its own on a release without ``create_event_ex_with_flag``.
    """

    copies: Stream
    executions: Stream
    inputs_done: Event | None = None
    executions_done: Event | None = None


class Work(NamedTuple):
    """What one request asks of the device, and where its feeds and results are on the host."""

    inputs: Sequence[Copy]
    launch: Call
    """Queues one execution."""
    executions: Sequence[int]
    """How many executions each mark is behind."""
    outputs: Sequence[Copy]
    marks: Marks
    staging: list[Any]
    """For each feed the array that it is copied to; ``None`` for a device tensor."""
    landing: list[Any]
    """For each output the array, or the ``Landing``, that it arrives in; nothing where no output goes to the host."""


class CommandList(NamedTuple):
    """The recorded calls of one request, or of several that share a slot, and what belongs to them.

    First come all copies to the device, then all executions, then all copies back. So the executions of one list run
    beside the copies of others, however many requests each of them is for.
    """

    calls: list[Call]
    head: int
    """So many calls are the copies to the device. They may run beside the execution of another list."""
    back: int
    """The calls from here on are the copies to the host. Those in between are the executions; they must run behind the
    execution before."""
    owners: list[int]
    """For each call the position of the request that it is for."""
    spans: list[tuple[int, int]]
    """The handles of the marks before and behind each copy in, each group of executions, and each copy back, of one
    request after the other."""
    copies: tuple[int, int]
    """To the device and to the host, of each request."""
    last: Event
    """Behind the last execution."""
    staging: list[list[Any]]
    """Of each request, as in :class:`Work`."""
    landing: list[list[Any]]
    """Of each request, as in :class:`Work`."""
    is_small: bool
    """The results are copies of the arrays of ``landing``."""
    behind: dict[int, list[Call]]
    """The calls with a wait for another slot's event, by its handle; filled as they are needed."""

    def first(self, count: int) -> CommandList:
        """Return what belongs to the first requests, to be finished without the others."""
        width = len(self.spans) // len(self.staging)
        return self._replace(
            spans=self.spans[: count * width], staging=self.staging[:count], landing=self.landing[:count]
        )


def record_commands(works: Sequence[Work], streams: Streams) -> CommandList:
    """Record the calls of one request, or of several of one kind that have memory and marks of their own.

    Parameters
    ----------
    works
        Of each request.
    streams
        Those of the slot.
    """
    home, executions = streams.copies, streams.executions
    marks = works[0].marks
    into, back = len(works[0].inputs), len(works[0].outputs)
    calls: list[Call] = []
    owners: list[int] = []

    def add(owner: int, *more: Call) -> None:
        calls.extend(more)
        owners.extend([owner] * len(more))

    if into or executions is not home:
        add(0, home.record_call(marks.start))
    for k, work in enumerate(works):
        add(k, *_copies(work.inputs, work.marks.inputs, home, _H2D))
    head = len(calls)
    begin = [marks.start, *(mark for work in works for mark in work.marks.inputs[:into])]
    if executions is not home:
        add(0, *_follow(executions, home, begin[-1], streams.inputs_done))
    add(0, executions.record_call(marks.ready))
    for k, work in enumerate(works):
        for count, mark in zip(work.executions, work.marks.executions, strict=True):
            add(k, *[work.launch] * count, executions.record_call(mark))
    middle = [marks.ready, *(mark for work in works for mark in work.marks.executions)]
    end = len(calls)
    if executions is not home:
        add(0, *_follow(home, executions, middle[-1], streams.executions_done))
    for k, work in enumerate(works):
        add(k, *_copies(work.outputs, work.marks.outputs, home, _D2H))
    finish = [middle[-1], *(mark for work in works for mark in work.marks.outputs[:back])]
    columns = (begin, into), (middle, len(marks.executions)), (finish, back)
    spans = [
        (before.handle, behind.handle)
        for k in range(len(works))
        for row, width in columns
        for before, behind in pairwise(row[k * width : (k + 1) * width + 1])
    ]
    landing = [work.landing for work in works]
    is_small = bool(landing[0]) and all(isinstance(area, np.ndarray) for area in landing[0])
    staging = [work.staging for work in works]
    return CommandList(calls, head, end, owners, spans, (into, back), middle[-1], staging, landing, is_small, {})


def _copies(copies: Iterable[Copy], marks: Iterable[Event], stream: Stream, kind: int) -> list[Call]:
    calls: list[Call] = []
    for copy, mark in zip(copies, marks, strict=False):
        if copy.nbytes:
            calls.append(stream.copy_call(*copy, kind))
        calls.append(stream.record_call(mark))
    return calls


def _follow(stream: Stream, other: Stream, mark: Event, own: Event | None) -> list[Call]:
    """Return the calls that make a stream wait for a mark on another one."""
    if own is None:
        return [stream.wait_call(mark)]
    return [other.record_call(own), stream.wait_call(own), stream.reset_call(own)]
