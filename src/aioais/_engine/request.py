"""Requests under way, and batches of them: what is submitted together and waited for at once."""

from __future__ import annotations

import asyncio
import itertools
import traceback
from collections import deque
from contextlib import suppress
from operator import attrgetter
from time import perf_counter
from typing import Any, ClassVar, Literal

from .._buffers.commands import CommandList
from .._buffers.slot import Slot
from .._feeds.plan import OutputPlan, Plan
from ..tensor import Tensor, block_of
from ..timing import Outcome
from .event_times import Draft

__all__ = ["Batch", "Request", "State", "fill"]

_numbers = itertools.count(1)
_kind_of = attrgetter("plan", "is_alone")

State = Literal["waiting", "started", "sharing"]
"""Where a request is on its way. If its batch fails, it may wait in the line again.

``waiting``: for a slot. ``started``: it has one, and is on the device or about to be. ``sharing``: so is it, in the
slot of another request.
"""


class Request:
    """One inference under way. It owns what the device needs, even if its caller leaves.

    The event loop's thread makes it. Then it belongs to the thread that submits it, then to the finish thread, until it
    comes back to the loop through :meth:`settle`. The caller waits on ``future`` and may stop
    waiting at any time: that detaches the caller and nothing else.
    """

    # Defaults of the class: setting each of them in every request costs the loop a microsecond.
    is_iteration: ClassVar[bool] = False
    """It has several steps, each a submission of its own."""
    to_host: bool = True
    """Its outputs go to arrays."""
    is_alone: bool = False
    """It shares no slot: it is recorded, has several steps, its outputs stay on the device, or it failed together with
    others before."""
    keeps_row: bool = False
    """Its ``row`` is asked for."""
    number: int = 0
    """In logs and recordings; 0 where there are none."""
    state: State = "waiting"
    outputs: tuple[OutputPlan, ...] | None = None
    """What its outputs are; known when it is submitted, or has run."""
    result: list[Any] | None = None
    error: BaseException | None = None
    is_unproven = False
    """Dynamic shape: its outputs are taken to be those that the same shapes of inputs gave before."""
    must_wait = False
    """Dynamic shape: the outputs were not as expected, so it runs again, and its outputs are asked for."""
    draft: Draft | None = None
    """Its times, while a recording is open."""
    started_at: float = 0.0
    copies_in = 0
    """Its copies to the device."""
    earlier: tuple[float, float] = (0.0, 0.0)
    """Of an iteration: milliseconds of the steps before the present one, of copies to the device and of executions."""
    row: list[float] | None = None
    """Milliseconds of its copies to the device, its executions and its copies back, once it is complete."""

    def __init__(self, plan: Plan, feeds: list[Any], future: asyncio.Future[Any], to_host: bool) -> None:
        self.plan = plan
        self.feeds: list[Any] | None = feeds
        if plan.has_tensors:  # their memory instead of the tensors: their owner may close them at once
            self.feeds = [block_of(feed) if isinstance(feed, Tensor) else feed for feed in feeds]
        self.future = future
        if not to_host:
            self.to_host, self.is_alone = False, True
        self.blocks: list[Any] = []
        """Device memory and pinned blocks that must outlive the work on the device."""
        self.queued_at: float = perf_counter()

    def count(self) -> None:
        """Give it a number that no other request of the process has."""
        self.number = next(_numbers)

    @property
    def is_abandoned(self) -> bool:
        """Whether its caller has stopped waiting; cheap, and right to ask in any thread."""
        return self.future.cancelled()

    def give_up(self) -> None:
        """Stop waiting for it: in the line it never runs, on the device it is finished and dropped.

        On the loop's thread, or in a finaliser of a coroutine whose loop is closed.
        """
        future = self.future
        with suppress(RuntimeError):  # the loop is closed: no task is left to be told
            if not future.cancel() and not future.cancelled():
                future.exception()  # seen: no caller will ask for it
        if self.state == "waiting":
            self.feeds = None

    def settle(self) -> None:
        """Set the future; on the loop's thread."""
        future, error = self.future, self.error
        if self.draft is not None:
            outcome: Outcome = "cancelled" if future.cancelled() else "done" if error is None else "failed"
            self.draft.publish(self.number, self.queued_at, self.started_at, outcome)
        if error is None:
            if not future.done():
                future.set_result(self.result)
            return
        # Frames of engine threads hold the request, so its future, so the error.
        self.error = None
        traceback.clear_frames(error.__traceback__)
        if not future.done():
            future.set_exception(error)


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
        """Have the requests that failed together run again, each alone."""
        self.again = [request for request in self.queued if request.error is None]
        for request in self.again:
            request.is_alone = True
        self.requests = [request for request in self.requests if request not in self.again]
        self.queued, self.commands = [], None


def fill(batch: Batch, line: deque[Request], most: int) -> None:
    """Take up to ``most`` requests of the line into a batch, as many as may share its slot with the first.

    They are small, of the same plan, with host feeds and arrays as results, and not recorded.
    """
    first = batch.requests[0]
    plan = first.plan
    if first.is_alone or not plan.is_small:
        return
    most = min(most, batch.slot.batch.reserve(plan) - 1)
    taken = [line.popleft() for _ in range(most)]
    if not {*map(_kind_of, taken)} <= {(plan, False)}:
        same = [request.plan is plan and not request.is_alone for request in taken].index(False)
        line.extendleft(reversed(taken[same:]))
        del taken[same:]
    batch.requests += taken
