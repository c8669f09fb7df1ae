"""Read handwritten digits: open a model, await its answers, count how many are right.

Needs the CPU device: ``pip install "aioais[cpu]"``, in a clone ``pip install -e ".[cpu]"``.
"""

from __future__ import annotations

import asyncio

import aioais
from aioais import InferSession
from aioais.demo_data import DIGITS_MODEL, load_digits


async def main() -> None:
    images, labels = load_digits()

    # A .onnx file runs on the CPU, a .om file on an Ascend NPU; the rest of the program is the same.
    async with InferSession(device_id=0, model_path=str(DIGITS_MODEL)) as session:
        for desc in [*session.get_inputs(), *session.get_outputs()]:
            print(f"{desc.name}: {desc.datatype.name} {desc.shape}")

        # One request: a list of inputs goes in, a list of numpy arrays comes out.
        (logits,) = await session.infer([images[0]])
        print(f"the first image is a {logits.argmax()}, its label says {labels[0]}")
        print(f"the device took {session.summary()[-1]:.3f} ms")

        # Many at once: some run on the device, the others wait in order.
        results = await asyncio.gather(*(session.infer([image]) for image in images))

    right = sum(int(logits.argmax() == label) for (logits,), label in zip(results, labels, strict=True))
    print(f"{right} of {len(images)} digits are right: {right / len(images):.1%}")
    assert right / len(images) >= 0.97


if __name__ == "__main__":
    aioais.run(main)
