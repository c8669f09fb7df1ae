"""Results: the memory that outputs arrive in on the host, and the arrays that the caller gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._acl.block_pool import BlockPool
from .._acl.memory import lease_block, view
from .._device.device import Device
from .._feeds.plan import OutputPlan
from ..tensor import Tensor
from .slot import Slot

__all__ = ["Landing", "make_arrays", "make_tensors"]


class Landing:
    """Pinned memory in which one large output arrives, and which an array may lease.

    Dropped before ``keep`` was called, it returns its block to the pool.
    """

    __slots__ = ("_pool", "address", "is_lent", "nbytes")

    def __init__(self, slot: Slot, nbytes: int) -> None:
        self.nbytes = nbytes
        self._pool: BlockPool | None = None
        pool = slot.device.pinned
        self.is_lent: bool = pool.may_lease(nbytes)
        """Whether an array may lease the block; otherwise its bytes must be copied out."""
        self.address = pool.acquire(nbytes)
        self._pool = pool

    def keep(self) -> None:
        """Leave the block to an array that leases it from now on."""
        self._pool = None

    def close(self) -> None:
        """Return the block to the pool unless an array has it; idempotent."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.release(self.address, self.nbytes)

    def __del__(self) -> None:
        self.close()


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
    """Hand the output buffers of a slot over to device tensors."""
    return [Tensor(device, slot.take_output(item.position), item.shape, item.dtype, hang_timeout) for item in outputs]
