"""The types that users see are those of the contract."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.mark.slow
def test_public_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy"),
            *("--config-file", str(ROOT / "pyproject.toml")),
            *("--cache-dir", str(tmp_path)),
            str(HERE / "api.py"),
        ],
        cwd=ROOT,  # the paths of the configuration are relative
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_every_public_type_is_known(tmp_path: Path) -> None:
    """``pyright --verifytypes`` finds every type of the public interface, and those that they refer to."""
    pytest.importorskip("pyright", reason="pyright is not installed")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--verifytypes", "aioais", "--ignoreexternal"],
        cwd=tmp_path,
        env=environment,  # pyright looks at the first python of PATH
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )
    report = json.loads(done.stdout)["typeCompleteness"]
    assert report["pyTypedPath"], "pyright found another installation"
    causes = {
        f"{symbol['name']}, {diagnostic['file']}: {diagnostic['message']}"
        for symbol in report["symbols"]
        for diagnostic in symbol["diagnostics"]
        if diagnostic["severity"] == "error"
    }
    assert not causes
    assert report["completenessScore"] == 1
