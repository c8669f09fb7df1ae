"""CommandList: the ACL calls of what is submitted together, recorded. Pure: nothing here calls ACL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple

import numpy as np

from .._acl.stream import Call, Event, Stream
from .._cann.constants import MemcpyKind

__all__ = ["CommandList", "Copy", "Marks", "Streams", "Work", "join_commands", "record_commands"]

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
    """The events of one request; the times between them are its times."""

    start: Event
    """Before its first copy."""
    inputs: list[Event]
    """Behind each copy to the device."""
    ready: Event
    """Before its first execution, behind the wait for the execution before."""
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
    """What a request asks of the device."""

    inputs: Sequence[Copy]
    launch: Call
    """Queues one execution."""
    executions: Sequence[int]
    """How many executions each mark is behind."""
    outputs: Sequence[Copy]


class CommandList(NamedTuple):
    """The recorded calls of one request, or of several one behind the other, and what belongs to them."""

    calls: list[Call]
    head: int
    """So many calls are the first request's copies to the device. They may run beside the execution of another one."""
    back: int
    """The calls from here on are the last request's copies to the host. Those in between are from the first execution
    to the last; they must run behind the execution before."""
    ends: list[int]
    """Where the calls of each request end."""
    spans: list[tuple[int, int]]
    """The handles of the marks before and behind each copy in, each group of executions, and each copy back, of one
    request after the other."""
    copies: tuple[int, int]
    """To the device and to the host, of each request."""
    last: Event
    """Behind the last execution."""
    staging: list[list[Any]]
    """For each feed of each request the array that it is copied to; ``None`` for a device tensor."""
    landing: list[list[Any]]
    """For each output of each request the array, or the ``Landing``, that it arrives in; nothing where no output goes
    to the host."""
    is_small: bool
    """The results are copies of the arrays of ``landing``."""
    behind: dict[int, list[Call]]
    """The calls with a wait for another slot's event, by its handle; filled as they are needed."""


def record_commands(
    work: Work,
    marks: Marks,
    streams: Streams,
    before: Event | None,
    staging: list[Any],
    landing: list[Any],
) -> CommandList:
    """Record the calls of a request.

    Parameters
    ----------
    work, marks, streams
        Of the request.
    before
        The last mark of the request right before it on the same slot, where several share one; else ``None``.
    staging, landing
        As in :class:`CommandList`.
    """
    home, executions = streams.copies, streams.executions
    is_first = before is None
    start = marks.start if before is None else before
    head = [home.record_call(start)] if is_first and work.inputs else []
    head += _copies(work.inputs, marks.inputs, home, _H2D)
    row = [start, *marks.inputs[: len(work.inputs)]]
    pairs = list(pairwise(row))
    body: list[Call] = []
    back: list[Call] = []
    if executions is not home:
        body += _follow(executions, home, row[-1] if work.inputs else start, streams.inputs_done)
        if not work.inputs:
            head.append(home.record_call(start))
    ready = row[-1]
    if is_first:
        ready = marks.ready
        body.append(executions.record_call(ready))
    for count, mark in zip(work.executions, marks.executions, strict=True):
        body += [*[work.launch] * count, executions.record_call(mark)]
    row = [ready, *marks.executions]
    pairs += pairwise(row)
    if executions is not home:
        back += _follow(home, executions, row[-1], streams.executions_done)
    back += _copies(work.outputs, marks.outputs, home, _D2H)
    pairs += pairwise([row[-1], *marks.outputs[: len(work.outputs)]])
    spans = [(begin.handle, end.handle) for begin, end in pairs]
    is_small = bool(landing) and all(isinstance(area, np.ndarray) for area in landing)
    calls = [*head, *body, *back]
    copies = len(work.inputs), len(work.outputs)
    cuts = len(head), len(head) + len(body)
    return CommandList(calls, *cuts, [len(calls)], spans, copies, row[-1], [staging], [landing], is_small, {})


def join_commands(lists: Sequence[CommandList]) -> CommandList:
    """Put the commands of requests of one kind one behind the other."""
    first, last = lists[0], lists[-1]
    calls = [call for commands in lists for call in commands.calls]
    return first._replace(
        calls=calls,
        back=len(calls) - len(last.calls) + last.back,
        ends=[*accumulate(len(commands.calls) for commands in lists)],
        spans=[span for commands in lists for span in commands.spans],
        last=last.last,
        staging=[commands.staging[0] for commands in lists],
        landing=[commands.landing[0] for commands in lists],
        behind={},
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
