"""Dynamic dims: any dims may vary together, in combinations that were fixed when the model was converted.

Model: ``--input_format ND --input_shape "input1:-1,3,-1,-1;input2:-1,3,-1,-1"
--dynamic_dims "1,32,32,1,32,32;4,64,64,4,64,64"``.
"""

from __future__ import annotations

import numpy as np
from add_model import random_pair, run

from aioais import InferSession


async def main(model: str, device: int) -> None:
    async with InferSession(device, model) as session:
        for batch, height, width in ((1, 32, 32), (4, 64, 64), (1, 32, 32)):
            a, b = random_pair(batch, 3, height, width)
            (total,) = await session.infer([a, b], mode="dymdims")
            np.testing.assert_array_equal(total, a + b)
            print(f"dims of {batch},{height},{width}: {total.shape} is right")


if __name__ == "__main__":
    run(
        main,
        input_format="ND",
        input_shape="input1:-1,3,-1,-1;input2:-1,3,-1,-1",
        dynamic_dims="1,32,32,1,32,32;4,64,64,4,64,64",
    )
