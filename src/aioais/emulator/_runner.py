"""Running a program with the emulated ``acl`` installed, as plain Python would run it.

The program's module stays in ``sys.modules`` until the interpreter ends, so what it holds goes in the usual order:
``atexit`` first, then ``__del__``. Children that it starts find the module ``acl`` on ``PYTHONPATH``, and the options
in the environment.
"""

from __future__ import annotations

import argparse
import builtins
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ._registry import counter
from ._settings import ENVIRONMENT
from ._state import state

__all__ = ["main"]

_ON_PATH = Path(__file__).parent / "on_path"
_UNITS = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}


def _memory(text: str) -> str:
    """Return MiB; a plain number is MiB, as in ``configure(memory_mb=…)``."""
    number, factor = (text[:-1], _UNITS[text[-1:].upper()]) if text[-1:].upper() in _UNITS else (text, 1)
    try:
        size = int(float(number) * factor)
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a size such as 4096 (MiB), 512M or 16G")
    return str(size)


def _count(text: str) -> str:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number of at least 1")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m aioais.emulator",
        usage="%(prog)s [options] script.py [args]",
        description="Run a program written for pyACL on the CPU device; its models are ONNX files.",
    )
    parser.add_argument("--devices", type=_count, metavar="N", help="number of devices (default 4)")
    parser.add_argument("--memory", type=_memory, metavar="SIZE", help="memory of each device: MiB, or 512M, 16G")
    parser.add_argument(
        "--run-mode", choices=("host", "device"), help="a host with a card (default), or the SoC itself"
    )
    parser.add_argument("--soc", metavar="NAME", help="what acl.get_soc_name returns, such as Ascend310P3")
    parser.add_argument("--list", action="store_true", help="list the emulated calls and end")
    parser.add_argument("script", nargs="?")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str]) -> int:
    """Run a script with the emulated ``acl`` installed.

    Parameters
    ----------
    argv
        Options, path of the script, and its arguments.

    Returns
    -------
    int
        Exit status; that of the script is raised by it as ``SystemExit``.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if options.list:
        from .listing import calls

        sys.stdout.write("\n".join(calls()) + "\n")
        return 0
    if options.script is None:
        parser.print_usage(sys.stderr)
        return 2
    if not Path(options.script).exists():
        sys.stderr.write(f"python -m aioais.emulator: no such script: {options.script}\n")
        return 2
    _configure(options)
    _run(options.script, options.arguments)
    return 0


def _configure(options: argparse.Namespace) -> None:
    """Apply the options here, and for children by the environment."""
    run_mode = None if options.run_mode is None else str(int(options.run_mode == "host"))
    given = {"devices": options.devices, "memory_mb": options.memory, "run_mode": run_mode, "soc_name": options.soc}
    for name, value in given.items():
        if value is not None:
            os.environ[ENVIRONMENT[name]] = value
    folders = [str(_ON_PATH), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)

    from ._tree import install
    from .control import reset

    reset()  # settings come from the environment
    install()


def _run(script: str, arguments: list[str]) -> None:
    """Run a file as the main module."""
    from importlib.machinery import SourceFileLoader

    module: Any = ModuleType("__main__")
    module.__file__ = script
    module.__builtins__ = builtins
    module.__loader__ = SourceFileLoader("__main__", script)
    sys.modules["__main__"] = module
    sys.argv[:] = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    sys.path.insert(1, str(_ON_PATH))  # multiprocessing hands sys.path on
    _report_leaks()
    code = compile(Path(script).read_bytes(), script, "exec")
    exec(code, vars(module))  # noqa: S102 - that is what was asked for


class _AtTheEnd:
    """Calls a function when it is dropped."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def __del__(self) -> None:
        self.function()


def _report_leaks() -> None:
    """Say at the end what is not released, where the program does not call ``acl.finalize``, which says it itself.

    Programs release in ``__del__``, as late as the interpreter clears their modules, so this has to be later. By then
    the modules here are cleared too: the function holds all that it uses.
    """
    count, current, write, process, identity = counter(), state, os.write, os.getpid, os.getpid()

    def report() -> None:
        left = count()
        if left and current.is_initialised and process() == identity:
            lines = "".join(f"  {number} {kind}\n" for kind, number in sorted(left.items()))
            write(2, f"[emulator] not released at exit, and acl.finalize was not called:\n{lines}".encode())

    sys._aioais_at_the_end = _AtTheEnd(report)  # type: ignore[attr-defined]  # cleared as the last but one
