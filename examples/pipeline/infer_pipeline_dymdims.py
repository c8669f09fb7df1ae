"""Pipeline with dynamic dims: each item may have another combination of the list.

Run it with ``python examples/pipeline/infer_pipeline_dymdims.py [model.om] [device]``.
"""

from __future__ import annotations

import sys
import tempfile
from time import perf_counter

import numpy as np

import aioais
from aioais import InferSession, emulator
from aioais.demo_data import ADD_MODEL


async def main(model: str, device: int) -> None:
    shapes = [(1, 3, 256, 256), (4, 3, 512, 256)] * 15
    items = [[np.full(shape, k, np.float32), np.ones(shape, np.float32)] for k, shape in enumerate(shapes)]
    async with InferSession(device, model) as session:
        async for _ in session.infer_pipeline(items[:12], mode="dymdims"):
            pass  # the first requests allocate buffers

        # Times of a device with three engines, in milliseconds. They apply to the CPU device only.
        with emulator.configure(h2d_ms=3, execute_ms=6, d2h_ms=3):
            start = perf_counter()
            for feeds in items:
                await session.infer(feeds, mode="dymdims")
            one_by_one = perf_counter() - start

            start = perf_counter()
            count = 0
            async for (total,) in session.infer_pipeline(items, mode="dymdims"):
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
                input_format="ND",
                input_shape="input1:-1,3,-1,-1;input2:-1,3,-1,-1",
                dynamic_dims="1,256,256,1,256,256;4,512,256,4,512,256",
            )
        aioais.run(main, model, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
