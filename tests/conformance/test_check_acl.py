"""The conformance suite of the kit: the emulator passes it, another ``acl`` too, and a wrong one is found out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from aioais.testing import Report, check_acl
from aioais.testing.__main__ import main
from aioais.testing.conformance.suite import CHECKS

if TYPE_CHECKING:
    from tests.conformance.conftest import Models

ACL = os.environ.get("AIOAIS_TEST_ACL", "")
OM = os.environ.get("AIOAIS_TEST_OM", "")

KINDS: dict[str, Callable[[Models], str]] = {
    "static": lambda models: models.add(),
    "static-empty-rank": lambda models: models.add(()),
    "batch": lambda models: models.batch(),
    "hw": lambda models: models.gears("hw", (1, 3, -1, -1), ((8, 8), (16, 24))),
    "dims": lambda models: models.gears("dims", (-1, 3), ((1, 3, 1, 3), (4, 3, 4, 3))),
    "shape": lambda models: models.shape(),
    "open": lambda models: models.shape(None),
    "ranks": lambda models: models.ranks(),
}


def assert_ok(report: Report) -> None:
    assert report.ok, report


@pytest.mark.parametrize("kind", KINDS)
def test_the_emulator_passes(acl: Any, models: Models, kind: str) -> None:
    report = check_acl(acl, KINDS[kind](models))
    assert_ok(report)
    subject = "shapes" if kind in ("shape", "open", "ranks") else "model" if kind.startswith("static") else "gears"
    ran = [result for result in report.passed if result.name.startswith(subject)]
    assert len(ran) >= 4
    from aioais import emulator

    assert emulator.leaks() == {}
    assert acl.rt.create_stream()[1] == 107002  # the caller's thread is as it was


def test_every_check_applies_to_some_model(acl: Any, models: Models) -> None:
    passed: set[str] = set()
    for make in KINDS.values():
        passed |= {result.name for result in check_acl(acl, make(models)).passed}
    assert passed == {check.name for check in CHECKS} | {"process.life"}


def test_without_a_model(acl: Any) -> None:
    report = check_acl(acl)
    assert_ok(report)
    assert {result.detail for result in report.skipped} == {"no model was given"}
    text = str(report)
    assert text.splitlines()[-1] == f"{len(report.passed)} passed, 0 failed, {len(report.skipped)} skipped"


def test_an_acl_in_use_stays_in_use(ready: Any, models: Models) -> None:
    stream, code = ready.rt.create_stream()
    assert code == 0
    report = check_acl(ready, models.add())
    assert_ok(report)
    skipped = {result.name for result in report.skipped}
    assert {"process.init_again", "process.device_references"} <= skipped
    assert ready.rt.synchronize_stream(stream) == 0
    assert ready.rt.destroy_stream(stream) == 0
    assert ready.rt.reset_device(0) == 0
    assert ready.finalize() == 0


def test_a_device_that_is_not_there(acl: Any) -> None:
    report = check_acl(acl, device_id=77)
    assert {"process.device_count", "process.life"} <= {result.name for result in report.failed}
    assert "107001" in report.failed[-1].detail


def test_a_model_that_does_not_load(acl: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    report = check_acl(acl, path)
    assert all(result.name.startswith(("model", "gears", "shapes")) for result in report.failed)
    assert "load_from_file" in report.failed[0].detail


def clone(acl: Any, **changes: Any) -> ModuleType:
    """Copy the module tree with some functions replaced; ``rt__malloc`` is ``acl.rt.malloc``."""
    copy = ModuleType("acl")
    copy.__dict__.update({name: value for name, value in vars(acl).items() if not name.startswith("_")})
    for name in ("rt", "mdl"):
        module = ModuleType(f"acl.{name}")
        module.__dict__.update(vars(getattr(acl, name)))
        setattr(copy, name, module)
    for name, value in changes.items():
        owner, _, short = name.rpartition("__")
        target = getattr(copy, owner) if owner else copy
        if value is None:
            delattr(target, short)
        else:
            setattr(target, short, value)
    return copy


def swapped(call: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    def run(*args: Any) -> tuple[Any, Any]:
        value, code = call(*args)
        return code, value

    return run


def raises(*_: Any) -> None:
    raise OSError("out of order")


def one_table(call: Callable[..., int]) -> Callable[..., int]:
    """Like a device whose model has one table of arguments: another stream finds those of the last one in it."""
    last: dict[int, tuple[int, ...]] = {}

    def run(model: int, inputs: int, outputs: int, stream: int) -> int:
        found = last.get(model, (inputs, outputs, stream))
        last[model] = (inputs, outputs, stream)
        return call(model, *(found[:2] if found[2] != stream else (inputs, outputs)), stream)

    return run


WRONG: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "missing": (lambda acl: {"mdl__execute_async": None}, "process.names"),
    "no-rt": (lambda acl: {"rt": None}, "process.names"),
    "init-fails": (lambda acl: {"init": lambda *_: 500000}, "process.life"),
    "raises": (lambda acl: {"rt__record_event": raises}, "streams.event"),
    "free-fails": (lambda acl: {"rt__free_host": lambda _: 100000}, "memory.round_trip"),
    "swapped": (lambda acl: {"mdl__add_dataset_buffer": swapped(acl.mdl.add_dataset_buffer)}, "objects.dataset"),
    "bare": (lambda acl: {"mdl__add_dataset_buffer": lambda *_: 0}, "objects.dataset"),
    "numpy-ints": (lambda acl: {"rt__malloc": lambda n, p: acl.rt.malloc(int(n), p)}, "objects.bad_arguments"),
    "not-0": (lambda acl: {"rt__stream_wait_event": lambda stream, event: 1}, "streams.wait_event"),
    "no-wait": (lambda acl: {"rt__stream_wait_event": lambda stream, event: 0}, "model.static_chained"),
    "one-table": (lambda acl: {"mdl__execute_async": one_table(acl.mdl.execute_async)}, "model.static_chained"),
    "no-copy": (lambda acl: {"rt__memcpy_async": lambda *_: 0}, "memory.round_trip"),
    "bool": (lambda acl: {"rt__synchronize_stream": lambda s: False}, "streams.synchronize_idle"),
    "message": (lambda acl: {"get_recent_err_msg": lambda: 0}, "contexts.message"),
    "dims": (lambda acl: {"mdl__get_output_dims": lambda d, i: ({"dims": []}, 0)}, "model.description"),
    "no-codes": (lambda acl: {"mdl__unload": lambda _: 0}, "load.no_model"),
    "end": (lambda acl: {"rt__reset_device": lambda _: 507000}, "process.life"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_module_is_found_out(acl: Any, models: Models, fault: str) -> None:
    change, name = WRONG[fault]
    report = check_acl(clone(acl, **change(acl)), models.add())
    found = {result.name: result for result in report.failed}
    assert name in found, report
    assert found[name].detail
    # Every check of the suite has its line, whatever happened.
    assert {check.name for check in CHECKS} <= {result.name for result in report.results}


@pytest.mark.parametrize("fault", ["no-wait", "one-table"])
def test_a_wrong_chain_with_gears_is_found_out(acl: Any, models: Models, fault: str) -> None:
    report = check_acl(clone(acl, **WRONG[fault][0](acl)), models.batch())
    assert "gears.chained" in {result.name for result in report.failed}, report


def test_the_command(models: Models, tmp_path: Path) -> None:
    path = tmp_path / "add.onnx"
    path.write_bytes(Path(models.add()).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "aioais.testing", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "platform cpu" in done.stdout
    assert ", 0 failed," in done.stdout


@pytest.mark.parametrize("missing", ["there is no file", "needs the module 'acl' of the CANN toolkit"])
def test_the_command_without_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, "acl", None)
    model = tmp_path / "model.om"
    if "file" not in missing:
        model.write_bytes(b"IMOD")
    with pytest.raises(SystemExit) as caught:
        main([str(model)])
    assert caught.value.code == 2
    assert missing in capsys.readouterr().err


@pytest.mark.rig
@pytest.mark.skipif(not (ACL and OM), reason="AIOAIS_TEST_ACL and AIOAIS_TEST_OM name no other acl and its models")
def test_another_acl_passes() -> None:
    paths = sorted(str(path) for path in Path(OM).glob("*.om") if "_19m" not in path.name)
    done = subprocess.run(
        [sys.executable, "-m", "aioais.testing", *paths],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([ACL, *filter(None, sys.path)])},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(", 0 failed,") == len(paths) > 0
