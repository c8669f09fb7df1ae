"""Every Python block of README.md and docs/*.md runs, by pytest where it defines tests.

A block is left out by an HTML comment right before it that says why::

    <!-- not run: needs an NPU -->
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```\s*$", re.MULTILINE | re.DOTALL)
TESTS = re.compile(r"^(async )?def test_", re.MULTILINE)
NOT_RUN = re.compile(r"<!--\s*not run:\s*(?P<reason>\S.*?)\s*-->\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Block:
    path: Path
    line: int
    """Line of the first statement in its file."""
    code: str
    not_run: str | None

    @property
    def id(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def read_blocks(path: Path) -> list[Block]:
    text = path.read_text("utf-8")
    blocks = []
    for match in BLOCK.finditer(text):
        indent = len(match["indent"])
        code = "".join(line[indent:] or "\n" for line in match["code"].splitlines(keepends=True))
        reason = NOT_RUN.search(text[: match.start()])
        line = text.count("\n", 0, match.start("code")) + 1
        blocks.append(Block(path, line, code, reason["reason"] if reason else None))
    return blocks


PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.is_file()]
BLOCKS = [block for page in PAGES for block in read_blocks(page)]


@pytest.mark.parametrize("block", [pytest.param(block, id=block.id) for block in BLOCKS])
def test_block(block: Block, tmp_path: Path) -> None:
    # The padding gives a traceback the line numbers of the page.
    code = "\n" * (block.line - 1) + block.code
    compile(code, str(block.path), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if block.not_run:
        pytest.skip(block.not_run)
    script = tmp_path / f"test_{block.path.stem}_{block.line}.py"
    script.write_text(code, "utf-8")
    runner = ["-m", "pytest", "-q", "-p", "aioais_pytest"] if TESTS.search(code) else []
    done = subprocess.run(
        [sys.executable, "-W", "default::ResourceWarning", *runner, str(script)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ResourceWarning" not in done.stderr


def test_a_reason_is_read_only_right_before_its_block(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- not run: no device -->\n```python\na\n```\n\n```python\nb\n```\n\n"
        "- item\n\n  ```python\n  if c:\n\n      d\n  ```\n",
        "utf-8",
    )
    assert [(block.line, block.code, block.not_run) for block in read_blocks(page)] == [
        (3, "a\n", "no device"),
        (7, "b\n", None),
        (13, "if c:\n\n    d\n", None),
    ]
