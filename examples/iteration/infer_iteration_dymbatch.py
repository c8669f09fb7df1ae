"""Iteration with dynamic batch: an iteration keeps the batch of its feeds, the next may have another.

Model: ``--input_shape "input1:-1,3,256,256;input2:-1,3,256,256" --dynamic_batch_size 1,2,4,8``.
"""

from __future__ import annotations

from add_iteration import add_up, run

from aioais import InferSession


async def main(model: str, device: int) -> None:
    async with InferSession(device, model) as session:
        for batch in (8, 2):
            await add_up(session, (batch, 3, 256, 256), mode="dymbatch")


if __name__ == "__main__":
    run(main, input_shape="input1:-1,3,256,256;input2:-1,3,256,256", dynamic_batch_size="1,2,4,8")
