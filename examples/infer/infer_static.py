"""Static model: one shape, fixed when the model is converted.

Run it with ``python examples/infer/infer_static.py [model.om] [device]``.
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np

import aioais
from aioais import InferSession
from aioais.demo_data import ADD_MODEL


async def main(model: str, device: int) -> None:
    ones = np.ones((1, 3, 32, 32), np.float32)
    async with InferSession(device, model) as session:
        (total,) = await session.infer([ones, 2 * ones], mode="static")
        assert (total == 3).all()
        print(f"by position: {total.shape} is right")

        # Feeds by name, in any order.
        (total,) = await session.infer({"input2": ones, "input1": 4 * ones})
        assert (total == 5).all()
        print(f"by name: {total.shape} is right; the device took {session.summary()[-1]:.3f} ms")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            model = sys.argv[1]
        else:
            model = aioais.convert(ADD_MODEL, f"{folder}/add.onnx", input_shape="input1:1,3,32,32;input2:1,3,32,32")
        aioais.run(main, model, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
