"""The README's picture is there, and the script that draws it still does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[2]


def texts(picture: Path) -> list[str]:
    svg = "{http://www.w3.org/2000/svg}"
    return [element.text or "" for element in ET.parse(picture).iter(f"{svg}text")]


def check(picture: Path) -> None:
    """Three engines, and each of the eight requests on each."""
    words = texts(picture)
    assert {"H2D", "execute", "D2H", "milliseconds"} <= set(words)
    assert all(words.count(str(number)) >= 3 for number in range(1, 9))


def test_the_pictures_of_the_readme_exist() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert "docs/pipeline.svg" in pictures
    for picture in pictures:
        assert (ROOT / picture).is_file(), picture
    check(ROOT / "docs" / "pipeline.svg")


def test_the_script_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("onnxruntime")
    picture = tmp_path / "picture.svg"
    subprocess.run(
        [sys.executable, str(ROOT / "docs" / "draw_trace.py"), str(picture)],
        check=True,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        timeout=100,
    )
    check(picture)
