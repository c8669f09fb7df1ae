"""The CPU device beside bare ONNX Runtime, as ratios of one run: ``python -m benchmarks.cpu_device``.

Bare ONNX Runtime is ``InferenceSession.run`` in a loop, in turns with the library. It runs twice: with its default
options, where its threads spin for some milliseconds between operators and after a run, and with the session options of
the CPU device (``same``), which shows the cost of the library itself. On a busy machine the defaults are much slower.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import aioais
from aioais import InferSession, emulator
from aioais.emulator.ort import OrtModel

from .models import make_echo, make_mnist, make_resnet50
from .report import Row, show, write

LARGE = 19 << 20
"""Bytes of the large input and output."""


class Bare:
    """ONNX Runtime alone.

    Parameters
    ----------
    path
        The model.
    threads
        Intra-op threads; 0 = all cores.
    same
        Whether to use the options of the CPU device instead of the defaults.
    """

    def __init__(self, path: str, threads: int, same: bool) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if same:
            self._session = OrtModel(path, threads, spin=False).session
        else:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, array: np.ndarray, count: int) -> list[float]:
        """Return the seconds of each of some runs."""
        times = []
        for _ in range(count):
            start = time.perf_counter()
            self._session.run(None, {"x": array})
            times.append(time.perf_counter() - start)
        return times


async def awaits(session: InferSession, array: np.ndarray, count: int) -> list[float]:
    """Return the seconds of each of some awaits, one after the other."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        await session.infer([array])
        times.append(time.perf_counter() - start)
    return times


async def pipeline(session: InferSession, array: np.ndarray, count: int) -> float:
    """Return the seconds per item of a pipeline."""
    start = time.perf_counter()
    async for _ in session.infer_pipeline([array] for _ in range(count)):
        pass
    return (time.perf_counter() - start) / count


def spread(values: list[float]) -> dict[str, float]:
    """Return the median of the rounds with the smallest and the largest."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


async def compare(path: str, shape: tuple[int, ...], threads: int, rounds: int, count: int) -> dict[str, Any]:
    """Measure latency and throughput of a model, in turns with bare ONNX Runtime."""
    array = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    rivals = {"bare": Bare(path, threads, same=False), "same": Bare(path, threads, same=True)}
    names = ("ms", "latency_ratio", "extra_us", "throughput_ratio")
    found: dict[str, dict[str, list[float]]] = {rival: {name: [] for name in names} for rival in rivals}
    async with InferSession(0, path) as session:
        for bare in rivals.values():
            bare.run(array, count)
        await awaits(session, array, count)
        await pipeline(session, array, count)
        for _ in range(rounds):
            before = {name: bare.run(array, count) for name, bare in rivals.items()}
            ours = statistics.median(await awaits(session, array, count))
            item = await pipeline(session, array, count)
            for name, bare in rivals.items():
                times = [*before[name], *bare.run(array, count)]
                one = statistics.median(times)
                figures = found[name]
                figures["ms"].append(one * 1e3)
                figures["latency_ratio"].append(ours / one)
                figures["extra_us"].append((ours - one) * 1e6)
                figures["throughput_ratio"].append(statistics.mean(times) / item)
    return {name: {key: spread(values) for key, values in figures.items()} for name, figures in found.items()}


async def large(folder: Path, count: int = 30) -> dict[str, Any]:
    """Measure copies and page faults with 19 MB in and out."""
    array = np.ones((1, LARGE // 4), np.float32)
    async with InferSession(0, make_echo(folder, array.size)) as session:
        for _ in range(8):
            await session.infer([array])
        emulator.reset_counts()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start = time.perf_counter()
        for _ in range(count):
            await session.infer([array])
        elapsed = time.perf_counter() - start
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        copied = emulator.copied()
        allocations = sum(emulator.counts().get(f"acl.rt.{name}", 0) for name in ("malloc", "malloc_host"))
    return {
        "nbytes": array.nbytes,
        "ms": elapsed / count * 1e3,
        "minor_faults_per_request": faults / count,
        "pages_per_request": 2 * array.nbytes // os.sysconf("SC_PAGE_SIZE"),
        "device_copies_per_request": (copied["h2d"] + copied["d2h"]) / count / array.nbytes,
        "pageable": copied["pageable"],
        "allocations": allocations,
    }


async def devices(path: str, shape: tuple[int, ...], rounds: int, count: int) -> list[dict[str, Any]]:
    """Measure the throughput of several devices together, as a multiple of one device's."""
    array = np.ones(shape, np.float32)
    found = []
    numbers = [n for n in (1, 2, 4) if n <= emulator.settings()["devices"]]
    rates: dict[int, list[float]] = {n: [] for n in numbers}
    for _ in range(rounds):
        for n in numbers:
            sessions = [await InferSession(k, path) for k in range(n)]
            await asyncio.gather(*(pipeline(session, array, 2) for session in sessions))
            start = time.perf_counter()
            await asyncio.gather(*(pipeline(session, array, count // n) for session in sessions))
            rates[n].append(count // n * n / (time.perf_counter() - start))
            for session in sessions:
                await session.free_resource()
    one = rates[1]
    for n in numbers:
        ratios = [rate / base for rate, base in zip(rates[n], one, strict=True)]
        found.append({"devices": n, "rate": statistics.median(rates[n]), "ratio": spread(ratios)})
    return found


async def measure(
    rounds: int = 5, which: tuple[str, ...] = ("resnet50", "mnist", "large", "devices")
) -> dict[str, Any]:
    """Measure all, or some; needs the packages of the extra ``cpu``."""
    threads = int(emulator.settings()["threads"])
    found: dict[str, Any] = {"threads": threads or os.cpu_count()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = (1, 3, 224, 224)
        if "resnet50" in which:
            found["resnet50"] = await compare(make_resnet50(folder), image, threads, rounds, 8)
        if "mnist" in which:
            found["mnist"] = await compare(make_mnist(folder), (1, 1, 28, 28), threads, rounds, 1000)
        if "large" in which:
            found["large"] = await large(folder)
        if "devices" in which:
            found["devices"] = await devices(make_resnet50(folder), image, min(rounds, 3), 16)
    return found


def rows(found: dict[str, Any]) -> list[Row]:
    """Return the lines of the table."""

    def row(figure: str, values: dict[str, float], digits: int, beside: str = "") -> Row:
        least, most = values["least"], values["most"]
        return Row(figure, f"{values['median']:.{digits}f}", f"{least:.{digits}f} to {most:.{digits}f}", beside)

    lines = []
    for name, label, digits in (("resnet50", "ResNet-50", 1), ("mnist", "MNIST size", 3)):
        for rival, one in found.get(name, {}).items():
            beside = f"bare ONNX Runtime{', same options' if rival == 'same' else ''}"
            lines.append(row(f"{label}, {beside}, ms", one["ms"], digits, f"{found['threads']} threads"))
            lines.append(row("  one await, times that", one["latency_ratio"], 3))
            lines.append(row("  one await, us above it", one["extra_us"], 0))
            lines.append(row("  throughput of infer_pipeline, times its", one["throughput_ratio"], 3))
    if "large" in found:
        one = found["large"]
        beside = (
            f"{one['minor_faults_per_request']:.1f} page faults a request of {one['pages_per_request']} pages, "
            f"{one['allocations']} allocations"
        )
        lines.append(Row(f"{one['nbytes'] >> 20} MiB in and out, ms", f"{one['ms']:.1f}", "", beside))
    lines += [
        row(f"{one['devices']} CPU devices at once, times the rate of one", one["ratio"], 2)
        for one in found.get("devices", [])
    ]
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_device", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=("resnet50", "mnist", "large", "devices"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    run = aioais.run if arguments.loop == "uvloop" else asyncio.run
    which = tuple(arguments.only or ("resnet50", "mnist", "large", "devices"))
    found = run(measure(arguments.rounds, which))
    show(rows(found), arguments.loop)
    write(arguments.json, {"cpu_device": found}, arguments.loop)


if __name__ == "__main__":
    main()
