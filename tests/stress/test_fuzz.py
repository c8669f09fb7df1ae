"""Bad input at volume: only documented errors come out, and the process lives.

The short form runs 1 500 cases, ``--long`` 20 000. Every case follows from its number; that of a finding
is repeated by ``python -m tests.stress.fuzz KIND NUMBER NUMBER+1 FOLDER``.
"""

from __future__ import annotations

import asyncio
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.stress import fuzz
from tests.stress.fuzz_onnx import survey
from tests.tiers import Tier

pytestmark = pytest.mark.timeout(1800)

LONG = Tier.is_long
CASES = {
    # kind: (short form, long form)
    "request": (600, 9000),
    "constructor": (150, 1500),
    "config": (150, 1500),
    "convert": (300, 4000),
    "onnx": (300, 4000),
}


def count(kind: str) -> int:
    short, long = CASES[kind]
    return long if LONG else short


def tell(text: str) -> None:
    """Write how the cases ended; ``pytest -rP`` shows it."""
    sys.stdout.write(f"{text}\n")


def check(outcomes: fuzz.Outcomes) -> None:
    tell(f"{outcomes.kind}: {dict(outcomes.ends)}")
    assert not outcomes.findings, "\n".join(outcomes.findings)
    assert sum(outcomes.ends.values()) == count(outcomes.kind)
    # Bad input that is all bad in the same way tests one message.
    assert outcomes.ends["well"] > 0
    assert len(outcomes.ends) >= 3


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    return fuzz.write_models(tmp_path)


async def test_requests(models: dict[str, str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy has opinions on some of the arrays
        check(await fuzz.fuzz_requests(models, 0, count("request")))


async def test_constructor(models: dict[str, str], tmp_path: Path) -> None:
    check(await fuzz.fuzz_constructor(models, tmp_path, 0, count("constructor")))


@pytest.mark.stress
async def test_config(models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)  # relative paths of dumps and profiles, ".." included, end up in the test's own folder
    check(await fuzz.fuzz_config(models["static"], tmp_path, 0, count("config")))


async def test_convert(models: dict[str, str], tmp_path: Path) -> None:
    check(await fuzz.fuzz_convert(models, tmp_path, 0, count("convert")))


@pytest.mark.stress
async def test_damaged_models(tmp_path: Path) -> None:
    found = await asyncio.to_thread(survey, 0, count("onnx"), tmp_path)
    tell(f"onnx: {dict(found.ends)}, died inside ONNX Runtime: {found.crashes}")
    assert not found.findings, "\n".join(found.findings)
    assert sum(found.ends.values()) + len(found.crashes) == count("onnx")
    assert len(found.crashes) <= count("onnx") // 100
