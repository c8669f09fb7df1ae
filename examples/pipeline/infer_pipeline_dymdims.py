"""Pipeline with dynamic dims: each item may have another combination of those given at conversion.

Model: ``--input_format ND --input_shape "input1:-1,3,-1,-1;input2:-1,3,-1,-1"
--dynamic_dims "1,256,256,1,256,256;4,512,256,4,512,256"``.
"""

from __future__ import annotations

from add_pipeline import add_all, pairs, run

from aioais import InferSession


async def main(model: str, device: int) -> None:
    async with InferSession(device, model) as session:
        shapes = [(1, 3, 256, 256), (4, 3, 512, 256)] * 15
        await add_all(session, pairs(shapes), mode="dymdims")


if __name__ == "__main__":
    run(
        main,
        input_format="ND",
        input_shape="input1:-1,3,-1,-1;input2:-1,3,-1,-1",
        dynamic_dims="1,256,256,1,256,256;4,512,256,4,512,256",
    )
