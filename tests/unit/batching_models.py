"""Models and helpers of the tests of BatchingSession."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tests.unit.conftest import Models

    from aioais.emulator import Gate

Array = np.ndarray[Any, np.dtype[Any]]

WIDTH = 4


def rows(first: int, count: int = 1) -> Array:
    """Rows that are unlike those of any other number."""
    return np.arange(first * 100, first * 100 + count * WIDTH, dtype=np.float32).reshape(count, WIDTH)


def doubled(models: Models, gears: str = "1,2,4,8", name: str = "doubled") -> str:
    """``y = x + x`` with gears for the rows."""
    path = models.write(
        f"{name}_plain", [("Add", ["x", "x"], ["y"], {})], {"x": (1, ["n", WIDTH])}, {"y": (1, ["n", WIDTH])}
    )
    return models.convert(path, name, input_shape=f"x:-1,{WIDTH}", dynamic_batch_size=gears)


def picking(models: Models, name: str = "picking") -> str:
    """``y = table[x]``, with gears: an index out of range makes the model fail on the device."""
    table = np.arange(100, dtype=np.float32)
    path = models.write(
        f"{name}_plain",
        [("Gather", ["table", "x"], ["y"], {"axis": 0})],
        {"x": (7, ["n", 1])},
        {"y": (1, ["n", 1])},
        {"table": table},
    )
    return models.convert(path, name, input_shape="x:-1,1", dynamic_batch_size="1,2,4,8")


async def until(is_so: Callable[[], bool]) -> None:
    """Let the event loop run until something is so."""
    while not is_so():
        await asyncio.sleep(0.0005)


async def reached(gate: Gate, count: int = 1) -> None:
    """Wait until operations stand before a gate."""
    assert await asyncio.to_thread(gate.wait_reached, 10, count)


async def turns(count: int = 3) -> None:
    """Let what is due on the event loop run."""
    for _ in range(count):
        await asyncio.sleep(0)
