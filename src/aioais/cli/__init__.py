"""The command ``aioais``: demo, bench, convert, devices and inspect.

What the commands need beyond the library, typer and rich, is the extra ``cli``; nothing else in aioais
imports them, and this module does so only when it is run.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and leave the process with its exit code.

    Raises
    ------
    SystemExit
        Always: 0 for success, 1 for a demo that reads too few digits right, 2 for an error of the caller.
    """
    try:
        from .app import app
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing not in {"typer", "rich"}:
            raise
        print(f'aioais: the command line needs {missing}: pip install "aioais[cli]"', file=sys.stderr)
        sys.exit(2)
    app(prog_name="aioais")
