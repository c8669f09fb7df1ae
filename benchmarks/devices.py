"""``stream`` over several devices, equal ones and a mixed set, beside the rate of each device alone."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from aioais import MultiDeviceSession, emulator

from .report import Row, rounds, show
from .target import dialled

DEVICES = (0, 1, 2, 3)
SLOW = DEVICES[-1]
TIMES_SLOWER = 3.0
STAGES_MS = ((1.0, 2.0, 1.0), (4.0, 8.0, 4.0))
"""Milliseconds of H2D, execute and D2H of one item. At 1/2/1 ms four devices give 2000 results a second, which takes
most of the time of one interpreter; the longer stages show the scheduling alone."""


async def rate(session: MultiDeviceSession, array: np.ndarray, devices: tuple[int, ...], seconds: float) -> float:
    """Return the results per second of a stream, without its start and without its end, when devices become idle.

    Results count when they are ready: at both ends some wait for their turn.
    """
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


async def measure(path: str, turns: int = 5, seconds: float = 0.8) -> list[dict[str, Any]]:
    """Measure each setting in turns; the ratios of each round."""
    found = []
    async with MultiDeviceSession(path) as session:
        array = np.ones((1, 256), np.float32)
        for stages in STAGES_MS:
            slow = dict(zip(("h2d_ms", "execute_ms", "d2h_ms"), (TIMES_SLOWER * ms for ms in stages), strict=True))
            one, four, mixed, single_slow = [], [], [], []
            with dialled(emulator.acl, stages):
                await rate(session, array, DEVICES, seconds)  # opens, and measures how long the model takes
                for _ in range(turns):
                    one.append(await rate(session, array, DEVICES[:1], seconds))
                    four.append(await rate(session, array, DEVICES, seconds))
                    with emulator.configure(device=SLOW, **slow):
                        single_slow.append(await rate(session, array, (SLOW,), seconds))
                        mixed.append(await rate(session, array, DEVICES, seconds))
            quick = len(DEVICES) - 1
            sums = [quick * o + s for o, s in zip(one, single_slow, strict=True)]
            found.append(
                {
                    "stages_ms": list(stages),
                    "times_one": [f / o for f, o in zip(four, one, strict=True)],
                    "of_sum": [m / s for m, s in zip(mixed, sums, strict=True)],
                }
            )
    return found


def rows(found: list[dict[str, Any]]) -> list[Row]:
    """Return the lines of the table."""
    lines = []
    for one in found:
        stages = "/".join(f"{ms:g}" for ms in one["stages_ms"])
        lines.append(Row(f"stream over {len(DEVICES)} devices of {stages} ms, times one", *rounds(one["times_one"])))
        text, spread = rounds(one["of_sum"], 3)
        lines.append(Row(f"  one of them {TIMES_SLOWER:g} x slower, share of the sum of rates", text, spread))
    return lines


if __name__ == "__main__":
    from .models import make_noop

    with tempfile.TemporaryDirectory() as folder:
        show(rows(asyncio.run(measure(make_noop(Path(folder))))))
