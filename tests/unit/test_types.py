"""The nouns of the interface: records that cannot change, names that agree with ais_bench."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any, cast, get_args

import numpy as np
import pytest

import aioais
from aioais import (
    AclError,
    AclMemoryError,
    AclNotFoundError,
    AioaisError,
    Check,
    DataType,
    DeviceInfo,
    FeedError,
    Format,
    InferSession,
    Mode,
    StageTime,
    TensorDesc,
)


def test_tensor_desc_has_the_fields_of_ais_bench_in_order() -> None:
    desc = TensorDesc("x", DataType.float32, Format.NCHW, [1, 3], 12, 12)
    assert desc._fields == ("name", "datatype", "format", "shape", "size", "realsize")
    with pytest.raises(AttributeError):
        desc.name = "y"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(desc)) == desc


def test_enumerations_are_ints() -> None:
    assert int(DataType.bool) == 12
    assert int(Format.NHWC) == 1
    assert isinstance(DataType.float32, int)
    assert pickle.loads(pickle.dumps(DataType.bfloat16)) is DataType.bfloat16
    assert DataType.uint16.numpy == np.uint16


def test_modes_and_checks() -> None:
    assert set(get_args(Mode)) == {
        "static",
        "auto",
        *(f"{spelling}{kind}" for spelling in ("dym", "dyn") for kind in ("batch", "hw", "dims", "shape")),
    }
    assert set(get_args(Check)) == {"strict", "bytes"}


def test_device_info() -> None:
    info = DeviceInfo("cpu", 0, "chip", 2, 1)
    assert info._fields == ("platform", "id", "name", "total_memory", "free_memory")


def test_stage_time() -> None:
    assert (StageTime(0, 0.0, 0.0).mean_ms, StageTime(4, 10.0, 5.0).mean_ms) == (0.0, 2.5)
    with pytest.raises(AttributeError):
        StageTime(0, 0.0, 0.0).count = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", [name for name in aioais.__all__ if name.endswith("Error")])
def test_every_error_has_the_one_root(name: str) -> None:
    assert issubclass(getattr(aioais, name), AioaisError)


def test_errors_are_also_what_python_would_raise() -> None:
    for kind, builtin in [
        (FeedError, ValueError),
        (aioais.ArgumentError, ValueError),
        (aioais.DeviceError, ValueError),
        (AclError, RuntimeError),
        (AclMemoryError, MemoryError),
        (AclNotFoundError, ImportError),
        (aioais.WrongLoopError, RuntimeError),
        (aioais.ForkError, RuntimeError),
    ]:
        assert issubclass(kind, builtin)


@pytest.mark.parametrize("kind", [AclError, AclMemoryError, aioais.AclUsageError, aioais.AclInternalError])
def test_acl_errors_tell_their_parts_and_pickle(kind: type[AclError]) -> None:
    error = kind("acl.rt.malloc", 207001, "NAME", "a hint", "no room\n")
    again: Any = pickle.loads(pickle.dumps(error))
    for one in (error, again):
        assert type(one) is kind
        assert (one.call, one.code, one.name, one.hint, one.message) == (
            "acl.rt.malloc",
            207001,
            "NAME",
            "a hint",
            "no room\n",
        )
        assert str(one) == "acl.rt.malloc failed with 207001 (NAME): no room [a hint]"


def test_session_tells_what_it_is() -> None:
    session = InferSession(cast(int, np.int64(3)), "folder/model.onnx", loop=2)
    assert (session.device_id, session.model_path, session.loop, session.closed) == (3, "folder/model.onnx", 2, False)
    assert repr(session) == "<InferSession 'folder/model.onnx' on cpu device 3, depth auto, not open>"


@pytest.mark.parametrize(
    ("path", "platform", "wanted"),
    [
        ("m.om", None, "ascend"),
        ("M.OM", None, "ascend"),
        ("m.onnx", None, "cpu"),
        ("m.Onnx", None, "cpu"),
        ("m.onnx", "ascend", "ascend"),
        ("m.bin", "cpu", "cpu"),
    ],
)
def test_platform_follows_from_the_name(path: str, platform: Any, wanted: str) -> None:
    assert f"on {wanted} device 0" in repr(InferSession(0, path, platform=platform))


def test_import_is_light() -> None:
    code = "import sys, aioais; print(sorted({'onnx', 'onnxruntime', 'torch', 'acl'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert done.stdout.strip() == "[]"
