"""What a program that runs in the test's own process needs to be as if it were alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import inside

from aioais import MemorySummary, emulator

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Give what a new process has: no sessions, no ACL, an empty folder, and no modules of other examples."""
    known = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    inside.finalize_all()
    emulator.reset()
    MemorySummary.reset()
    yield
    for name in set(sys.modules) - known:
        is_example = Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(EXAMPLES)
        if is_example or name.partition(".")[0] == "acl":  # emulator.install() puts acl there
            del sys.modules[name]
    inside.finalize_all()
    assert not emulator.leaks()
    emulator.reset()
