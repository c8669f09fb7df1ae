"""``install()`` and ``python -m aioais.compat``: what is found, and what the messages of the rest say."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import inside

import aioais
from aioais import compat
from aioais.compat import __main__ as program
from aioais.compat import ais_bench as ours

if TYPE_CHECKING:
    from tests.unit.conftest import Models


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo an installation, and what a program has changed."""
    ours_put_in = inside.compat_finders()
    finders = [finder for finder in sys.meta_path if finder not in ours_put_in]
    monkeypatch.setattr(sys, "meta_path", finders)
    forget()
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    inside.forget_compat_platform(monkeypatch)
    monkeypatch.delenv(inside.COMPAT_VARIABLE, raising=False)
    yield
    forget()


def forget() -> None:
    for name in inside.COMPAT_MODULES:
        sys.modules.pop(name, None)


def load(name: str) -> Any:
    return importlib.import_module(name)


def test_names_are_found() -> None:
    assert importlib.util.find_spec("ais_bench") is None
    compat.install()
    compat.install()
    assert importlib.util.find_spec("ais_bench") is not None
    interface = load("ais_bench.infer.interface")
    assert interface.InferSession is ours.InferSession
    assert {"InferSession", "MultiDeviceSession", "MemorySummary", "TORCH_TENSOR_LIST"} <= set(interface.__all__)
    assert load("ais_bench").infer.interface is interface
    runtime = load("aclruntime")
    assert runtime.InferenceSession is compat.aclruntime.InferenceSession
    assert runtime.float32 == 0
    assert not hasattr(runtime, "nothing")
    assert len(inside.compat_finders()) == 1


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("from ais_bench.infer.interface import Nothing", "'Nothing'.*InferSession, MemorySummary, MultiDeviceSession"),
        ("from aclruntime import Nothing", "'Nothing' from 'aclruntime'.*InferenceSession"),
        ("import ais_bench.infer.common.utils", "aioais.compat has ais_bench, ais_bench.infer, "),
        ("from ais_bench.infer import summary", r"session\.summary\(\) has the times"),
        ("import ais_bench.__main__", "aioais bench --help"),
    ],
)
def test_names_that_are_not_there(code: str, text: str) -> None:
    compat.install()
    with pytest.raises(ImportError, match=text):
        exec(code)


def test_other_modules_are_left_alone() -> None:
    compat.install()
    with pytest.raises(ModuleNotFoundError, match="No module named 'ais_benchmark'"):
        load("ais_benchmark")


def test_the_real_package_came_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aclruntime", ModuleType("aclruntime"))
    with pytest.raises(ImportError, match=r"before anything imports it"):
        compat.install()


def test_names_of_the_package() -> None:
    assert compat.ais_bench is ours
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        compat.nothing  # noqa: B018


def test_om_files_stand_for_onnx_files_only_where_asked(
    models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    om = models.identity((1, 4)).replace(".onnx", ".om")
    x = np.ones((1, 4), np.float32)
    Path(om).write_bytes(b"compiled")
    with pytest.raises(RuntimeError) as caught:  # no NPU here, and no silent fallback
        ours.InferSession(0, om)
    assert isinstance(caught.value, aioais.AclNotFoundError)
    caplog.set_level(logging.INFO, "aioais")
    monkeypatch.setenv(inside.COMPAT_VARIABLE, "cpu")
    for _ in range(2):
        with ours.InferSession(0, om) as session:
            assert session.model_path == om
            assert session.infer([x])[0][0, 0] == 1
    assert [record.message for record in caplog.records].count(
        f"{om}: the CPU device runs {om.replace('.om', '.onnx')} instead"
    ) == 1
    compat.install(platform="ascend")  # counts more than the environment
    with pytest.raises(RuntimeError, match="acl"):
        ours.InferSession(0, om)
    compat.install(platform="cpu")
    session = ours.MultiDeviceSession(om)  # type: ignore[assignment]
    assert session.infer({0: [[x]]})[0][0][0][0, 0] == 1
    session.free_resource()
    with pytest.raises(RuntimeError, match=r"expected '.*other\.onnx' beside it.*aioais convert"):
        ours.InferSession(0, str(models.folder / "other.om"))
    with pytest.raises(RuntimeError, match=r"got None|model_path=None"):
        ours.InferSession(0, None)  # type: ignore[arg-type]


def test_a_platform_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(aioais.ArgumentError, match="got platform='gpu'; expected 'ascend' or 'cpu'"):
        compat.install(platform="gpu")  # type: ignore[arg-type]
    monkeypatch.setenv(inside.COMPAT_VARIABLE, "gpu")
    with pytest.raises(RuntimeError, match="AIOAIS_COMPAT_PLATFORM='gpu'"):
        ours.InferSession(0, "x.onnx")


SCRIPT = """
import sys
import helper
from ais_bench.infer.interface import InferSession
assert __name__ == "__main__"
helper.seen.append(sys.argv[1:])
if sys.argv[1:] == ["fail"]:
    sys.exit(3)
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "helper.py").write_text("seen = []\n")
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    yield path
    sys.modules.pop("helper", None)


def test_a_script_finds_its_neighbours_and_arguments(script: Path) -> None:
    assert program.main([str(script), "--flag", "-m"]) == 0
    assert sys.modules["helper"].seen == [["--flag", "-m"]]
    with pytest.raises(SystemExit) as end:
        program.main(["--platform", "cpu", str(script), "fail"])
    assert end.value.code == 3
    assert inside.compat_platform() == "cpu"


def test_a_module_of_the_current_folder(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(script.parent)
    assert program.main(["--platform=cpu", "-m", "script", "x"]) == 0
    assert sys.modules["helper"].seen == [["x"]]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 2, "usage"),
        (["--help"], 0, "AIOAIS_COMPAT_PLATFORM"),
        (["-m"], 2, "usage"),
        (["--platform"], 2, "usage"),
        (["--platform", "gpu", "script.py"], 2, "expected 'ascend' or 'cpu'"),
        (["nothing.py"], 2, "there is no script nothing.py"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, text: str) -> None:
    assert program.main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err
