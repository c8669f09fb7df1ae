"""Every example runs as a new user runs it: a script, on its own, with nothing but its defaults."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {path.relative_to(EXAMPLES).as_posix(): path for path in sorted(EXAMPLES.rglob("*.py"))}


def run(script: str, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "default", str(SCRIPTS[script]), *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert not re.search("warning|traceback|error", done.stderr, re.IGNORECASE), done.stderr
    return done.stdout


def test_the_examples_were_found() -> None:
    modes = ("static", "dymbatch", "dymhw", "dymdims", "dymshape")
    folders = {"infer": "infer", "pipeline": "infer_pipeline", "iteration": "infer_iteration"}
    assert "quickstart.py" in SCRIPTS
    assert {f"{folder}/{start}_{mode}.py" for folder, start in folders.items() for mode in modes} <= set(SCRIPTS)


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_example(script: str, tmp_path: Path) -> None:
    assert " right" in run(script, cwd=tmp_path)
    assert not any(tmp_path.iterdir()), "an example leaves nothing behind"


def test_an_example_takes_a_model_and_a_device(tmp_path: Path) -> None:
    import aioais
    from aioais.demo_data import ADD_MODEL

    shapes = "input1:-1,3,32,32;input2:-1,3,32,32"
    converted = aioais.convert(
        ADD_MODEL,
        str(tmp_path / "add_dymbatch.onnx"),
        input_shape=shapes,
        dynamic_batch_size="1,2,4,8",
    )
    assert "batch of 8: (8, 3, 32, 32) is right" in run("infer/infer_dymbatch.py", str(converted), "1", cwd=tmp_path)
