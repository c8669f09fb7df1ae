"""Iteration with dynamic shape: any shape within the range.

Model: ``--input_shape_range "input1:[1~8,3,16~512,16~512];input2:[1~8,3,16~512,16~512]"``.
"""

from __future__ import annotations

from math import prod

from add_iteration import add_up, run

from aioais import InferSession


async def main(model: str, device: int) -> None:
    async with InferSession(device, model) as session:
        for shape in ((3, 3, 272, 512), (1, 3, 200, 480)):
            # Bytes to set aside for the output, which such a model does not tell beforehand.
            await add_up(session, shape, mode="dymshape", custom_sizes=4 * prod(shape))


if __name__ == "__main__":
    run(main, input_shape_range="input1:[1~8,3,16~512,16~512];input2:[1~8,3,16~512,16~512]")
