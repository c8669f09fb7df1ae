"""Dynamic shape: each request may have another shape, within a range.

Run it with ``python examples/infer/infer_dymshape.py [model.om] [device]``.
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
        for shape in ((1, 3, 32, 32), (5, 3, 17, 99), (2, 3, 128, 16)):
            ones = np.ones(shape, np.float32)
            # custom_sizes: bytes to allocate for the output, as such a model does not know its size in advance.
            (total,) = await session.infer([ones, 2 * ones], mode="dymshape", custom_sizes=ones.nbytes)
            assert (total == 3).all()
            print(f"shape of {shape}: {total.shape} is right")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            model = sys.argv[1]
        else:
            model = aioais.convert(
                ADD_MODEL,
                f"{folder}/add.onnx",
                input_shape_range="input1:[1~8,3,16~128,16~128];input2:[1~8,3,16~128,16~128]",
            )
        aioais.run(main, model, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
