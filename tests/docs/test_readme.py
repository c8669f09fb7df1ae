"""Every Python block of README.md and docs/ runs, by pytest where it defines tests.

A block is left out by an HTML comment right before it that says why::

    <!-- not run: needs an NPU -->
"""

from __future__ import annotations

import ast
import re
import runpy
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


PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if page.is_file()]
BLOCKS = [block for page in PAGES for block in read_blocks(page)]


TO_RUN = [block for block in BLOCKS if not block.not_run]
PROGRAMS = [block for block in TO_RUN if not TESTS.search(block.code)]


def write(block: Block, folder: Path) -> Path:
    """Write a block as a script; the padding gives a traceback the line numbers of the page."""
    script = folder / f"test_{block.path.stem}_{block.line}.py"
    script.write_text("\n" * (block.line - 1) + block.code, "utf-8")
    return script


def run(*arguments: str, cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "default::ResourceWarning", *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ResourceWarning" not in done.stderr


@pytest.mark.parametrize("block", [pytest.param(block, id=block.id) for block in BLOCKS])
def test_block_is_python(block: Block) -> None:
    compile(block.code, str(block.path), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", [pytest.param(block, id=block.id) for block in PROGRAMS])
@pytest.mark.usefixtures("fresh")
def test_block(block: Block, tmp_path: Path) -> None:
    """In this process, where warnings are errors; the guards of the suite see what it leaves behind."""
    runpy.run_path(str(write(block, tmp_path)), run_name="__main__")


def test_the_first_block_is_a_program(tmp_path: Path) -> None:
    """As a new user runs it."""
    run(str(write(PROGRAMS[0], tmp_path)), cwd=tmp_path)


@pytest.mark.slow
def test_blocks_of_tests(tmp_path: Path) -> None:
    scripts = [str(write(block, tmp_path)) for block in TO_RUN if TESTS.search(block.code)]
    assert scripts
    run("-m", "pytest", "-q", "-p", "aioais_pytest", *scripts, cwd=tmp_path)


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
