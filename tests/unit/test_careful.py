"""What a careful library does with files: nothing is unpickled, no shell, no file is overwritten, the umask counts."""

from __future__ import annotations

import ast
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import aioais
from aioais import ArgumentError, InferSession, ModelError

if TYPE_CHECKING:
    from tests.unit.conftest import Models

SOURCE = Path(aioais.__file__).parent

RUNS_CODE = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "yaml"}
"""Modules that may run code when they read."""

SHELLS = {"os.popen", "os.system", "subprocess.getoutput", "subprocess.getstatusoutput"}

WRITERS = {
    # Module and call: why nothing of the user's can be overwritten there.
    ("_atc/onnx_file.py", "write_bytes"): "inside a fresh folder; an earlier output is replaced on purpose, as by ATC",
    ("testing/conformance/check_model.py", "write_bytes"): "inside a fresh temporary folder",
}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Give each call in the package: module, dotted name, node."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                yield path.relative_to(SOURCE).as_posix(), ast.unparse(node.func), node


def argument(node: ast.Call, name: str, position: int) -> object:
    """Give the constant value of an argument; ``None`` where it is not given."""
    found = [keyword.value for keyword in node.keywords if keyword.arg == name] or node.args[position : position + 1]
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


def test_nothing_is_unpickled() -> None:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                assert not {name.partition(".")[0] for name in names} & RUNS_CODE, f"{path}:{node.lineno}"
    for module, name, node in calls():
        if name in ("np.load", "np.save", "numpy.load", "numpy.save"):
            wanted = (False,) if name.endswith("save") else (False, None)  # only loading has a safe default
            assert argument(node, "allow_pickle", 99) in wanted, f"{module}:{node.lineno}"


def test_no_shell() -> None:
    for module, name, node in calls():
        assert name not in SHELLS, f"{module}:{node.lineno}"
        if name.startswith("subprocess."):
            assert argument(node, "shell", 99) is None, f"{module}:{node.lineno}"
            assert not isinstance(node.args[0], ast.Constant | ast.JoinedStr), f"{module}:{node.lineno}: want a list"


def test_files_are_made_and_not_overwritten() -> None:
    used = set()
    for module, name, node in calls():
        last = name.rpartition(".")[2]
        if last in ("write_text", "write_bytes"):
            assert (module, last) in WRITERS, f"{module}:{node.lineno}"
            used.add((module, last))
        elif name == "open" or last == "open":
            is_method = name != "open"
            if name == "os.open":
                assert "O_EXCL" in ast.unparse(node), f"{module}:{node.lineno}"
                continue
            mode = argument(node, "mode", 0 if is_method else 1)
            assert not isinstance(mode, str) or not set(mode) & set("wa+"), f"{module}:{node.lineno}: {mode}"
    assert used == set(WRITERS), "the table names what is gone"


async def test_what_is_no_regular_file(models: Models, tmp_path: Path) -> None:
    """A pipe would block, a device may have no end; neither is read."""
    model = models.identity([3])
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.onnx"))
        for odd in (pipe, tmp_path / "s.onnx", Path("/dev/zero")):
            with pytest.raises(ModelError, match="a device, a pipe or a socket"):
                await InferSession(0, odd, platform="cpu")
            with pytest.raises(ArgumentError, match="expected a regular file"):
                await InferSession(0, model, str(odd))
    huge = tmp_path / "huge.json"
    with huge.open("xb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ArgumentError, match="at most 10485760 bytes"):
        await InferSession(0, model, huge)


def test_a_converted_model_respects_the_umask(models: Models, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        written = aioais.convert(models.add([3, 4]), str(tmp_path / "out.onnx"))
    finally:
        os.umask(before)
    assert Path(written).stat().st_mode & 0o777 == 0o640
