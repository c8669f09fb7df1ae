"""Copies and fills: checking of addresses, bounds and direction, now or in a stream.

Facts: pyACL reference, Huawei's memory pages: 100000 for null and unknown kinds, 107000 for a count
beyond the destination or a wrong direction, 207000 for asynchronous host to host copies; pageable
host memory makes ``memcpy_async`` wait for the stream and block.
"""

from __future__ import annotations

import ctypes
from time import perf_counter, thread_time
from typing import NamedTuple

from .._cann.codes import AclCode
from .._cann.constants import MemcpyKind, RunMode
from . import faults
from ._args import RET, entry
from ._observers import observers
from ._state import report, state
from .context import Context, current, local
from .errors import EmulatorError
from .lent import check_pageable
from .memory import Block, Heap, device_memory, host_memory, is_device_address
from .stream import Operation, Stream, foreign, refuse_deadlock, resolve, streams, synchronize
from .timeline import FOREVER, Engine, sleep_until

__all__ = ["device_place", "move", "run_copy"]

_HELD_BELOW = 32 << 10
"""Smaller copies keep the GIL: releasing it costs more than the copy."""

_memmove_held = ctypes.PyDLL(None).memmove
_memmove_held.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memmove_held.restype = None

# kind -> source on the device, destination on the device, name of the engine
_KINDS = {
    MemcpyKind.HOST_TO_HOST.value: (False, False, "h2h"),
    MemcpyKind.HOST_TO_DEVICE.value: (False, True, "h2d"),
    MemcpyKind.DEVICE_TO_HOST.value: (True, False, "d2h"),
    MemcpyKind.DEVICE_TO_DEVICE.value: (True, True, "d2d"),
    5: (False, True, "h2d"),  # HOST_TO_BUF_TO_DEVICE
    6: (True, True, "d2d"),  # INNER_DEVICE_TO_DEVICE
    7: (True, True, "d2d"),  # INTER_DEVICE_TO_DEVICE
}


class Place(NamedTuple):
    """One end of a copy: the block around it, if it is tracked, and its real address."""

    block: Block | None
    pointer: int


def move(destination: int, source: int, count: int) -> None:
    """Copy bytes between real addresses, without the GIL for large copies."""
    if count < _HELD_BELOW:
        _memmove_held(destination, source, count)
    else:
        ctypes.memmove(destination, source, count)


def _in_block(heap: Heap, block: Block, address: int, count: int, role: str) -> Place:
    offset = address - block.address
    if offset + count > block.size:
        raise EmulatorError(
            f"{role}: {count} bytes at {address:#x} go beyond {heap.what} "
            f"{block.address:#x} of {block.size} bytes (offset {offset})"
        )
    return Place(block, block.pointer + offset)


def device_place(address: int, count: int, role: str, context: Context) -> Place | None:
    """Resolve device memory; ``None`` and a message for an address of the host.

    Raises
    ------
    EmulatorError
        Out of bounds, freed, never allocated, or another device's without peer access.
    """
    block = device_memory.find(address)
    if block is None:
        past = device_memory.explain(address)
        if past is not None or is_device_address(address):
            raise EmulatorError(f"{role}: {address:#x} is {past or 'not inside any live device memory'}")
        report(AclCode.RT_PARAM_INVALID, f"{role}: {address:#x} is a host address; expected device memory")
        return None
    device = block.device
    if device is not context.device and device is not None and device.index not in context.device.peers:
        raise EmulatorError(
            f"{role}: {address:#x} is memory of device {device.index}, "
            f"the current context is on device {context.device.index} without access to it"
        )
    return _in_block(device_memory, block, address, count, role)


def host_place(address: int, count: int, role: str) -> Place | None:
    """Resolve host memory; ``None`` and a message for an address of a device.

    Raises
    ------
    EmulatorError
        Out of bounds, freed, or not memory of this process.
    """
    block = host_memory.find(address)
    if block is not None:
        return _in_block(host_memory, block, address, count, role)
    if is_device_address(address):
        report(AclCode.RT_PARAM_INVALID, f"{role}: {address:#x} is device memory; expected a host address")
        return None
    past = host_memory.explain(address)
    if past is not None:
        raise EmulatorError(f"{role}: {address:#x} is {past}")
    check_pageable(role, address, count)
    return Place(None, address)


class Copy(NamedTuple):
    """A checked copy."""

    kind: str
    destination: Place
    source: Place
    is_pageable: bool


def _shared_place(address: int, count: int, role: str, context: Context) -> Place | None:
    """Resolve an address where host and device share their memory."""
    if device_memory.find(address) is not None or device_memory.explain(address) is not None:
        return device_place(address, count, role, context)
    return host_place(address, count, role)


def _check(
    call: str, destination: int, maximum: int, written: int, source: int, read: int, kind: int, context: Context
) -> Copy | int:
    """Check a copy as the runtime does, by the bytes it spans at each end; a code when it is refused."""
    if destination == 0 or source == 0:
        return report(AclCode.INVALID_PARAM, f"{call}: null address")
    if kind == 4:  # DEFAULT: the addresses decide
        on_device = (device_memory.find(source) is not None, device_memory.find(destination) is not None)
        kind = {(False, False): 0, (False, True): 1, (True, False): 2, (True, True): 3}[on_device]
    known = _KINDS.get(kind)
    if known is None:
        return report(AclCode.INVALID_PARAM, f"{call}: unknown kind {kind}")
    if written > maximum:
        return report(AclCode.RT_PARAM_INVALID, f"{call}: {written} bytes into a destination of {maximum}")
    ends = []
    for address, count, is_device, role in (
        (destination, written, known[1], f"{call} to"),
        (source, read, known[0], f"{call} from"),
    ):
        if state.settings.run_mode == RunMode.DEVICE:
            place = _shared_place(address, count, role, context)
        elif is_device:
            place = device_place(address, count, role, context)
        else:
            place = host_place(address, count, role)
        if place is None:
            return AclCode.RT_PARAM_INVALID
        ends.append(place)
    pageable = ends[0].block is None or ends[1].block is None
    return Copy(known[2], ends[0], ends[1], pageable)


def engine_of(context: Context, kind: str) -> Engine | None:
    """Return the engine that does a kind of copy; the host copies its own memory itself."""
    engine: Engine | None = None if kind == "h2h" else getattr(context.device, kind)
    return engine


def _copy_now(copied: Copy, count: int, context: Context) -> None:
    """Copy at once, holding the GIL as pyACL does."""
    if state.gates:
        faults.pass_gates(copied.kind, context.device.index)
    began, cpu = perf_counter(), thread_time()
    move(copied.destination.pointer, copied.source.pointer, count)
    state.copied[copied.kind] += count
    engine = engine_of(context, copied.kind)
    worked = end = 0.0
    if context.device.is_virtual and engine is not None:
        worked = thread_time() - cpu
        end = engine.book(began, count, worked)
        sleep_until(end, state.settings.gil != "release")
    if observers.profiler is not None:
        observers.profiler.record(context.device, copied.kind, "memcpy", began, worked, end, count)


@entry("acl.rt.memcpy", "kkkki", hot=True)
def memcpy(destination: int, maximum: int, source: int, count: int, kind: int) -> int:
    """Copy bytes and wait for it."""
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    if count == 0:
        return 0
    copied = _check("memcpy", destination, maximum, count, source, count, kind, context)
    if isinstance(copied, int):
        return copied
    _copy_now(copied, count, context)
    return 0


def run_copy(stream: Stream, operation: Operation, deadline: float) -> bool:
    """Do a queued copy; False when it is blocked."""
    _, submitted, fault, kind, count, to_block, to, from_block, origin = operation
    if stream.is_halted:
        return True
    device = stream.device
    if state.gates and not faults.pass_gates(kind, device.index, deadline):
        return False
    target, source = to_block.view, from_block.view  # they keep the memory, even if it is freed now
    if fault:
        stream.fail(fault, "memcpy_async: injected fault on the device")
    elif target is None or source is None:
        which = to_block if target is None else from_block
        text = f"memcpy_async ({kind}): memory {which.address:#x} was freed before the stream ran the copy"
        stream.fail(AclCode.RT_SYS_DMA, text)
    else:
        profiler, worked = observers.profiler, 0.0
        began = 0.0 if profiler is None else perf_counter()
        if count < _HELD_BELOW:
            target[to : to + count] = source[origin : origin + count]
        else:
            cpu = thread_time()
            ctypes.memmove(to_block.pointer + to, from_block.pointer + origin, count)
            worked = thread_time() - cpu
        state.copied[kind] += count
        if device.is_virtual:
            ready = submitted if submitted > stream.tail else stream.tail
            stream.tail = getattr(device, kind).book(ready, count, worked)
        if profiler is not None:
            profiler.record(device, kind, "memcpy_async", began, worked, stream.tail, count, stream.index)
    return True


@entry("acl.rt.memcpy_async", "kkkkik", hot=True)
def memcpy_async(destination: int, maximum: int, source: int, count: int, kind: int, handle: int) -> int:
    """Queue a copy on a stream; with pageable host memory it is done before the call returns."""
    context = local.context
    if (context is None or not context.is_alive) and (context := current()) is None:
        return AclCode.RT_CONTEXT_NULL
    stream = streams.get(handle) or resolve(handle, context)
    if stream.context is not context:
        return foreign("memcpy_async")
    if count == 0:
        return 0
    copied = _check("memcpy_async", destination, maximum, count, source, count, kind, context)
    if isinstance(copied, int):
        return copied
    if copied.kind == "h2h" and state.settings.run_mode == RunMode.HOST:
        return report(AclCode.RT_FEATURE_NOT_SUPPORT, "memcpy_async from host to host is not supported")
    if copied.is_pageable:
        # Only pinned memory is copied in the background: the call waits for the stream, then copies.
        refuse_deadlock(stream, "memcpy_async with pageable host memory")
        synchronize(stream, FOREVER, state.settings.gil != "release")
        state.copied["pageable"] += count
        _copy_now(copied, count, context)
        return 0
    fault = faults.take_device_fault("acl.rt.memcpy_async") if state.device_faults else 0
    (to, to_pointer), (origin, pointer) = copied.destination, copied.source
    assert to is not None
    assert origin is not None
    kind_name = "d2d" if copied.kind == "h2h" else copied.kind  # shared memory: any engine will do
    submitted = perf_counter() if stream.device.is_virtual else 0.0
    places = (to, to_pointer - to.pointer, origin, pointer - origin.pointer)
    stream.queue.append((run_copy, submitted, fault, kind_name, count, *places))
    return 0


def _check_fill(call: str, address: int, maximum: int, count: int, context: Context) -> Place | int:
    if address == 0:
        return report(AclCode.INVALID_PARAM, f"{call}: null address")
    if count > maximum:
        return report(AclCode.RT_PARAM_INVALID, f"{call}: {count} bytes into a destination of {maximum}")
    if (
        device_memory.find(address) is None
        and not is_device_address(address)
        and device_memory.explain(address) is None
    ):
        place = host_place(address, count, call)
    else:
        place = device_place(address, count, call, context)
    return AclCode.RT_PARAM_INVALID if place is None else place


@entry("acl.rt.memset", "kkik")
def memset(address: int, maximum: int, value: int, count: int) -> int:
    """Fill memory with one byte value and wait for it."""
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    place = _check_fill("memset", address, maximum, count, context)
    if isinstance(place, int):
        return place
    ctypes.memset(place.pointer, value & 0xFF, count)
    return 0


def _run_fill(stream: Stream, operation: Operation, deadline: float) -> bool:
    _, submitted, fault, block, pointer, value, count = operation
    if stream.is_halted:
        return True
    if state.gates and not faults.pass_gates("d2d", stream.device.index, deadline):
        return False
    if fault or not block.is_alive:
        stream.fail(fault or AclCode.RT_SYS_DMA, "memset_async: injected fault, or memory freed before it ran")
        return True
    ctypes.memset(pointer, value, count)
    if stream.device.is_virtual:
        stream.tail = stream.device.d2d.book(max(submitted, stream.tail), count, 0.0)
    return True


@entry("acl.rt.memset_async", "kkikk")
def memset_async(address: int, maximum: int, value: int, count: int, handle: int) -> int:
    """Queue filling device memory with one byte value."""
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    stream = resolve(handle, context)
    if stream.context is not context:
        return foreign("memset_async")
    place = _check_fill("memset_async", address, maximum, count, context)
    if isinstance(place, int):
        return place
    if place.block is None:
        return report(AclCode.RT_PARAM_INVALID, f"memset_async: {address:#x} is pageable host memory")
    fault = faults.take_device_fault("acl.rt.memset_async") if state.device_faults else 0
    stream.queue.append(
        (_run_fill, perf_counter(), fault, place.block, place.pointer, value & 0xFF, count),
    )
    return 0


@entry("acl.rt.memcpy2d", "kkkkkki", answer=RET)
def memcpy2d(destination: int, to_pitch: int, source: int, from_pitch: int, width: int, height: int, kind: int) -> int:
    """Copy a matrix row by row and wait for it."""
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    if width > to_pitch or width > from_pitch or width == 0 or height == 0:
        return report(AclCode.RT_PARAM_INVALID, f"memcpy2d: width {width}, pitches {to_pitch} and {from_pitch}")
    to_bytes, from_bytes = (to_pitch * (height - 1) + width, from_pitch * (height - 1) + width)
    checked = _check("memcpy2d", destination, to_bytes, to_bytes, source, from_bytes, kind, context)
    if isinstance(checked, int):
        return checked
    for row in range(height):
        move(checked.destination.pointer + row * to_pitch, checked.source.pointer + row * from_pitch, width)
    state.copied[checked.kind] += width * height
    return 0
