"""Pipeline over a static model: copies and executions of successive items overlap.

Run it with ``python examples/pipeline/infer_pipeline_static.py [model.om] [device]``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator
from time import perf_counter

import numpy as np

import aioais
from aioais import InferSession, emulator
from aioais.demo_data import ADD_MODEL


async def main(model: str, device: int) -> None:
    shapes = [(1, 3, 256, 256)] * 40
    items = [[np.full(shape, k, np.float32), np.ones(shape, np.float32)] for k, shape in enumerate(shapes)]
    async with InferSession(device, model) as session:
        async for _ in session.infer_pipeline(items[:12], mode="static"):
            pass  # the first requests allocate buffers

        # Times of a device with three engines, in milliseconds. They apply to the CPU device only.
        with emulator.configure(h2d_ms=3, execute_ms=6, d2h_ms=3):
            start = perf_counter()
            for feeds in items:
                await session.infer(feeds, mode="static")
            one_by_one = perf_counter() - start

            start = perf_counter()
            count = 0
            async for (total,) in session.infer_pipeline(items, mode="static"):
                assert total.shape == shapes[count]
                assert (total == count + 1).all()
                count += 1
            pipeline = perf_counter() - start

        # An async iterable is as good a source: here it stands for a camera or a queue.
        async def camera() -> AsyncIterator[list[np.ndarray]]:
            for shape in shapes[:8]:
                yield [np.ones(shape, np.float32)] * 2

        async for (total,) in session.infer_pipeline(camera(), mode="static"):
            assert (total == 2).all()

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
            model = aioais.convert(ADD_MODEL, f"{folder}/add.onnx", input_shape="input1:1,3,256,256;input2:1,3,256,256")
        aioais.run(main, model, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
