"""Memory: device blocks with addresses of their own, pinned host blocks, junk, bounds.

Device memory is ordinary memory, so that models compute on it in place, but it is handed out under
addresses that no host pointer can have: touching one directly crashes, as it should. Such an
address is never used twice. Facts: pyACL reference, Huawei's memory pages (alignment, padding).
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right, insort
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from aioais._acl.codes import AclCode
from aioais.emulator import faults
from aioais.emulator._args import VALUE, entry
from aioais.emulator._state import report, state
from aioais.emulator.errors import EmulatorError
from aioais.emulator.timeline import pause

if TYPE_CHECKING:
    from aioais.emulator.device import Device

__all__ = ["FREED", "FRESH", "SLACK", "Block", "Heap", "devices", "hosts", "is_device_address"]

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

    __slots__ = ("address", "alive", "array", "device", "pointer", "size", "uses")

    def __init__(self, size: int, device: Device | None) -> None:
        self.size = size
        self.device = device
        self.alive = True
        self.uses: list[Any] = []
        """The ways in which models use it, see ``memory_use``."""
        self.array: Any = np.empty(size + SLACK + _ALIGN, np.uint8)
        start = int(self.array.ctypes.data)
        self.pointer = (start + _ALIGN - 1) // _ALIGN * _ALIGN
        self.address = self.pointer
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
        self.lock = Lock()
        """Guards the live and the freed blocks; only the look-up of a whole block does without it."""
        self._live = Places()
        self._freed = Places()
        self.blocks = self._live.blocks
        """The live blocks by address."""
        self.quarantined = 0
        self.bytes = 0
        self.epoch = 0
        """Changes with every free: what was resolved in the same epoch is still good."""
        self.unused = _BASE
        """The first address that no device has had yet: all devices take theirs from one row."""

    def clear(self) -> None:
        """Forget every block."""
        with self.lock:
            for block in self.blocks.values():
                block.alive = False
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
            block.alive = False
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


devices = Heap("device memory")
hosts = Heap("pinned host memory")


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
            block.address = devices.unused
            devices.unused += (size + 1023) // 512 * 512  # at least 512 bytes stay unused between blocks
    devices.add(block)
    return block


def _wait_allocation(device: Device | None) -> None:
    if state.gates:
        faults.pass_gates("malloc", None if device is None else device.index)
    if state.settings.malloc_us:
        pause(state.settings.malloc_us * 1e-6, state.settings.gil != "release")


def _malloc(size: int, policy: int) -> tuple[int, int]:
    from aioais.emulator.context import current

    context = current()
    if context is None:
        return 0, AclCode.RT_CONTEXT_NULL
    if size == 0:
        return 0, report(AclCode.INVALID_PARAM, "malloc of 0 bytes")
    if policy & ~(0x100 | 0x1000 | 0x100000) not in range(8):
        return 0, report(AclCode.INVALID_PARAM, f"malloc: unknown policy {policy}")
    _wait_allocation(context.device)
    block = allocate(size, context.device)
    return (0, AclCode.RT_MEMORY_ALLOCATION) if block is None else (block.address, 0)


@entry("acl.rt.malloc", "ki", answer=VALUE)
def malloc(size: int, policy: int) -> tuple[int, int]:
    """Allocate device memory, filled with junk."""
    return _malloc(size, policy)


@entry("acl.rt.malloc_align32", "ki", answer=VALUE)
def malloc_align32(size: int, policy: int) -> tuple[int, int]:
    """Allocate device memory in multiples of 32 bytes."""
    return _malloc((size + 31) // 32 * 32, policy)


@entry("acl.rt.malloc_cached", "ki", answer=VALUE)
def malloc_cached(size: int, policy: int) -> tuple[int, int]:
    """Allocate cached device memory (boards with shared memory)."""
    return _malloc(size, policy)


@entry("acl.rt.mem_flush", "kk")
def mem_flush(address: int, size: int) -> int:
    """Write the cache of device memory back; nothing to do here but to check the range."""
    return _check_range(address, size)


@entry("acl.rt.mem_invalidate", "kk")
def mem_invalidate(address: int, size: int) -> int:
    """Drop the cache of device memory; nothing to do here but to check the range."""
    return _check_range(address, size)


def _check_range(address: int, size: int) -> int:
    if address == 0 or size == 0:
        return report(AclCode.INVALID_PARAM, "null address or size of 0")
    block = devices.find(address)
    if block is None or address + size > block.address + block.size:
        raise EmulatorError(f"{address:#x} with {size} bytes is not inside a live block of device memory")
    return 0


@entry("acl.rt.free", "k")
def free(address: int) -> int:
    """Free device memory; needs no context."""
    if address == 0:
        return report(AclCode.INVALID_PARAM, "free of 0")
    block = devices.blocks.get(address)
    if block is None or block.device is None:
        return _refuse("free", address, devices, hosts, "free_host")
    _wait_allocation(block.device)
    devices.remove(block)
    with state.lock:
        block.device.used -= block.size
    return 0


@entry("acl.rt.malloc_host", "k", answer=VALUE)
def malloc_host(size: int) -> tuple[int, int]:
    """Allocate pinned host memory, filled with junk."""
    from aioais.emulator.context import current

    if current() is None:
        return 0, AclCode.RT_CONTEXT_NULL
    if size == 0:
        return 0, report(AclCode.INVALID_PARAM, "malloc_host of 0 bytes")
    _wait_allocation(None)
    try:
        block = Block(size, None)
    except (MemoryError, ValueError):
        return 0, report(AclCode.RT_MEMORY_ALLOCATION, f"the host has no {size} bytes")
    hosts.add(block)
    return block.address, 0


@entry("acl.rt.free_host", "k")
def free_host(address: int) -> int:
    """Free pinned host memory; needs no context."""
    if address == 0:
        return report(AclCode.INVALID_PARAM, "free_host of 0")
    block = hosts.blocks.get(address)
    if block is None:
        return _refuse("free_host", address, hosts, devices, "free")
    _wait_allocation(None)
    hosts.remove(block)
    return 0


def _refuse(call: str, address: int, own: Heap, other: Heap, right: str) -> int:
    if address in other.blocks:
        raise EmulatorError(f"{call}({address:#x}): that is {other.what}, which {right} frees")
    past = own.past(address)
    if past is not None and past.address == address and past.device is not None and past.device.count == 0:
        return report(AclCode.RT_MEMORY_FREE, f"{call}({address:#x}): the device was reset, its memory is gone")
    inside = own.find(address)
    if inside is not None:
        raise EmulatorError(
            f"{call}({address:#x}) points {address - inside.address} bytes into {own.what} {inside.address:#x}"
        )
    what = own.explain(address)
    raise EmulatorError(f"{call}({address:#x}): {what or f'no {own.what} was ever allocated there'}")


@entry("acl.rt.get_mem_info", "i", answer=lambda code: (0, 0, code))
def get_mem_info(attr: int) -> tuple[int, int, int]:
    """Give free and total memory of the current device."""
    from aioais.emulator.context import current

    context = current()
    if context is None:
        return 0, 0, AclCode.RT_CONTEXT_NULL
    if attr not in range(18):
        return 0, 0, report(AclCode.INVALID_PARAM, f"get_mem_info: unknown attribute {attr}")
    total = state.settings.memory_mb << 20
    return total - context.device.used, total, 0


def drop_all(device: Device) -> int:
    """Free everything on a device; count the blocks."""
    gone = [block for block in list(devices.blocks.values()) if block.device is device]
    for block in gone:
        devices.remove(block)
    device.used = 0
    return len(gone)
