"""Iteration with dynamic dims: an iteration keeps the dims of its feeds, the next may have others.

Model: ``--input_format ND --input_shape "input1:-1,3,-1,-1;input2:-1,3,-1,-1"
--dynamic_dims "1,256,256,1,256,256;4,512,256,4,512,256"``.
"""

from __future__ import annotations

from add_iteration import add_up, run

from aioais import InferSession


async def main(model: str, device: int) -> None:
    async with InferSession(device, model) as session:
        for shape in ((4, 3, 512, 256), (1, 3, 256, 256)):
            await add_up(session, shape, mode="dymdims")


if __name__ == "__main__":
    run(
        main,
        input_format="ND",
        input_shape="input1:-1,3,-1,-1;input2:-1,3,-1,-1",
        dynamic_dims="1,256,256,1,256,256;4,512,256,4,512,256",
    )
