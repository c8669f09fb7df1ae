"""Print the figures as one table: ``python -m benchmarks [--om MODEL] [--loop asyncio|uvloop] [--json FILE]``."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Any

import aioais

from . import batching, cpu_device, devices, endurance, lag, neighbours, overhead, pipeline, report, small_models, start
from .models import make_noop
from .target import GIL_MODES, find_acl, gil_mode


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--om", help="a static .om with one float32 input: measures an NPU instead of the CPU device")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--gil", choices=GIL_MODES, help="how the emulator, or a C stub of AscendCL, treats the GIL")
    parser.add_argument(
        "--requests", type=int, default=100_000, help="number of requests of the memory measurement; 0 skips it"
    )
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    run = aioais.run if arguments.loop == "uvloop" else asyncio.run
    found: dict[str, Any] = {}
    rows: list[report.Row] = []

    def add(name: str, module: Any, figures: Any) -> None:
        found[name] = figures
        rows.extend(module.rows(figures))

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = arguments.om or make_noop(folder)
        acl = find_acl(path)
        with gil_mode(acl, arguments.gil):
            add("overhead", overhead, run(overhead.measure(path, acl)))
            # Only a device whose times can be set has a known bound.
            if not arguments.om or hasattr(acl, "stub"):
                add("pipeline", pipeline, run(pipeline.measure(acl, path)))
            add("lag", lag, run(lag.measure(path, lag.heavy_model(path, folder))))
            if not arguments.om:
                add("devices", devices, run(devices.measure(path)))
                add("neighbours", neighbours, run(neighbours.measure(folder)))
        if not arguments.om:
            add("start", start, run(start.measure(path)))
            add("cpu_device", cpu_device, run(cpu_device.measure()))
            add("small_models", small_models, run(small_models.measure()))
            add("batching", batching, run(batching.measure()))
        if arguments.requests:
            figures = run(endurance.measure(path, arguments.requests))
            add("endurance", endurance, figures)
    report.show(rows, arguments.loop)
    report.write(arguments.json, found, arguments.loop)


if __name__ == "__main__":
    main()
