"""Feeds of the model ``output = input1 + input2``, and the sums it has to give: exact, and different for each seed."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def feeds(shape: tuple[int, ...], seed: int = 0) -> list[Array]:
    """Give both inputs; whole numbers, so that sums and repeated sums of float32 are exact."""
    base = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return [base + seed, np.full(shape, 1.0 + seed, np.float32)]


def wanted(shape: tuple[int, ...], seed: int = 0, steps: int = 1) -> Array:
    """Give ``input1 + steps * input2``: the output of one run, or of an iteration that feeds it to ``input1``."""
    first, second = feeds(shape, seed)
    total: Array = first + np.float32(steps) * second
    return total


def check(shape: tuple[int, ...], seed: int, outputs: list[Array]) -> None:
    """Check what a run of these feeds gave."""
    (got,) = outputs
    np.testing.assert_array_equal(got, wanted(shape, seed))
