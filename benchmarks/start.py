"""Four devices that start slowly, from nothing to the last result: ``python -m benchmarks.start``.

The emulator takes 0.1 s to start ACL, 0.3 s for the first use of a device, 0.2 s to load a model, and 1/2/1 ms for each
of 50 requests per device: 0.7 s if the devices start at the same time.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import numpy as np

from aioais import InferSession, MultiDeviceSession, emulator
from aioais.testing import LoopLag

from .models import make_noop
from .report import Row, rounds, show

DEVICES = 4
REQUESTS = 50


async def measure(path: str, turns: int = 5) -> dict[str, list[float]]:
    """Return the seconds until the last result, and the largest delay of the event loop until then."""
    seconds, late_ms = [], []
    item = [np.ones((1, 256), np.float32)]
    await InferSession.finalize()  # each round starts from nothing
    # On an NPU slow calls release the GIL through ctypes; the emulator has to be told to do so.
    with emulator.configure(
        gil="release", init_ms=100, set_device_ms=300, load_ms=200, h2d_ms=1, execute_ms=2, d2h_ms=1
    ):
        for _ in range(turns):
            async with LoopLag() as lag:
                start = time.perf_counter()
                async with MultiDeviceSession(path) as session:
                    await session.infer_pipeline({device: [[item] * REQUESTS] for device in range(DEVICES)})
                    seconds.append(time.perf_counter() - start)
            late_ms.append(lag.max_ms)
            await InferSession.finalize()
    return {"seconds": seconds, "loop_late_ms": late_ms}


def rows(found: dict[str, list[float]]) -> list[Row]:
    """Return the lines of the table."""
    text, spread = rounds(found["seconds"])
    late, late_spread = rounds(found["loop_late_ms"], 1)
    return [
        Row(
            f"{DEVICES} devices from nothing to the last of {REQUESTS} results each, s",
            text,
            spread,
            "possible: 0.70; goal: 0.80",
        ),
        Row("  largest delay of the event loop until then, ms", late, late_spread),
    ]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        show(rows(asyncio.run(measure(make_noop(Path(folder))))))
