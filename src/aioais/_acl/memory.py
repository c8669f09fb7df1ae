"""Device memory and pinned host memory: ownership of blocks, and how they are returned."""

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
"""Called when memory runs out, with a description of the allocation and a function that repeats it.

Frees idle memory and tries once more; raises an error that says where the memory is.
"""


class BlockSource(Protocol):
    """The owner of the memory behind a block."""

    def free(self, address: int, nbytes: int) -> None:
        """Take a block back at once, in the calling thread."""

    def discard(self, address: int, nbytes: int) -> None:
        """Take a block back; safe in a finaliser of any thread."""


class DeviceBlock:
    """A piece of device memory with one owner.

    ``close`` frees it in the calling thread. If a block is collected instead, the device's control thread frees it: a
    finaliser may run in any thread and must not call the device.
    """

    __slots__ = ("__weakref__", "_memory", "address", "nbytes")

    def __init__(self, memory: BlockSource, address: int, nbytes: int) -> None:
        self._memory = memory
        self.address: int = address
        self.nbytes: int = nbytes

    def close(self) -> None:
        """Free the memory; idempotent. No queued work may still use it."""
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
        Runs a function on the control thread of the device, without waiting for it.
    spare
        Called when ACL is out of memory; see :data:`Spare`.
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
        """Allocate device memory in the current context; for 0 bytes one byte is allocated, as ACL refuses 0.

        Raises
        ------
        AclMemoryError
            The device is out of memory, even after idle blocks were freed; the message says where the memory is.
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
        """Take ownership of existing device memory, such as an output that ACL allocated itself."""
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
        """Let the control thread free a block that was collected; safe in a finaliser."""
        self._post(lambda: self.free(address, nbytes))


def size_class(nbytes: int) -> int:
    """Round up to one of four sizes between two powers of two, so that blocks can be reused."""
    if nbytes <= _MIN_CLASS:
        return _MIN_CLASS
    step = 1 << (nbytes - 1).bit_length() - 3
    return -(-nbytes // step) * step


class PinnedPool:
    """Pinned host memory of one device, in blocks that arrays lease.

    A leased array is an ordinary writable :class:`numpy.ndarray` over a block. The block returns to the pool when the
    last view of the array is collected, in any thread. Pinned memory is scarce, so the pool has a limit; beyond it
    ``acquire`` returns ``None`` and the caller copies instead.

    On boards whose host and device share their memory (``is_board``) the blocks are device memory, which the host
    can read and write: models compute in them, and arrays lease them without a copy.

    Parameters
    ----------
    library
        The ACL in use.
    post, spare
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
        """Set while no session is open: returned blocks are freed instead of kept."""
        self.is_board = False
        """Blocks are device memory that the host can use; set before the first block is taken."""

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, leased and idle."""
        return self._nbytes

    @property
    def idle(self) -> int:
        """Blocks that are not in use."""
        return sum(map(len, list(self._idle.values())))

    @property
    def leased(self) -> int:
        """Blocks that arrays or slots hold."""
        return self._blocks - self.idle

    def has_idle(self, nbytes: int) -> bool:
        """Whether a block of that size can be taken without a call of ACL."""
        return bool(self._idle.get(size_class(nbytes)))

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
            if self.is_board:
                return library.value("acl.rt.malloc", library.slow.malloc(size, int(MallocPolicy.HUGE_FIRST)))
            return library.value("acl.rt.malloc_host", library.slow.malloc_host(size))

        try:
            address = allocate()
        except AclMemoryError:
            what = "of memory shared with the host" if self.is_board else "of pinned host memory"
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
        """Return the memory of a :meth:`block` to the pool."""
        self.release(address, nbytes)

    discard = free

    def release(self, address: int, nbytes: int) -> None:
        """Return a block to the pool; safe in a finaliser of any thread."""
        size = size_class(nbytes)
        idle = self._idle.get(size)
        if idle is None:
            idle = self._idle.setdefault(size, deque())
        if self.is_draining or len(idle) >= max(_IDLE_BLOCKS, _IDLE_BYTES // size):
            self._post(lambda: self._free(address, size))
        else:
            idle.append(address)

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
        for size, idle in list(self._idle.items()):
            while True:
                try:
                    address = idle.pop()
                except IndexError:  # another thread has taken the last one
                    break
                self._free(address, size)

    def _free(self, address: int, size: int) -> None:
        call, name = self._library.slow.free_host, "acl.rt.free_host"
        if self.is_board:
            call, name = self._library.slow.free, "acl.rt.free"
        code = call(address)
        with self._lock:
            self._blocks -= 1
            self._nbytes -= size
        self._library.check(name, code)


class _BlockLease:
    """Keeps a block alive for the arrays over it."""

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
    """Return an array over device memory that the host can use.

    The block is released with the last view of the array, in any thread. The array may be smaller than the block.
    """
    area = np.asarray(_BlockLease(block))
    array: np.ndarray = area[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
    return array


def free_and_total(library: Library) -> tuple[int, int]:
    """Return the free and total bytes of the current device; zeros where ACL does not report them.

    Cards report HBM and boards report DDR.
    """
    for attr in (MemAttr.HBM, MemAttr.DDR):
        free, total, code = library.acl.rt.get_mem_info(int(attr))
        if code == 0 and total:
            return free, total
    library.acl.get_recent_err_msg()
    return 0, 0


@functools.lru_cache(maxsize=1024)  # making a view costs more than the copy through it; a view owns nothing
def view(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Return an array over host memory that the caller keeps alive."""
    nbytes = max(1, math.prod(shape) * dtype.itemsize)
    area: Any = (ctypes.c_char * nbytes).from_address(address)
    array: np.ndarray = np.ndarray(shape, dtype, area)
    return array


def _lease_type(size: int) -> Any:
    """Return the buffer type of one size class, whose finaliser returns the block to its pool."""

    def __del__(self: Any) -> None:
        pool = getattr(self, "pool", None)
        if pool is not None:
            pool.release(self.address, size)

    return type("PinnedLease", (ctypes.c_char * size,), {"__del__": __del__})
