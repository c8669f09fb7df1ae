"""Batch: what is submitted together and waited for at once; mostly one request, or one step of one."""

from __future__ import annotations

from collections import deque

from .._buffers.commands import CommandList
from .._buffers.slot import Slot
from .request import Request

__all__ = ["Batch", "fill"]


class Batch:
    """Requests that share a slot, one behind the other on its stream.

    Attributes
    ----------
    slot
        The slot.
    requests
        The requests, in the order of the line.
    queued
        Those of which calls were queued.
    commands
        The commands of these; ``None`` where nothing was queued.
    again
        Those that failed together and are to run again, each alone; no longer among the others.
    number
        Of the newest submission; 0 before the first.
    is_on_one_stream
        It was submitted to the one execute stream of the session.
    """

    __slots__ = ("again", "commands", "is_on_one_stream", "number", "queued", "requests", "slot")

    def __init__(self, slot: Slot, request: Request) -> None:
        self.slot = slot
        self.requests = [request]
        self.queued: list[Request] = []
        self.commands: CommandList | None = None
        self.again: list[Request] = []
        self.number = 0
        self.is_on_one_stream = False

    def part(self) -> None:
        """Have the requests that failed together run again, each alone, with the feeds that were staged."""
        assert self.commands is not None
        self.again = [request for request in self.queued if request.error is None]
        for request, staging in zip(self.queued, self.commands.staging, strict=True):
            request.feeds = [area.copy() for area in staging]
            request.is_alone = True
        self.requests = [request for request in self.requests if request not in self.again]
        self.queued, self.commands = [], None


def fill(batch: Batch, line: deque[Request]) -> None:
    """Take requests of the line into a batch, as many as may share its slot with the first.

    They are small, of the same plan, with host feeds and arrays as results, and not recorded.
    """
    first = batch.requests[0]
    plan, outputs = first.plan, first.plan.outputs
    if first.is_alone or not plan.is_small or outputs is None:
        return
    most = batch.slot.batch.reserve(plan.inputs, outputs)
    requests = batch.requests
    while line and len(requests) < most:
        request = line[0]
        if request.plan is not plan or request.is_alone:
            return
        requests.append(line.popleft())
        request.state = "sharing"
