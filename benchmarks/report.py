"""The table that each benchmark prints, and its JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

import aioais

__all__ = ["Row", "environment", "rounds", "show", "write"]


class Row(NamedTuple):
    """One figure."""

    figure: str
    measured: str
    """Median of the rounds."""
    spread: str = ""
    """Smallest and largest of the rounds."""
    beside: str = ""
    """A figure or a goal to compare it with."""


def rounds(values: Sequence[float], digits: int = 2) -> tuple[str, str]:
    """Return the median of some rounds and their spread, for the table."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle, f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def environment(loop: str) -> dict[str, Any]:
    """Return the machine, the versions and the loop of the measurement."""
    names = ("numpy", "onnxruntime", "uvloop")
    return {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "aioais": aioais.__version__,
        **{name: _version(name) for name in names},
        "loop": loop,
    }


def show(rows: Sequence[Row], loop: str = "asyncio") -> None:
    """Print the environment and the table."""
    where = environment(loop)
    table = Table(show_edge=False, pad_edge=False, title=", ".join(f"{key} {value}" for key, value in where.items()))
    table.add_column("figure", overflow="fold")
    for name in ("median", "spread"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("beside", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 150, soft_wrap=False)
    console.print(table)


def write(path: str | None, found: dict[str, Any], loop: str) -> None:
    """Write the figures and the environment to a file, if there is a path."""
    if path:
        Path(path).write_text(json.dumps({"environment": environment(loop), **found}, indent=1), encoding="utf-8")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
