"""The benchmarks as a package: they import one another in one direction only."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

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
