"""The record of one request: it owns what the device still needs, whoever waits or does not."""

from __future__ import annotations

import asyncio
import itertools
import traceback
from time import perf_counter
from typing import Any, ClassVar

import numpy as np

from .._acl.memory import DeviceBlock
from .._acl.stream import Event
from ..tensor import Tensor
from ..timing import Outcome
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

    __slots__ = (
        "blocks",
        "draft",
        "earlier_ms",
        "error",
        "feeds",
        "future",
        "is_express",
        "is_handed_over",
        "is_joined",
        "is_submitted",
        "last_copy",
        "number",
        "outputs",
        "plan",
        "queued_at",
        "result",
        "slot",
        "started_at",
        "submission",
        "to_host",
        "was_cancelled",
    )

    is_iteration: ClassVar[bool] = False
    """It has several steps, each a submission of its own."""

    def __init__(
        self, plan: Plan, feeds: list[np.ndarray | Tensor], future: asyncio.Future[Any], to_host: bool
    ) -> None:
        self.number = next(_numbers)
        self.plan = plan
        # The memory of tensors and not they themselves: their owner may close them at once.
        self.feeds: list[np.ndarray | DeviceBlock] | None = [
            feed.block if isinstance(feed, Tensor) else feed for feed in feeds
        ]
        self.future = future
        self.to_host = to_host
        self.slot: Slot | None = None
        self.blocks: list[Any] = []
        """Device memory and pinned blocks that must outlive the work on the device."""
        self.outputs: tuple[OutputPlan, ...] | None = plan.outputs
        self.result: list[Any] | None = None
        self.error: BaseException | None = None
        self.is_express = False
        """The execute thread submits all its work, and waits for it."""
        self.is_joined = False
        """All its work is on the execute stream."""
        self.is_handed_over = False
        """Its execution is submitted by the execute thread."""
        self.last_copy: Event | None = None
        """Recorded behind its last copy to the device."""
        self.is_submitted = False
        """An execution was queued on the device."""
        self.submission = 0
        """Its number on the execute stream of the session."""
        self.was_cancelled = False
        self.earlier_ms = 0.0
        """Executions that are in the session's summary already."""
        self.draft: Draft | None = None
        """Its times, if somebody records them."""
        self.queued_at = perf_counter()
        self.started_at = 0.0

    @property
    def is_dynamic(self) -> bool:
        """Whether the model is of dynamic shape."""
        return self.plan.dynamic_shapes is not None

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
        self.result = self.error = None
        if self.draft is not None:
            outcome: Outcome = "cancelled" if future.cancelled() else "done" if error is None else "failed"
            self.draft.settle(self.number, self.queued_at, self.started_at, outcome)
        if future.done():
            return
        if error is not None:
            # Frames of stage threads hold the request, so its future, so the error.
            traceback.clear_frames(error.__traceback__)
            future.set_exception(error)
        else:
            future.set_result(result)
