"""Batching under load, beside what one would do without it: ``python -m benchmarks.batching [--json FILE]``.

On the emulator a batch takes 1 ms and 0.1 ms for each row, in gears 1, 2, 4, 8 and 16:

* *closed loop*: 64 callers, each with one row, one request after the other; beside the best fixed gear, which is full
  batches of one size with two under way, without any caller behind them;
* *open loop*: requests of one row come at random (Poisson), at shares of the rate of the best gear; beside the same
  requests without batching, each an execution of its own.

Two real models run on ONNX Runtime: the digits, and one of the size of a text recogniser. Beside them is what many
services do: bare ONNX Runtime in a thread, behind a batcher that waits for 16 rows or 2 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import aioais
from aioais import BatchingSession, InferSession, emulator
from aioais.demo_data import DIGITS_MODEL, load_digits

from .models import Graph
from .report import Row, rounds, show, write

Infer = Callable[[np.ndarray], Awaitable[Any]]

GEARS = (1, 2, 4, 8, 16)
FIXED_MS, ROW_MS = 1.0, 0.1
CALLERS = 64
LOADS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
WINDOW_S = 0.002


class Answered(NamedTuple):
    """What an open loop found."""

    rate: float
    """Requests that were answered per second."""
    p50: float
    """Milliseconds."""
    p99: float


class WindowBatcher:
    """Bare ONNX Runtime in one thread, behind a window: the batcher that services write by hand.

    Parameters
    ----------
    path
        The model, with an open first dim.
    """

    def __init__(self, path: str) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._name = self._session.get_inputs()[0].name
        self._calls: list[tuple[np.ndarray, asyncio.Future[Any]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    async def infer(self, row: np.ndarray) -> Any:
        """Run one row with those that come within the window."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._calls.append((row, future))
        if len(self._calls) == GEARS[-1]:
            self._send()
        elif self._timer is None:
            self._timer = loop.call_later(WINDOW_S, self._send)
        return await future

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        calls, self._calls = self._calls, []
        if calls:
            task = asyncio.ensure_future(self._run(calls))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, calls: list[tuple[np.ndarray, asyncio.Future[Any]]]) -> None:
        feed = np.concatenate([row for row, _ in calls])
        async with self._turn:
            (output,) = await asyncio.to_thread(self._session.run, None, {self._name: feed})
        for k, (_, future) in enumerate(calls):
            if not future.done():
                future.set_result([output[k : k + 1]])

    async def aclose(self) -> None:
        """Wait for what is under way."""
        self._send()
        await asyncio.gather(*self._tasks)


async def closed_loop(infer: Infer, row: np.ndarray, seconds: float, callers: int = CALLERS) -> float:
    """Return the requests per second of some callers, each with one request at a time."""
    done = 0
    end = time.perf_counter() + seconds

    async def work() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await infer(row)
            done += 1

    start = time.perf_counter()
    await asyncio.gather(*[work() for _ in range(callers)])
    return done / (time.perf_counter() - start)


async def open_loop(infer: Infer, row: np.ndarray, rate: float, seconds: float) -> Answered:
    """Send requests at random at a rate, whatever becomes of them, and stop waiting when the time is over.

    The latency counts from the moment at which a request was due. Those that are not answered in the end count with
    the time that they have waited.
    """
    random = np.random.default_rng(3)
    due = np.cumsum(random.exponential(1 / rate, int(rate * seconds)))
    times: list[float] = []
    tasks: set[asyncio.Task[None]] = set()
    start = time.perf_counter()
    began: dict[asyncio.Task[None], float] = {}

    async def one(at: float) -> None:
        await infer(row)
        times.append(time.perf_counter() - start - at)

    for at in due:
        delay = at - (time.perf_counter() - start)
        if delay > 0:
            await asyncio.sleep(delay)
        task = asyncio.ensure_future(one(at))
        tasks.add(task)
        began[task] = at
        task.add_done_callback(tasks.discard)
    answered, elapsed = len(times), time.perf_counter() - start
    late = [elapsed - began[task] for task in tasks]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    milliseconds = np.array(times[:answered] + late) * 1e3
    return Answered(answered / elapsed, float(np.percentile(milliseconds, 50)), float(np.percentile(milliseconds, 99)))


async def fixed_gear(session: InferSession, shape: tuple[int, ...], gear: int, seconds: float) -> float:
    """Return the rows per second of full batches of one size, two under way."""
    feed = np.ones((gear, *shape[1:]), np.float32)

    async def infer(_: np.ndarray) -> None:
        await session.infer([feed], "auto")

    return gear * await closed_loop(infer, feed, seconds, callers=2)


async def emulated(path: str, turns: int, seconds: float, loads: tuple[float, ...] = LOADS) -> dict[str, Any]:
    """Measure on the emulator with its dials set."""
    found: dict[str, Any] = {"closed": [], "one": [], "one_plain": [], "fixed": {gear: [] for gear in GEARS}}
    sweep: dict[str, dict[float, list[Answered]]] = {"batched": {}, "plain": {}}
    row = load_digits()[0][0]
    best_rate = GEARS[-1] / (FIXED_MS + ROW_MS * GEARS[-1]) * 1e3
    with emulator.configure(execute_ms=FIXED_MS, execute_row_ms=ROW_MS):
        async with InferSession(0, path) as session, BatchingSession(session) as batching:

            async def together(array: np.ndarray) -> object:
                return await batching.infer([array])

            async def alone(array: np.ndarray) -> object:
                return await session.infer([array], "auto")

            await closed_loop(together, row, seconds)  # learns the times of the gears
            for _ in range(turns):
                for gear, rates in found["fixed"].items():
                    rates.append(await fixed_gear(session, row.shape, gear, seconds / 2))
                found["closed"].append(await closed_loop(together, row, seconds))
                found["one"].append(await closed_loop(together, row, seconds, callers=1))
                found["one_plain"].append(await closed_loop(alone, row, seconds, callers=1))
                for load in loads:
                    for name, infer in (("plain", alone), ("batched", together)):
                        answered = await open_loop(infer, row, load * best_rate, seconds)
                        sweep[name].setdefault(load, []).append(answered)
            found["fill"] = batching.statistics().fill
    found["best_rate"] = best_rate
    found["sweep"] = {
        name: {
            load: [statistics.median(column) for column in zip(*some, strict=True)] for load, some in by_load.items()
        }
        for name, by_load in sweep.items()
    }
    return found


def make_reader(folder: Path) -> str:
    """Write a model of the size of a text recogniser: 32 x 160 pixels in, 20 x 96 classes out."""
    from onnx import TensorProto, helper, save

    graph = Graph()
    x = "x"
    for taken, given, pool in ((1, 32, 2), (32, 64, 2), (64, 64, 2)):
        x = graph.conv(x, (taken, given), 3)
        x = graph.node("MaxPool", [x], kernel_shape=[pool] * 2, strides=[pool] * 2)
    x = graph.node("Conv", [x, graph.random(96, 64, 4, 1)])
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        graph.nodes,
        "reader",
        [value("x", TensorProto.FLOAT, ["n", 1, 32, 160])],
        [value(x, TensorProto.FLOAT, ["n", 96, 1, 20])],
        graph.weights,
    )
    path = str(folder / "reader.onnx")
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


async def real(path: str, gears: str, row: np.ndarray, turns: int, seconds: float) -> dict[str, list[float]]:
    """Measure a real model: requests per second of 64 callers and of one, beside bare ONNX Runtime with a window."""
    found: dict[str, list[float]] = {}
    async with (
        InferSession(0, gears) as session,
        BatchingSession(session) as batching,
        aclosing(WindowBatcher(path)) as window,
    ):

        async def together(array: np.ndarray) -> object:
            return await batching.infer([array])

        async def alone(array: np.ndarray) -> object:
            return await session.infer([array], "auto")

        ways: dict[str, Infer] = {"batching": together, "window": window.infer, "plain": alone}
        for infer in ways.values():
            await closed_loop(infer, row, seconds / 2)
        for _ in range(turns):
            for name, infer in ways.items():
                found.setdefault(name, []).append(await closed_loop(infer, row, seconds))
            for name, infer in ways.items():
                found.setdefault(f"{name}_one", []).append(await closed_loop(infer, row, seconds / 2, callers=1))
    return found


def with_gears(path: str, folder: Path, name: str, spec: str) -> str:
    """Give a model the gears of the measurement."""
    sizes = ",".join(map(str, GEARS))
    return aioais.convert(path, str(folder / f"{name}.onnx"), input_shape=spec, dynamic_batch_size=sizes)


async def measure(turns: int = 3, seconds: float = 1.0) -> dict[str, Any]:
    """Measure everything."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        digits = with_gears(str(DIGITS_MODEL), folder, "digits", "image:-1,1,8,8")
        reader = make_reader(folder)
        line = np.random.default_rng(1).standard_normal((1, 1, 32, 160)).astype(np.float32)
        open_digits = open_batch(str(DIGITS_MODEL), folder)
        return {
            "emulated": await emulated(digits, turns, seconds),
            "digits": await real(open_digits, digits, load_digits()[0][0], turns, seconds),
            "reader": await real(
                reader, with_gears(reader, folder, "reader_gears", "x:-1,1,32,160"), line, turns, seconds
            ),
        }


def open_batch(path: str, folder: Path) -> str:
    """Open the first dim of a model, for bare ONNX Runtime."""
    import onnx

    model = onnx.load(path)
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "n"
    target = str(folder / "open.onnx")
    onnx.save(model, target)
    return target


def rows(figures: dict[str, Any]) -> list[Row]:
    """Return the lines of the table."""
    dialled = figures["emulated"]
    best, rates = max(dialled["fixed"].items(), key=lambda item: statistics.median(item[1]))
    fixed = statistics.median(rates)
    share = statistics.median(dialled["closed"]) / fixed
    one, plain = (1e3 / statistics.median(dialled[name]) for name in ("one", "one_plain"))
    found = [
        Row(
            f"batching, {CALLERS} callers in a closed loop, rows/s",
            *rounds(dialled["closed"], 0),
            f"{share:.2f} of the best fixed gear ({best}: {fixed:.0f}); goal: 0.9",
        ),
        Row("  one caller, ms a request", f"{one:.2f}", "", f"{one / plain:.2f} x unbatched ({plain:.2f})"),
    ]
    for load, (rate, p50, p99) in dialled["sweep"]["batched"].items():
        other_rate, other_p50, other_p99 = dialled["sweep"]["plain"][load]
        goal = "; goal: 1.1 x" if float(load) == LOADS[0] else ""
        found.append(
            Row(
                f"  open loop, {float(load):.0%} of {dialled['best_rate']:.0f} rows/s: answered/s",
                f"{rate:.0f}",
                f"p50 {p50:.2f}, p99 {p99:.2f} ms",
                f"unbatched {other_rate:.0f}, p50 {other_p50:.2f}, p99 {other_p99:.2f}; {p50 / other_p50:.2f} x "
                f"p50{goal}",
            )
        )
    for name, what in (("digits", "the digits"), ("reader", "a text recogniser")):
        measured = figures[name]
        median = {key: statistics.median(values) for key, values in measured.items()}
        for suffix, who in (("", f"{CALLERS} callers"), ("_one", "one caller")):
            found.append(
                Row(
                    f"  {what}, {who}, rows/s",
                    *rounds(measured[f"batching{suffix}"], 0),
                    f"bare ONNX Runtime with a window {median[f'window{suffix}']:.0f}, unbatched "
                    f"{median[f'plain{suffix}']:.0f}",
                )
            )
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batching", description=__doc__)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    run = aioais.run if arguments.loop == "uvloop" else asyncio.run
    figures = run(measure(arguments.turns, arguments.seconds))
    show(rows(figures), arguments.loop)
    write(arguments.json, {"batching": figures}, arguments.loop)


if __name__ == "__main__":
    main()
