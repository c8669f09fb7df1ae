"""What the commands share: where they print, and how they fail."""

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
    """Make a console for standard output as it is now.

    Returns
    -------
    rich.console.Console
        In a pipe or a file: no control characters, and wide enough that no table is wrapped.
    """
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_WIDTH)


@contextmanager
def clear_errors(command: str) -> Iterator[None]:
    """Turn an error that is the caller's to mend into one line on standard error and exit code 2.

    Parameters
    ----------
    command
        Name of the command, which starts the line.

    Raises
    ------
    typer.Exit
        In place of an :exc:`aioais.AioaisError` or an :exc:`OSError`; any other exception is a bug of
        ours and keeps its traceback.
    """
    try:
        yield
    except (AioaisError, OSError) as exc:
        # Not through rich: it would break the line at the width of the terminal.
        print(f"aioais {command}: {' '.join(str(exc).split())}", file=sys.stderr)
        raise typer.Exit(2) from None


def format_bytes(count: int) -> str:
    """Write a number of bytes with the unit that suits it.

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
    """Print names and what they are, a line each.

    Parameters
    ----------
    console
        Where to.
    facts
        Printed in order and as they are, without rich's markup.
    """
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        console.print(Text.assemble((name.ljust(width), "bold"), value), soft_wrap=True)
