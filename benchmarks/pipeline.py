"""How well ``infer_pipeline`` uses the three engines of a device: its time beside the bound and the sequential time."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from aioais import InferSession

from .baseline import D2H, H2D, Buffers, Program, ok, value
from .models import make_noop
from .report import Row, rounds, show
from .target import dialled, find_acl

STAGES_MS = ((1.0, 2.0, 1.0), (0.2, 0.4, 0.2), (0.05, 0.1, 0.05))
"""Milliseconds of H2D, execute and D2H of one item, set on the emulator."""


SHORT = 16
"""Items of a short pipeline. Several of these run, as the first result of a single one is no measurement."""


def bound_ms(stages: tuple[float, float, float], count: int) -> float:
    """Return the shortest possible time: the longest stage for each item, and the others once."""
    return count * max(stages) + sum(stages) - max(stages)


async def run_pipeline(session: InferSession, array: np.ndarray, count: int) -> tuple[float, float]:
    """Return the milliseconds of all results and of the first."""
    first = 0.0
    start = time.perf_counter()
    async for _ in session.infer_pipeline([array] for _ in range(count)):
        first = first or time.perf_counter() - start
    return (time.perf_counter() - start) * 1e3, first * 1e3


async def run_one_by_one(session: InferSession, array: np.ndarray, count: int) -> float:
    """Return the milliseconds of one request."""
    start = time.perf_counter()
    for _ in range(count):
        await session.infer([array])
    return (time.perf_counter() - start) / count * 1e3


class AheadSlot(Buffers):
    """Buffers of a request that is submitted ahead, with a stream for its copies and an event after each stage."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.acl, program.nbytes)
        self.stream = value(self.acl.rt.create_stream())
        self.copied, self.executed = (value(self.acl.rt.create_event()) for _ in range(2))

    def close(self) -> None:
        """Free all of it."""
        super().close()
        for event in (self.copied, self.executed):
            ok(self.acl.rt.destroy_event(event))
        ok(self.acl.rt.destroy_stream(self.stream))


class Bare(Program):
    """The same work in one thread without this library: submits ``depth`` ahead, waits for the oldest.

    It shows what the simplest program gets from the device on this machine at this moment. It has a copy stream per
    slot and one execute stream, chained by events, as in the library. A session is open beside it.
    """

    def __init__(self, acl: Any, path: str, depth: int = 4) -> None:
        super().__init__(acl, path)
        self.slots = [AheadSlot(self) for _ in range(depth)]

    def submit(self, slot: AheadSlot) -> None:
        """Queue one item."""
        rt, (n_in, n_out) = self.acl.rt, self.nbytes
        ok(rt.memcpy_async(slot.device[0], n_in, slot.host[0], n_in, H2D, slot.stream))
        ok(rt.record_event(slot.copied, slot.stream))
        ok(rt.stream_wait_event(self.stream, slot.copied))
        ok(self.acl.mdl.execute_async(self.model, *slot.datasets, self.stream))
        ok(rt.record_event(slot.executed, self.stream))
        ok(rt.stream_wait_event(slot.stream, slot.executed))
        ok(rt.memcpy_async(slot.host[1], n_out, slot.device[1], n_out, D2H, slot.stream))

    def run(self, count: int) -> float:
        """Return the milliseconds of all items."""
        ok(self.acl.rt.set_context(self.context))
        depth = len(self.slots)
        start = time.perf_counter()
        for k in range(count + depth):
            slot = self.slots[k % depth]
            if k >= depth:
                ok(self.acl.rt.synchronize_stream(slot.stream))
            if k < count:
                self.submit(slot)
        return (time.perf_counter() - start) * 1e3

    def close(self) -> None:
        """Free all of it."""
        for slot in self.slots:
            slot.close()
        super().close()


async def measure(acl: Any, path: str, turns: int = 5, count: int = 500, depth: int = 4) -> list[dict[str, Any]]:
    """Measure each setting in turns: shares of the bound, and the first result as a multiple of one request."""
    found = []
    async with InferSession(0, path, depth=depth) as session:
        array = np.ones(session.get_inputs()[0].shape, np.float32)
        bare = Bare(acl, path, depth)
        for stages in STAGES_MS:
            figures: dict[str, list[float]] = {"pipeline": [], "short": [], "first": [], "one": [], "bare": []}
            with dialled(acl, stages):
                await run_pipeline(session, array, 60)  # the session measures how long the model takes
                for _ in range(turns):
                    figures["pipeline"].append((await run_pipeline(session, array, count))[0])
                    short = [await run_pipeline(session, array, SHORT) for _ in range(9)]
                    figures["short"].append(statistics.median(elapsed for elapsed, _ in short))
                    figures["first"].append(statistics.median(first for _, first in short))
                    figures["one"].append(await run_one_by_one(session, array, count // 5))
                    figures["bare"].append(bare.run(count))
            bound = bound_ms(stages, count)
            found.append(
                {
                    "stages_ms": list(stages),
                    "items": count,
                    "depth": depth,
                    "efficiency": [bound / ms for ms in figures["pipeline"]],
                    "short_efficiency": [bound_ms(stages, SHORT) / ms for ms in figures["short"]],
                    "bare_efficiency": [bound / ms for ms in figures["bare"]],
                    "one_efficiency": [bound / (ms * count) for ms in figures["one"]],
                    "first": [first / one for first, one in zip(figures["first"], figures["one"], strict=True)],
                }
            )
        bare.close()
    return found


def rows(found: list[dict[str, Any]]) -> list[Row]:
    """Return the lines of the table."""
    lines = []
    for one in found:
        text, spread = rounds(one["efficiency"], 3)
        stages = "/".join(f"{ms:g}" for ms in one["stages_ms"])
        beside = (
            f"one thread, no library {statistics.median(one['bare_efficiency']):.3f}; one by one "
            f"{statistics.median(one['one_efficiency']):.2f}; only {SHORT} items "
            f"{statistics.median(one['short_efficiency']):.2f}, the first after "
            f"{statistics.median(one['first']):.2f} of one request"
        )
        figure = f"infer_pipeline over {stages} ms, depth {one['depth']}, share of the bound"
        lines.append(Row(figure, text, spread, beside))
    return lines


def main() -> None:
    """Measure the emulator, or with ``--om MODEL`` a C stub of AscendCL."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=main.__doc__)
    parser.add_argument("--om")
    parser.add_argument("--depth", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.om or make_noop(Path(folder))
        show(rows(asyncio.run(measure(find_acl(path), path, depth=options.depth))))


if __name__ == "__main__":
    main()
