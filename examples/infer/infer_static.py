"""Static model: one shape, fixed when the model was converted.

Model: ``--input_shape "input1:1,3,32,32;input2:1,3,32,32"``.
"""

from __future__ import annotations

import numpy as np
from add_model import random_pair, run

from aioais import InferSession


async def main(model: str, device: int) -> None:
    async with InferSession(device, model) as session:
        shape = session.get_inputs()[0].shape
        a, b = random_pair(*shape)
        (total,) = await session.infer([a, b], mode="static")
        np.testing.assert_array_equal(total, a + b)
        print(f"by position: {total.shape} is right")

        # Feeds go by name as well, in any order.
        (total,) = await session.infer({"input2": b, "input1": a})
        np.testing.assert_array_equal(total, a + b)
        print(f"by name: {total.shape} is right; the device took {session.summary()[-1]:.3f} ms")


if __name__ == "__main__":
    run(main, input_shape="input1:1,3,32,32;input2:1,3,32,32")
