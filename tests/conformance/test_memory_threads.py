"""Memory looked up by one thread while others allocate and free; what a look-up costs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from aioais import emulator
from aioais.emulator.memory import Heap, device_memory

H2D = 1


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as they can, and freed memory is not filled."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    with emulator.configure(poison=False):
        yield
    sys.setswitchinterval(interval)


def test_a_block_is_found_while_others_are_freed(ready: Any, hasty: None) -> None:
    for _ in range(5):
        below = [ready.rt.malloc(64, 2)[0] for _ in range(2000)]
        block, _ = ready.rt.malloc(4096, 2)
        above = [ready.rt.malloc(64, 2)[0] for _ in range(2000)]
        churn = threading.Thread(target=lambda gone=below: [ready.rt.free(address) for address in gone])
        churn.start()
        found = set()
        while churn.is_alive():
            around = device_memory.find(block + 2048)
            found.add(around and around.address)
        churn.join()
        assert found <= {block}
        for address in (block, *above):
            assert ready.rt.free(address) == 0


def test_pageable_memory_is_copied_while_pinned_memory_is_freed(ready: Any, hasty: None) -> None:
    array = np.arange(64, dtype=np.uint8)
    block, _ = ready.rt.malloc(64, 2)
    context, _ = ready.rt.get_context()

    def work() -> None:
        ready.rt.set_context(context)
        for _ in range(1000):
            ready.rt.free_host(ready.rt.malloc_host(64)[0])

    churn = threading.Thread(target=work)
    churn.start()
    codes = {ready.rt.memcpy(block, 64, array.ctypes.data, 64, H2D)}
    while churn.is_alive():
        codes.add(ready.rt.memcpy(block, 64, array.ctypes.data, 64, H2D))
    churn.join()
    assert codes == {0}


def test_a_gate_for_the_memory_of_one_device(ready: Any) -> None:
    codes: list[int] = []

    def work() -> None:
        ready.rt.set_device(1)
        codes.append(ready.rt.malloc(64, 2)[1])

    with emulator.gate("malloc", 1) as gate:
        assert ready.rt.malloc(64, 2)[1] == 0
        assert ready.rt.malloc_host(64)[1] == 0
        thread = threading.Thread(target=work)
        thread.start()
        assert gate.wait_reached(10)
        assert (gate.reached, codes) == (1, [])
    thread.join(10)
    assert codes == [0]


class Looked:
    """A block that counts how often its end is read."""

    count = 0

    def __init__(self, address: int) -> None:
        self.address = address
        self.pointer = 0
        self.alive = True
        self.array = None

    @property
    def size(self) -> int:
        Looked.count += 1
        return 64


def test_what_was_freed_is_not_searched_block_by_block() -> None:
    heap: Any = Heap("memory")
    blocks = [Looked(address) for address in range(1024, 1024 * 1024, 1024)]
    with emulator.configure(poison=False):
        for block in blocks:
            heap.add(block)
            heap.remove(block)
    Looked.count = 0
    assert heap.explain(1 << 40) is None
    assert Looked.count <= 1
    assert "0x800 of 64 bytes, already freed" in heap.explain(2048 + 63)
    assert heap.explain(2048 + 64) is None
