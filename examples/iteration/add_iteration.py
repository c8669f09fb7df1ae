"""What the iteration examples share: a running sum on the device, and its time against a loop of ``infer``.

The Add model and the command line (``[model.om] [device]``) are those of ``examples/infer/add_model.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "infer"))

from add_model import random_pair, run

from aioais import InferSession, Mode

__all__ = ["add_up", "run"]

STEPS = 100


async def add_up(session: InferSession, shape: tuple[int, ...], mode: Mode, custom_sizes: int = 100_000) -> None:
    """Add one array to another again and again; check the sum and print the time saved."""
    a, b = random_pair(*shape)
    # The first input is the sum of the step before (output 0), the second stays what it is (-1).
    wiring = [0, -1]
    for mem_copy in (True, False):  # the first requests of a session set up its buffers
        await session.infer_iteration([a, b], wiring, 2, mode, custom_sizes, mem_copy)

    total = a
    start = perf_counter()
    for _ in range(STEPS):
        (total,) = await session.infer([total, b], mode, custom_sizes)
    on_host = perf_counter() - start
    np.testing.assert_array_equal(total, a + STEPS * b)

    # With mem_copy=False the buffers change places, and no bytes are moved between the steps at all.
    for mem_copy, way in ((True, "copied"), (False, "exchanged")):
        start = perf_counter()
        (total,) = await session.infer_iteration([a, b], wiring, STEPS, mode, custom_sizes, mem_copy)
        on_device = perf_counter() - start
        np.testing.assert_array_equal(total, a + STEPS * b)
        print(
            f"{way}: {total.shape} is right after {STEPS} steps; one by one {on_host * 1e3:.1f} ms, "
            f"iteration {on_device * 1e3:.1f} ms: {1 - on_device / on_host:.0%} saved"
        )
