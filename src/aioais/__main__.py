"""``python -m aioais``: the same as the command ``aioais``."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
