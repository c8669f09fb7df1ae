"""Iteration over a static model: each step adds to the sum of the step before.

Run it with ``python examples/iteration/infer_iteration_static.py [model.om] [device]``.
"""

from __future__ import annotations

import sys
import tempfile
from time import perf_counter

import numpy as np

import aioais
from aioais import InferSession
from aioais.demo_data import ADD_MODEL

STEPS = 100


async def main(model: str, device: int) -> None:
    async with InferSession(device, model) as session:
        for shape in [(1, 3, 512, 512)]:
            a, b = np.full(shape, 5, np.float32), np.ones(shape, np.float32)
            await session.infer([a, b], mode="static")  # the first request allocates buffers

            start = perf_counter()
            total = a
            for _ in range(STEPS):
                (total,) = await session.infer([total, b], mode="static")
            one_by_one = perf_counter() - start

            # Output 0 becomes input 0 of the next step; input 1 stays (-1). The arrays cross to the host only once.
            # mem_copy=False exchanges the buffers between the steps instead of copying them.
            start = perf_counter()
            (total,) = await session.infer_iteration(
                [a, b], in_out_list=[0, -1], iteration_times=STEPS, mode="static", mem_copy=False
            )
            iteration = perf_counter() - start

            assert (total == 5 + STEPS).all()
            print(
                f"{total.shape} is right after {STEPS} steps; one by one {one_by_one * 1e3:.0f} ms, "
                f"iteration {iteration * 1e3:.0f} ms: {1 - iteration / one_by_one:.0%} saved"
            )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            model = sys.argv[1]
        else:
            model = aioais.convert(ADD_MODEL, f"{folder}/add.onnx", input_shape="input1:1,3,512,512;input2:1,3,512,512")
        aioais.run(main, model, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
