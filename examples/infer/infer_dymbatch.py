"""Dynamic batch: the batch is one of a list that is fixed when the model is converted.

Run it with ``python examples/infer/infer_dymbatch.py [model.om] [device]``.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile

import numpy as np

import aioais
from aioais import FeedError, InferSession
from aioais.demo_data import ADD_MODEL


async def main(model: str, device: int) -> None:
    async with InferSession(device, model) as session:

        async def add(batch: int) -> None:
            ones = np.ones((batch, 3, 32, 32), np.float32)
            (total,) = await session.infer([ones, batch * ones], mode="dymbatch")
            assert (total == 1 + batch).all()
            print(f"batch of {batch}: {total.shape} is right")

        # The batch belongs to the request: requests with different batches can run at the same time.
        await asyncio.gather(add(1), add(2), add(4), add(8))

        try:
            await add(3)
        except FeedError as error:
            print(f"batch of 3: {error}")
        else:
            raise AssertionError("a batch of 3 was accepted")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            model = sys.argv[1]
        else:
            model = aioais.convert(
                ADD_MODEL,
                f"{folder}/add.onnx",
                input_shape="input1:-1,3,32,32;input2:-1,3,32,32",
                dynamic_batch_size="1,2,4,8",
            )
        aioais.run(main, model, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
