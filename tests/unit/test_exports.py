"""The door of the package: what it exports and what it costs to open."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import aioais

IMPORT_BUDGET = 2.5
"""Times what numpy and asyncio alone take; 0.25 s on an ordinary machine, where they take 0.13 s."""

CONTRACT = {
    "AclError",
    "AclNotFoundError",
    "AioaisError",
    "ClosedError",
    "DataType",
    "FeedError",
    "Format",
    "InferSession",
    "ModelError",
    "MultiDeviceSession",
    "Tensor",
    "TensorDesc",
    "convert",
    "devices",
    "run",
}


def child(code: str, **env: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60, env={**os.environ, **env}
    ).stdout.strip()


def test_all_is_what_the_package_shows() -> None:
    shown = {
        name for name in dir(aioais) if not name.startswith("_") and not isinstance(getattr(aioais, name), ModuleType)
    }
    assert shown - {"annotations"} == set(aioais.__all__)
    assert len(set(aioais.__all__)) == len(aioais.__all__)


def test_the_contract_is_there() -> None:
    assert set(aioais.__all__) >= CONTRACT


def test_public_names_are_documented() -> None:
    aliases = {"Check", "Feeds", "Mode"}  # typing's own objects: their text stands beside them
    bare = [name for name in set(aioais.__all__) - aliases if not getattr(aioais, name).__doc__]
    assert not bare


def test_version_is_that_of_the_installed_package() -> None:
    assert importlib.metadata.version("aioais") == aioais.__version__


def test_what_an_npu_does_not_need_comes_when_it_is_asked_for() -> None:
    code = """
import aioais, sys
print(any(name.startswith(("aioais.emulator", "aioais.testing")) for name in sys.modules))
print(aioais.testing.LoopLag.__name__)
aioais.emulator.install()
import acl
print(acl is aioais.emulator.acl)
"""
    assert child(code).splitlines() == ["False", "LoopLag", "True"]
    with pytest.raises(AttributeError, match="module 'aioais' has no attribute 'nothing'"):
        getattr(aioais, "nothing")  # noqa: B009 - a type checker knows that it is not there


def test_import_leaves_the_heavy_packages_alone() -> None:
    heavy = "{'onnx', 'onnxruntime', 'torch', 'typer', 'rich', 'ml_dtypes', 'acl'}"
    assert child(f"import aioais, sys; print(sorted({heavy} & set(sys.modules)))") == "[]"


@pytest.mark.slow
def test_import_is_quick(tmp_path: Path) -> None:
    # A ratio of CPU times of the thread, best of several: other work on the machine (or threads
    # that numpy's BLAS starts) cannot make this fail. An empty PYTHONDONTWRITEBYTECODE has .pyc files written.
    def cost(modules: str) -> float:
        code = f"import time; t = time.thread_time(); import {modules}; print(time.thread_time() - t)"
        return float(child(code, PYTHONDONTWRITEBYTECODE="", PYTHONPYCACHEPREFIX=str(tmp_path)))

    cost("aioais")  # writes them
    rounds = [(cost("aioais"), cost("numpy, asyncio")) for _ in range(5)]
    assert min(ours for ours, _ in rounds) < IMPORT_BUDGET * min(theirs for _, theirs in rounds)
