"""Pipeline with dynamic shape: each item may have any shape within the range.

Model: ``--input_shape_range "input1:[1~8,3,16~512,16~512];input2:[1~8,3,16~512,16~512]"``.
"""

from __future__ import annotations

from add_pipeline import add_all, pairs, run

from aioais import InferSession


async def main(model: str, device: int) -> None:
    async with InferSession(device, model) as session:
        items = pairs((1 + k % 3, 3, 128 + 16 * k % 300, 256) for k in range(36))
        # Bytes to set aside for the output, which such a model does not tell beforehand.
        largest = max(a.nbytes for a, _ in items)
        await add_all(session, items, mode="dymshape", custom_sizes=largest)


if __name__ == "__main__":
    run(main, input_shape_range="input1:[1~8,3,16~512,16~512];input2:[1~8,3,16~512,16~512]")
