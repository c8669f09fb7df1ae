"""Results: from what has arrived on the host to the arrays that the caller gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._acl.memory import lease_block, view
from .._buffers.landing import Landing
from .._buffers.slot import Slot
from .._device.device import Device
from .._feeds.plan import OutputPlan
from ..tensor import Tensor

__all__ = ["make_arrays", "make_tensors"]


def make_arrays(outputs: Sequence[OutputPlan], landing: Sequence[Any], device: Device, slot: Slot) -> list[np.ndarray]:
    """Return the arrays of a request whose copies are complete.

    Small results are copied, large ones lease their pinned block. Where host and device share
    their memory, that is the output buffer itself, and the slot gets another one.

    Parameters
    ----------
    landing
        For each of them an array over memory of the slot, or a ``Landing``; empty where memory is shared.
    """
    if device.is_board:
        return [_shared_array(item, slot) for item in outputs]
    arrays = []
    for item, area in zip(outputs, landing, strict=True):
        if not isinstance(area, Landing):
            arrays.append(area.copy())
        elif area.is_lent:
            arrays.append(device.pinned.lease(area.address, area.nbytes, item.shape, item.dtype))
            area.keep()
        else:
            arrays.append(view(area.address, item.shape, item.dtype).copy())
            area.close()
    return arrays


def _shared_array(item: OutputPlan, slot: Slot) -> np.ndarray:
    if not item.nbytes:
        return np.empty(item.shape, item.dtype)
    lent = slot.lend_output(item.position, item.nbytes)
    if lent is not None:
        return lease_block(lent, item.shape, item.dtype)
    block = slot.outputs[item.position]
    assert block is not None
    copied: np.ndarray = view(block.address, item.shape, item.dtype).copy()
    return copied


def make_tensors(outputs: Sequence[OutputPlan], device: Device, slot: Slot, hang_timeout: float | None) -> list[Tensor]:
    """Hand the output buffers of a slot over to device tensors; the slot gets fresh ones."""
    return [Tensor(device, slot.take_output(item.position), item.shape, item.dtype, hang_timeout) for item in outputs]
