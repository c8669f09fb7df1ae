"""``python -m aioais.emulator [options] script.py [args]``: run a pyACL program on the CPU device."""

from __future__ import annotations

import sys

from ._runner import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
