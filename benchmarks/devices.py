"""``stream`` over several devices, equal ones and a mixed set, beside what the devices reach alone."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from aioais import MultiDeviceSession, emulator

from .pipeline import dialled, label

DEVICES = (0, 1, 2, 3)
SLOW = DEVICES[-1]
TIMES_SLOWER = 3.0
STAGES_MS = ((1.0, 2.0, 1.0), (4.0, 8.0, 4.0))
"""H2D, execute and D2H of one item. At 1/2/1 ms four devices give 2000 results a second, which takes most of
what one interpreter can do here; the longer stages show the scheduling alone."""


async def rate(session: MultiDeviceSession, array: np.ndarray, devices: tuple[int, ...], seconds: float) -> float:
    """Give the results per second of a stream that runs on: without its first moments, and without its end,
    where devices fall idle. Results count when they are there: some wait for their turn at both ends."""
    start = time.perf_counter()
    samples: list[tuple[float, int]] = []

    def source() -> Iterator[list[np.ndarray]]:
        while time.perf_counter() < start + seconds:
            yield [array]

    next_at = seconds / 6
    async for _ in session.stream(source(), devices):
        now = time.perf_counter() - start
        if next_at < now < seconds:
            next_at = now + seconds / 20
            samples[1:] = [(now, sum(device.streamed for device in session.statistics().values()))]
    (first, before), (last, after) = samples
    return (after - before) / (last - first)


async def measure(path: str, rounds: int = 5, seconds: float = 0.8) -> list[dict[str, Any]]:
    """Measure each dialling in turns; medians of the ratios of the rounds."""
    found = []
    async with MultiDeviceSession(path) as session:
        array = np.ones((1, 256), np.float32)
        for stages in STAGES_MS:
            slow = dict(zip(("h2d_ms", "execute_ms", "d2h_ms"), (TIMES_SLOWER * ms for ms in stages), strict=True))
            one, four, mixed, single_slow = [], [], [], []
            with dialled(emulator.acl, stages):
                await rate(session, array, DEVICES, seconds)  # opens, and learns how long the model takes
                for _ in range(rounds):
                    one.append(await rate(session, array, DEVICES[:1], seconds))
                    four.append(await rate(session, array, DEVICES, seconds))
                    with emulator.configure(device=SLOW, **slow):
                        single_slow.append(await rate(session, array, (SLOW,), seconds))
                        mixed.append(await rate(session, array, DEVICES, seconds))
            quick = len(DEVICES) - 1
            found.append(
                {
                    "stages_ms": list(stages),
                    "one_per_s": statistics.median(one),
                    "all_per_s": statistics.median(four),
                    "times_one": statistics.median(f / o for f, o in zip(four, one, strict=True)),
                    "times_one_rounds": [f / o for f, o in zip(four, one, strict=True)],
                    "mixed_per_s": statistics.median(mixed),
                    "of_sum": statistics.median(
                        m / (quick * o + s) for m, o, s in zip(mixed, one, single_slow, strict=True)
                    ),
                    "of_sum_rounds": [m / (quick * o + s) for m, o, s in zip(mixed, one, single_slow, strict=True)],
                }
            )
    return found


def show(found: list[dict[str, Any]]) -> None:
    """Print one line for each dialling."""
    print(f"stream over {len(DEVICES)} devices on the emulator, in order; mixed: one is {TIMES_SLOWER:g} x slower")
    for one in found:
        print(
            f"  {label(one['stages_ms'])} one {one['one_per_s']:5.0f}/s   all {one['all_per_s']:5.0f}/s: "
            f"{one['times_one']:.2f} x ({min(one['times_one_rounds']):.2f} to {max(one['times_one_rounds']):.2f})   "
            f"mixed {one['mixed_per_s']:5.0f}/s: {one['of_sum']:.3f} of the sum "
            f"({min(one['of_sum_rounds']):.3f} to {max(one['of_sum_rounds']):.3f})"
        )


if __name__ == "__main__":
    from .models import make_noop

    with tempfile.TemporaryDirectory() as folder:
        show(asyncio.run(measure(make_noop(Path(folder)))))
