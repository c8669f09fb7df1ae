"""Small models on the CPU device beside bare ONNX Runtime: ``python -m benchmarks.small_models``.

Both sides run in turns and give the same results. The other side has the session options of the CPU device, so the
ratio is the cost of the library itself; where it says *defaults*, it is ONNX Runtime as it comes, whose threads spin.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import aioais
from aioais import InferSession, emulator
from aioais.emulator.ort import OrtModel
from aioais.types import Mode

from .models import make_detector, make_mnist, make_nhwc, make_ocr, make_vad
from .report import Row, rounds, show, write

WHAT = ("awaits", "state", "images")
STEPS = 50
"""Steps of one run of a model with a state."""
ITEMS = 24
"""Items of a pipeline."""
PARTS = 8
"""How often the sides change places in a turn."""
_PAUSE_S = 0.003
"""Between two sides: the threads of ONNX Runtime's defaults go on spinning after a run."""

_MODES: tuple[tuple[int | str, Mode], ...] = ((1, "static"), ("n", "dymshape"))

Arrays = Sequence[np.ndarray]
Way = Callable[[], Awaitable[Any]]
Figures = dict[str, dict[str, Any]]
"""By row: our time as a share of the other side's, its goal, and the microseconds of both."""


class Bare:
    """ONNX Runtime alone.

    Parameters
    ----------
    path
        The model.
    feeds
        What it is run with; the CPU device chooses options by their shapes.
    has_defaults
        Whether it has its own session options instead of those of the CPU device.
    """

    def __init__(self, path: str, feeds: Arrays, has_defaults: bool = False) -> None:
        import onnxruntime

        if has_defaults:
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        else:
            model = OrtModel(path, int(emulator.settings()["threads"]), spin=False)
            self.session = model.session_for([feed.shape for feed in feeds], sum(feed.nbytes for feed in feeds))
        self._names = [node.name for node in self.session.get_inputs()]

    def run(self, feeds: Arrays) -> list[np.ndarray]:
        """Run once."""
        results: list[np.ndarray] = self.session.run(None, dict(zip(self._names, feeds, strict=True)))
        return results

    def repeat(self, feeds: Arrays) -> list[np.ndarray]:
        """Run as many times as a pipeline has items."""
        results: list[np.ndarray] = []
        for _ in range(ITEMS):
            results = self.run(feeds)
        return results

    def steps(self, feeds: Arrays) -> list[np.ndarray]:
        """Run all steps of a model whose last output is the last input of the next."""
        results = [*feeds]
        for _ in range(STEPS):
            results = self.run([feeds[0], results[1]])
        return results


def random(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Return random feeds."""
    numbers = np.random.default_rng(1)
    return [numbers.standard_normal(shape).astype(np.float32) for shape in shapes]


async def in_turns(ways: dict[str, Way], turns: int, count: int, each: int = 1) -> dict[str, list[float]]:
    """Run several ways in turns, after one run that compares their results.

    Parameters
    ----------
    ways
        By name, what is measured.
    turns
        Number of figures.
    count
        Calls for one figure.
    each
        What one call does so many times.

    Returns
    -------
    dict of str to list of float
        For each way the median microseconds in each turn.

    Raises
    ------
    RuntimeError
        The ways do not give the same results.
    """
    results = {name: await way() for name, way in ways.items()}
    first = next(iter(results.values()))
    for name, others in results.items():
        if not all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(first, others, strict=True)):
            raise RuntimeError(f"{name} gives other results than {next(iter(ways))}")
    parts = max(1, min(count, PARTS))
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(parts):
            for name, way in ways.items():
                await asyncio.sleep(_PAUSE_S)
                await way()
                for _ in range(max(1, count // parts)):
                    start = time.perf_counter()
                    await way()
                    times[name].append(time.perf_counter() - start)
        if turn:  # the first one warms up
            for name, values in times.items():
                found[name].append(statistics.median(values) / each * 1e6)
    return found


def figure(us: dict[str, list[float]], ours: str, theirs: str, goal: float | None = None) -> dict[str, Any]:
    """Compare two ways turn by turn."""
    ratios = [a / b for a, b in zip(us[ours], us[theirs], strict=True)]
    return {"ratio": ratios, "goal": goal, "us": us[ours], "their_us": us[theirs]}


def one_await(session: InferSession, feeds: Arrays, mode: Mode = "static") -> Way:
    """Return what awaits one request."""

    async def call() -> list[np.ndarray]:
        return await session.infer(feeds, mode)

    return call


def in_thread(bare: Bare, feeds: Arrays) -> Way:
    """Return what awaits one run of bare ONNX Runtime."""

    async def call() -> list[np.ndarray]:
        return await asyncio.to_thread(bare.run, feeds)

    return call


async def awaits(folder: Path, turns: int, count: int) -> Figures:
    """Measure one await, static and in ``dymshape``, beside ``asyncio.to_thread`` around ONNX Runtime."""
    found: Figures = {}
    mnist, vad = random((1, 1, 28, 28)), random((1, 576), (2, 1, 128))
    for what, make, feeds in (("MNIST size", make_mnist, mnist), ("Silero VAD size", make_vad, vad)):
        for rows, mode in _MODES:
            path = make(folder, rows)
            bare = Bare(path, feeds)
            async with InferSession(0, path) as session:
                us = await in_turns(
                    {"bare": in_thread(bare, feeds), "ours": one_await(session, feeds, mode)}, turns, count
                )
            found[f"one await, {what}, {mode}, of asyncio.to_thread"] = figure(us, "ours", "bare", 1.1)
    return found


async def state(folder: Path, turns: int, count: int) -> Figures:
    """Measure steps of a model that feeds its state back: on the host, in device tensors and by iteration."""
    path = make_vad(folder)
    feeds = random((1, 576), (2, 1, 128))
    bare = Bare(path, feeds)
    async with InferSession(0, path) as session:

        async def steps() -> list[np.ndarray]:
            return bare.steps(feeds)

        async def host() -> list[np.ndarray]:
            results = [*feeds]
            for _ in range(STEPS):
                results = await session.infer([feeds[0], results[1]])
            return results

        async def tensors() -> list[np.ndarray]:
            results: list[Any] = [*feeds]
            for _ in range(STEPS):
                results = await session.infer([feeds[0], results[1]], out_array=False)
            return [await result.to_host() for result in results]

        ways: dict[str, Way] = {
            "bare": steps,
            "host": host,
            "tensors": tensors,
            "copied": partial(session.infer_iteration, feeds, [-1, 1], STEPS),
            "exchanged": partial(session.infer_iteration, feeds, [-1, 1], STEPS, mem_copy=False),
        }
        us = await in_turns(ways, turns, count, STEPS)
    return {
        "a step of infer_iteration, of bare": figure(us, "copied", "bare", 1.3),
        "a step of infer_iteration, mem_copy=False, of bare": figure(us, "exchanged", "bare", 1.3),
        "a step of infer_iteration, of one await with host state": figure(us, "copied", "host", 1.0),
        "one await with device state, of one with host state": figure(us, "tensors", "host", 1.0),
    }


async def images(folder: Path, turns: int, count: int) -> Figures:
    """Measure one await of a model with channels last, and the throughput of small models of images."""
    found: Figures = {}
    path, feeds = make_nhwc(folder), random((1, 224, 224, 3))
    async with InferSession(0, path) as session:
        ways: dict[str, Way] = {"ours": one_await(session, feeds)}
        same, defaults = Bare(path, feeds), Bare(path, feeds, has_defaults=True)
        ways["to_thread"] = in_thread(same, feeds)
        ways["bare"] = partial(_at_once, same.run, feeds)
        ways["defaults"] = partial(_at_once, defaults.run, feeds)
        us = await in_turns(ways, turns, count)
    found["one await, NHWC convolutions, of asyncio.to_thread"] = figure(us, "ours", "to_thread", 1.1)
    found["one await, NHWC convolutions, of bare"] = figure(us, "ours", "bare", 1.1)
    found["one await, NHWC convolutions, of bare's defaults"] = figure(us, "ours", "defaults")
    for what, make, shape in (
        ("small detector", make_detector, (1, 3, 320, 320)),
        ("OCR size", make_ocr, (1, 3, 48, 320)),
    ):
        path, feeds = make(folder), random(shape)
        async with InferSession(0, path) as session:
            ways = {"ours": partial(pipeline, session, feeds)}
            for name, bare in (("bare", Bare(path, feeds)), ("defaults", Bare(path, feeds, has_defaults=True))):
                ways[name] = partial(_at_once, bare.repeat, feeds)
            us = await in_turns(ways, turns, count // ITEMS, ITEMS)
        found[f"infer_pipeline, {what}, time of bare's defaults"] = figure(us, "ours", "defaults", 0.8)
        found[f"infer_pipeline, {what}, time of bare's, same options"] = figure(us, "ours", "bare")
    return found


async def pipeline(session: InferSession, feeds: Arrays) -> list[np.ndarray]:
    """Run all items of a pipeline and return the results of the last."""
    last: list[np.ndarray] = []
    async for results in session.infer_pipeline(feeds for _ in range(ITEMS)):
        last = results
    return last


async def _at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function on the loop's thread."""
    return function(*arguments)


async def measure(turns: int = 5, count: int = 400, which: Sequence[str] = WHAT) -> Figures:
    """Measure all, or some; needs the packages of the extra ``cpu``."""
    found: Figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "awaits" in which:
            found |= await awaits(folder, turns, count)
        if "state" in which:
            found |= await state(folder, turns, count // 20)
        if "images" in which:
            found |= await images(folder, turns, count // 4)
    return found


def rows(found: Figures) -> list[Row]:
    """Return the lines of the table."""
    lines = []
    for name, one in found.items():
        ratio, *us = (statistics.median(one[key]) for key in ("ratio", "us", "their_us"))
        goal = one["goal"]
        verdict = "" if goal is None else f"goal: {goal}, {'ok' if ratio <= goal else 'short'}; "
        lines.append(Row(name, *rounds(one["ratio"]), f"{verdict}{us[0]:.0f} and {us[1]:.0f} us"))
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small_models", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=WHAT)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--count", type=int, default=400, help="requests of one turn of one await")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    run = aioais.run if arguments.loop == "uvloop" else asyncio.run
    found = run(measure(arguments.turns, arguments.count, tuple(arguments.only or WHAT)))
    show(rows(found), arguments.loop)
    write(arguments.json, {"small_models": found}, arguments.loop)


if __name__ == "__main__":
    main()
