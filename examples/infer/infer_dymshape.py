"""Dynamic shape: every call may bring another shape, within a range at most.

Model: ``--input_shape_range "input1:[1~8,3,16~128,16~128];input2:[1~8,3,16~128,16~128]"``.
"""

from __future__ import annotations

import numpy as np
from add_model import random_pair, run

from aioais import InferSession


async def main(model: str, device: int) -> None:
    async with InferSession(device, model) as session:
        for shape in ((1, 3, 32, 32), (5, 3, 17, 99), (2, 3, 128, 16)):
            a, b = random_pair(*shape)
            # custom_sizes: bytes to set aside for the output, which such a model does not tell beforehand.
            (total,) = await session.infer([a, b], mode="dymshape", custom_sizes=a.nbytes)
            np.testing.assert_array_equal(total, a + b)
            print(f"shape of {shape}: {total.shape} is right")


if __name__ == "__main__":
    run(main, input_shape_range="input1:[1~8,3,16~128,16~128];input2:[1~8,3,16~128,16~128]")
