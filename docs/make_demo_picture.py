"""Draw docs/demo.svg: what ``aioais demo`` prints.

    pip install -e ".[cpu,cli]" && python docs/make_demo_picture.py [picture.svg]

The figures are those of the machine that draws it.
"""

from __future__ import annotations

import importlib
import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

PICTURE = Path(__file__).with_name("demo.svg")
COMMAND = "aioais demo"
WIDTH = 86


def main() -> None:
    picture = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    console = Console(record=True, file=io.StringIO(), width=WIDTH, color_system="truecolor")
    console.print(f"[bold green]$[/] {COMMAND}")
    # Not `from aioais.cli import demo`: the package has a function of this name.
    module = importlib.import_module("aioais.cli.demo")
    vars(module)["output_console"] = lambda: console
    module.demo()
    console.print()
    svg = console.export_svg(title=COMMAND, theme=MONOKAI, unique_id="demo")
    # rich names a font on another server; a picture should need no network.
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code", "ui-monospace, SFMono-Regular, Menlo, Consolas")
    picture.write_text(svg, "utf-8")


if __name__ == "__main__":
    main()
