"""``python -m aioais.compat [--platform cpu|ascend] script.py [args]``: run a program written for ais_bench."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any, cast

from ..errors import ArgumentError
from ._install import install

_USAGE = """\
usage: python -m aioais.compat [--platform cpu|ascend] (script.py | -m module) [args]

Runs a program that was written for ais_bench.infer.interface or aclruntime.

  --platform cpu      run all models on the CPU device; a path x.om stands for x.onnx beside it
  --platform ascend   run all models on the NPU
  (default)           AIOAIS_COMPAT_PLATFORM, or else by the name of each file: .om or .onnx"""


def main(arguments: list[str]) -> int:
    """Run a program with ``ais_bench`` and ``aclruntime`` installed.

    Parameters
    ----------
    arguments
        Options, the script or ``-m`` and a module, and their arguments.

    Returns
    -------
    int
        Exit status; that of the program is raised by it as ``SystemExit``.
    """
    rest, platform = list(arguments), None
    if rest and rest[0].partition("=")[0] == "--platform":
        name = rest.pop(0)
        platform = name.partition("=")[2] if "=" in name else rest.pop(0) if rest else ""
    if not rest or rest[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stderr)
        return 0 if rest else 2
    try:
        install(cast("Any", platform))
    except ArgumentError as exc:
        print(f"python -m aioais.compat: {exc}", file=sys.stderr)
        return 2
    if rest[0] == "-m":
        if len(rest) < 2:
            print(_USAGE, file=sys.stderr)
            return 2
        sys.argv[:] = rest[1:]
        sys.path[0] = str(Path.cwd())
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
        return 0
    script = rest[0]
    if not Path(script).exists():
        print(f"python -m aioais.compat: there is no script {script}", file=sys.stderr)
        return 2
    sys.argv[:] = rest
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
