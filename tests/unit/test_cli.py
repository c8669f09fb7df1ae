"""The command line: what each command prints, and how it fails."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import aioais
from aioais.cli import main
from aioais.cli.console import format_bytes
from aioais.cli.convert import convert
from aioais.cli.load import run_tasks
from aioais.cli.picture import PICTURE_WIDTH, draw
from aioais.demo_data import DIGITS_MODEL, load_digits

CONTROL_CHARACTERS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


class Done(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Done]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in this process."""
    for name in ("FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["aioais", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        code = exit_.value.code
        return Done(code if isinstance(code, int) else 0, out, err)

    return run


def child(*arguments: str, **environment: str) -> Done:
    done = subprocess.run(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        timeout=60,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def assert_one_clear_line(done: Done, start: str) -> None:
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith(start), done.err
    assert done.err.count("\n") == 1
    assert done.err.endswith("\n")


@pytest.fixture(scope="module")
def add_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file, input1 + input2 = output, all dims open but one."""
    from onnx import TensorProto, helper, save

    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"])
        for name in ("input1", "input2", "output")
    ]
    node = helper.make_node("Add", ["input1", "input2"], ["output"])
    model = helper.make_model(
        helper.make_graph([node], "add", infos[:2], infos[2:]),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    path = tmp_path_factory.mktemp("models") / "add.onnx"
    save(model, str(path))
    return path


# --- the door -------------------------------------------------------------------------------------


def test_help_names_every_command(cli: Cli) -> None:
    done = cli("--help")
    assert done.code == 0
    assert all(name in done.out for name in ("demo", "bench", "convert", "devices", "doctor", "inspect"))


def test_version(cli: Cli) -> None:
    assert cli("--version") == Done(0, f"aioais {aioais.__version__}\n", "")


def test_python_m_is_the_same() -> None:
    assert child("-m", "aioais", "--version") == Done(0, f"aioais {aioais.__version__}{os.linesep}", "")


def test_an_unknown_command_is_the_callers_error(cli: Cli) -> None:
    assert cli("dance").code == 2


@pytest.mark.parametrize("missing", ["typer", pytest.param("rich", marks=pytest.mark.full)])
def test_without_the_extra(missing: str) -> None:
    done = child("-c", f"import sys; sys.modules[{missing!r}] = None; from aioais.cli import main; main()")
    assert_one_clear_line(done, "aioais: the command line needs")
    assert 'pip install "aioais[cli]"' in done.err


def test_a_module_missing_for_another_reason_is_no_missing_extra() -> None:
    code = "import sys; sys.modules['aioais.demo_data'] = None; from aioais.cli import main; main()"
    done = child("-c", code)
    assert done.code == 1
    assert "ModuleNotFoundError" in done.err


# --- convert --------------------------------------------------------------------------------------


def test_convert_has_the_options_of_the_function() -> None:
    mine = list(inspect.signature(convert).parameters)
    assert [*mine, "atc_options"] == ["arguments", *inspect.signature(aioais.convert).parameters]


def test_convert_help_spells_options_as_atc_does(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = cli("convert", "--help").out
    assert all(f"--{name}" in shown for name in list(inspect.signature(aioais.convert).parameters)[:-1])


def test_convert_takes_files_by_place_and_dashes(cli: Cli, add_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    shape = "input1:-1,3,32,32;input2:-1,3,32,32"
    done = cli("convert", add_model, output, "--input-shape", shape, "--dynamic-batch-size", "1,2")
    assert done == Done(0, f"wrote {output}\n", "")


@pytest.mark.parametrize("given", [["a.onnx"], ["a.onnx", "b.onnx", "--model", "a.onnx"], ["--output", "b.onnx"]])
def test_convert_wants_each_file_once(cli: Cli, given: list[str]) -> None:
    done = cli("convert", *given)
    assert done.code == 2
    assert "and not both" in done.err


def test_convert_then_inspect_gears(cli: Cli, add_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "add_dymbatch.onnx"
    done = cli(
        "convert",
        *("--model", add_model),
        *("--output", output),
        "--input_shape=input1:-1,3,32,32;input2:-1,3,32,32",
        "--dynamic_batch_size=1,2,4,8",
    )
    assert done == Done(0, f"wrote {output}\n", "")
    assert output.is_file()

    shown = cli("inspect", output)
    assert (shown.code, shown.err) == (0, "")
    for word in ("input1", "input2", "output", "float32", "NCHW", "-1,3,32,32", "batch", "1; 2; 4; 8"):
        assert word in shown.out, word


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--input_shape", "nothing:1,3,32,32"], "nothing"),
        (["--input_shape", "input1:1,3,32,32"], ""),
        (["--dynamic_batch_size", "1,2"], ""),
        (
            [
                *("--input_shape", "input1:-1,3,32,32;input2:-1,3,32,32"),
                *("--dynamic_batch_size", "1,2"),
                *("--dynamic_image_size", "32,32"),
            ],
            "dynamic_image_size",
        ),
        (["--platform", "gpu"], "gpu"),
    ],
)
def test_convert_says_what_is_wrong(cli: Cli, add_model: Path, tmp_path: Path, options: list[str], words: str) -> None:
    output = tmp_path / "out.onnx"
    done = cli("convert", "--model", add_model, "--output", output, *options)
    assert_one_clear_line(done, "aioais convert: ")
    assert words in done.err
    assert not output.exists()


def test_convert_without_its_model(cli: Cli, tmp_path: Path) -> None:
    done = cli("convert", "--model", tmp_path / "none.onnx", "--output", tmp_path / "out.onnx")
    assert_one_clear_line(done, "aioais convert: ")
    assert "none.onnx" in done.err


def test_convert_needs_model_and_output(cli: Cli) -> None:
    done = cli("convert")
    assert done.code == 2
    assert "--model" in done.err


# --- devices --------------------------------------------------------------------------------------


def test_devices() -> None:
    done = child("-m", "aioais", "devices", AIOAIS_CPU_DEVICES="3")
    assert (done.code, done.err) == (0, "")
    rows = [line for line in done.out.splitlines() if "cpu" in line]
    assert len(rows) == 3
    assert "platform" in done.out
    assert "GiB" in done.out


# --- bench ----------------------------------------------------------------------------------------


def test_bench_prints_and_writes_its_figures(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = cli("bench", DIGITS_MODEL, "-n", 30, "-t", 4, "--warmup", 2, "--json", file)
    assert done.code == 0, done.err
    assert all(word in done.out for word in ("requests/s", "loop lag", "one await", "h2d", "delivery", "p99"))
    figures = json.loads(file.read_text("utf-8"))
    assert figures["requests"] == 30
    assert figures["inputs"] == {"image": "float32[1, 1, 8, 8]"}
    assert set(figures["stages_ms"]) == {"queue", "h2d", "execute", "d2h", "delivery"}
    assert figures["stages_ms"]["execute"]["max"] > 0


def test_bench_looks_at_its_file_before_it_measures(cli: Cli, tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("figures")
    done = cli("bench", tmp_path / "no.onnx", "--json", old)  # not even the model was looked at
    assert_one_clear_line(done, "aioais bench: got --json ")
    assert "File exists" in done.err
    assert "choose another path" in done.err
    assert old.read_text() == "figures"
    assert_one_clear_line(cli("bench", tmp_path / "no.onnx", "--json", new), "aioais bench: ")
    assert not new.exists()


@pytest.mark.parametrize("size", [10**15, 10**21])
def test_bench_of_shapes_beyond_memory(cli: Cli, add_model: Path, size: int) -> None:
    done = cli("bench", add_model, "--shape", f"input1:{size},3,32,32;input2:1,3,32,32")
    assert_one_clear_line(done, "aioais bench: input 'input1' of shape ")
    assert "give a smaller --shape" in done.err


def test_bench_of_open_shapes_wants_to_be_told(cli: Cli, add_model: Path) -> None:
    done = cli("bench", add_model)
    assert_one_clear_line(done, "aioais bench: ")
    assert '--shape "input1:' in done.err
    for shape in ("input1", "input1:a,b", "other:1,3,32,32"):
        assert_one_clear_line(cli("bench", add_model, "--shape", shape), "aioais bench: ")
    shapes = "input1:2,3,32,32;input2:2,3,32,32"
    done = cli("bench", add_model, "--shape", shapes, "-n", 5, "--warmup", 0)
    assert done.code == 0, done.err
    assert "input1 float32[2, 3, 32, 32]" in done.out


# --- inspect --------------------------------------------------------------------------------------


def test_inspect_a_static_model(cli: Cli) -> None:
    done = cli("inspect", DIGITS_MODEL)
    assert (done.code, done.err) == (0, "")
    for word in ("image", "logits", "1,1,8,8", "1,10", "256 B", "40 B", "float32"):
        assert word in done.out, word
    assert "gears" not in done.out
    assert not CONTROL_CHARACTERS.search(done.out)


def test_inspect_a_dynamic_shape_model(cli: Cli, add_model: Path) -> None:
    done = cli("inspect", add_model)
    assert (done.code, done.err) == (0, "")
    assert "-1,3,-1,-1" in done.out


def test_inspect_lists_image_sizes(cli: Cli, add_model: Path, tmp_path: Path) -> None:
    model = aioais.convert(
        str(add_model),
        str(tmp_path / "hw.onnx"),
        input_format="NCHW",
        input_shape="input1:1,3,-1,-1;input2:1,3,-1,-1",
        dynamic_image_size="32,32;64,64",
    )
    assert "32,32; 64,64" in cli("inspect", model).out


@pytest.mark.parametrize(
    ("name", "content"), [("none.onnx", None), ("empty.onnx", b""), ("text.onnx", b"not a model at all")]
)
def test_inspect_without_a_model(cli: Cli, tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    done = cli("inspect", path)
    assert_one_clear_line(done, "aioais inspect: ")
    assert name in done.err


def test_inspect_on_a_platform_that_does_not_exist(cli: Cli) -> None:
    done = cli("inspect", DIGITS_MODEL, "--platform", "gpu")
    assert_one_clear_line(done, "aioais inspect: ")
    assert "'gpu'" in done.err


def test_inspect_of_an_om_without_cann(cli: Cli, tmp_path: Path) -> None:
    if importlib.util.find_spec("acl") is not None:
        pytest.skip("an acl module is installed")
    path = tmp_path / "model.om"
    path.write_bytes(b"IMOD")
    done = cli("inspect", path)
    assert_one_clear_line(done, "aioais inspect: ")
    assert "CANN" in done.err


def test_inspect_on_a_device_that_is_not_there(cli: Cli) -> None:
    assert_one_clear_line(cli("inspect", DIGITS_MODEL, "--device", 99), "aioais inspect: ")


# --- demo -----------------------------------------------------------------------------------------


def test_demo_in_a_pipe(cli: Cli) -> None:
    done = cli("demo", "--rounds", 1)
    assert (done.code, done.err) == (0, "")
    assert not CONTROL_CHARACTERS.search(done.out)
    accuracy = re.search(r"accuracy +([\d.]+)%", done.out)
    assert accuracy
    assert float(accuracy[1]) >= 98.5
    for word in ("requests/s", "h2d", "execute", "d2h", "p99", "█", "but it is"):
        assert word in done.out, word


def test_demo_on_a_terminal() -> None:
    done = child("-m", "aioais", "demo", "--rounds", "1", FORCE_COLOR="1", TERM="xterm-256color")
    assert (done.code, done.err) == (0, "")
    assert "reading digits" in done.out
    assert "797/797" in done.out


@pytest.mark.full
def test_demo_on_a_terminal_of_ascii() -> None:
    done = child("-m", "aioais", "demo", "--rounds", "1", PYTHONIOENCODING="ascii")
    assert (done.code, done.err) == (0, "")
    assert done.out.isascii()
    assert "@@" in done.out


def test_demo_fails_when_the_answers_are_wrong(cli: Cli, tmp_path: Path) -> None:
    from onnx import load, numpy_helper, save

    model = load(DIGITS_MODEL)
    # The last layer's bias: now every digit is a three.
    (bias,) = (weight for weight in model.graph.initializer if list(weight.dims) == [10])
    bias.CopyFrom(numpy_helper.from_array(np.eye(10, dtype=np.float32)[3] * 1e6, bias.name))
    path = tmp_path / "threes.onnx"
    save(model, str(path))
    done = cli("demo", "--rounds", 1, "--model", path)
    assert done.code == 1
    assert "less than 97%" in done.out
    assert "3, but it is " in done.out


def test_demo_without_its_model(cli: Cli, tmp_path: Path) -> None:
    assert_one_clear_line(cli("demo", "--model", tmp_path / "none.onnx"), "aioais demo: ")


def test_demo_with_a_model_of_another_kind(cli: Cli, add_model: Path) -> None:
    assert_one_clear_line(cli("demo", "--model", add_model), "aioais demo: ")


# --- the parts ------------------------------------------------------------------------------------


def test_the_digits_are_what_they_say() -> None:
    images, labels = load_digits()
    assert images.shape == (797, 1, 1, 8, 8)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 16)
    assert labels.shape == (797,)
    assert set(labels) == set(range(10))
    assert DIGITS_MODEL.stat().st_size < 300_000


def test_draw() -> None:
    image = np.array([[0, 16], [8, 3]])
    assert draw(image) == ["  ██", "▒▒░░"]
    assert draw(image, ascii_only=True) == ["  @@", "++.."]
    assert {len(line) for line in draw(np.zeros((8, 8)))} == {PICTURE_WIDTH}


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (10 << 20, "10.0 MiB"), (3 << 50, "3072.0 TiB")],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


async def test_run_tasks_awaits_so_many_at_once() -> None:
    seen: list[int] = []
    active = most = 0

    async def job(number: int) -> None:
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0)
        active -= 1
        seen.append(number)

    await run_tasks(job, 10, tasks=4)
    assert sorted(seen) == list(range(10))
    assert most == 4


async def test_run_tasks_stops_at_the_first_error() -> None:
    started: list[int] = []

    async def job(number: int) -> None:
        started.append(number)
        if number == 1:
            raise ValueError("one")
        await asyncio.Event().wait()

    with pytest.raises(ValueError, match="one"):
        await run_tasks(job, 10, tasks=3)
    assert started == [0, 1, 2]
    assert len(asyncio.all_tasks()) == 1
