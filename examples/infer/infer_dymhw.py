"""Dynamic image size: height and width are one of a list that was fixed when the model was converted.

Model: ``--input_format NCHW --input_shape "input1:1,3,-1,-1;input2:1,3,-1,-1"
--dynamic_image_size "32,32;64,64"``.
"""

from __future__ import annotations

import numpy as np
from add_model import random_pair, run

from aioais import InferSession


async def main(model: str, device: int) -> None:
    async with InferSession(device, model) as session:
        for height, width in ((32, 32), (64, 64), (32, 32)):
            a, b = random_pair(1, 3, height, width)
            (total,) = await session.infer([a, b], mode="dymhw")
            np.testing.assert_array_equal(total, a + b)
            print(f"image of {height}x{width}: {total.shape} is right")


if __name__ == "__main__":
    run(
        main,
        input_format="NCHW",
        input_shape="input1:1,3,-1,-1;input2:1,3,-1,-1",
        dynamic_image_size="32,32;64,64",
    )
