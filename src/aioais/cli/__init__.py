"""The command ``aioais``: demo, bench, convert, devices, doctor and inspect.

The commands need the extra ``cli``, which is typer and rich; ``doctor`` works without it. No other part of aioais
imports these, and this module imports them only when it runs.
"""

from __future__ import annotations

import sys

from ..errors import install_hint

__all__ = ["main"]


def main() -> None:
    """Run the command line and leave the process with its exit code.

    Raises
    ------
    SystemExit
        Always: 0 for success, 1 if the demo or the doctor finds something wrong, 2 for an error of the caller.
    """
    try:
        from .app import app
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing not in {"typer", "rich"}:
            raise
        if sys.argv[1:2] == ["doctor"]:  # it needs neither, and says what else is missing
            from .checks import main as run_doctor

            sys.exit(run_doctor(sys.argv[2:]))
        print(f"aioais: the command line needs {missing}: {install_hint('cli')}", file=sys.stderr)
        sys.exit(2)
    app(prog_name="aioais")
