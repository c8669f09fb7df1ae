"""The notebook runs: its cells in this process, on one event loop, and under ``--full`` in a Jupyter kernel."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook" / "first_steps.ipynb"


def read() -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(NOTEBOOK.read_text("utf-8"))
    return notebook


def code_cells() -> list[str]:
    return ["".join(cell["source"]) for cell in read()["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = read()
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.usefixtures("fresh")
async def test_the_cells_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As a kernel does it: one namespace, ``await`` outside of functions."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(code_cells()):
        code = compile(source, f"cell {number}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, names)
        if inspect.isawaitable(result):
            await result
    out = capsys.readouterr().out
    assert "791 of 797 right" in out
    assert "float64" in out
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_the_notebook_runs_in_a_kernel(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    texts = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("791 of 797 right" in text for text in texts)
