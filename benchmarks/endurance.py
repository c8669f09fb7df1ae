"""Memory of the process over very many requests: ``python -m benchmarks.endurance [requests]``."""

from __future__ import annotations

import asyncio
import gc
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil

from aioais import InferSession

from .models import make_noop
from .report import Row, show

WARM = 10_000
AT_ONCE = 64


async def measure(path: str, count: int) -> dict[str, int]:
    """Return the resident bytes after ``WARM`` requests and after ``count``."""
    process = psutil.Process()
    array = np.ones((1, 256), np.float32)
    async with InferSession(0, path) as session:

        async def work(requests: int) -> None:
            for _ in range(requests):
                await session.infer([array])

        async def run(requests: int) -> int:
            await asyncio.gather(*(work(requests // AT_ONCE) for _ in range(AT_ONCE)))
            gc.collect()
            resident: int = process.memory_info().rss
            return resident

        return {"requests": count, "before": await run(WARM), "after": await run(count - WARM)}


def rows(found: dict[str, int]) -> list[Row]:
    """Return the lines of the table."""
    count, before, after = found["requests"], found["before"], found["after"]
    beside = f"{before / 2**20:.1f} and {after / 2**20:.1f} MiB; goal: 1.01"
    return [Row(f"resident after {count:,} requests, times that after {WARM:,}", f"{after / before:.4f}", "", beside)]


if __name__ == "__main__":
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        show(rows(asyncio.run(measure(make_noop(Path(folder)), requests))))
