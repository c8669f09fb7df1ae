"""Pipeline with dynamic batch: each item may have another batch of the list given at conversion.

Model: ``--input_shape "input1:-1,3,256,256;input2:-1,3,256,256" --dynamic_batch_size 1,2,4,8``.
"""

from __future__ import annotations

from add_pipeline import add_all, pairs, run

from aioais import InferSession


async def main(model: str, device: int) -> None:
    async with InferSession(device, model) as session:
        batches = [1, 8, 2, 4, 4, 8] * 6
        await add_all(session, pairs((batch, 3, 256, 256) for batch in batches), mode="dymbatch")


if __name__ == "__main__":
    run(main, input_shape="input1:-1,3,256,256;input2:-1,3,256,256", dynamic_batch_size="1,2,4,8")
