"""The examples of examples/ray as a new user runs them: each a process of its own, with its defaults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.ray.conftest import free_port

EXAMPLES = Path(__file__).parents[2] / "examples" / "ray"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("script", [path.name for path in sorted(EXAMPLES.glob("*.py"))])
def test_example(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", str(free_port()))
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert " right" in done.stdout
    print("\n".join(line for line in done.stdout.splitlines() if " right" in line or "items/s" in line))
    assert not any(tmp_path.iterdir()), "an example leaves nothing behind"
