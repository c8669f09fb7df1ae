"""``aioais bench``: latency and throughput of a model on a device, and the time of each stage."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TextIO, cast

import numpy as np
import typer
from rich.table import Table

import aioais
from aioais.session import core_of

from .console import clear_errors, format_bytes, output_console, print_facts
from .load import run_tasks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .._acl.library import Platform
    from .._acl.model import ModelInfo, TensorInfo
    from ..testing.lag import LoopLag

__all__ = ["bench"]

_RECORDED: Final = 200
_SIZES: Final = (1, 2, 3, 4, 16, 32, 64, 128, 224, 256, 512)
"""Sizes that are tried for open dims, after 8."""
_MOST_ELEMENTS: Final = 1 << 24
_STAGES: Final = ("queue", "h2d", "execute", "d2h", "delivery")


@dataclass(frozen=True)
class _Result:
    inputs: dict[str, str]
    seconds: float
    latency_ms: list[float]
    """Of each request, from the call of infer to its result."""
    timings: Sequence[aioais.RequestTiming]
    lag: LoopLag
    statistics: aioais.SessionStatistics


def bench(
    model: Annotated[str, typer.Argument(help="A .om or .onnx file.")],
    device: Annotated[int, typer.Option("--device", "-d", help="Id of the device.")] = 0,
    requests: Annotated[int, typer.Option("--requests", "-n", min=1, help="How many requests are measured.")] = 500,
    tasks: Annotated[int, typer.Option("--tasks", "-t", min=1, help="Requests that wait at the same time.")] = 8,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Requests before the measured ones.")] = 20,
    depth: Annotated[int, typer.Option("--depth", min=1, help="Requests on the device at once.")] = 4,
    loop: Annotated[int, typer.Option("--loop", min=1, help="Executions per request.")] = 1,
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape", help='Shapes of the inputs, such as "x:8,3,224,224;y:8,10"; needed where dims are open.'
        ),
    ] = None,
    platform: Annotated[
        str | None, typer.Option("--platform", help="ascend or cpu; decided by the file's name if not given.")
    ] = None,
    json_file: Annotated[str | None, typer.Option("--json", help="Also write the figures to this new file.")] = None,
) -> None:
    """Measure a model with random inputs: latency, throughput, and the time of each stage."""
    with clear_errors("bench"), _new_file(json_file) as file:
        result = aioais.run(_measure, model, device, requests, tasks, warmup, depth, loop, shape, platform)
        figures = _figures(model, tasks, result)
        if file is not None:
            json.dump(figures, file, indent=1)
    _show(figures, result)


@contextmanager
def _new_file(path: str | None) -> Iterator[TextIO | None]:
    """Create the file before the measurement, so that a wrong path fails at once; remove it if there are no figures."""
    if path is None:
        yield None
        return
    try:
        file = Path(path).open("x", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as exc:
        raise aioais.ArgumentError(
            f"got --json {path!r}: {exc.strerror}; expected the path of a new file in an existing folder: "
            "choose another path"
        ) from exc
    try:
        with file:
            yield file
    except BaseException:
        Path(path).unlink()
        raise


async def _measure(
    model: str,
    device: int,
    requests: int,
    tasks: int,
    warmup: int,
    depth: int,
    loop: int,
    shape: str | None,
    platform: str | None,
) -> _Result:
    # Imported here, as it would delay all commands by 20 ms.
    from ..testing.lag import LoopLag

    session = aioais.InferSession(device, model, loop=loop, depth=depth, platform=cast("Platform | None", platform))
    async with session:
        feeds = await _feeds(session, shape)
        latency_ms: list[float] = []

        async def request(number: int) -> None:
            start = time.perf_counter()
            await session.infer(feeds, "auto")
            latency_ms.append((time.perf_counter() - start) * 1e3)

        await run_tasks(request, warmup, tasks)
        latency_ms.clear()
        async with LoopLag() as lag:
            start = time.perf_counter()
            await run_tasks(request, requests, tasks)
            seconds = time.perf_counter() - start
        measured = latency_ms.copy()
        # Recording adds a wait to each request, so the stages are those of further requests.
        with session.record() as timings:
            await run_tasks(request, min(requests, _RECORDED), tasks)
        inputs = {
            tensor.name: f"{feed.dtype}{list(feed.shape)}"
            for tensor, feed in zip(session.get_inputs(), feeds, strict=True)
        }
        return _Result(inputs, seconds, measured, timings, lag, session.statistics())


async def _feeds(session: aioais.InferSession, text: str | None) -> list[np.ndarray]:
    """Make the feeds; if dims are open that the caller did not give, raise with shapes that were tried and run."""
    info = core_of(session).opened().info
    given = {} if text is None else _read_shapes(text)
    shapes = _shapes(info, given)
    open_inputs = [name for name, dims in shapes.items() if any(dim < 0 for dim in dims)]
    if not open_inputs:
        return _random_feeds(info, shapes)
    found = await _shapes_that_run(session, info, shapes)
    advice = f'such as --shape "{_write_shapes(found or shapes)}"'
    if found is None:
        advice += " with a number in place of each -1"
    raise aioais.ArgumentError(
        f"got open dims for {', '.join(open_inputs)} ({_write_shapes(shapes)}); expected a size for each: say which "
        f"shapes to measure, {advice}"
    )


async def _shapes_that_run(
    session: aioais.InferSession, info: ModelInfo, shapes: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]] | None:
    """Try sizes for the open dims; return the first shapes that the model runs with."""
    for batch, size in ((None, 8), (1, 8), *((batch, size) for size in _SIZES for batch in (None, 1))):
        candidate = {
            tensor.name: tuple(_closed(tensor, k, dim, batch, size) for k, dim in enumerate(shapes[tensor.name]))
            for tensor in info.inputs
        }
        if sum(map(math.prod, candidate.values())) > _MOST_ELEMENTS:
            continue
        try:
            await session.infer(_random_feeds(info, candidate), "auto")
        except aioais.AioaisError:
            continue
        return candidate
    return None


def _closed(tensor: TensorInfo, place: int, dim: int, batch: int | None, size: int) -> int:
    """Return a size for a dim that is open, inside its range."""
    if dim >= 0:
        return dim
    value = batch if batch is not None and place == 0 else size
    if tensor.ranges is not None and place < len(tensor.ranges):
        low, high = tensor.ranges[place]
        value = max(low, value if high < 0 else min(value, high))
    return value


def _shapes(info: ModelInfo, given: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each input: the given one, that of the largest gear, or the model's, which may be open."""
    unknown = set(given) - {tensor.name for tensor in info.inputs}
    if unknown:
        names = [tensor.name for tensor in info.inputs]
        raise aioais.ArgumentError(f"got --shape for {sorted(unknown)}; expected inputs of the model: {names}")
    largest = info.gears.shapes[info.gears.largest] if info.gears else [tensor.shape for tensor in info.inputs]
    return {tensor.name: given.get(tensor.name, own) for tensor, own in zip(info.inputs, largest, strict=True)}


def _random_feeds(info: ModelInfo, shapes: Mapping[str, Sequence[int]]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [_random(rng, tensor, shapes[tensor.name]) for tensor in info.inputs]


def _write_shapes(shapes: Mapping[str, Sequence[int]]) -> str:
    return ";".join(f"{name}:{','.join(map(str, dims))}" for name, dims in shapes.items())


def _read_shapes(text: str) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for item in text.strip().removesuffix(";").split(";"):
        # A name may contain colons, as those of TensorFlow do: the last colon separates.
        name, colon, dims = item.rpartition(":")
        try:
            if not colon:
                raise ValueError(item)
            shapes[name.strip()] = tuple(int(dim) for dim in dims.split(",") if dim.strip())
        except ValueError:
            raise aioais.ArgumentError(
                f'got --shape {text!r}; expected name:dims;name:dims, such as "x:8,3,224,224"'
            ) from None
    return shapes


def _random(rng: np.random.Generator, tensor: TensorInfo, shape: Sequence[int]) -> np.ndarray:
    dtype = tensor.dtype if tensor.dtype is not None else tensor.datatype.numpy
    count = math.prod(shape)
    try:
        if dtype.kind == "b":
            values: Any = rng.integers(0, 2, count)
        elif dtype.kind in "iu":
            values = np.zeros(count)  # mostly indices, for which 0 is always legal
        else:
            values = rng.random(count)
        array: np.ndarray = values.astype(dtype).reshape(tuple(shape))
    except (MemoryError, OverflowError, ValueError) as exc:  # NumPy raises any of the three for too many elements
        raise aioais.ArgumentError(
            f"input {tensor.name!r} of shape {list(shape)} does not fit into memory ({exc}); give a smaller --shape"
        ) from exc
    return array


def _spread(values: Sequence[float]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return {
        "mean": float(np.mean(values)),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(max(values)),
    }


def _figures(model: str, tasks: int, result: _Result) -> dict[str, Any]:
    timings = [timing for timing in result.timings if timing.is_measured]
    return {
        "model": model,
        "aioais": aioais.__version__,
        "inputs": result.inputs,
        "requests": len(result.latency_ms),
        "tasks": tasks,
        "requests_per_s": len(result.latency_ms) / result.seconds,
        "latency_ms": _spread(result.latency_ms),
        "stages_ms": {name: _spread([getattr(timing, f"{name}_ms") for timing in timings]) for name in _STAGES},
        "loop_lag_ms": {f"p{percent}": result.lag.percentile(percent) for percent in (50, 99, 100)},
        "device_bytes": result.statistics.device_bytes,
    }


def _show(figures: dict[str, Any], result: _Result) -> None:
    lag = figures["loop_lag_ms"]
    console = output_console()
    print_facts(
        console,
        {
            "model": Path(figures["model"]).name,
            "inputs": ", ".join(f"{name} {what}" for name, what in result.inputs.items()),
            "throughput": f"{figures['requests_per_s']:,.1f} requests/s, {figures['tasks']} awaited at once",
            "loop lag": f"p50 {lag['p50']:.1f} ms, p99 {lag['p99']:.1f} ms, max {lag['p100']:.1f} ms",
            "device memory": format_bytes(figures["device_bytes"]),
        },
    )
    table = Table("milliseconds", *(("mean", "p50", "p90", "p99", "max")))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, spread in (("one await", figures["latency_ms"]), *figures["stages_ms"].items()):
        table.add_row(name, *(f"{value:.3f}" for value in spread.values()))
    console.print(table)
