"""The pictures of README and pages are there, and the scripts that draw them still do."""

from __future__ import annotations

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


def test_the_pictures_exist() -> None:
    """That every link leads somewhere is test_pages.py's."""
    assert "(docs/demo.svg)" in (ROOT / "README.md").read_text("utf-8")
    assert "(pipeline.svg)" in (ROOT / "docs" / "pipelines.md").read_text("utf-8")
    check(ROOT / "docs" / "pipeline.svg")
    check_demo(ROOT / "docs" / "demo.svg")


def check_demo(picture: Path) -> None:
    words = " ".join(texts(picture)).replace("\xa0", " ")
    assert "aioais demo" in words
    assert "requests/s" in words
    assert "font-face" not in picture.read_text("utf-8"), "a picture asks no server for its font"


@pytest.mark.slow
def test_the_script_draws_the_demo(tmp_path: Path) -> None:
    pytest.importorskip("rich")
    picture = tmp_path / "demo.svg"
    subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make_demo_picture.py"), str(picture)],
        check=True,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        timeout=100,
    )
    check_demo(picture)


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
