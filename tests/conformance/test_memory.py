"""Memory: address spaces, bounds, poison, freeing, copies."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from tests.inside import emulator_memory as memory

from aioais import emulator

H2H, H2D, D2H, D2D = 0, 1, 2, 3


def test_malloc_of_nothing_is_100000(ready: Any) -> None:
    assert ready.rt.malloc(0, 2) == (0, 100000)
    assert ready.rt.malloc_host(0) == (0, 100000)
    assert ready.rt.malloc(8, 99) == (0, 100000)


def test_free_of_null_is_100000(ready: Any) -> None:
    assert ready.rt.free(0) == 100000
    assert ready.rt.free_host(0) == 100000


def test_addresses_are_aligned(ready: Any) -> None:
    for size in (1, 63, 100, 4097):
        assert ready.rt.malloc(size, 2)[0] % 64 == 0
        assert ready.rt.malloc_host(size)[0] % 64 == 0


def test_out_of_memory_is_207001_and_freeing_helps(ready: Any) -> None:
    with emulator.configure(memory_mb=1):
        block, code = ready.rt.malloc(1 << 20, 2)
        assert code == 0
        assert ready.rt.malloc(1, 2) == (0, 207001)
        assert ready.rt.get_mem_info(0) == (0, 1 << 20, 0)
        assert ready.rt.free(block) == 0
        assert ready.rt.malloc(1, 2)[1] == 0


def test_new_memory_is_junk(ready: Any) -> None:
    block, _ = ready.rt.malloc(64, 2)
    host, _ = ready.rt.malloc_host(64)
    assert ctypes.string_at(host, 64) == bytes([0xFE]) * 64
    ctypes.memset(host, 0, 64)
    assert ready.rt.memcpy(host, 64, block, 64, D2H) == 0
    assert ctypes.string_at(host, 64) == bytes([0xFE]) * 64


def test_round_trip(ready: Any) -> None:
    array = np.arange(100_000, dtype=np.float32)
    back = np.zeros_like(array)
    one, _ = ready.rt.malloc(array.nbytes, 2)
    two, _ = ready.rt.malloc(array.nbytes, 2)
    assert ready.rt.memcpy(one, array.nbytes, array.ctypes.data, array.nbytes, H2D) == 0
    assert ready.rt.memcpy(two, array.nbytes, one, array.nbytes, D2D) == 0
    assert ready.rt.memcpy(back.ctypes.data, back.nbytes, two, back.nbytes, D2H) == 0
    assert (array == back).all()
    assert emulator.copied() == {"h2d": 400_000, "d2d": 400_000, "d2h": 400_000, "h2h": 0, "pageable": 0}


def test_copies_into_the_middle_of_a_block(ready: Any) -> None:
    block, _ = ready.rt.malloc(256, 2)
    text = b"0123456789"
    assert ready.rt.memcpy(block + 64, 192, ready.util.bytes_to_ptr(text), 10, H2D) == 0
    out = bytes(10)
    assert ready.rt.memcpy(ready.util.bytes_to_ptr(out), 10, block + 64, 10, D2H) == 0
    assert out == text


def test_codes_of_copies(ready: Any) -> None:
    block, _ = ready.rt.malloc(64, 2)
    host, _ = ready.rt.malloc_host(64)
    assert ready.rt.memcpy(block, 64, host, 0, H2D) == 0
    assert ready.rt.memcpy(0, 64, host, 64, H2D) == 100000
    assert ready.rt.memcpy(block, 64, 0, 64, H2D) == 100000
    assert ready.rt.memcpy(block, 64, host, 64, 8) == 100000
    assert ready.rt.memcpy(block, 32, host, 64, H2D) == 107000
    assert ready.rt.memcpy_async(host, 64, host, 64, H2H, 0) == 207000
    assert ready.rt.memcpy(block, 64, host, 64, 4) == 0


def test_addresses_of_the_wrong_side_are_107000(ready: Any) -> None:
    block, _ = ready.rt.malloc(64, 2)
    host, _ = ready.rt.malloc_host(64)
    array = np.zeros(64, np.uint8)
    assert ready.rt.memcpy(host, 64, array.ctypes.data, 64, H2D) == 107000
    assert ready.rt.memcpy(array.ctypes.data, 64, host, 64, H2D) == 107000
    assert ready.rt.memcpy(block, 64, block, 64, H2D) == 107000
    assert ready.rt.memcpy(block, 64, block, 64, D2H) == 107000
    assert ready.rt.memcpy_async(host, 64, array.ctypes.data, 64, D2H, 0) == 107000


def test_device_addresses_are_not_host_addresses(ready: Any) -> None:
    block, _ = ready.rt.malloc(64, 2)
    assert block >= 1 << 48
    with pytest.raises(emulator.EmulatorError, match="device memory"):
        ready.util.ptr_to_bytes(block, 8)


@pytest.mark.parametrize("kind", [H2D, D2H])
def test_bounds_of_the_real_allocation(ready: Any, kind: int) -> None:
    block, _ = ready.rt.malloc(64, 2)
    array = np.zeros(256, np.uint8)
    ends = (block, array.ctypes.data) if kind == H2D else (array.ctypes.data, block)
    with pytest.raises(emulator.EmulatorError, match="go beyond"):
        ready.rt.memcpy(ends[0], 256, ends[1], 65, kind)


def test_bounds_of_pinned_memory(ready: Any) -> None:
    block, _ = ready.rt.malloc(256, 2)
    host, _ = ready.rt.malloc_host(64)
    with pytest.raises(emulator.EmulatorError, match="go beyond pinned"):
        ready.rt.memcpy_async(block, 256, host, 65, H2D, 0)


def test_use_after_free(ready: Any) -> None:
    block, _ = ready.rt.malloc(64, 2)
    host, _ = ready.rt.malloc_host(64)
    other, _ = ready.rt.malloc_host(64)
    ready.rt.free(block)
    with pytest.raises(emulator.EmulatorError, match="already freed"):
        ready.rt.memcpy(block, 64, host, 64, H2D)
    ready.rt.free_host(host)
    block, _ = ready.rt.malloc(64, 2)
    with pytest.raises(emulator.EmulatorError, match="already freed"):
        ready.rt.memcpy(block, 64, host, 64, H2D)
    assert ready.rt.memcpy(block, 64, other, 64, H2D) == 0


def test_double_free(ready: Any) -> None:
    block, _ = ready.rt.malloc(64, 2)
    host, _ = ready.rt.malloc_host(64)
    assert ready.rt.free(block) == 0
    assert ready.rt.free_host(host) == 0
    with pytest.raises(emulator.EmulatorError, match="already freed"):
        ready.rt.free(block)
    with pytest.raises(emulator.EmulatorError, match="already freed"):
        ready.rt.free_host(host)


def test_the_other_free(ready: Any) -> None:
    block, _ = ready.rt.malloc(64, 2)
    host, _ = ready.rt.malloc_host(64)
    with pytest.raises(emulator.EmulatorError, match="free_host frees"):
        ready.rt.free(host)
    with pytest.raises(emulator.EmulatorError, match="free frees"):
        ready.rt.free_host(block)


def test_free_of_an_inner_address(ready: Any) -> None:
    block, _ = ready.rt.malloc(64, 2)
    with pytest.raises(emulator.EmulatorError, match="8 bytes into"):
        ready.rt.free(block + 8)


def test_free_after_reset_fails_quietly(ready: Any) -> None:
    block, _ = ready.rt.malloc(64, 2)
    ready.rt.reset_device(0)
    assert ready.rt.free(block) == 207002


def test_addresses_are_never_used_twice(ready: Any) -> None:
    seen = set()
    for _ in range(100):
        block, _ = ready.rt.malloc(64, 2)
        seen.add(block)
        ready.rt.free(block)
    assert len(seen) == 100


def test_no_device_runs_into_the_addresses_of_another(ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Claim(memory.Block):
        """A block that takes up addresses and hardly any memory."""

        def __init__(self, size: int, device: Any) -> None:
            super().__init__(64, device)
            self.size = size

    monkeypatch.setattr(memory, "Block", Claim)
    ends = []
    with emulator.configure(memory_mb=1 << 30):
        for device, size in ((1, 64), (0, (16 << 40) - 512), (0, 64), (1, 64)):
            assert ready.rt.set_device(device) == 0
            start, code = ready.rt.malloc(size, 2)
            assert code == 0
            ends.append((start, start + size))
    assert len({start for start, _ in ends}) == 4
    assert all(stop <= start for (_, stop), (start, _) in pairwise(sorted(ends)))


def test_memory_of_another_device_needs_peer_access(ready: Any) -> None:
    block, _ = ready.rt.malloc(64, 2)
    ready.rt.set_device(1)
    other, _ = ready.rt.malloc(64, 2)
    with pytest.raises(emulator.EmulatorError, match="memory of device 0"):
        ready.rt.memcpy(other, 64, block, 64, D2D)
    assert ready.rt.device_can_access_peer(1, 0) == (1, 0)
    assert ready.rt.device_enable_peer_access(0, 0) == 0
    assert ready.rt.memcpy(other, 64, block, 64, D2D) == 0


def test_memset(ready: Any) -> None:
    block, _ = ready.rt.malloc(64, 2)
    host, _ = ready.rt.malloc_host(64)
    assert ready.rt.memset(block, 64, 7, 64) == 0
    assert ready.rt.memset(block, 32, 7, 64) == 107000
    assert ready.rt.memset_async(block, 64, 9, 32, 0) == 0
    assert ready.rt.memcpy_async(host, 64, block, 64, D2H, 0) == 0
    assert ready.rt.synchronize_stream(0) == 0
    assert ctypes.string_at(host, 64) == b"\x09" * 32 + b"\x07" * 32


def test_memcpy2d(ready: Any) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(4, 6)
    out = np.zeros((4, 3), np.uint8)
    block, _ = ready.rt.malloc(64, 2)
    assert ready.rt.memcpy2d(block, 8, array.ctypes.data, 6, 6, 4, H2D) == 0
    assert ready.rt.memcpy2d(out.ctypes.data, 3, block, 8, 3, 4, D2H) == 0
    assert (out == array[:, :3]).all()
    assert ready.rt.memcpy2d(block, 2, array.ctypes.data, 6, 6, 4, H2D) == 107000


@pytest.mark.parametrize(("to_pitch", "from_pitch"), [(32, 8), (8, 32)])
def test_memcpy2d_between_pitches(ready: Any, pinned: Callable[[int], Any], to_pitch: int, from_pitch: int) -> None:
    host, block = pinned(3 * from_pitch + 8), ready.rt.malloc(3 * to_pitch + 8, 2)[0]
    host.bytes[:] = np.arange(host.nbytes)
    copy = (block, to_pitch, host.pointer, from_pitch, 8)
    assert ready.rt.memcpy2d(*copy, 4, H2D) == 0
    out = np.empty((4, 8), np.uint8)
    assert ready.rt.memcpy2d(out.ctypes.data, 8, block, to_pitch, 8, 4, D2H) == 0
    assert (out == [np.arange(8) + row * from_pitch for row in range(4)]).all()
    with pytest.raises(emulator.EmulatorError, match="go beyond"):
        ready.rt.memcpy2d(*copy, 5, H2D)
    small, _ = ready.rt.malloc(3 * to_pitch + 7, 2)
    with pytest.raises(emulator.EmulatorError, match=r"memcpy2d to: .* go beyond"):
        ready.rt.memcpy2d(small, *copy[1:], 4, H2D)
    short = pinned(3 * from_pitch + 7)
    with pytest.raises(emulator.EmulatorError, match=r"memcpy2d from: .* go beyond"):
        ready.rt.memcpy2d(block, to_pitch, short.pointer, *copy[3:], 4, H2D)


def test_asynchronous_copies_read_late(ready: Any, pinned: Callable[[int], Any]) -> None:
    host, out = pinned(64), pinned(64)
    block, _ = ready.rt.malloc(64, 2)
    host.bytes[:] = 1
    assert ready.rt.memcpy_async(block, 64, host.pointer, 64, H2D, 0) == 0
    host.bytes[:] = 2
    assert ready.rt.memcpy_async(out.pointer, 64, block, 64, D2H, 0) == 0
    assert not (out.bytes == 2).any()
    assert ready.rt.synchronize_stream(0) == 0
    assert (out.bytes == 2).all()


def test_pageable_copies_happen_inside_the_call(ready: Any, pinned: Callable[[int], Any]) -> None:
    array, out = np.full(64, 1, np.uint8), np.zeros(64, np.uint8)
    block, _ = ready.rt.malloc(64, 2)
    assert ready.rt.memcpy_async(block, 64, array.ctypes.data, 64, H2D, 0) == 0
    array[:] = 2
    assert ready.rt.memcpy_async(out.ctypes.data, 64, block, 64, D2H, 0) == 0
    assert (out == 1).all()
    assert emulator.copied()["pageable"] == 128


def test_memory_freed_before_the_stream_ran_fails_at_synchronise(ready: Any, pinned: Callable[[int], Any]) -> None:
    host = pinned(64)
    block, _ = ready.rt.malloc(64, 2)
    ready.rt.memcpy_async(block, 64, host.pointer, 64, H2D, 0)
    ready.rt.free(block)
    assert ready.rt.synchronize_stream(0) == 507013
    assert "freed before the stream ran" in ready.get_recent_err_msg()
    assert ready.rt.synchronize_stream(0) == 0


def test_boards_share_their_memory(acl: Any) -> None:
    emulator.configure(run_mode=0)
    acl.init()
    acl.rt.set_device(0)
    assert acl.rt.get_run_mode() == (0, 0)
    block, _ = acl.rt.malloc(64, 2)
    ctypes.memset(block, 5, 64)
    out = np.zeros(64, np.uint8)
    for kind in (D2H, H2D, D2D):
        out[:] = 0
        assert acl.rt.memcpy(out.ctypes.data, 64, block, 64, kind) == 0
        assert (out == 5).all()
    assert acl.rt.free(block) == 0
    with pytest.raises(emulator.EmulatorError, match="already freed"):
        acl.rt.memcpy(out.ctypes.data, 64, block, 64, D2H)
