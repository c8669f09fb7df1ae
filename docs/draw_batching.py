"""Draw docs/batching.svg: requests under load, with batching and without it.

    pip install --group docs && python docs/draw_batching.py [picture.svg]

On the CPU device with a batch of n rows taking 1 ms + n x 0.1 ms, in gears 1, 2, 4, 8 and 16. Requests of one row come
at random, and each is answered by an execution of its own, or together with others. The rates are measured, so they
differ from run to run; run it on an idle machine.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks/, which is not installed

from benchmarks.batching import emulated, with_gears

from aioais.demo_data import DIGITS_MODEL

PICTURE = Path(__file__).with_name("batching.svg")
LOADS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
WAYS = {"batched": ("BatchingSession", "#4477aa"), "plain": ("one execution each", "#ee6677")}
"""Safe for the colour-blind (Paul Tol's bright scheme)."""


def draw(figures: dict[str, Any], picture: Path) -> None:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    answered, late = figure.subplots(1, 2)
    for name, (label, colour) in WAYS.items():
        by_load = figures["sweep"][name]
        offered = [load * figures["best_rate"] for load in by_load]
        rates, _, p99 = zip(*by_load.values(), strict=True)
        answered.plot(offered, rates, "o-", color=colour, label=label, markersize=3)
        late.plot(offered, p99, "o-", color=colour, label=label, markersize=3)
    answered.axhline(figures["best_rate"], color="#bbbbbb", linewidth=1)
    answered.text(0, figures["best_rate"], "full batches of 16", va="bottom", size=8, color="#777777")
    answered.set_ylabel("answered per second")
    late.set_ylabel("p99, milliseconds")
    late.set_yscale("log")
    for axes in (answered, late):
        axes.set_xlabel("requests per second")
        axes.set_xlim(0)
        axes.spines[["top", "right"]].set_visible(False)
    answered.set_ylim(0)
    late.legend(frameon=False)
    with mpl.rc_context({"svg.hashsalt": "aioais", "svg.fonttype": "none"}):
        figure.savefig(picture, metadata={"Date": None, "Creator": None})


async def measure(folder: Path) -> dict[str, Any]:
    path = with_gears(str(DIGITS_MODEL), folder, "digits", "image:-1,1,8,8")
    return await emulated(path, turns=3, seconds=1.0, loads=LOADS)


def main() -> None:
    picture = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    with tempfile.TemporaryDirectory() as folder:
        draw(asyncio.run(measure(Path(folder))), picture)


if __name__ == "__main__":
    main()
