"""``python -m aioais.emulator script.py [args]``: run a pyACL program on the CPU device."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from . import install


def main(argv: list[str]) -> int:
    """Run a script with the emulated ``acl`` installed.

    Parameters
    ----------
    argv
        Path of the script and its arguments.

    Returns
    -------
    int
        Exit status; that of the script is raised by it as ``SystemExit``.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m aioais.emulator script.py [args]", file=sys.stderr)
        return 0 if argv else 2
    script = argv[0]
    if not Path(script).exists():
        print(f"python -m aioais.emulator: no such script: {script}", file=sys.stderr)
        return 2
    install()
    sys.argv[:] = argv
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
