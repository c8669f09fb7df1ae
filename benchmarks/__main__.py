"""Prints the figures as one table: ``python -m benchmarks [--om MODEL] [--loop asyncio|uvloop] [--json FILE]``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aioais
from aioais import emulator

from . import cpu_device, devices, endurance, lag, neighbours, overhead, pipeline, report, start
from .models import make_noop

GIL_MODES = ("real", "hold", "release")


def find_acl(path: str) -> Any:
    """Return the ``acl`` that the session uses, for the comparison."""
    if path.endswith(".om"):
        import acl

        return acl
    return emulator.acl


@contextlib.contextmanager
def gil_mode(acl: Any, mode: str | None) -> Iterator[None]:
    """Have a stub of ``acl``, or the emulator, keep or release the GIL in its calls."""
    if mode is None:
        yield
    elif acl is emulator.acl:
        with emulator.configure(gil=mode):
            yield
    else:
        acl.stub.gil(mode)
        yield


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--om", help="a static .om with one float32 input: measures an NPU instead of the CPU device")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--gil", choices=GIL_MODES, help="what the emulator, or a C stub of AscendCL, does to the GIL")
    parser.add_argument("--requests", type=int, default=100_000, help="of the measurement of memory; 0 leaves it out")
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
            # A real device has its own times: only what can be dialled has a known bound.
            if not arguments.om or hasattr(acl, "stub"):
                add("pipeline", pipeline, run(pipeline.measure(acl, path)))
            add("lag", lag, run(lag.measure(path, lag.heavy_model(path, folder))))
            if not arguments.om:
                add("devices", devices, run(devices.measure(path)))
                add("neighbours", neighbours, run(neighbours.measure(folder)))
        if not arguments.om:
            add("start", start, run(start.measure(path)))
            add("cpu_device", cpu_device, run(cpu_device.measure()))
        if arguments.requests:
            figures = run(endurance.measure(path, arguments.requests))
            add("endurance", endurance, figures)
    report.show(rows, arguments.loop)
    report.write(arguments.json, found, arguments.loop)


if __name__ == "__main__":
    main()
