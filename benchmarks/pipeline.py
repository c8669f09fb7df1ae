"""What ``infer_pipeline`` makes of a device's three engines: its time beside the bound and the sequential time."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from aioais import InferSession, emulator

from .baseline import D2H, H2D, Buffers, Program, ok, value
from .report import Row, rounds, show

STAGES_MS = ((1.0, 2.0, 1.0), (0.2, 0.4, 0.2), (0.05, 0.1, 0.05))
"""H2D, execute and D2H of one item, dialled on the emulator."""


@contextmanager
def dialled(acl: Any, stages: tuple[float, float, float]) -> Iterator[None]:
    """Dial the emulator, or a C stub of AscendCL whose ``acl`` module has the control functions ``acl.stub``."""
    h2d, execute, d2h = stages
    if acl is emulator.acl:
        with emulator.configure(h2d_ms=h2d, execute_ms=execute, d2h_ms=d2h):
            yield
        return
    for key, ms in (("h2d_us", h2d), ("exec_us", execute), ("d2h_us", d2h)):
        acl.stub.set(key, ms * 1e3)
    yield
    for key, us in (("h2d_us", 0), ("exec_us", -1), ("d2h_us", 0)):
        acl.stub.set(key, us)


SHORT = 16
"""Items of a short pipeline, of which several are run, as the first result of one says little."""


def bound_ms(stages: tuple[float, float, float], count: int) -> float:
    """Return what no engine can beat: the longest stage for each item, and the others once."""
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
    """What a request that is submitted ahead needs: a stream for its copies, and an event behind each step."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.acl, program.nbytes)
        self.stream = value(self.acl.rt.create_stream())
        self.copied, self.executed = (value(self.acl.rt.create_event()) for _ in range(2))

    def close(self) -> None:
        """Free it all."""
        super().close()
        for event in (self.copied, self.executed):
            ok(self.acl.rt.destroy_event(event))
        ok(self.acl.rt.destroy_stream(self.stream))


class Bare(Program):
    """The same work in one thread without this library: submits ``depth`` ahead, waits for the oldest.

    What the device gives to the simplest of all programs on this machine at this moment; a copy stream
    per slot and one execute stream, chained by events, as the library does it. A session is open beside it.
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
        """Return the milliseconds of all."""
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
        """Give everything back."""
        for slot in self.slots:
            slot.close()
        super().close()


async def measure(acl: Any, path: str, turns: int = 5, count: int = 500, depth: int = 4) -> list[dict[str, Any]]:
    """Measure each dialling in turns; shares of the bound in each, and the first result in times of one request."""
    found = []
    async with InferSession(0, path, depth=depth) as session:
        array = np.ones(session.get_inputs()[0].shape, np.float32)
        bare = Bare(acl, path, depth)
        for stages in STAGES_MS:
            figures: dict[str, list[float]] = {"pipeline": [], "short": [], "first": [], "one": [], "bare": []}
            with dialled(acl, stages):
                await run_pipeline(session, array, 60)  # the session learns how long the model takes
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
    """Return the table's lines."""
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
    """Measure the emulator, or with ``--om MODEL`` a C stub of AscendCL that can be dialled."""
    from .__main__ import find_acl
    from .models import make_noop

    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=main.__doc__)
    parser.add_argument("--om")
    parser.add_argument("--depth", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.om or make_noop(Path(folder))
        show(rows(asyncio.run(measure(find_acl(path), path, depth=options.depth))))


if __name__ == "__main__":
    main()
