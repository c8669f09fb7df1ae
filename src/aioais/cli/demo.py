"""``aioais demo``: handwritten digits, read and measured in a few seconds."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

import aioais

from ..demo_data import DIGITS_MODEL, load_digits
from .console import clear_errors, output_console, print_facts
from .load import run_tasks
from .picture import PICTURE_WIDTH, draw

if TYPE_CHECKING:
    from ..testing.lag import LoopLag

__all__ = ["demo"]

_LOWEST_ACCURACY: Final = 0.97
_PICTURES: Final = 4
_GAP: Final = 3
_REDRAW_S: Final = 0.2
"""Seconds between two updates of the progress bar: one blocks the loop for a millisecond or two, and at this interval
does not show in the 99th percentile of the lag."""


@dataclass(frozen=True)
class _Result:
    answers: npt.NDArray[np.int64]
    """Shape (rounds, images)."""
    seconds: float
    lag: LoopLag
    statistics: aioais.SessionStatistics


def demo(
    model: Annotated[
        str, typer.Option("--model", help="The digit model, such as a .om converted from the one shipped.")
    ] = str(DIGITS_MODEL),
    device: Annotated[int, typer.Option("--device", "-d", help="Id of the device.")] = 0,
    tasks: Annotated[int, typer.Option("--tasks", min=1, help="Requests that wait at the same time.")] = 64,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How many times all images are read.")] = 10,
) -> None:
    """Read handwritten digits that the model has never seen, and measure how fast and how well."""
    console = output_console()
    images, labels = load_digits()
    with clear_errors("demo"):
        result = aioais.run(_read, console, model, device, images, tasks, rounds)
    right = result.answers == labels
    _print_pictures(console, images[:, 0, 0], labels, result.answers[0])
    _print_figures(console, Path(model).name, tasks, right, result)
    if right.mean() < _LOWEST_ACCURACY:
        console.print(f"[red]less than {_LOWEST_ACCURACY:.0%} of the digits are right[/]")
        raise typer.Exit(1)


async def _read(
    console: Console, model: str, device: int, images: npt.NDArray[np.float32], tasks: int, rounds: int
) -> _Result:
    # Imported here, as it would delay all commands by 20 ms.
    from ..testing.lag import LoopLag

    answers = np.full((rounds, len(images)), -1)
    done = 0
    async with aioais.InferSession(device, model) as session:

        async def read(number: int) -> None:
            nonlocal done
            turn, index = divmod(number, len(images))
            (logits,) = await session.infer([images[index]])
            answers[turn, index] = logits.argmax()
            done += 1

        with _progress(console) as progress:
            bar = progress.add_task("reading digits", total=answers.size)

            async def redraw() -> None:
                while True:
                    progress.update(bar, completed=done, refresh=True)
                    await asyncio.sleep(_REDRAW_S)

            drawing = asyncio.create_task(redraw())
            try:
                async with LoopLag() as lag:
                    start = time.perf_counter()
                    await run_tasks(read, answers.size, tasks)
                    seconds = time.perf_counter() - start
            finally:
                drawing.cancel()
            progress.update(bar, completed=done)
        return _Result(answers, seconds, lag, session.statistics())


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        # Not `disable`: before rich 15 a progress bar ends with an empty line all the same.
        console=console if console.is_terminal else Console(quiet=True),
        # rich's own refresh thread would take the GIL from the loop.
        auto_refresh=False,
    )


def _print_pictures(
    console: Console,
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    answers: npt.NDArray[np.int64],
) -> None:
    fitting = max(1, min(_PICTURES, (console.width + _GAP) // (PICTURE_WIDTH + _GAP)))
    for chosen in (np.flatnonzero(answers == labels), np.flatnonzero(answers != labels)):
        # Spread over the whole set, to show the writing of several people.
        shown = chosen[np.linspace(0, len(chosen) - 1, min(fitting, len(chosen))).astype(int)]
        if not len(shown):
            continue
        pictures = [draw(images[index], ascii_only=console.options.ascii_only) for index in shown]
        gap = " " * _GAP
        caption = Text()
        for index in shown:
            good = answers[index] == labels[index]
            text = f"{answers[index]}" if good else f"{answers[index]}, but it is {labels[index]}"
            caption.append(text.center(PICTURE_WIDTH) + gap, style="green" if good else "bold red")
        console.print()
        for rows in zip(*pictures, strict=True):
            console.print(Text(gap.join(rows).rstrip()))
        console.print(caption)
    console.print()


def _print_figures(console: Console, name: str, tasks: int, right: npt.NDArray[np.bool_], result: _Result) -> None:
    rounds, images = right.shape
    lag = result.lag
    facts = {
        "model": name,
        "images": f"{images} that it has never seen, {rounds} times",
        "accuracy": f"{right.mean():.1%} ({int(right[0].sum())} of {images})",
        "throughput": f"{right.size / result.seconds:,.0f} requests/s, {tasks} awaited at once",
        "stages": _stages(result.statistics),
        "loop lag": f"p50 {lag.percentile(50):.1f} ms, p99 {lag.percentile(99):.1f} ms, "
        f"max {lag.percentile(100):.1f} ms, of a task that wakes every millisecond",
    }
    print_facts(console, facts)


def _stages(statistics: aioais.SessionStatistics) -> str:
    return ", ".join(f"{name} {stage.mean_ms:.3f} ms" for name, stage in statistics.stages.items())
