"""The suite itself: which tests run, that slow ones are marked, and that one module alone looks inside the library."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterable
from itertools import combinations, product
from pathlib import Path

import pytest
from tests.pairs import cover

pytest_plugins = ["pytester"]

TESTS = Path(__file__).parents[1]
LOOKS_INSIDE = {"inside.py", "unit/test_layers.py", "unit/test_batching_policy.py"}
"""The last tests parts that are pure: without them each choice would need a device that behaves so."""
NOT_OURS = {"_current_frames", "_exit", "_fields", "_run_exitfuncs", "_transport"}
"""Private by name, of Python and of other packages."""
OF_EXAMPLES = {"_running"}

PRIVATE_MODULE = re.compile(r"\baioais(\.\w+)*\._(?!_)|from aioais(\.\w+)* import _(?!_)")


# --- pairs ----------------------------------------------------------------------------------------


def pairs_of(rows: Iterable[tuple[object, ...]]) -> set[object]:
    return {pair for row in rows for pair in combinations(enumerate(row), 2)}


@pytest.mark.parametrize("sizes", [(3,), (2, 5), (5, 9, 2), (3, 9, 3, 2), (1, 4, 4, 1)], ids=str)
def test_pairs_cover_what_the_product_has(sizes: tuple[int, ...]) -> None:
    rows = list(product(*map(range, sizes)))
    chosen = [rows[k] for k in cover(rows)]
    assert pairs_of(chosen) == pairs_of(rows)
    for column, size in enumerate(sizes):
        assert {row[column] for row in chosen} == set(range(size))
    largest, second = sorted((1, *sizes))[-1:-3:-1]
    assert largest * second <= len(chosen) <= 1.5 * largest * second
    assert cover(rows) == cover(rows)


def test_pairs_are_rows_of_the_table() -> None:
    rows = [row for row in product("abc", "xy", [1, 2, 3]) if row[:2] != ("a", "y")]
    chosen = [rows[k] for k in cover(rows)]
    assert not any(row[:2] == ("a", "y") for row in chosen)
    assert pairs_of(chosen) == pairs_of(rows)
    assert cover([]) == []


# --- tiers ----------------------------------------------------------------------------------------

SUITE = """
import time
import pytest
from tests import tiers

tiers.LIMIT_S = 0.05

def burn():
    end = time.process_time() + 0.4
    while time.process_time() < end:
        pass

def test_quick():
    pass

def test_unmarked():
    burn()

@pytest.mark.slow
def test_marked():
    burn()

@pytest.mark.full
def test_full():
    pass

@pytest.mark.stress
def test_stress():
    assert tiers.Tier.is_full
    assert not tiers.Tier.is_long

@pytest.mark.pairs
@pytest.mark.parametrize("a", range(3))
@pytest.mark.parametrize("b", range(3))
@pytest.mark.parametrize("c", range(3))
def test_product(a, b, c):
    pass
"""


def outcomes(pytester: pytest.Pytester, *arguments: str) -> dict[str, int]:
    found = pytester.runpytest_subprocess("-p", "tests.conftest", "-p", "no:anyio", *arguments)
    text = found.stdout.str()
    assert ("test_unmarked took 0." in text) == ("errors" in found.parseoutcomes()), text
    return found.parseoutcomes()


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), *filter(None, sys.path)]))
    monkeypatch.delenv("COVERAGE_RUN", raising=False)
    options = ("slow", "full", "stress", "pairs")
    pytester.makeini("[pytest]\nmarkers =\n" + "".join(f"    {name}\n" for name in options))
    pytester.makepyfile(test_it=SUITE)
    return pytester


@pytest.mark.slow
def test_the_default_run_has_pairs_and_no_slow_tests(suite: pytest.Pytester) -> None:
    found = outcomes(suite)
    ran = found["passed"] - 2
    assert 9 <= ran <= 12
    assert found == {"passed": 2 + ran, "errors": 1, "deselected": 3 + 27 - ran}


@pytest.mark.slow
def test_full_has_all(suite: pytest.Pytester) -> None:
    assert outcomes(suite, "--full") == {"passed": 32, "errors": 1}
    assert outcomes(suite, "--long", "--deselect", "test_it.py::test_stress") == {"passed": 31, "deselected": 1}


@pytest.mark.slow
def test_what_is_named_runs(suite: pytest.Pytester) -> None:
    assert outcomes(suite, "test_it.py::test_full", "test_it.py::test_product[0-1-2]") == {"passed": 2}


# --- looks inside ---------------------------------------------------------------------------------


def looks_inside(path: Path) -> list[str]:
    text = path.read_text("utf-8")
    found = [match[0] for match in PRIVATE_MODULE.finditer(text)]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if owner not in ("self", "cls") and node.attr not in NOT_OURS | OF_EXAMPLES:
                found.append(f"{owner}.{node.attr}")
    return found


def test_one_module_looks_inside() -> None:
    found = {path.relative_to(TESTS).as_posix(): looks_inside(path) for path in TESTS.rglob("*.py")}
    looking = {name for name, places in found.items() if places}
    assert "inside.py" in looking
    assert {name: found[name] for name in looking - LOOKS_INSIDE} == {}, "reach for it through tests/inside.py"
