"""Dynamic batch: the batch is one of a list that was fixed when the model was converted.

Model: ``--input_shape "input1:-1,3,32,32;input2:-1,3,32,32" --dynamic_batch_size 1,2,4,8``.
"""

from __future__ import annotations

import asyncio

import numpy as np
from add_model import random_pair, run

from aioais import FeedError, InferSession


async def main(model: str, device: int) -> None:
    async with InferSession(device, model) as session:

        async def add(batch: int) -> None:
            a, b = random_pair(batch, 3, 32, 32)
            (total,) = await session.infer([a, b], mode="dymbatch")
            np.testing.assert_array_equal(total, a + b)
            print(f"batch of {batch}: {total.shape} is right")

        # The gear belongs to the request: different ones can be awaited at the same time.
        await asyncio.gather(*(add(batch) for batch in (1, 2, 4, 8)))

        try:
            await add(3)
        except FeedError as exc:
            print(f"batch of 3: refused: {exc}")
        else:
            raise AssertionError("a batch of 3 was accepted")


if __name__ == "__main__":
    run(main, input_shape="input1:-1,3,32,32;input2:-1,3,32,32", dynamic_batch_size="1,2,4,8")
