"""The last step: from landed bytes to what the caller gets."""

from __future__ import annotations

import numpy as np

from .._acl.memory import lease_block, view
from ..tensor import Tensor
from .device import Device
from .landing import Landing
from .plan import OutputPlan
from .request import Request
from .slot import Slot

__all__ = ["collect_arrays", "collect_tensors"]


def collect_arrays(request: Request, device: Device, slot: Slot) -> list[np.ndarray]:
    """Make the arrays of a request whose copies have landed.

    Small results are copied out, large ones lease their pinned block. Where host and device share
    their memory, that is the slot's output buffer itself, and the slot gets another.
    """
    outputs = request.outputs
    assert outputs is not None
    if device.is_shared:
        return [_collect_shared(item, slot) for item in outputs]
    arrays = []
    landings = [block for block in request.blocks if isinstance(block, Landing)]
    for item, landing in zip(outputs, landings, strict=True):
        if landing.is_lent:
            arrays.append(device.pinned.lease(landing.address, landing.nbytes, item.shape, item.dtype))
            landing.keep()
        elif item.nbytes:
            arrays.append(view(landing.address, item.shape, item.dtype).copy())
            landing.close()
        else:
            arrays.append(np.empty(item.shape, item.dtype))
    return arrays


def _collect_shared(item: OutputPlan, slot: Slot) -> np.ndarray:
    if not item.nbytes:
        return np.empty(item.shape, item.dtype)
    lent = slot.lend_output(item.position, item.nbytes)
    if lent is not None:
        return lease_block(lent, item.shape, item.dtype)
    block = slot.outputs[item.position]
    assert block is not None
    copied: np.ndarray = view(block.address, item.shape, item.dtype).copy()
    return copied


def collect_tensors(request: Request, device: Device, slot: Slot, hang_timeout: float | None) -> list[Tensor]:
    """Hand the slot's output buffers over to device tensors; the slot gets fresh ones."""
    outputs = request.outputs
    assert outputs is not None
    return [Tensor(device, slot.take_output(item.position), item.shape, item.dtype, hang_timeout) for item in outputs]
