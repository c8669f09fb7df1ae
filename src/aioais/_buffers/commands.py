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
    """The events of one request, or of several that share a slot; the times between them are its times, or theirs."""

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
    """What one request, or several that share a slot, ask of the device, and where their tensors are on the host."""

    inputs: Sequence[Copy]
    executions: Sequence[tuple[list[Call], Event]]
    """Groups of calls, each of which queues one execution, with the mark behind each group."""
    outputs: Sequence[Copy]
    marks: Marks
    staging: list[list[Any]]
    """Of each request, for each feed the array that it is copied to; ``None`` for a device tensor."""
    landing: list[list[Any]]
    """Of each request, for each output the array, or the ``Landing``, that it arrives in; nothing where no output goes
    to the host."""
    is_shared: bool = False
    """One copy each way is for all tensors of all requests, and one group of executions has one for each request."""


class CommandList(NamedTuple):
    """The recorded calls of one request, or of several that share a slot, and what belongs to them.

    First come the copies to the device, then all executions, then the copies back. So the executions of one list run
    beside the copies of others, however many requests each of them is for.
    """

    calls: list[Call]
    head: int
    """So many calls are the copies to the device. They may run beside the execution of another list."""
    back: int
    """The calls from here on are the copies to the host. Those in between are the executions; they must run behind the
    execution before."""
    owners: list[int]
    """For each call the position of the request that it is for; that of the first where it is for all."""
    spans: list[tuple[int, int]]
    """The handles of the marks before and behind each copy in, each group of executions, and each copy back."""
    copies: tuple[int, int]
    """To the device and to the host, of each request."""
    last: Event
    """Behind the last execution."""
    staging: list[list[Any]]
    """As in :class:`Work`."""
    landing: list[list[Any]]
    """As in :class:`Work`."""
    is_shared: bool
    """As in :class:`Work`."""
    is_small: bool
    """The results are copies of the arrays of ``landing``."""
    behind: dict[int, list[Call]]
    """The calls with a wait for another slot's event, by its handle; filled as they are needed."""

    def rows(self, times: list[float]) -> list[float]:
        """Return the times of each request, one behind the other, from those of the spans.

        What requests share counts in equal parts for each of them, and for each tensor of a copy.
        """
        if not self.is_shared:
            return times
        (into, back), count = self.copies, len(self.staging)
        execute = times[1 if into else 0]
        row = [times[0] / into] * into if into else []
        row += [execute, *[times[-1] / back] * back] if back else [execute]
        return [ms / count for ms in row] * count


def record_commands(work: Work, streams: Streams) -> CommandList:
    """Record the calls of one request, or of several of one kind that share a slot.

    Parameters
    ----------
    work
        What they ask for.
    streams
        Those of the slot.
    """
    home, executions = streams.copies, streams.executions
    marks, landing = work.marks, work.landing
    begin = [marks.start, *marks.inputs[: len(work.inputs)]]
    middle = [marks.ready, *(mark for _, mark in work.executions)]
    finish = [middle[-1], *marks.outputs[: len(work.outputs)]]
    calls: list[Call] = []
    if work.inputs or executions is not home:
        calls.append(home.record_call(marks.start))
    calls += _copies(work.inputs, marks.inputs, home, _H2D)
    head = len(calls)
    if executions is not home:
        calls += _follow(executions, home, begin[-1], streams.inputs_done)
    calls.append(executions.record_call(marks.ready))
    owners = [0] * len(calls)
    for launches, mark in work.executions:
        calls += [*launches, executions.record_call(mark)]
    if work.is_shared:
        owners += range(len(work.staging))
    back = len(calls)
    if executions is not home:
        calls += _follow(home, executions, middle[-1], streams.executions_done)
    calls += _copies(work.outputs, marks.outputs, home, _D2H)
    owners += [0] * (len(calls) - len(owners))
    spans = [(before.handle, behind.handle) for row in (begin, middle, finish) for before, behind in pairwise(row)]
    copies = len(work.inputs), len(work.outputs)
    if work.is_shared:
        copies = len(work.staging[0]), len(landing[0])
    is_small = bool(landing[0]) and all(isinstance(area, np.ndarray) for area in landing[0])
    return CommandList(
        calls, head, back, owners, spans, copies, middle[-1], work.staging, landing, work.is_shared, is_small, {}
    )


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
