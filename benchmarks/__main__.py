"""Prints the figures: ``python -m benchmarks [--om MODEL] [--loop asyncio|uvloop] [--json FILE]``."""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import aioais

from . import cpu_device, devices, overhead, pipeline
from .models import make_noop


def find_acl(path: str) -> Any:
    """Give the ``acl`` that the session uses, for the comparison."""
    if path.endswith(".om"):
        import acl

        return acl
    import aioais.emulator

    return aioais.emulator.acl


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--om", help="a static .om with one float32 input: measures an NPU instead of the CPU device")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    run = aioais.run if arguments.loop == "uvloop" else asyncio.run
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.om or make_noop(Path(folder))
        acl = find_acl(path)
        figures = run(overhead.measure(path, acl))
        # A real device has its own times: only what can be dialled has a known bound.
        can_dial = not arguments.om or hasattr(acl, "stub")
        pipelines = run(pipeline.measure(acl, path)) if can_dial else []
        streams = [] if arguments.om else run(devices.measure(path))
    beside_onnx = run(cpu_device.measure()) if not arguments.om else {}
    report = {
        "machine": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "aioais": aioais.__version__,
        "loop": arguments.loop,
        "overhead": figures,
        "pipeline": pipelines,
        "devices": streams,
        "cpu_device": beside_onnx,
    }
    print(f"{report['machine']}, Python {report['python']}, {arguments.loop}")
    print(f"one await                {figures['us_per_await']:9.1f} us")
    print(f"  asyncio.to_thread      {figures['us_per_await_to_thread']:9.1f} us   ratio {figures['await_ratio']:.2f}")
    print(f"64 awaits at once        {figures['requests_per_s_at_64']:9.0f} requests/s")
    print(
        f"  asyncio.to_thread      {figures['requests_per_s_at_64_to_thread']:9.0f} requests/s   "
        f"ratio {figures['rate_ratio_at_64']:.2f}"
    )
    if pipelines:
        pipeline.show(pipelines)
    if streams:
        devices.show(streams)
    if beside_onnx:
        cpu_device.show(beside_onnx)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
