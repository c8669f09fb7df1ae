"""Memory: device blocks with addresses of their own, pinned host blocks, junk, bounds.

Device memory is ordinary memory, so that models compute on it in place, but it is handed out under
addresses that no host pointer can have: touching one directly crashes, as it should. Such an
address is never used twice. Facts: pyACL reference, Huawei's memory pages (alignment, padding).
"""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_right, insort
from collections import OrderedDict
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from .._cann.codes import AclCode
from ._registry import register
from ._state import report, state
from .device import Device
from .errors import EmulatorError
from .work_memory import trim_heap

__all__ = [
    "FREED",
    "FRESH",
    "SLACK",
    "Block",
    "Heap",
    "Places",
    "address_of",
    "allocate",
    "device_memory",
    "drop_all",
    "host_memory",
    "is_device_address",
]

FRESH = 0xFE
"""New memory is filled with this: huge or NaN as a float, odd as an integer."""

FREED = 0xFD
"""Freed memory is filled with this."""

SLACK = 128
"""Bytes behind every block, so that what AscendCL tolerates (64 missing bytes) does no harm."""

_BASE = 1 << 52
"""Beyond every address of a process, and above bits 48..55, which some CPUs ignore."""

_ALIGN = 64
_LARGE = 4 << 20
"""Blocks from this size on are memory of their own, in huge pages, as arrays of NumPy of this size are."""
_MOST_FREED = 64 << 20
"""Bytes of freed blocks; then the C library gives its free pages back to the system."""
_QUARANTINE = 16 << 20
"""Bytes of freed host memory kept, poisoned, so that late uses are detected."""


def is_device_address(address: int) -> bool:
    """Return whether an address can only belong to a device (never where memory is shared)."""
    return address >= _BASE


class Block:
    """One allocation.

    Parameters
    ----------
    size
        Bytes asked for.
    device
        ``None`` for host memory.
    """

    __slots__ = ("address", "array", "device", "is_alive", "pointer", "size", "uses", "view")

    def __init__(self, size: int, device: Device | None) -> None:
        self.size: int = size
        self.device: Device | None = device
        self.is_alive: bool = True
        self.uses: list[Any] = []
        """How models use it, see ``memory_use``."""
        self.array: Any = _room(size + SLACK + _ALIGN)
        start = address_of(self.array)
        self.pointer: int = (start + _ALIGN - 1) // _ALIGN * _ALIGN
        self.address: int = self.pointer
        offset = self.pointer - start
        self.view: memoryview | None = self.array.data[offset : offset + size]
        """The bytes, for copies; ``None`` once they are freed."""
        if state.settings.poison:
            ctypes.memset(self.pointer, FRESH, size)


def _room(nbytes: int) -> np.ndarray[Any, Any]:
    """Return fresh memory; much of it comes from the system itself, which gets it back as soon as it is freed.

    The allocator of C keeps up to some ten MiB of freed blocks for each thread, in pieces.
    """
    if nbytes < _LARGE or not hasattr(mmap, "MAP_ANONYMOUS"):
        return np.empty(nbytes, np.uint8)
    try:
        pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as exc:
        raise MemoryError(nbytes) from exc
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)


def address_of(array: np.ndarray[Any, Any]) -> int:
    """Return the address of an array's first item; ``array.ctypes`` imports, which fails while Python shuts down."""
    address: int = array.__array_interface__["data"][0]
    return address


class Extent(Protocol):
    """Something with an address and a size."""

    address: int
    size: int


E = TypeVar("E", bound=Extent)


class Places(Generic[E]):
    """Extents that do not overlap, oldest first, found by any address inside them."""

    def __init__(self) -> None:
        self.blocks: OrderedDict[int, E] = OrderedDict()
        self._starts: list[int] = []

    def add(self, block: E) -> None:
        """Add an extent."""
        self.blocks[block.address] = block
        insort(self._starts, block.address)

    def pop(self, address: int) -> E:
        """Remove an extent by its address."""
        del self._starts[bisect_right(self._starts, address) - 1]
        return self.blocks.pop(address)

    def around(self, address: int) -> E | None:
        """Return the extent around an address, or ``None``."""
        place = bisect_right(self._starts, address) - 1
        if place < 0:
            return None
        block = self.blocks[self._starts[place]]
        return block if address < block.address + block.size else None

    def clear(self) -> None:
        """Forget every extent."""
        self.blocks.clear()
        self._starts.clear()


class Heap:
    """The blocks of one address space: the live ones, and the freed ones for a while."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.lock: Lock = Lock()
        """Guards the live and the freed blocks; only the look-up by the start of a block needs no lock."""
        self._live: Places[Block] = Places()
        self._freed: Places[Block] = Places()
        self.blocks: OrderedDict[int, Block] = self._live.blocks
        """The live blocks by address."""
        self.quarantined: int = 0
        self._freed_bytes = 0
        self.bytes: int = 0
        self.epoch: int = 0
        """Changes with every free: what was resolved in the same epoch is still valid."""
        self.unused = _BASE
        """The first address never used: all devices share one range."""

    def clear(self) -> None:
        """Forget every block."""
        with self.lock:
            for block in self.blocks.values():
                block.is_alive = False
                block.view = None
            self._live.clear()
            self._freed.clear()
            self.quarantined = self.bytes = 0
            self.epoch += 1
        trim_heap()

    def add(self, block: Block) -> None:
        """Create a block known."""
        with self.lock:
            self._live.add(block)
            self.bytes += block.size

    def remove(self, block: Block) -> None:
        """Remove a block, and remember its place for a while; memory that is kept for as long is poisoned."""
        with self.lock:
            if block.address not in self.blocks:
                raise EmulatorError(f"{self.what} {block.address:#x} is freed by two threads at once")
            self._live.pop(block.address)
            block.is_alive = False
            block.view = None
            self.epoch += 1
            self.bytes -= block.size
        is_kept = block.address == block.pointer  # another address is not used again: no need to keep the memory
        if is_kept and block.size > _QUARANTINE:
            return
        if is_kept and state.settings.poison:
            ctypes.memset(block.pointer, FREED, block.size)
        with self.lock:
            freed = self._freed
            freed.add(block)
            if is_kept:
                self.quarantined += block.size
            else:
                block.array = None
            while self.quarantined > _QUARANTINE or len(freed.blocks) > 4096:
                old = freed.pop(next(iter(freed.blocks)))
                if old.address == old.pointer:
                    self.quarantined -= old.size
            self._freed_bytes += block.size
            has_much = self._freed_bytes > _MOST_FREED
            if has_much:
                self._freed_bytes = 0
        if has_much:
            trim_heap()

    def find(self, address: int) -> Block | None:
        """Return the live block around an address, or ``None``."""
        block = self.blocks.get(address)
        if block is None:
            with self.lock:
                block = self._live.around(address)
        return block

    def past(self, address: int) -> Block | None:
        """Return the freed block around an address, or ``None`` when nothing is known."""
        with self.lock:
            return self._freed.around(address)

    def explain(self, address: int) -> str | None:
        """Describe what an address without a live block was, or ``None`` when nothing is known."""
        block = self.past(address)
        return None if block is None else f"{self.what} {block.address:#x} of {block.size} bytes, already freed"


device_memory: Heap = Heap("device memory")
host_memory: Heap = Heap("pinned host memory")
register(
    device_memory.clear,
    device_blocks=lambda heap=device_memory: len(heap.blocks),  # type: ignore[misc]
    device_bytes=lambda heap=device_memory: heap.bytes,  # type: ignore[misc]
)
register(
    host_memory.clear,
    host_blocks=lambda heap=host_memory: len(heap.blocks),  # type: ignore[misc]
    host_bytes=lambda heap=host_memory: heap.bytes,  # type: ignore[misc]
)


def allocate(size: int, device: Device) -> Block | None:
    """Allocate a block of device memory; ``None`` and a message when the device is full."""
    limit = state.settings.memory_mb << 20
    with state.lock:
        if device.used + size > limit:
            report(
                AclCode.RT_MEMORY_ALLOCATION,
                f"device {device.index} has {limit - device.used} of {limit} bytes free; {size} requested",
            )
            return None
        device.used += size
    try:
        block = Block(size, device)
    except MemoryError:
        device.used -= size
        report(AclCode.RT_MEMORY_ALLOCATION, f"the host cannot back {size} bytes of device memory")
        return None
    if state.settings.run_mode == 1:
        with state.lock:
            block.address = device_memory.unused
            device_memory.unused += (size + 1023) // 512 * 512  # at least 512 bytes stay unused between blocks
    device_memory.add(block)
    return block


def drop_all(device: Device) -> int:
    """Free everything on a device; count the blocks."""
    gone = [block for block in list(device_memory.blocks.values()) if block.device is device]
    for block in gone:
        device_memory.remove(block)
    device.used = 0
    trim_heap()
    return len(gone)
