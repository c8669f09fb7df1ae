"""Landing: the pinned block that a large output arrives in, which an array may lease."""

from __future__ import annotations

from .._acl.block_pool import BlockPool
from .slot import Slot

__all__ = ["Landing"]


class Landing:
    """Pinned memory in which one output arrives.

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
