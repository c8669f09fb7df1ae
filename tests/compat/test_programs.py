"""Programs written for ais_bench, as their users write them, run here unchanged and compute the right results."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compat.conftest import installed
from tests.unit.conftest import Models

PROGRAMS = Path(__file__).parent / "programs"
SHAPES = {
    "static": (1, 3, 32, 32),
    "dymbatch": (2, 3, 32, 32),
    "dymhw": (1, 3, 64, 64),
    "dymdims": (4, 3, 64, 64),
    "dymshape": (2, 3, 48, 48),
}


@pytest.fixture
def run(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a program in the folder of the models and returns its variables."""
    monkeypatch.chdir(model_folder)

    def run_program(name: str) -> dict[str, Any]:
        with installed():
            return runpy.run_path(str(PROGRAMS / f"{name}.py"), run_name="__main__")

    return run_program


def full(shape: tuple[int, ...], value: float) -> Any:
    return np.full(shape, value, np.float32)


def check(outputs: Any, *wanted: Any) -> None:
    assert type(outputs) is list
    for got, expected in zip(outputs, wanted, strict=True):
        assert type(got) is np.ndarray
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("mode", SHAPES)
def test_infer(run: Any, mode: str) -> None:
    check(run(f"infer_api_{mode}")["result"], full(SHAPES[mode], 3))


@pytest.mark.parametrize("mode", SHAPES)
def test_infer_pipeline(run: Any, mode: str) -> None:
    results = run(f"infer_pipeline_api_{mode}")["result"]
    second = (1, 3, 32, 32) if mode in ("dymdims", "dymshape") else SHAPES[mode]
    first = (4, 3, 64, 64) if mode in ("dymdims", "dymshape") else SHAPES[mode]
    assert len(results) == 2
    check(results[0], full(first, 6))
    check(results[1], full(second, 6))


@pytest.mark.parametrize("mode", SHAPES)
def test_infer_iteration(run: Any, mode: str) -> None:
    check(run(f"infer_iteration_api_{mode}")["result"], full(SHAPES[mode], 100))


def test_multi_device(run: Any) -> None:
    one = full(SHAPES["static"], 2)
    results = run("multidevice_infer_api")["result"]
    assert {device: len(lanes) for device, lanes in results.items()} == {0: 2, 1: 1}
    for lane in [*results[0], *results[1]]:
        check(lane, one)
    results = run("multidevice_infer_pipeline_api")["result"]
    assert {device: [len(lane) for lane in lanes] for device, lanes in results.items()} == {0: [2, 2], 1: [1]}
    for lane in [*results[0], *results[1]]:
        for outputs in lane:
            check(outputs, one)
    results = run("multidevice_infer_iteration_api")["result"]
    for lane in [*results[0], *results[1]]:
        check(lane, full(SHAPES["static"], 101))


def test_detector_backend(run: Any, model_folder: Path, tmp_path: Path) -> None:
    found = run("detector_backend")
    assert found["names"] == ["pixels", "mean"]
    wanted = Models(tmp_path).run(str(model_folder / "conv_bs1.onnx"), image=found["image"])
    for got, expected in zip(found["result"], wanted, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_thread_pool(run: Any) -> None:
    found = run("thread_pool")
    assert found["count"] == 200
    for value, output in enumerate(found["result"]):
        np.testing.assert_array_equal(output, full(SHAPES["static"], value + 1))


def test_web_app(run: Any) -> None:
    *good, bad = run("web_app")["result"]
    assert good == [(200, {"sum": 2.0 * k * 3 * 32 * 32}) for k in range(8)]
    assert bad[0] == 400


def test_a_script_that_catches_errors(run: Any) -> None:
    found = run("catches_errors")
    silent = [name for name, text in found["result"].items() if not text]
    assert not silent, f"these have to raise RuntimeError: {silent}"
    assert len(found["result"]) == 15
    assert "item 1" not in str(found["result"]["wrong size"])
    check(found["outputs"], full(SHAPES["static"], 1))


def test_aclruntime_by_itself(run: Any) -> None:
    found = run("uses_aclruntime")
    np.testing.assert_array_equal(found["result"], full(SHAPES["static"], 10))
    np.testing.assert_array_equal(found["named"], full(SHAPES["static"], 1))
    np.testing.assert_array_equal(found["batch"], full((4, 3, 32, 32), 0))
    assert found["nothing"] == []
    assert len(found["times"]) == 12
    assert len(found["errors"]) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["infer_api_static", "multidevice_infer_api"])
def test_as_a_process(model_folder: Path, name: str) -> None:
    command = [sys.executable, "-W", "error", "-m", "aioais.compat", "--platform", "cpu", str(PROGRAMS / f"{name}.py")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, cwd=model_folder, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ms" in done.stdout
