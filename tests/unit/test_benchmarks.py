"""The benchmarks: they import one another in one direction only, and those of small models run."""

from __future__ import annotations

import ast
import asyncio
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from benchmarks import small_models

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
    return found


def test_no_imports_in_a_circle() -> None:
    graph = {path.stem: imported(path) for path in BENCHMARKS.glob("*.py")}
    assert {"pipeline", "report", "start"} <= graph["__main__"], "the imports were read"
    TopologicalSorter(graph).prepare()  # raises CycleError
    assert not any("__main__" in names for names in graph.values())


@pytest.mark.parametrize(
    ("which", "goals"), [("awaits", 4), ("state", 4), pytest.param("images", 4, marks=pytest.mark.slow)]
)
def test_small_models_are_measured_beside_the_same_results(which: str, goals: int) -> None:
    figures = asyncio.run(small_models.measure(turns=1, count=1, which=(which,)))
    lines = small_models.rows(figures)
    assert [row.figure for row in lines] == [*figures]
    verdicts = [row.beside.split(";")[0] for row in lines if "goal" in row.beside]
    assert len(verdicts) == goals
    assert all(verdict.endswith((", ok", ", short")) for verdict in verdicts)


def test_sides_with_different_results_are_not_compared() -> None:
    async def give(value: float) -> list[float]:
        return [value]

    with pytest.raises(RuntimeError, match="b gives other results than a"):
        asyncio.run(small_models.in_turns({"a": lambda: give(1.0), "b": lambda: give(2.0)}, 1, 1))


def test_a_goal_that_is_missed_is_told() -> None:
    us = {"ours": [130.0, 120.0, 110.0], "bare": [100.0, 100.0, 100.0]}
    rows = small_models.rows(
        {"a": small_models.figure(us, "ours", "bare", 1.1), "b": small_models.figure(us, "ours", "bare", 1.2)}
    )
    assert [row.measured for row in rows] == ["1.20", "1.20"]
    assert [row.beside for row in rows] == ["goal: 1.1, short; 120 and 100 us", "goal: 1.2, ok; 120 and 100 us"]
