"""Delay of the event loop with 64 awaits at once while a model of 100 MB is loaded."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import numpy as np

from aioais import InferSession
from aioais.testing import LoopLag

from .models import make_heavy, make_noop
from .report import Row, rounds, show

AT_ONCE = 64
REQUESTS = 400
"""Requests of each task: enough for a second of ticks, which a 99th percentile needs."""


async def measure(path: str, heavy: str, turns: int = 5) -> dict[str, list[float]]:
    """Return the 99th percentile and the maximum of an idle loop and of a busy one, in turns; milliseconds."""
    figures: dict[str, list[float]] = {"idle_p99": [], "idle_max": [], "p99": [], "max": []}
    async with InferSession(0, path) as session:
        array = np.ones(session.get_inputs()[0].shape, np.float32)

        async def work() -> None:
            for _ in range(REQUESTS):
                await session.infer([array])

        async def load() -> None:
            async with InferSession(0, heavy):
                pass

        await asyncio.gather(work(), load())
        for _ in range(turns):
            async with LoopLag() as idle:
                await asyncio.sleep(0.5)
            async with LoopLag() as busy:
                await asyncio.gather(load(), *(work() for _ in range(AT_ONCE)))
            for name, lag in (("idle_", idle), ("", busy)):
                figures[f"{name}p99"].append(lag.p99_ms)
                figures[f"{name}max"].append(lag.max_ms)
    return figures


def rows(found: dict[str, list[float]]) -> list[Row]:
    """Return the lines of the table."""
    lines = []
    for name, text, goal in (("p99", "99th percentile", 2), ("max", "maximum", 10)):
        idle, _ = rounds(found[f"idle_{name}"], 1)
        figure = f"loop late, {AT_ONCE} awaits at once and a 100 MB model loading: {text}, ms"
        lines.append(Row(figure, *rounds(found[name], 1), f"idle loop {idle}; goal: {goal}"))
    return lines


def heavy_model(path: str, folder: Path) -> str:
    """Return a model of 100 MB: an ONNX file; for a .om the same .om, as that kind cannot be written here."""
    return path if path.endswith(".om") else make_heavy(folder)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        here = Path(temporary)
        show(rows(asyncio.run(measure(make_noop(here), make_heavy(here)))))
