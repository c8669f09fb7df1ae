"""Conversion to .om, with a small executable of ours as the `atc` on PATH: it keeps its arguments."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from aioais import convert
from aioais.errors import AclNotFoundError, ConvertError, ModelError

FAKE_ATC = """#!{python}
import json, os, sys
flags = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
with open(os.environ["FAKE_ATC_ARGV"], "w") as log:
    json.dump(sys.argv[1:], log)
print("ATC start working now, please wait for a moment.")
mode = os.environ.get("FAKE_ATC_MODE", "")
if mode == "fail":
    print("E10016: Opname [input9] specified in [--input_shape] is not found in the model.", file=sys.stderr)
    sys.exit(255)
if mode != "nothing":
    with open(flags["output"] + mode + ".om", "wb") as om:
        om.write(b"IMOD")
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "add.onnx"
    path.write_bytes(b"only atc reads this")
    return path


@pytest.fixture
def argv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "atc"
    program.write_text(FAKE_ATC.format(python=sys.executable), "utf-8")
    program.chmod(0o755)
    log = tmp_path / "argv.json"
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_ATC_ARGV", str(log))
    return log


def test_the_arguments_of_atc(model: Path, argv: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "with blank; and $HOME.om"
    written = convert(
        model,
        output,
        soc_version="Ascend310P3",
        input_format="NCHW",
        input_shape="input1: -1,3,32,32; input2:-1,3,32,32",
        dynamic_batch_size="1, 2,4,8",
    )
    assert written == str(output)
    assert output.read_bytes() == b"IMOD"
    assert json.loads(argv.read_text()) == [
        "--framework=5",
        f"--model={model}",
        f"--output={output.with_suffix('')}",
        "--soc_version=Ascend310P3",
        "--input_format=NCHW",
        "--input_shape=input1:-1,3,32,32;input2:-1,3,32,32",
        "--dynamic_batch_size=1,2,4,8",
    ]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, []),
        ({"input_shape": "a:1,3;b:"}, ["--input_shape=a:1,3;b:"]),
        ({"input_shape": "a:1~8,-1"}, ["--input_shape=a:1~8,-1"]),
        ({"input_shape_range": "a:[1~8, -1]"}, ["--input_shape_range=a:[1~8,-1]"]),
        ({"input_format": "NCDHW"}, ["--input_format=NCDHW"]),
        (
            {"input_shape": "a:1,3,-1,-1", "dynamic_image_size": "8,8; 16,16"},
            ["--input_shape=a:1,3,-1,-1", "--dynamic_image_size=8,8;16,16"],
        ),
        (
            {"input_shape": "a:-1,4", "dynamic_dims": "1;2;"},
            ["--input_format=ND", "--input_shape=a:-1,4", "--dynamic_dims=1;2"],
        ),
    ],
    ids=str,
)
def test_the_shape_options_of_atc(
    model: Path, argv: Path, tmp_path: Path, options: dict[str, str], flags: list[str]
) -> None:
    convert(str(model), str(tmp_path / "m.om"), soc_version="Ascend310P3", **options)
    assert json.loads(argv.read_text())[4:] == flags


@pytest.mark.parametrize("suffix", ["_linux_aarch64", "_linux_x86_64"])
@pytest.mark.parametrize("old", [False, True])
def test_the_path_is_what_atc_wrote(
    model: Path, argv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, old: bool
) -> None:
    if old:
        (tmp_path / "m.om").write_bytes(b"of an earlier run")
        (tmp_path / f"m{suffix}.om").write_bytes(b"of an earlier run")
    monkeypatch.setenv("FAKE_ATC_MODE", suffix)
    written = convert(model, tmp_path / "m.om", soc_version="Ascend310P3")
    assert written == str(tmp_path / f"m{suffix}.om")


def test_an_output_without_ending_needs_the_platform(model: Path, argv: Path, tmp_path: Path) -> None:
    written = convert(model, tmp_path / "m", platform="ascend", soc_version="Ascend310P3")
    assert written == str(tmp_path / "m.om")
    assert f"--output={tmp_path / 'm'}" in json.loads(argv.read_text())


def test_a_failure_carries_what_atc_said(
    model: Path, argv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ATC_MODE", "fail")
    with pytest.raises(ConvertError, match="exit code 255") as caught:
        convert(model, tmp_path / "m.om", soc_version="Ascend310P3")
    assert "E10016: Opname [input9]" in str(caught.value)
    assert "ATC start working" in str(caught.value)


def test_no_file_is_an_error_even_with_exit_code_0(
    model: Path, argv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.om").write_bytes(b"of an earlier run")
    monkeypatch.setenv("FAKE_ATC_MODE", "nothing")
    with pytest.raises(ConvertError, match=r"wrote no m\.om"):
        convert(model, tmp_path / "m.om", soc_version="Ascend310P3")


def test_no_atc_on_the_path(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AclNotFoundError, match=r"atc.*not on the PATH.*source .*set_env\.sh") as caught:
        convert(model, tmp_path / "m.om", soc_version="Ascend310P3")
    assert isinstance(caught.value, ImportError)


def test_an_atc_that_does_not_start(model: Path, argv: Path, tmp_path: Path) -> None:
    (tmp_path / "bin" / "atc").write_bytes(b"\x7fELF of another machine")
    with pytest.raises(AclNotFoundError, match=r"does not start.*set_env\.sh"):
        convert(model, tmp_path / "m.om", soc_version="Ascend310P3")


def test_the_chip_is_needed(model: Path, argv: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"soc_version=None.*such as \"Ascend310P3\".*npu-smi"):
        convert(model, tmp_path / "m.om")
    assert not argv.exists()


def test_bad_options_never_reach_atc(model: Path, argv: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="expected 2 to 100 gears"):
        convert(
            model,
            tmp_path / "m.om",
            soc_version="Ascend310P3",
            input_shape="a:-1,3",
            dynamic_batch_size="1",
        )
    assert not argv.exists()


def test_paths_that_do_not_exist(model: Path, argv: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx.*no such file.*give the path"):
        convert(tmp_path / "none.onnx", tmp_path / "m.om", soc_version="Ascend310P3")
    with pytest.raises(ConvertError, match=r"cannot write output=.*give a path in a folder that exists"):
        convert(model, tmp_path / "none" / "m.om", soc_version="Ascend310P3")
