"""Allocating and freeing device memory and pinned host memory.

Facts: pyACL reference, Huawei's memory pages: 100000 for sizes of 0, 207001 when a device is full.
"""

from __future__ import annotations

from .._cann.codes import AclCode
from .._machine import machine_memory
from . import faults
from ._args import VALUE, entry
from ._state import report, state
from .context import current
from .device import Device
from .errors import EmulatorError
from .memory import Block, Heap, allocate, device_memory, host_memory
from .timeline import pause

__all__: list[str] = []


def _wait_allocation(device: Device | None) -> None:
    if state.gates:
        faults.pass_gates("malloc", None if device is None else device.index)
    if state.settings.malloc_us:
        pause(state.settings.malloc_us * 1e-6, state.settings.gil != "release")


def _malloc(size: int, policy: int) -> tuple[int, int]:
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
    """Write the cache of device memory back; only checks the range here."""
    return _check_range(address, size)


@entry("acl.rt.mem_invalidate", "kk")
def mem_invalidate(address: int, size: int) -> int:
    """Drop the cache of device memory; only checks the range here."""
    return _check_range(address, size)


def _check_range(address: int, size: int) -> int:
    if address == 0 or size == 0:
        return report(AclCode.INVALID_PARAM, "null address or size of 0")
    block = device_memory.find(address)
    if block is None or address + size > block.address + block.size:
        raise EmulatorError(f"{address:#x} with {size} bytes is not inside a live block of device memory")
    return 0


@entry("acl.rt.free", "k")
def free(address: int) -> int:
    """Free device memory; needs no context."""
    if address == 0:
        return report(AclCode.INVALID_PARAM, "free of 0")
    block = device_memory.blocks.get(address)
    if block is None or block.device is None:
        return _refuse("free", address, device_memory, host_memory, "free_host")
    _wait_allocation(block.device)
    device_memory.remove(block)
    with state.lock:
        block.device.used -= block.size
    return 0


@entry("acl.rt.malloc_host", "k", answer=VALUE)
def malloc_host(size: int) -> tuple[int, int]:
    """Allocate pinned host memory, filled with junk."""
    if current() is None:
        return 0, AclCode.RT_CONTEXT_NULL
    if size == 0:
        return 0, report(AclCode.INVALID_PARAM, "malloc_host of 0 bytes")
    _wait_allocation(None)
    try:
        block = Block(size, None)
    except (MemoryError, ValueError):
        return 0, report(AclCode.RT_MEMORY_ALLOCATION, f"the host has no {size} bytes")
    host_memory.add(block)
    return block.address, 0


@entry("acl.rt.free_host", "k")
def free_host(address: int) -> int:
    """Free pinned host memory; needs no context."""
    if address == 0:
        return report(AclCode.INVALID_PARAM, "free_host of 0")
    block = host_memory.blocks.get(address)
    if block is None:
        return _refuse("free_host", address, host_memory, device_memory, "free")
    _wait_allocation(None)
    host_memory.remove(block)
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
    """Return free and total memory of the current device; what the machine has not cannot be free."""
    context = current()
    if context is None:
        return 0, 0, AclCode.RT_CONTEXT_NULL
    if attr not in range(18):
        return 0, 0, report(AclCode.INVALID_PARAM, f"get_mem_info: unknown attribute {attr}")
    total = state.settings.memory_mb << 20
    free, (available, of) = total - context.device.used, machine_memory()
    return (min(free, available) if of else free), total, 0
