"""Output and error handling of all commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from ..errors import AioaisError

__all__ = ["clear_errors", "format_bytes", "output_console", "print_facts"]

_PIPE_WIDTH = 200


def output_console() -> Console:
    """Return a console for the current standard output.

    Returns
    -------
    rich.console.Console
        In a pipe or a file it writes no control characters and is wide enough that no table is wrapped.
    """
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_WIDTH)


@contextmanager
def clear_errors(command: str) -> Iterator[None]:
    """Turn an error that the caller can fix into one line on standard error and exit code 2.

    Parameters
    ----------
    command
        Name of the command, with which the line begins.

    Raises
    ------
    typer.Exit
        Instead of an :exc:`aioais.AioaisError` or an :exc:`OSError`. Any other exception is a bug of the library and
        keeps its traceback.
    """
    try:
        yield
    except (AioaisError, OSError) as exc:
        # Not through rich, which would break the line at the width of the terminal.
        print(f"aioais {command}: {' '.join(str(exc).split())}", file=sys.stderr)
        raise typer.Exit(2) from None


def format_bytes(count: int) -> str:
    """Return a number of bytes with a suitable unit.

    Parameters
    ----------
    count
        Bytes, 0 or more.

    Returns
    -------
    str
        Such as ``"256 B"`` or ``"15.5 GiB"``.
    """
    if count < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 1024 or unit == "TiB":
            break
    return f"{size:.1f} {unit}"


def print_facts(console: Console, facts: Mapping[str, str]) -> None:
    """Print names and values, one pair per line.

    Parameters
    ----------
    console
        Where to print.
    facts
        Printed in order; rich's markup is not interpreted.
    """
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        console.print(Text.assemble((name.ljust(width), "bold"), value), soft_wrap=True)
