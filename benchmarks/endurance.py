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

WARM = 10_000
AT_ONCE = 64


async def measure(path: str, count: int) -> tuple[int, int]:
    """Give the resident bytes after ``WARM`` requests and after ``count``."""
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

        return await run(WARM), await run(count - WARM)


def main() -> None:
    """Measure and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        before, after = asyncio.run(measure(make_noop(Path(folder)), count))
    print(
        f"resident after {WARM:,} requests {before / 2**20:.1f} MiB, after {count:,} {after / 2**20:.1f} MiB: "
        f"{after / before:.4f}"
    )


if __name__ == "__main__":
    main()
