"""Pipeline with dynamic image size: each item may have another size of the list given at conversion.

Model: ``--input_format NCHW --input_shape "input1:1,3,-1,-1;input2:1,3,-1,-1"
--dynamic_image_size "256,256;512,512"``.
"""

from __future__ import annotations

from add_pipeline import add_all, pairs, run

from aioais import InferSession


async def main(model: str, device: int) -> None:
    async with InferSession(device, model) as session:
        sizes = [(256, 256), (512, 512), (512, 512)] * 12
        await add_all(session, pairs((1, 3, *size) for size in sizes), mode="dymhw")


if __name__ == "__main__":
    run(
        main,
        input_format="NCHW",
        input_shape="input1:1,3,-1,-1;input2:1,3,-1,-1",
        dynamic_image_size="256,256;512,512",
    )
