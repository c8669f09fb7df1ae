"""Device memory: ownership of blocks, how they are returned, and arrays over addresses."""

from __future__ import annotations

import ctypes
import functools
import math
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import numpy as np

from .._cann.constants import MallocPolicy, MemAttr
from ..errors import AclMemoryError
from .library import Library

__all__ = ["BlockHome", "DeviceBlock", "DeviceMemory", "Spare", "free_and_total", "lease_block", "view"]

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

    def leave_to(self, memory: BlockSource) -> None:
        """Have it return to another owner."""
        self._memory = memory

    def __del__(self) -> None:
        if self.address:
            self._memory.discard(self.address, self.nbytes)


class BlockHome:
    """Where a slot waits for the block of one output that it gave away.

    The first that comes back is kept, any other is freed. There is no lock, as finalisers call it: after a change, each
    side checks that no block was left behind.
    """

    __slots__ = ("_memory", "_place")

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._place: deque[tuple[int, int]] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of what has come back."""
        return sum(nbytes for _, nbytes in tuple(self._place or ()))

    def miss(self) -> None:
        """Keep the next block that returns."""
        self._place = deque()

    def take(self) -> DeviceBlock | None:
        """Return what has come back, if anything has; no block is missed any more."""
        place, self._place = self._place, None
        found: DeviceBlock | None = None
        if place is not None:
            with suppress(IndexError):
                found = DeviceBlock(self._memory, *place.popleft())
            self._clear(place)
        return found

    def discard(self, address: int, nbytes: int) -> None:
        """Take a block back; safe in a finaliser."""
        place = self._place
        if place is None or place:
            self._memory.discard(address, nbytes)
            return
        place.append((address, nbytes))
        if self._place is not place:  # no longer missed
            self._clear(place)

    def free(self, address: int, nbytes: int) -> None:
        """Free a block."""
        self._memory.free(address, nbytes)

    def _clear(self, place: deque[tuple[int, int]]) -> None:
        with suppress(IndexError):
            while True:
                self._memory.discard(*place.popleft())


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
