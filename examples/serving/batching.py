"""Dynamic batching: calls for one item each, run together on a model with gears.

A batch runs when it is full, or ``wait_s`` after its first item arrived, in the smallest gear that is large enough.
As a script this reads digits with a model of gears 1, 2, 4, 8 and 16, converted for the CPU device::

    python examples/serving/batching.py
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import aioais
from aioais import ClosedError, FeedError, InferSession
from aioais.demo_data import DIGITS_MODEL, load_digits

Array = npt.NDArray[Any]
GEARS = (1, 2, 4, 8, 16)


@dataclass
class Call:
    item: list[Array]
    result: asyncio.Future[list[Array]]


def end_calls(calls: list[Call], error: Exception | None) -> None:
    """End the calls that have no result, and empty the list: an error must not keep it alive."""
    while calls:
        result = calls.pop().result
        if error is None:
            result.cancel()
        elif not result.done():
            result.set_exception(error)


class Batcher:
    """Runs calls for single items in batches.

    Parameters
    ----------
    session
        An open session on a model with gears for the batch, which is the first dim of all inputs and outputs.
    gears
        The batch sizes of the model.
    wait_s
        Most seconds that an item waits for others.
    """

    def __init__(self, session: InferSession, gears: Sequence[int], wait_s: float) -> None:
        self.batches = 0
        self._session = session
        self._gears = sorted(gears)
        self._wait_s = wait_s
        self._inputs = session.get_inputs()
        self._calls: list[Call] = []
        """The next batch."""
        self._timer: asyncio.TimerHandle | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def infer(self, item: Sequence[Array]) -> list[Array]:
        """Run one item, an array per input without the batch dim; return an array per output.

        The arrays are rows of the batch and keep all of it in memory: copy them to keep them for long.
        """
        if self._is_closed:
            raise ClosedError("the batcher is closed; make a new one")
        self._check(item)  # checked here, so that a wrong item fails its own call and not its batch
        loop = asyncio.get_running_loop()
        call = Call(list(item), loop.create_future())
        self._calls.append(call)
        if len(self._calls) == self._gears[-1]:
            self._send()
        elif self._timer is None:
            self._timer = loop.call_later(self._wait_s, self._send)
        # Each caller has a future of its own, so cancelling one affects no other.
        return await call.result

    def _check(self, item: Sequence[Array]) -> None:
        if len(item) != len(self._inputs):
            raise FeedError(f"got {len(item)} arrays; expected {len(self._inputs)}")
        for array, desc in zip(item, self._inputs, strict=True):
            dtype, shape = desc.datatype.numpy, tuple(desc.shape[1:])
            if (array.dtype, array.shape) != (dtype, shape):
                raise FeedError(f"{desc.name}: got {array.dtype} {array.shape}; expected {dtype} {shape}")

    def _send(self) -> None:
        """Run the calls so far, in a task of its own."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        calls, self._calls = self._calls, []
        if calls:
            task = asyncio.create_task(self._run(calls))
            self._running.add(task)  # the event loop does not keep tasks alive
            task.add_done_callback(self._running.discard)

    async def _run(self, calls: list[Call]) -> None:
        calls = [call for call in calls if not call.result.done()]  # without cancelled ones
        if not calls:
            return
        self.batches += 1
        try:
            outputs = await self._session.infer(self._stack(calls), mode="dymbatch")
        except Exception as error:  # noqa: BLE001 - every caller gets the error
            end_calls(calls, error)
        except asyncio.CancelledError:  # the event loop is stopping
            end_calls(calls, None)
            raise
        else:
            for row, call in enumerate(calls):
                if not call.result.done():
                    call.result.set_result([output[row] for output in outputs])

    def _stack(self, calls: list[Call]) -> list[Array]:
        """Copy the items into the rows of one array per input, the rest of the gear being 0.

        This copies 4 KiB on the event loop. For batches of megabytes use ``asyncio.to_thread``.
        """
        gear = next(gear for gear in self._gears if gear >= len(calls))
        feeds = [np.zeros((gear, *desc.shape[1:]), desc.datatype.numpy) for desc in self._inputs]
        for row, call in enumerate(calls):
            for feed, array in zip(feeds, call.item, strict=True):
                feed[row] = array
        return feeds

    async def aclose(self) -> None:
        """Refuse new calls, run the pending ones, and return when all have their results."""
        self._is_closed = True
        self._send()
        if self._running:
            await asyncio.wait(self._running)  # cancelling this wait does not cancel the batches


async def read_digits(session: InferSession) -> None:
    images, labels = load_digits()
    async with aclosing(Batcher(session, GEARS, wait_s=0.002)) as batcher:
        results = await asyncio.gather(*(batcher.infer([image[0]]) for image in images))
        right = sum(int(logits.argmax() == label) for (logits,), label in zip(results, labels, strict=True))
        print(f"{right} of {len(images)} digits are right, in {batcher.batches} batches")
        assert right / len(images) >= 0.97
        assert batcher.batches == -(-len(images) // GEARS[-1])
    try:
        await batcher.infer([images[0, 0]])
    except ClosedError as error:
        print(error)


async def check_neighbours(session: InferSession) -> None:
    """One call is cancelled, one is wrong: the other two get their results, from one batch in gear 2."""
    images, labels = load_digits()
    batcher = Batcher(session, GEARS, wait_s=3600)
    cancelled, wrong, *good = [
        asyncio.create_task(batcher.infer([item])) for item in (images[0, 0], images[1], images[2, 0], images[3, 0])
    ]
    await asyncio.sleep(0)  # now each call is in the batch or was refused
    cancelled.cancel()
    await batcher.aclose()  # runs the batch
    results = await asyncio.gather(cancelled, wrong, *good, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert isinstance(results[1], FeedError)
    print(f"refused: {results[1]}")
    assert [int(task.result()[0].argmax()) for task in good] == labels[2:4].tolist()
    assert batcher.batches == 1


async def main(model: str) -> None:
    async with InferSession(0, model) as session:
        await read_digits(session)
        await check_neighbours(session)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sizes = ",".join(map(str, GEARS))
        target = str(Path(folder, "digits_dymbatch.onnx"))
        aioais.convert(str(DIGITS_MODEL), target, input_shape="image:-1,1,8,8", dynamic_batch_size=sizes)
        aioais.run(main, target)
