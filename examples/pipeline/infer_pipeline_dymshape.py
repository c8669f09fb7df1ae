"""Pipeline with dynamic shape: each item may have any shape within the range.

Run it with ``python examples/pipeline/infer_pipeline_dymshape.py [model.om] [device]``.
"""

from __future__ import annotations

import sys
import tempfile
from math import prod
from time import perf_counter

import numpy as np

import aioais
from aioais import InferSession, emulator
from aioais.demo_data import ADD_MODEL


async def main(model: str, device: int) -> None:
    shapes = [(1 + k % 3, 3, 128 + 16 * k % 300, 256) for k in range(36)]
    items = [[np.full(shape, k, np.float32), np.ones(shape, np.float32)] for k, shape in enumerate(shapes)]
    # Bytes to allocate for the output, as such a model does not know its size in advance.
    largest = max(4 * prod(shape) for shape in shapes)
    async with InferSession(device, model) as session:
        async for _ in session.infer_pipeline(items[:12], mode="dymshape", custom_sizes=largest):
            pass  # the first requests allocate buffers

        # Times of a device with three engines, in milliseconds. They apply to the CPU device only.
        with emulator.configure(h2d_ms=3, execute_ms=6, d2h_ms=3):
            start = perf_counter()
            for feeds in items:
                await session.infer(feeds, mode="dymshape", custom_sizes=largest)
            one_by_one = perf_counter() - start

            start = perf_counter()
            count = 0
            async for (total,) in session.infer_pipeline(items, mode="dymshape", custom_sizes=largest):
                assert total.shape == shapes[count]
                assert (total == count + 1).all()
                count += 1
            pipeline = perf_counter() - start

    assert count == len(items)
    print(
        f"{count} sums are right; one by one {one_by_one * 1e3:.0f} ms, "
        f"pipeline {pipeline * 1e3:.0f} ms: {1 - pipeline / one_by_one:.0%} saved"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            model = sys.argv[1]
        else:
            model = aioais.convert(
                ADD_MODEL,
                f"{folder}/add.onnx",
                input_shape_range="input1:[1~8,3,16~512,16~512];input2:[1~8,3,16~512,16~512]",
            )
        aioais.run(main, model, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
