"""Device memory and pinned host memory: who owns a block, and how it comes home."""

from __future__ import annotations

import ctypes
import functools
import math
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np

from ..errors import AclMemoryError
from .constants import MallocPolicy, MemAttr
from .library import Library

__all__ = ["DeviceBlock", "DeviceMemory", "PinnedPool", "free_and_total", "lease_block", "size_class", "view"]

_MIN_CLASS: Final = 256
_IDLE_BYTES: Final = 64 << 20
_IDLE_BLOCKS: Final = 4

Spare = Callable[[str, Callable[[], int]], int]
"""Given what was wanted and how to get it: frees what is idle, tries again once, raises what is known."""


class BlockSource(Protocol):
    """Where a block of device memory came from and goes back to."""

    def free(self, address: int, nbytes: int) -> None:
        """Take a block back at once, in the calling thread."""

    def discard(self, address: int, nbytes: int) -> None:
        """Take a block back; safe in a finaliser of any thread."""


class DeviceBlock:
    """A piece of device memory with one owner.

    ``close`` frees it in the calling thread. A block that is dropped instead is handed to the
    device's control thread: a finaliser may run anywhere and must not call the device.
    """

    __slots__ = ("__weakref__", "_memory", "address", "nbytes")

    def __init__(self, memory: BlockSource, address: int, nbytes: int) -> None:
        self._memory = memory
        self.address = address
        self.nbytes = nbytes

    def close(self) -> None:
        """Free the memory; idempotent. Nothing queued may use it any more."""
        address, self.address = self.address, 0
        if address:
            self._memory.free(address, self.nbytes)

    def __del__(self) -> None:
        if self.address:
            self._memory.discard(self.address, self.nbytes)


class DeviceMemory:
    """The device memory of one device.

    Parameters
    ----------
    library
        The ACL in use.
    post
        Runs a function on the control thread of the device, soon.
    spare
        Gets memory where ACL has none: given what is wanted and how to try again.
    """

    def __init__(self, library: Library, post: Callable[[Callable[[], None]], None], spare: Spare) -> None:
        self._library = library
        self._post = post
        self._spare = spare
        self._lock = threading.Lock()  # guards the two counters
        self._blocks = 0
        self._nbytes = 0

    @property
    def blocks(self) -> int:
        """Blocks not freed yet."""
        return self._blocks

    @property
    def nbytes(self) -> int:
        """Bytes not freed yet."""
        return self._nbytes

    def alloc(self, nbytes: int) -> DeviceBlock:
        """Allocate device memory in the current context; 0 bytes give one byte, as ACL refuses 0.

        Raises
        ------
        AclMemoryError
            The device has no room, not even with what was pooled; says who holds it.
        """
        nbytes = max(nbytes, 1)
        library = self._library

        def allocate() -> int:
            return library.value("acl.rt.malloc", library.slow.malloc(nbytes, int(MallocPolicy.HUGE_FIRST)))

        try:
            address = allocate()
        except AclMemoryError:
            address = self._spare(f"{nbytes} bytes of device memory", allocate)
        return self.adopt(address, nbytes)

    def adopt(self, address: int, nbytes: int) -> DeviceBlock:
        """Own device memory that is there already, such as outputs that ACL allocated itself."""
        with self._lock:
            self._blocks += 1
            self._nbytes += nbytes
        return DeviceBlock(self, address, nbytes)

    def free(self, address: int, nbytes: int) -> None:
        """Free a block; needs no context."""
        code = self._library.slow.free(address)
        with self._lock:
            self._blocks -= 1
            self._nbytes -= nbytes
        self._library.check("acl.rt.free", code)

    def discard(self, address: int, nbytes: int) -> None:
        """Have a dropped block freed by the control thread; safe in a finaliser."""
        self._post(lambda: self.free(address, nbytes))


def size_class(nbytes: int) -> int:
    """Round up to one of four steps between powers of two, so that blocks can be used again."""
    if nbytes <= _MIN_CLASS:
        return _MIN_CLASS
    step = 1 << (nbytes - 1).bit_length() - 3
    return -(-nbytes // step) * step


class PinnedPool:
    """Pinned host memory of one device, in blocks that arrays lease.

    A leased array is an ordinary writable :class:`numpy.ndarray` over a block. The block comes
    back when the last view of the array is gone, whichever thread drops it. Pinned memory is
    scarce, so the pool has a limit; beyond it ``acquire`` answers ``None`` and the caller copies.

    On boards whose host and device share their memory (``is_shared``) its blocks are device memory,
    which the host reads and writes as its own: models compute in them, and arrays lease them as they are.

    Parameters
    ----------
    library
        The ACL in use.
    post
        Runs a function on the control thread of the device, soon.
    spare
        As in :class:`DeviceMemory`.
    limit
        Most bytes that blocks may take, leased and idle together.
    """

    def __init__(
        self, library: Library, post: Callable[[Callable[[], None]], None], spare: Spare, limit: int = 512 << 20
    ) -> None:
        self._library = library
        self._post = post
        self._spare = spare
        self._limit = limit
        self._lock = threading.Lock()  # guards the counters
        self._idle: dict[int, deque[int]] = {}
        self._blocks = 0
        self._nbytes = 0
        self._types: dict[int, Any] = {}
        self.is_draining = False
        """Set while no session is open: blocks that come back are freed instead of kept."""
        self.is_shared = False
        """Blocks are device memory that the host can use; set before the first block is taken."""

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, leased and idle."""
        return self._nbytes

    @property
    def idle(self) -> int:
        """Blocks that wait for use."""
        return sum(map(len, list(self._idle.values())))

    @property
    def leased(self) -> int:
        """Blocks that arrays or slots hold."""
        return self._blocks - self.idle

    def acquire(self, nbytes: int, *, force: bool = False) -> int | None:
        """Take a block of at least ``nbytes``; ``None`` at the limit unless ``force``."""
        size = size_class(nbytes)
        idle = self._idle.get(size)
        if idle:
            try:
                return idle.pop()
            except IndexError:
                pass
        if self._nbytes + size > self._limit and not force:
            return None
        library = self._library

        def allocate() -> int:
            if self.is_shared:
                return library.value("acl.rt.malloc", library.slow.malloc(size, int(MallocPolicy.HUGE_FIRST)))
            return library.value("acl.rt.malloc_host", library.slow.malloc_host(size))

        try:
            address = allocate()
        except AclMemoryError:
            what = "of memory shared with the host" if self.is_shared else "of pinned host memory"
            address = self._spare(f"{size} bytes {what}", allocate)
        with self._lock:
            self._blocks += 1
            self._nbytes += size
        return address

    def block(self, nbytes: int, *, force: bool = False) -> DeviceBlock | None:
        """Take device memory of a shared pool; ``None`` at the limit unless ``force``."""
        address = self.acquire(nbytes, force=force)
        return None if address is None else DeviceBlock(self, address, nbytes)

    def free(self, address: int, nbytes: int) -> None:
        """Take the memory of a :meth:`block` back."""
        self.release(address, nbytes)

    discard = free

    def release(self, address: int, nbytes: int) -> None:
        """Give a block back; safe in a finaliser of any thread."""
        size = size_class(nbytes)
        idle = self._idle.get(size)
        if idle is None:
            idle = self._idle.setdefault(size, deque())
        if self.is_draining or len(idle) >= max(_IDLE_BLOCKS, _IDLE_BYTES // size):
            self._post(lambda: self._free(address, size))
        else:
            idle.append(address)

    def lease(self, address: int, nbytes: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Build the array that holds a block from now on."""
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
        for size, idle in list(self._idle.items()):
            while True:
                try:
                    address = idle.pop()
                except IndexError:  # another thread may have taken the last one
                    break
                self._free(address, size)

    def _free(self, address: int, size: int) -> None:
        call, name = self._library.slow.free_host, "acl.rt.free_host"
        if self.is_shared:
            call, name = self._library.slow.free, "acl.rt.free"
        code = call(address)
        with self._lock:
            self._blocks -= 1
            self._nbytes -= size
        self._library.check(name, code)


class _BlockLease:
    """What keeps a block for the arrays that look at it."""

    __slots__ = ("__array_interface__", "_block")

    def __init__(self, block: DeviceBlock) -> None:
        self._block = block
        self.__array_interface__ = {
            "data": (block.address, False),
            "shape": (block.nbytes,),
            "typestr": "|u1",
            "version": 3,
        }


def lease_block(block: DeviceBlock, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Make the array that holds device memory, which the host can use, from now on.

    The block is dropped with the last view of the array, whichever thread drops it. The array may
    use less of it than there is.
    """
    area = np.asarray(_BlockLease(block))
    array: np.ndarray = area[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
    return array


def free_and_total(library: Library) -> tuple[int, int]:
    """Ask for the free and total bytes of the current device; zeros where it cannot be told.

    Boards have DDR, cards have HBM, and each answers for its own.
    """
    for attr in (MemAttr.HBM, MemAttr.DDR):
        free, total, code = library.acl.rt.get_mem_info(int(attr))
        if code == 0 and total:
            return free, total
    library.acl.get_recent_err_msg()
    return 0, 0


@functools.lru_cache(maxsize=1024)  # making one costs more than what is done with it; it owns nothing
def view(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Make an array over host memory that somebody else owns and keeps."""
    nbytes = max(1, math.prod(shape) * dtype.itemsize)
    area: Any = (ctypes.c_char * nbytes).from_address(address)
    array: np.ndarray = np.ndarray(shape, dtype, area)
    return array


def _lease_type(size: int) -> Any:
    """Make the buffer type of one size class, whose finaliser returns the block."""

    def __del__(self: Any) -> None:
        pool = getattr(self, "pool", None)
        if pool is not None:
            pool.release(self.address, size)

    return type("PinnedLease", (ctypes.c_char * size,), {"__del__": __del__})
