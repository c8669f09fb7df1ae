"""Pipeline over a static model: copies and executions of successive items overlap.

Model: ``--input_shape "input1:1,3,512,512;input2:1,3,512,512"``.
"""

from __future__ import annotations

from add_pipeline import add_all, pairs, run

from aioais import InferSession


async def main(model: str, device: int) -> None:
    async with InferSession(device, model) as session:
        shape = tuple(session.get_inputs()[0].shape)
        await add_all(session, pairs([shape] * 40), mode="static")


if __name__ == "__main__":
    run(main, input_shape="input1:1,3,512,512;input2:1,3,512,512")
