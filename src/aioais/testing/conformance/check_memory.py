"""Checks of memory and of copies in a stream."""

from __future__ import annotations

import ctypes

from ..._cann.codes import AclCode
from ..._cann.constants import MallocPolicy, MemcpyKind
from .bench import Bench, Check, Register, checks_of

__all__ = ["CHECKS"]

CHECKS: list[Check] = []

check: Register = checks_of("memory", CHECKS)

H2D, D2H, D2D = MemcpyKind.HOST_TO_DEVICE, MemcpyKind.DEVICE_TO_HOST, MemcpyKind.DEVICE_TO_DEVICE
_TOO_MUCH = 1 << 50


def _pattern(seed: int, nbytes: int) -> bytes:
    return bytes((seed * 31 + i * 7) & 0xFF for i in range(nbytes))


@check("malloc gives an address aligned to 64 bytes, free takes it back")
def alloc(bench: Bench) -> None:
    """For odd sizes too."""
    for nbytes in (1, 63, 4096, 1 << 20):
        address = bench.memory(nbytes)
        bench.true(f"malloc({nbytes}): got {address:#x}, expected a multiple of 64", address > 0 and address % 64 == 0)


@check("malloc and malloc_host of 0 bytes are refused with 100000")
def alloc_nothing(bench: Bench) -> None:
    """The engine never asks for 0 bytes."""
    rt = bench.acl.rt
    expected = (0, AclCode.INVALID_PARAM)
    bench.same("malloc(0)", rt.malloc(0, int(MallocPolicy.HUGE_FIRST)), expected)
    bench.same("malloc_host(0)", rt.malloc_host(0), expected)


@check("free and free_host of 0 are refused with 100000")
def free_nothing(bench: Bench) -> None:
    """Null addresses have a code."""
    bench.same("free(0)", bench.acl.rt.free(0), AclCode.INVALID_PARAM)
    bench.same("free_host(0)", bench.acl.rt.free_host(0), AclCode.INVALID_PARAM)


@check("more memory than there is is refused with a code of the family 2xxxxx")
def out_of_memory(bench: Bench) -> None:
    """The engine frees what is idle and tries once more."""
    address, code = bench.acl.rt.malloc(_TOO_MUCH, int(MallocPolicy.HUGE_FIRST))
    if not code:
        bench.acl.rt.free(address)
    bench.same("address of the failed malloc", address, 0)
    bench.one_of("malloc of 1 PiB", code, AclCode.RT_MEMORY_ALLOCATION, AclCode.BAD_ALLOC, 207018)


@check("what is copied to the device and back is the same")
def round_trip(bench: Bench) -> None:
    """Over pinned memory, for sizes that are no multiples of anything."""
    stream = bench.stream()
    for nbytes in (1, 1000, 100_003):
        content = _pattern(3, nbytes)
        source, device, target = bench.pinned(nbytes), bench.memory(nbytes), bench.pinned(nbytes)
        bench.put(source, content)
        bench.put(target, bytes(nbytes))
        bench.copy(device, source, nbytes, H2D, stream)
        bench.copy(target, device, nbytes, D2H, stream)
        bench.wait(stream)
        bench.true(f"{nbytes} bytes came back changed", bench.get(target, nbytes) == content)


@check("copies of one stream happen in the order in which they were queued")
def order(bench: Bench) -> None:
    """One device buffer, written and read again and again without a wait."""
    stream, nbytes, rounds = bench.stream(), 4096, 16
    source, device, target = bench.pinned(rounds * nbytes), bench.memory(nbytes), bench.pinned(rounds * nbytes)
    content = b"".join(_pattern(seed, nbytes) for seed in range(rounds))
    bench.put(source, content)
    for start in range(0, rounds * nbytes, nbytes):
        bench.copy(device, source + start, nbytes, H2D, stream)
        bench.copy(target + start, device, nbytes, D2H, stream)
    bench.wait(stream)
    bench.true("copies overtook one another", bench.get(target, rounds * nbytes) == content)


@check("copies within the device, and into the middle of a block")
def on_device(bench: Bench) -> None:
    """``mem_copy`` of an iteration is such a copy."""
    stream, nbytes = bench.stream(), 1024
    content = _pattern(5, nbytes)
    source, first, second, target = bench.pinned(nbytes), bench.memory(nbytes), bench.memory(4096), bench.pinned(nbytes)
    bench.put(source, content)
    bench.copy(first, source, nbytes, H2D, stream)
    bench.copy(second + 512, first, nbytes, D2D, stream)
    bench.copy(target, second + 512, nbytes, D2H, stream)
    bench.wait(stream)
    bench.true("the bytes came back changed", bench.get(target, nbytes) == content)


@check("memory that is not pinned can be copied from and to, in the order of the stream")
def pageable(bench: Bench) -> None:
    """Slower, with the same result."""
    stream, nbytes = bench.stream(), 5000
    content = _pattern(9, nbytes)
    source = ctypes.create_string_buffer(content, nbytes)
    target = ctypes.create_string_buffer(nbytes)
    device = bench.memory(nbytes)
    bench.copy(device, ctypes.addressof(source), nbytes, H2D, stream)
    bench.copy(ctypes.addressof(target), device, nbytes, D2H, stream)
    bench.wait(stream)
    bench.true("the bytes came back changed", target.raw == content)


@check("a copy beyond the room of its target, from or to nowhere, or of no kind is refused")
def bad_copies(bench: Bench) -> None:
    """At the call, and nothing is copied."""
    rt, stream = bench.acl.rt, bench.stream()
    device, host = bench.memory(64), bench.pinned(64)
    bench.fails("memcpy_async of 64 bytes into 32", rt.memcpy_async(device, 32, host, 64, int(H2D), stream))
    bench.fails("memcpy_async to 0", rt.memcpy_async(0, 64, host, 64, int(H2D), stream))
    bench.fails("memcpy_async from 0", rt.memcpy_async(device, 64, 0, 64, int(H2D), stream))
    bench.fails("memcpy_async of kind 77", rt.memcpy_async(device, 64, host, 64, 77, stream))
    bench.wait(stream)
