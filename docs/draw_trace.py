"""Draw docs/pipeline.svg: a traced pipeline on the CPU device, with engines of 1, 2 and 1 ms.

    pip install --group pictures && python docs/draw_trace.py [picture.svg]

The times are measured, so the picture differs by some microseconds from run to run.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from aioais import InferSession, emulator
from aioais.demo_data import DIGITS_MODEL, load_digits

PICTURE = Path(__file__).with_name("pipeline.svg")
ENGINES = ("H2D", "execute", "D2H")
REQUESTS = 8
WARM_UP = 8
"""Requests before those drawn: the first make buffers, which is not what the picture is about."""
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")
"""By request; safe for the colour-blind (Paul Tol's bright scheme)."""


async def record(path: Path) -> None:
    images, _ = load_digits()
    with emulator.configure(h2d_ms=1, execute_ms=2, d2h_ms=1):
        async with InferSession(0, DIGITS_MODEL) as session:
            outputs = session.infer_pipeline([[image] for image in images[: WARM_UP + 4 + REQUESTS]])
            for _ in range(WARM_UP):
                await anext(outputs)
            # The four that are under way now belong to no trace that begins here.
            async with session.trace(path):
                async for _ in outputs:
                    pass


def draw(events: list[dict[str, Any]], picture: Path) -> None:
    slices = [event for event in events if event["ph"] == "X"]
    first = min(event["args"]["request"] for event in slices)
    slices = [event for event in slices if event["args"]["request"] < first + REQUESTS]
    zero = min(event["ts"] for event in slices)
    figure = Figure(figsize=(9, 2.1), layout="constrained")
    axes = figure.subplots()
    for event in slices:
        engine = event["name"].split()[0]
        nth = event["args"]["request"] - first
        begin, length = (event["ts"] - zero) / 1e3, event["dur"] / 1e3
        row = len(ENGINES) - 1 - ENGINES.index(engine)
        axes.barh(row, length, 0.8, begin, color=COLOURS[nth % len(COLOURS)], edgecolor="white", linewidth=1)
        axes.text(begin + length / 2, row, str(nth + 1), ha="center", va="center", color="white", size=9)
    axes.set_yticks(range(len(ENGINES)), reversed(ENGINES))
    axes.set_xlabel("milliseconds")
    axes.set_xlim(0)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    with mpl.rc_context({"svg.hashsalt": "aioais", "svg.fonttype": "none"}):
        figure.savefig(picture, metadata={"Date": None, "Creator": None})


def main() -> None:
    picture = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        asyncio.run(record(path))
        draw(json.loads(path.read_text("utf-8"))["traceEvents"], picture)


if __name__ == "__main__":
    main()
