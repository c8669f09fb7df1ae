"""The record of one request: it owns what the device still needs, whoever waits or does not."""

from __future__ import annotations

import asyncio
import itertools
import traceback
from time import perf_counter
from typing import Any, ClassVar

import numpy as np

from .._acl.stream import Event
from ..tensor import Tensor
from ..timing import Outcome
from .cells import Cell
from .draft import Draft
from .plan import OutputPlan, Plan
from .slot import Slot

__all__ = ["Request"]

_numbers = itertools.count(1)


class Request:
    """One inference under way.

    The loop's thread makes it; then it belongs to the stage thread whose queue it is in, until it
    comes back to the loop through :meth:`settle`. The caller waits on ``future`` and may stop
    waiting at any time: that detaches the waiter and nothing else.
    """

    # Defaults of the class, as setting each in every request would cost the loop a microsecond.
    is_iteration: ClassVar[bool] = False
    """It has several steps, each a submission of its own."""
    slot: Slot | None = None
    result: list[Any] | None = None
    error: BaseException | None = None
    cell: Cell | None = None
    """Its part of a burst, while it is in one."""
    is_express = False
    """The execute thread submits all its work, and waits for it."""
    is_joined = False
    """All its work is on the execute stream."""
    is_handed_over = False
    """Its execution is submitted by the execute thread."""
    last_copy: Event | None = None
    """Recorded behind its last copy to the device."""
    is_submitted = False
    """An execution was queued on the device."""
    submission = 0
    """Its number on the execute stream of the session."""
    was_cancelled = False
    """Nobody waited for it any more, so it does not run to its end."""
    earlier_ms = 0.0
    """Executions that are in the session's summary already."""
    draft: Draft | None = None
    """Its times, if somebody records them."""
    started_at = 0.0

    def __init__(
        self, plan: Plan, feeds: list[np.ndarray | Tensor], future: asyncio.Future[Any], to_host: bool
    ) -> None:
        self.number = next(_numbers)
        self.plan = plan
        self.feeds: list[Any] | None = feeds
        if plan.has_tensors:  # their memory and not they themselves: their owner may close them at once
            self.feeds = [feed.block if isinstance(feed, Tensor) else feed for feed in feeds]
        self.future = future
        self.to_host = to_host
        self.outputs: tuple[OutputPlan, ...] | None = plan.outputs
        self.blocks: list[Any] = []
        """Device memory and pinned blocks that must outlive the work on the device."""
        self.queued_at = perf_counter()

    @property
    def is_dynamic(self) -> bool:
        """Whether the model is of dynamic shape."""
        return self.plan.dynamic_shapes is not None

    @property
    def queued_ms(self) -> float:
        """How long it waited for its buffers, once it has started."""
        return (self.started_at - self.queued_at) * 1e3

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits any more; cheap, and right to ask in any thread."""
        return self.future.cancelled()

    def abandon(self) -> None:
        """Let go of the feeds of a request that has not started; on the loop's thread."""
        if self.slot is None:
            self.feeds = None

    def settle(self) -> None:
        """Give the result to whoever waits; on the loop's thread."""
        future, result, error = self.future, self.result, self.error
        if error is None and self.draft is None:  # by far the most frequent
            self.result = None
            if not future.done():
                future.set_result(result)
            return
        self.result = self.error = None
        if self.draft is not None:
            was_cancelled = future.cancelled() or self.was_cancelled
            outcome: Outcome = "cancelled" if was_cancelled else "done" if error is None else "failed"
            self.draft.settle(self.number, self.queued_at, self.started_at, outcome)
        if future.done():
            return
        if error is not None:
            # Frames of stage threads hold the request, so its future, so the error.
            traceback.clear_frames(error.__traceback__)
            future.set_exception(error)
        else:
            future.set_result(result)
