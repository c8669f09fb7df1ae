"""``aioais bench`` on a model with open dims: the shape that it advises runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import NodeProto, TensorProto, helper, save

import aioais

Cli = Callable[..., tuple[object, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    from aioais.cli import main

    def run(*arguments: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["aioais", "bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return exit_.value.code or 0, capsys.readouterr().err

    return run


def make(path: Path, nodes: list[NodeProto], constant: list[int], *dims: int | str) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value(name, TensorProto.FLOAT, dims) for name in ("x", "z")],
        [value("y", TensorProto.FLOAT, [None] * len(dims))],
        [helper.make_tensor("c", TensorProto.INT64, [len(constant)], constant)],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


@pytest.fixture
def picky(tmp_path: Path) -> Path:
    """Two inputs of the same shape; the dim at the end has to be a multiple of 32."""
    nodes = [helper.make_node("Add", ["x", "z"], ["s"]), helper.make_node("Reshape", ["s", "c"], ["y"])]
    return make(tmp_path / "picky.onnx", nodes, [-1, 1, 32], "a", 3, "b")


def test_the_advice_works(cli: Cli, picky: Path) -> None:
    code, err = cli(picky)
    assert code == 2
    assert err.startswith("aioais bench: got open dims for x, z (x:-1,3,-1;z:-1,3,-1); expected a size for each")
    (shape,) = re.findall(r'such as --shape "([^"]*)"$', err.strip())
    assert cli(picky, "--shape", shape, "-n", 3, "--warmup", 0) == (0, "")


def test_a_shape_for_one_input_only(cli: Cli, picky: Path) -> None:
    code, err = cli(picky, "--shape", "x:2,3,16")
    assert code == 2
    assert err.startswith("aioais bench: got open dims for z ")
    (shape,) = re.findall(r'such as --shape "([^"]*)"$', err.strip())
    assert shape.startswith("x:2,3,16;z:")
    assert cli(picky, "--shape", shape, "-n", 3, "--warmup", 0) == (0, "")


def test_ranges_are_kept(cli: Cli, picky: Path, tmp_path: Path) -> None:
    ranged = tmp_path / "ranged.onnx"
    aioais.convert(picky, ranged, input_shape="x:20~40,3,64~640;z:20~40,3,64~640")
    _, err = cli(ranged)
    (shape,) = re.findall(r'such as --shape "([^"]*)"$', err.strip())
    assert cli(ranged, "--shape", shape, "-n", 3, "--warmup", 0) == (0, "")


def test_no_shape_is_found(cli: Cli, tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "z"], ["s"]), helper.make_node("Reshape", ["s", "c"], ["y"])]
    path = make(tmp_path / "m.onnx", nodes, [1000003], "a")
    code, err = cli(path)
    assert code == 2
    assert err.strip().endswith('such as --shape "x:-1;z:-1" with a number in place of each -1')
