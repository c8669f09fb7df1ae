"""Dynamic batching: calls for one row each, run together on a model with gears.

``BatchingSession`` gathers what is called at the same time, runs it in the gear that pays, and gives each caller its
own rows. As a script this reads digits with a model of gears 1, 2, 4, 8 and 16, converted for the CPU device::

    python examples/serving/batching.py

On an NPU, convert the model with the same options and pass the ``.om`` as the argument.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import aioais
from aioais import BatchingSession, DeadlineExceededError, FeedError, InferSession
from aioais.demo_data import DIGITS_MODEL, load_digits

GEARS = "1,2,4,8,16"


def digits_with_gears(folder: str) -> str:
    """Convert the model of digits, whose batch is 1, to one with gears; returns the path."""
    target = str(Path(folder, "digits_gears.onnx"))
    return aioais.convert(str(DIGITS_MODEL), target, input_shape="image:-1,1,8,8", dynamic_batch_size=GEARS)


async def read_digits(batching: BatchingSession) -> None:
    images, labels = load_digits()
    results = await asyncio.gather(*(batching.infer([image]) for image in images))
    right = sum(int(logits.argmax() == label) for (logits,), label in zip(results, labels, strict=True))
    print(f"{right} of {len(images)} digits are right")
    print(batching.statistics())
    assert right / len(images) >= 0.97
    assert batching.statistics().mean_batch > 4


async def check_neighbours(batching: BatchingSession) -> None:
    """One call is cancelled, one is wrong, one has a deadline and more rows than a gear: none touches the others."""
    images, labels = load_digits()
    cancelled, wrong, many, good = [
        asyncio.create_task(call)
        for call in (
            batching.infer([images[0]]),
            batching.infer([images[1, 0]]),
            batching.infer([images[2:22, 0]], timeout=5),
            batching.infer([images[22]], priority=-1),  # before the others
        )
    ]
    await asyncio.sleep(0)  # now each call waits for its batch or was refused
    cancelled.cancel()
    results = await asyncio.gather(cancelled, wrong, many, good, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert isinstance(results[1], FeedError)
    print(f"refused: {results[1]}")
    try:
        (logits,) = many.result()
    except DeadlineExceededError:  # on a machine that is very busy
        print("20 rows did not reach the device within 5 s")
    else:
        assert logits.argmax(1).tolist() == labels[2:22].tolist()
    assert int(good.result()[0].argmax()) == labels[22]


async def main(model: str) -> None:
    async with InferSession(0, model) as session, BatchingSession(session) as batching:
        await read_digits(batching)
        await check_neighbours(batching)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        aioais.run(main, sys.argv[1] if len(sys.argv) > 1 else digits_with_gears(temporary))
