"""Iteration over a static model: each step adds to the sum of the one before.

Model: ``--input_shape "input1:1,3,512,512;input2:1,3,512,512"``.
"""

from __future__ import annotations

from add_iteration import add_up, run

from aioais import InferSession


async def main(model: str, device: int) -> None:
    async with InferSession(device, model) as session:
        await add_up(session, tuple(session.get_inputs()[0].shape), mode="static")


if __name__ == "__main__":
    run(main, input_shape="input1:1,3,512,512;input2:1,3,512,512")
