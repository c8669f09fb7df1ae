"""Step 1: from the caller's memory over pinned staging to the device; without a device copy where memory is shared."""

from __future__ import annotations

from typing import Final

import numpy as np

from .._acl.constants import MemcpyKind
from .._acl.memory import DeviceBlock
from .._acl.stream import Stream
from .request import Request
from .slot import Slot

__all__ = ["submit_h2d"]

_H2D: Final = int(MemcpyKind.HOST_TO_DEVICE)


def submit_h2d(request: Request, slot: Slot, stream: Stream) -> None:
    """Copy host feeds to staging and queue their copies; bind device feeds where they are.

    The feeds are read here and never again. The staging copy gives up the GIL where it is large. Where host and
    device share their memory, staging is the device's own buffer and nothing is left to copy.
    """
    plan, feeds = request.plan, request.feeds
    if feeds is None:  # given up between two instructions of this thread
        request.was_cancelled = True
        return
    staged = slot.staged(plan)
    for area, feed in zip(staged, feeds, strict=True):
        if area is not None:
            np.copyto(area, feed)
    marks = slot.h2d_marks
    stream.record(marks[0])
    mark = 0
    for item, feed in zip(plan.inputs, feeds, strict=True):
        k = item.position
        if item.is_device:
            assert isinstance(feed, DeviceBlock)
            request.blocks.append(feed)
            slot.in_data.bind(item.model_index, feed.address, feed.nbytes)
            continue
        own = slot.input_block(k, item.nbytes)
        if slot.device.is_shared:
            continue
        if item.nbytes:
            stream.copy(own.address, own.nbytes, slot.staging_address(k), item.nbytes, _H2D)
        mark += 1
        stream.record(marks[mark])
    request.last_copy = marks[mark]
    if plan.dynamic_shapes is not None:
        slot.describe(plan.dynamic_shapes)
    request.feeds = None
