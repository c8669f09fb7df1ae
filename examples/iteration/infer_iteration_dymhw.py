"""Iteration with dynamic image size: an iteration keeps the size of its feeds, the next may have another.

Model: ``--input_format NCHW --input_shape "input1:1,3,-1,-1;input2:1,3,-1,-1"
--dynamic_image_size "256,256;512,512"``.
"""

from __future__ import annotations

from add_iteration import add_up, run

from aioais import InferSession


async def main(model: str, device: int) -> None:
    async with InferSession(device, model) as session:
        for size in ((512, 512), (256, 256)):
            await add_up(session, (1, 3, *size), mode="dymhw")


if __name__ == "__main__":
    run(
        main,
        input_format="NCHW",
        input_shape="input1:1,3,-1,-1;input2:1,3,-1,-1",
        dynamic_image_size="256,256;512,512",
    )
