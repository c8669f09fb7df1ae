"""Dynamic image size: height and width are one of a list that is fixed when the model is converted.

Run it with ``python examples/infer/infer_dymhw.py [model.om] [device]``.
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np

import aioais
from aioais import InferSession
from aioais.demo_data import ADD_MODEL


async def main(model: str, device: int) -> None:
    async with InferSession(device, model) as session:
        for height, width in ((32, 32), (64, 64), (32, 32)):
            ones = np.ones((1, 3, height, width), np.float32)
            (total,) = await session.infer([ones, 2 * ones], mode="dymhw")
            assert (total == 3).all()
            print(f"image of {height}x{width}: {total.shape} is right")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            model = sys.argv[1]
        else:
            model = aioais.convert(
                ADD_MODEL,
                f"{folder}/add.onnx",
                input_format="NCHW",
                input_shape="input1:1,3,-1,-1;input2:1,3,-1,-1",
                dynamic_image_size="32,32;64,64",
            )
        aioais.run(main, model, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
