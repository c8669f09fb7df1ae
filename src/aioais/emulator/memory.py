"""Memory: device blocks with addresses of their own, pinned host blocks, junk, bounds.

Device memory is ordinary memory, so that models compute on it in place, but it is handed out under
addresses that no host pointer can have: touching one directly crashes, as it should. Such an
address is never used twice. Facts: pyACL reference, Huawei's memory pages (alignment, padding).
"""

from __future__ import annotations

import ctypes
import threading
from bisect import bisect_right, insort
from collections import OrderedDict
from threading import Lock
from typing import Any

import numpy as np

from .._acl.codes import AclCode
from ._registry import register
from ._state import report, state
from .device import Device
from .errors import EmulatorError

__all__ = [
    "FREED",
    "FRESH",
    "SLACK",
    "Block",
    "Heap",
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
"""Bytes behind every block, so that what AscendCL tolerates (64 missing bytes) hurts nobody."""

_BASE = 1 << 52
"""Beyond every address that a process can have, bits 48..55 included that some CPUs ignore above."""

_ALIGN = 64
_QUARANTINE = 16 << 20
"""Bytes of freed host memory kept, poisoned, so that late uses are noticed."""


def is_device_address(address: int) -> bool:
    """Tell whether an address can only be one of a device (never so where memory is shared)."""
    return address >= _BASE


class Block:
    """One allocation.

    Parameters
    ----------
    size : int
        Bytes asked for.
    device : Device or None
        ``None`` for host memory.
    """

    __slots__ = ("address", "array", "device", "is_alive", "pointer", "size", "uses")

    def __init__(self, size: int, device: Device | None) -> None:
        self.size: int = size
        self.device: Device | None = device
        self.is_alive: bool = True
        self.uses: list[Any] = []
        """The ways in which models use it, see ``memory_use``."""
        self.array: Any = np.empty(size + SLACK + _ALIGN, np.uint8)
        start = int(self.array.ctypes.data)
        self.pointer: int = (start + _ALIGN - 1) // _ALIGN * _ALIGN
        self.address: int = self.pointer
        if state.settings.poison:
            ctypes.memset(self.pointer, FRESH, size)


class Places:
    """Blocks that do not overlap, oldest first, found by any address inside them."""

    def __init__(self) -> None:
        self.blocks: OrderedDict[int, Block] = OrderedDict()
        self._starts: list[int] = []

    def add(self, block: Block) -> None:
        """Take a block in."""
        self.blocks[block.address] = block
        insort(self._starts, block.address)

    def pop(self, address: int) -> Block:
        """Take a block out by its address."""
        del self._starts[bisect_right(self._starts, address) - 1]
        return self.blocks.pop(address)

    def around(self, address: int) -> Block | None:
        """Give the block around an address, or ``None``."""
        place = bisect_right(self._starts, address) - 1
        if place < 0:
            return None
        block = self.blocks[self._starts[place]]
        return block if address < block.address + block.size else None

    def clear(self) -> None:
        """Forget every block."""
        self.blocks.clear()
        self._starts.clear()


class Heap:
    """The blocks of one address space: the live ones, and for a while the freed ones."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.lock: threading.Lock = Lock()
        """Guards the live and the freed blocks; only the look-up of a whole block does without it."""
        self._live = Places()
        self._freed = Places()
        self.blocks: OrderedDict[int, Block] = self._live.blocks
        """The live blocks by address."""
        self.quarantined: int = 0
        self.bytes: int = 0
        self.epoch: int = 0
        """Changes with every free: what was resolved in the same epoch is still good."""
        self.unused = _BASE
        """The first address that no device has had yet: all devices take theirs from one row."""

    def clear(self) -> None:
        """Forget every block."""
        with self.lock:
            for block in self.blocks.values():
                block.is_alive = False
            self._live.clear()
            self._freed.clear()
            self.quarantined = self.bytes = 0
            self.epoch += 1

    def add(self, block: Block) -> None:
        """Make a block known."""
        with self.lock:
            self._live.add(block)
            self.bytes += block.size

    def remove(self, block: Block) -> None:
        """Forget a block, poison it, and keep its place in mind for a while."""
        with self.lock:
            if block.address not in self.blocks:
                raise EmulatorError(f"{self.what} {block.address:#x} is freed by two threads at once")
            self._live.pop(block.address)
            block.is_alive = False
            self.epoch += 1
            self.bytes -= block.size
        if state.settings.poison:
            ctypes.memset(block.pointer, FREED, block.size)
        with self.lock:
            freed = self._freed
            freed.add(block)
            if block.address == block.pointer:
                self.quarantined += block.size
            else:
                block.array = None  # its address is not used again: no need to keep the memory
            while self.quarantined > _QUARANTINE or len(freed.blocks) > 4096:
                old = freed.pop(next(iter(freed.blocks)))
                if old.address == old.pointer:
                    self.quarantined -= old.size

    def find(self, address: int) -> Block | None:
        """Give the live block around an address, or ``None``."""
        block = self.blocks.get(address)
        if block is None:
            with self.lock:
                block = self._live.around(address)
        return block

    def past(self, address: int) -> Block | None:
        """Give the freed block around an address, or ``None`` when nothing is known."""
        with self.lock:
            return self._freed.around(address)

    def explain(self, address: int) -> str | None:
        """Say what an address without a live block was, or ``None`` when nothing is known."""
        block = self.past(address)
        return None if block is None else f"{self.what} {block.address:#x} of {block.size} bytes, already freed"


device_memory: Heap = Heap("device memory")
host_memory: Heap = Heap("pinned host memory")
register(
    device_memory.clear,
    device_blocks=lambda: len(device_memory.blocks),
    device_bytes=lambda: device_memory.bytes,
)
register(host_memory.clear, host_blocks=lambda: len(host_memory.blocks), host_bytes=lambda: host_memory.bytes)


def allocate(size: int, device: Device) -> Block | None:
    """Make a block of device memory; ``None`` and a message when the device is full."""
    limit = state.settings.memory_mb << 20
    with state.lock:
        if device.used + size > limit:
            report(
                AclCode.RT_MEMORY_ALLOCATION,
                f"device {device.index} has {limit - device.used} of {limit} bytes free, {size} are wanted",
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
    return len(gone)
