"""The ACL calls of a small request, prepared, and what it has on the host."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from .._acl.constants import MemcpyKind
from .._acl.stream import Call, Event, Stream
from .plan import InputPlan, OutputPlan

__all__ = ["Buffers", "Cell", "Marks", "joined_cell", "staged_cell"]

_H2D: Final = int(MemcpyKind.HOST_TO_DEVICE)
_D2H: Final = int(MemcpyKind.DEVICE_TO_HOST)


class Marks(NamedTuple):
    """The events of one request: for each step one before it, then one behind each copy or execution."""

    h2d: Sequence[Event]
    execute: Sequence[Event]
    d2h: Sequence[Event]


class Buffers(NamedTuple):
    """What a request reads and writes on the device."""

    inputs: Sequence[tuple[InputPlan, int, int]]
    """With address and bytes of the buffer: not the buffer, which may get another owner."""
    outputs: Sequence[tuple[OutputPlan, int]]
    launch: Call
    """Queues one execution with them."""
    executions: Sequence[int]
    """How many of them each event is behind."""


class Cell(NamedTuple):
    """What one request needs besides its buffers."""

    staging: list[np.ndarray]
    """Pinned memory, seen with type and shape of each feed."""
    landing: list[np.ndarray]
    """Pinned memory, seen with type and shape of each output."""
    copies: list[Call]
    """To the device, where they are on another stream than the rest and need not wait for its turn."""
    rest: list[Call]
    spans: list[tuple[Event, Event]]
    """The events before and behind each copy and execution."""


def joined_cell(
    buffers: Buffers,
    marks: Marks,
    before: Event | None,
    staging: list[np.ndarray],
    landing: list[np.ndarray],
    stream: Stream,
) -> Cell:
    """Prepare a request all of whose work is on one stream.

    The end of a step is the start of the next there, and the end of a request that of the next one.

    Parameters
    ----------
    buffers, marks, staging, landing
        Of the request.
    before
        The last event of the request right before it; ``None`` for the first.
    stream
        Of the executions.
    """
    calls: list[Call] = []
    if before is None:
        before = marks.h2d[0]
        calls.append(stream.record_call(before))
    calls += _copies_in(buffers, marks, staging, stream)
    calls += _executions(buffers, marks, stream)
    calls += _copies_back(buffers, marks, landing, stream)
    row = [before, *[mark for step in marks for mark in step[1:]]]
    return Cell(staging, landing, [], calls, list(pairwise(row)))


def staged_cell(
    buffers: Buffers,
    marks: Marks,
    staging: list[np.ndarray],
    landing: list[np.ndarray],
    stream: Stream,
    executions: Stream,
) -> Cell:
    """Prepare a request whose copies are on a stream of their own.

    Parameters
    ----------
    buffers, marks, staging, landing
        Of the request.
    stream
        Of the copies.
    executions
        Of the executions.
    """
    copies = [stream.record_call(marks.h2d[0]), *_copies_in(buffers, marks, staging, stream)]
    calls = [executions.wait_call(marks.h2d[-1]), executions.record_call(marks.execute[0])]
    calls += _executions(buffers, marks, executions)
    calls += [stream.wait_call(marks.execute[-1]), stream.record_call(marks.d2h[0])]
    calls += _copies_back(buffers, marks, landing, stream)
    spans = [span for step in marks for span in pairwise(step)]
    return Cell(staging, landing, copies, calls, spans)


def _copies_in(buffers: Buffers, marks: Marks, staging: list[np.ndarray], stream: Stream) -> list[Call]:
    calls = []
    for (item, address, room), mark, area in zip(buffers.inputs, marks.h2d[1:], staging, strict=True):
        if item.nbytes:
            calls.append(stream.copy_call(address, room, area.ctypes.data, item.nbytes, _H2D))
        calls.append(stream.record_call(mark))
    return calls


def _executions(buffers: Buffers, marks: Marks, stream: Stream) -> list[Call]:
    calls = []
    for count, mark in zip(buffers.executions, marks.execute[1:], strict=True):
        calls += [*[buffers.launch] * count, stream.record_call(mark)]
    return calls


def _copies_back(buffers: Buffers, marks: Marks, landing: list[np.ndarray], stream: Stream) -> list[Call]:
    calls = []
    for (item, address), mark, area in zip(buffers.outputs, marks.d2h[1:], landing, strict=True):
        if item.nbytes:
            calls.append(stream.copy_call(area.ctypes.data, item.nbytes, address, item.nbytes, _D2H))
        calls.append(stream.record_call(mark))
    return calls
