"""Every example runs with nothing but its defaults: most in this process, some as a new user runs them."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {
    path.relative_to(EXAMPLES).as_posix(): path
    for path in sorted(EXAMPLES.rglob("*.py"))
    if path.parent.name != "ray"  # tests/ray runs these
}


PROGRAMS = ["quickstart.py", "infer/infer_dymbatch.py"]
"""Run as processes of their own; ``nox -s examples`` does it with every one."""

SLOW = {f"pipeline/infer_pipeline_{mode}.py" for mode in ("dymbatch", "dymdims", "dymhw", "static")}
"""They copy hundreds of megabytes; that of dymshape copies less."""


def run(script: str, *arguments: str, cwd: Path) -> str:
    """Run an example as a process, as a new user does; returns what it prints."""
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


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(script, marks=[pytest.mark.slow] if script in SLOW else [])
        for script in sorted(set(SCRIPTS) - set(PROGRAMS))
    ],
)
@pytest.mark.usefixtures("fresh")
def test_example(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process, where warnings are errors; the guards of the suite see what it leaves behind."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS[script])])
    monkeypatch.syspath_prepend(SCRIPTS[script].parent)
    runpy.run_path(str(SCRIPTS[script]), run_name="__main__")
    out, err = capfd.readouterr()
    assert " right" in out
    assert not re.search("warning|traceback|error", err, re.IGNORECASE), err
    assert not any(tmp_path.iterdir()), "an example leaves nothing behind"


@pytest.mark.parametrize("script", PROGRAMS)
def test_example_as_a_program(script: str, tmp_path: Path) -> None:
    assert " right" in run(script, cwd=tmp_path)
    assert not any(tmp_path.iterdir()), "an example leaves nothing behind"


@pytest.mark.full
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
