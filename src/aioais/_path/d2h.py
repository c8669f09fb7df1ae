"""Step 3: from the device to pinned host memory, the real bytes of each output only; nothing where memory is shared."""

from __future__ import annotations

from typing import Final

from .._acl.constants import MemcpyKind
from .._acl.stream import Stream
from .landing import Landing
from .request import Request
from .slot import Slot

__all__ = ["submit_d2h"]

_D2H: Final = int(MemcpyKind.DEVICE_TO_HOST)


def submit_d2h(request: Request, slot: Slot, stream: Stream, executions: Stream) -> None:
    """Queue the copies of all outputs behind the execution, which is on another stream unless they are joined."""
    outputs = request.outputs
    assert outputs is not None
    if not request.is_joined:
        stream.follow(executions, slot.execute_marks[-1], slot.execute_done)
    if not request.to_host or slot.device.is_shared:
        return
    marks = slot.d2h_marks
    if not request.is_joined:
        stream.record(marks[0])
    for item in outputs:
        landing = Landing(slot, item.position, item.nbytes)
        request.blocks.append(landing)
        if item.nbytes:
            block = slot.outputs[item.position]
            assert block is not None
            stream.copy(landing.address, item.nbytes, block.address, item.nbytes, _D2H)
        stream.record(marks[item.position + 1])
