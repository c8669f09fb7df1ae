"""What the pipeline examples share: random pairs in, sums out, the time against awaiting one by one.

The Add model and the command line (``[model.om] [device]``) are those of ``examples/infer/add_model.py``.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "infer"))

from add_model import Array, random_pair, run

from aioais import InferSession, Mode, emulator

__all__ = ["add_all", "pairs", "run", "stream"]

Pair = Sequence[Array]


def pairs(shapes: Iterable[tuple[int, ...]]) -> list[Pair]:
    """Make two inputs of each shape."""
    return [random_pair(*shape) for shape in shapes]


def stream(items: list[Pair]) -> Iterator[Pair]:
    """Stand for a camera or a queue: gives the next item when it is asked for it."""
    yield from items


async def stream_async(items: list[Pair]) -> AsyncIterator[Pair]:
    """Do the same where the next item has to be awaited."""
    for item in items:
        yield item


async def add_all(session: InferSession, items: list[Pair], mode: Mode, custom_sizes: int = 100_000) -> None:
    """Add all pairs, one by one and in a pipeline; check each sum and print the time saved."""
    with engine_times(session):
        await _add_all(session, items, mode, custom_sizes)


@contextmanager
def engine_times(session: InferSession) -> Iterator[None]:
    """Have the CPU device take its time as an NPU with three engines does: its own work is the host's cores'."""
    if not session.model_path.endswith(".onnx"):
        yield
        return
    with emulator.configure(h2d_ms=3, execute_ms=6, d2h_ms=3):
        yield


async def _add_all(session: InferSession, items: list[Pair], mode: Mode, custom_sizes: int) -> None:
    async for _ in session.infer_pipeline(items[:12], mode, custom_sizes):
        pass  # the first requests of a session set up its buffers

    start = perf_counter()
    for a, b in items:
        (total,) = await session.infer([a, b], mode, custom_sizes)
        np.testing.assert_array_equal(total, a + b)
    one_by_one = perf_counter() - start

    # Any iterable or async iterable will do. Results come in its order, and it is read as results are taken:
    # while this loop checks a sum, the device works on the next ones.
    for name, source in (("iterator", stream(items)), ("async iterator", stream_async(items))):
        expected = iter(items)
        count = 0
        start = perf_counter()
        async for (total,) in session.infer_pipeline(source, mode, custom_sizes):
            a, b = next(expected)
            np.testing.assert_array_equal(total, a + b)
            count += 1
        pipeline = perf_counter() - start
        assert count == len(items)
        print(
            f"{name}: {count} sums are right; one by one {one_by_one * 1e3:.1f} ms, "
            f"pipeline {pipeline * 1e3:.1f} ms: {1 - pipeline / one_by_one:.0%} saved"
        )
