"""Two models on one device, each with one request at a time: alone they leave engines idle, together they do not."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from aioais import InferSession, emulator

from .models import make_echo
from .report import Row, rounds, show
from .target import dialled

STAGES_MS = (1.0, 2.0, 1.0)


async def rate(sessions: list[InferSession], array: np.ndarray, count: int) -> float:
    """Return the requests per second of all sessions together, each awaited one by one."""

    async def work(session: InferSession) -> None:
        for _ in range(count):
            await session.infer([array])

    start = time.perf_counter()
    await asyncio.gather(*map(work, sessions))
    return count * len(sessions) / (time.perf_counter() - start)


async def measure(folder: Path, turns: int = 5, count: int = 80) -> dict[str, Any]:
    """Measure one and both in turns; the ratio of each round."""
    paths = []
    for name in ("first", "second"):
        (folder / name).mkdir()
        paths.append(make_echo(folder / name, 256))
    array = np.ones((1, 256), np.float32)
    times_one = []
    async with InferSession(0, paths[0]) as first, InferSession(0, paths[1]) as second:
        with dialled(emulator.acl, STAGES_MS):
            await rate([first, second], array, count)
            for _ in range(turns):
                alone = await rate([first], array, count)
                times_one.append(await rate([first, second], array, count) / alone)
    return {"stages_ms": list(STAGES_MS), "times_one": times_one}


def rows(found: dict[str, Any]) -> list[Row]:
    """Return the lines of the table."""
    stages = found["stages_ms"]
    text, spread = rounds(found["times_one"])
    beside = f"the engines allow {sum(stages) / max(stages):.2f} x; {'/'.join(f'{ms:g}' for ms in stages)} ms"
    return [Row("two models on one device, one request each at a time, times one model", text, spread, beside)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        show(rows(asyncio.run(measure(Path(temporary)))))
