"""Lines of ``atc`` pasted into ``aioais convert``: each option is used, ignored with a reason, or refused."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, save
from tests.inside import other_options

import aioais
from aioais import ConvertError, InferSession, ModelError

CHANGES_THE_MODEL = other_options.CHANGES_THE_MODEL
COMPILATION_ONLY = other_options.COMPILATION_ONLY
OWN_OPTIONS = other_options.OWN_OPTIONS
read_arguments = other_options.read_arguments

FAKE_ATC = """#!{python}
import json, sys
arguments = dict(word[2:].split("=", 1) for word in sys.argv[1:])
open({log!r}, "w").write(json.dumps(sys.argv[1:]))
open(arguments["output"] + ".om", "wb").write(b"IMOD")
"""

Convert = Callable[..., tuple[object, str, str]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """x of shape (n, 4), plus a constant of shape (3, 4): n can be 1 or 3."""
    value = helper.make_tensor_value_info
    constant = helper.make_tensor("c", TensorProto.FLOAT, [3, 4], [1.0] * 12)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, ["n", 4])],
        [value("y", TensorProto.FLOAT, ["m", 4])],
        [constant],
    )
    path = tmp_path / "m.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


@pytest.fixture
def argv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program ``atc`` on the PATH that writes its arguments to this file."""
    program, log = tmp_path / "bin" / "atc", tmp_path / "argv.json"
    program.parent.mkdir()
    program.write_text(FAKE_ATC.format(python=sys.executable, log=str(log)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return log


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Convert:
    from aioais.cli import main

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["aioais", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return run


def test_a_line_for_an_npu(cli: Convert, model: Path, argv: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    code, out, err = cli(
        f"--model={model}",
        "--framework=5",
        f"--output={output}",
        "--soc_version=Ascend310P3",
        "--input_shape=x:3,4",
        "--insert_op_conf=aipp.cfg",
        *("--precision_mode", "force_fp16"),
        "--log=error",
        "--an_option_of_the_future=1",
    )
    assert (code, out, err) == (0, f"wrote {output}.om\n", "")
    assert json.loads(argv.read_text()) == [
        "--framework=5",
        f"--model={model}",
        f"--output={output}",
        "--soc_version=Ascend310P3",
        "--input_shape=x:3,4",
        "--insert_op_conf=aipp.cfg",
        "--precision_mode=force_fp16",
        "--log=error",
        "--an_option_of_the_future=1",
    ]


def test_the_same_by_the_function(model: Path, argv: Path, tmp_path: Path) -> None:
    options = {"framework": "5", "op_select_implmode": "high_precision"}
    written = aioais.convert(model, tmp_path / "out", soc_version="Ascend310P3", input_shape="x:3,4", **options)
    assert written == str(tmp_path / "out.om")
    assert json.loads(argv.read_text())[-1] == "--op_select_implmode=high_precision"


def test_what_only_compilation_needs_is_ignored_on_the_cpu_device(
    cli: Convert, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out.onnx"
    with caplog.at_level(logging.WARNING, "aioais"):
        code, out, _ = cli(
            model, output, "--framework=5", "--input_shape=x:3,4", "--precision-mode=force_fp16", "--log=error"
        )
    assert (code, out) == (0, f"wrote {output}\n")
    (record,) = caplog.records
    assert record.getMessage().startswith("--precision_mode=force_fp16 --log=error: ignored, as it affects only")


@pytest.mark.parametrize(("option", "advice"), [*CHANGES_THE_MODEL.items()])
def test_what_changes_the_model_is_refused_on_the_cpu_device(
    model: Path, tmp_path: Path, option: str, advice: str
) -> None:
    with pytest.raises(ConvertError) as caught:
        aioais.convert(model, tmp_path / "out.onnx", **{option: "1"})
    assert str(caught.value) == (
        f"got --{option}=1, which the CPU device does not have; expected options for shapes: {advice}"
    )
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--framework=3"], ["got --framework=3; expected --framework=5, which is ONNX", "export the model"]),
        (["--dynamic_batchsize=1,2"], ["got --dynamic_batchsize", "did you mean --dynamic_batch_size?"]),
        (["--nonsense=1"], ["not a known option of atc", "leave it out"]),
        (["--precision_mode"], ["got --precision_mode without a value; expected --precision_mode=VALUE"]),
        (["--log", "--framework=5"], ["got --log without a value"]),
        (["--log=info", "--log=error"], ["got --log twice"]),
        (["-x", "1"], ["got -x; expected options of atc, which begin with two dashes"]),
    ],
)
def test_what_is_refused(cli: Convert, model: Path, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    code, out, err = cli(model, tmp_path / "out.onnx", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("aioais convert: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_a_misspelt_option_never_reaches_atc(model: Path, argv: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"got --precison_mode, .* did you mean --precision_mode\?"):
        aioais.convert(model, tmp_path / "out.om", soc_version="Ascend310P3", precison_mode="force_fp16")
    with pytest.raises(ConvertError, match="expected --framework=5"):
        aioais.convert(model, tmp_path / "out.om", soc_version="Ascend310P3", framework="0")
    assert not argv.exists()


def test_three_files(cli: Convert, model: Path) -> None:
    code, _, err = cli(model, "a.onnx", "b.onnx")
    assert code == 2
    assert "got 3 files" in err


def test_an_output_without_an_ending_needs_a_chip(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"expected a name that ends in .*soc_version"):
        aioais.convert(model, tmp_path / "out")
    with pytest.raises(ConvertError, match="another platform"):
        aioais.convert(model, tmp_path / "out.om", platform="cpu", soc_version="Ascend310P3")


def test_arguments_are_split() -> None:
    words = ["a.onnx", "--log", "error", "b.onnx", "--out_nodes=x:0;y:0", "--precision-mode=must=keep"]
    assert read_arguments(words) == (
        ["a.onnx", "b.onnx"],
        {"log": "error", "out_nodes": "x:0;y:0", "precision_mode": "must=keep"},
    )


def test_each_option_is_in_one_list() -> None:
    names = [*OWN_OPTIONS, *CHANGES_THE_MODEL, *COMPILATION_ONLY]
    assert len(set(names)) == len(names)


async def test_the_advice_for_shapes_that_onnx_runtime_refuses(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        aioais.convert(model, tmp_path / "out.onnx", input_shape="x:2,4")
    text = str(caught.value)
    assert "refuses the model with these shapes (x: 2,4)" in text
    assert f"open {str(model)!r} itself, without conversion, and run it with mode='dymshape'" in text
    async with InferSession(0, model) as session:  # the advice works
        (y,) = await session.infer([np.ones((3, 4), np.float32)], mode="dymshape")
    assert y.shape == (3, 4)
