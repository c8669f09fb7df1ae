"""Pools of memory blocks, and what is done with idle ones: kept for the next request, then given back to ACL."""

from __future__ import annotations

import ctypes
import itertools
import math
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from .._cann.constants import MallocPolicy
from ..errors import AclMemoryError
from .library import Library
from .memory import DeviceBlock, Spare

__all__ = ["BlockPool", "size_class"]

_MIN_CLASS: Final = 256
_MOST_IDLE: Final = 64 << 20
"""Bytes that may stay idle when a block of another size is allocated."""


def size_class(nbytes: int) -> int:
    """Round up to one of four sizes between two powers of two, so that blocks can be reused."""
    if nbytes <= _MIN_CLASS:
        return _MIN_CLASS
    step = 1 << (nbytes - 1).bit_length() - 3
    return -(-nbytes // step) * step


class BlockPool:
    """The blocks of one kind of memory of one device: those in use, and idle ones for later requests.

    **How much is idle.** A block of a size of which none is idle is allocated only after blocks of other sizes were
    given back, those that have been idle for longest first, until no more than 64 MiB are left of them. So a pool holds
    at most this much more than was in use at once. Requests of always the same sizes allocate nothing. What has been
    idle from one :meth:`sweep` to the next is given back too.

    **Arrays.** A card has a pool of pinned host memory, and one of device memory. An array that leases a pinned block
    is an ordinary writable :class:`numpy.ndarray`; the block returns to the pool when the last view of the array is
    collected, in any thread. Pinned memory is scarce, so there is a limit; beyond it ``may_lease`` is false and the
    caller copies instead. On boards whose host and device share their memory one pool of device memory serves both:
    models compute in its blocks, and arrays lease them without a copy.

    Parameters
    ----------
    library
        The ACL in use.
    post, spare
        As in :class:`DeviceMemory`.
    is_device
        Its blocks are device memory.
    limit
        Most bytes that blocks may take, leased and idle together; work on the device may exceed it.
    """

    def __init__(
        self,
        library: Library,
        post: Callable[[Callable[[], None]], None],
        spare: Spare,
        is_device: bool,
        limit: float = 512 << 20,
    ) -> None:
        self._library = library
        self._post = post
        self._spare = spare
        self._limit = limit
        self._lock = threading.Lock()  # guards the counters
        # By size. Finalisers add to it, which take no lock: each step on it is one that no other thread can split.
        self._idle: dict[int, deque[tuple[int, int]]] = {}
        self._stamps = itertools.count(1)
        self._swept = 0
        self._blocks = 0
        self._nbytes = 0
        self._types: dict[int, Any] = {}
        self.is_draining = False
        """Set while no session is open: returned blocks are freed instead of kept."""
        self.is_device: bool = is_device

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, leased and idle."""
        return self._nbytes

    @property
    def idle(self) -> int:
        """Blocks that are not in use."""
        return sum(map(len, list(self._idle.values())))

    @property
    def idle_bytes(self) -> int:
        """Bytes of the blocks that are not in use."""
        return sum(size * len(idle) for size, idle in list(self._idle.items()))

    @property
    def leased(self) -> int:
        """Blocks that arrays or slots hold."""
        return self._blocks - self.idle

    def has_idle(self, nbytes: int) -> bool:
        """Whether a block of that size can be taken without a call of ACL."""
        return bool(self._idle.get(size_class(nbytes)))

    def may_lease(self, nbytes: int) -> bool:
        """Whether an array may hold so much more."""
        room = self._limit - size_class(nbytes)
        return self._nbytes <= room or self._nbytes - self.idle_bytes <= room

    def acquire(self, nbytes: int) -> int:
        """Take a block of at least ``nbytes``, beyond the limit too."""
        size = size_class(nbytes)
        idle = self._idle.get(size)
        if idle:
            try:
                return idle.pop()[1]
            except IndexError:
                pass
        room = self._limit - size - (self._nbytes - self.idle_bytes)
        self._give_back(max(0, min(room, _MOST_IDLE)))
        library = self._library

        def allocate() -> int:
            if self.is_device:
                return library.value("acl.rt.malloc", library.slow.malloc(size, int(MallocPolicy.HUGE_FIRST)))
            return library.value("acl.rt.malloc_host", library.slow.malloc_host(size))

        try:
            address = allocate()
        except AclMemoryError:
            kind = "device memory" if self.is_device else "pinned host memory"
            address = self._spare(f"{size} bytes of {kind}", allocate)
        with self._lock:
            self._blocks += 1
            self._nbytes += size
        return address

    def block(self, nbytes: int) -> DeviceBlock:
        """Take device memory with an owner."""
        return DeviceBlock(self, self.acquire(nbytes), nbytes)

    def free(self, address: int, nbytes: int) -> None:
        """Return the memory of a :meth:`block` to the pool."""
        self.release(address, nbytes)

    discard = free

    def release(self, address: int, nbytes: int) -> None:
        """Return a block to the pool; safe in a finaliser of any thread."""
        size = size_class(nbytes)
        if self.is_draining:
            self._post(lambda: self._free(address, size))
            return
        idle = self._idle.get(size)
        if idle is None:
            idle = self._idle.setdefault(size, deque())
        idle.append((next(self._stamps), address))

    def lease(self, address: int, nbytes: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Return an array over a block; the block returns to the pool with the array's last view."""
        size = size_class(nbytes)
        kind = self._types.get(size)
        if kind is None:
            kind = self._types[size] = _lease_type(size)
        lease = kind.from_address(address)
        lease.pool, lease.address = self, address
        array: np.ndarray = np.ndarray(shape, dtype, lease)
        return array

    def trim(self) -> None:
        """Free every idle block."""
        self._give_back(0)

    def sweep(self) -> None:
        """Free the blocks that have been idle since the sweep before."""
        self._give_back(0, self._swept)
        self._swept = next(self._stamps)

    def _give_back(self, most: float, until: float = math.inf) -> None:
        """Free blocks, those that have been idle for longest first.

        Parameters
        ----------
        most
            Bytes that may stay idle.
        until
            Blocks that were returned after this moment stay.
        """
        while self.idle_bytes > most:
            stamp, size = min(map(_first, list(self._idle.items())))
            if stamp >= until:
                break
            try:
                _, address = self._idle[size].popleft()
            except IndexError:  # another thread has taken the last one
                continue
            self._free(address, size)

    def _free(self, address: int, size: int) -> None:
        call, name = self._library.slow.free_host, "acl.rt.free_host"
        if self.is_device:
            call, name = self._library.slow.free, "acl.rt.free"
        code = call(address)
        with self._lock:
            self._blocks -= 1
            self._nbytes -= size
        self._library.check(name, code)


def _first(entry: tuple[int, deque[tuple[int, int]]]) -> tuple[float, int]:
    """Return since when the first block of a size is idle, and the size."""
    size, idle = entry
    try:
        return idle[0][0], size
    except IndexError:
        return math.inf, size


def _lease_type(size: int) -> Any:
    """Return the buffer type of one size class, whose finaliser returns the block to its pool."""

    def __del__(self: Any) -> None:
        pool = getattr(self, "pool", None)
        if pool is not None:
            pool.release(self.address, size)

    return type("PinnedLease", (ctypes.c_char * size,), {"__del__": __del__})
