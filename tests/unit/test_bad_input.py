"""Bad input gets a clear, typed error before any device work, and leaves the session as it was.

Every message says what came, what is wanted and what to do; the tables have a piece of each.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import aioais
from aioais import (
    AclNotFoundError,
    AioaisError,
    ArgumentError,
    ClosedError,
    DeviceError,
    FeedError,
    InferSession,
    ModelError,
    WrongLoopError,
    emulator,
)

if TYPE_CHECKING:
    from tests.conftest import LoopFactory
    from tests.unit.conftest import Models

WORK = ("acl.rt.malloc", "acl.rt.malloc_host", "acl.rt.memcpy_async", "acl.mdl.execute_async", "acl.mdl.execute")


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.ones(shape, dtype)


def check(error: BaseException, texts: tuple[str, ...]) -> None:
    missing = [text for text in texts if text not in str(error)]
    assert not missing, f"{missing} not in: {error}"


# --- arguments of the constructor ---------------------------------------------------------------

DEVICE = "aioais.devices()"
CONSTRUCTOR: dict[str, tuple[dict[str, Any], type[AioaisError], tuple[str, ...]]] = {
    "device-negative": ({"device_id": -1}, DeviceError, ("device_id=-1", "an int from 0", DEVICE)),
    "device-bool": ({"device_id": True}, DeviceError, ("device_id=True", "an int from 0", DEVICE)),
    "device-numpy-bool": ({"device_id": np.True_}, DeviceError, ("True", "an int from 0", DEVICE)),
    "device-float": ({"device_id": 0.0}, DeviceError, ("device_id=0.0", "an int from 0", DEVICE)),
    "device-str": ({"device_id": "0"}, DeviceError, ("device_id='0'", "an int from 0", DEVICE)),
    "device-none": ({"device_id": None}, DeviceError, ("device_id=None", "an int from 0", DEVICE)),
    "device-array": ({"device_id": np.arange(2)}, DeviceError, ("array([0, 1])", "an int from 0", DEVICE)),
    "loop-zero": ({"loop": 0}, ArgumentError, ("loop=0", "at least 1")),
    "loop-negative": ({"loop": -2}, ArgumentError, ("loop=-2", "at least 1")),
    "loop-bool": ({"loop": True}, ArgumentError, ("loop=True", "an int")),
    "loop-float": ({"loop": 2.0}, ArgumentError, ("loop=2.0", "an int")),
    "depth-zero": ({"depth": 0}, ArgumentError, ("depth=0", "at least 1")),
    "depth-bool": ({"depth": False}, ArgumentError, ("depth=False", "at least 1")),
    "depth-str": ({"depth": "4"}, ArgumentError, ("depth='4'", "an int")),
    "check": ({"check": "loose"}, ArgumentError, ("check='loose'", "'strict'", "'bytes'")),
    "check-list": ({"check": ["strict"]}, ArgumentError, ("check=['strict']", "'bytes'")),
    "platform": ({"platform": "gpu"}, ArgumentError, ("platform='gpu'", "'ascend'", "'cpu'", "None")),
    "suffix": ({"model_path": "m.pb"}, ModelError, ("'m.pb'", ".om", ".onnx", "platform=")),
    "no-suffix": ({"model_path": "model"}, ModelError, ("'model'", ".om", ".onnx", "platform=")),
    "path-none": ({"model_path": None}, ArgumentError, ("model_path=None", "str or os.PathLike")),
    "path-empty": ({"model_path": ""}, ArgumentError, ("model_path=''", "str or os.PathLike")),
    "path-bytes": ({"model_path": b"m.onnx"}, ArgumentError, ("model_path=b'm.onnx'", "str or os.PathLike")),
    "path-null": ({"model_path": "m\0.onnx"}, ArgumentError, ("model_path=", "str or os.PathLike")),
    "config-int": ({"acl_json_path": 3}, ArgumentError, ("acl_json_path=3", "str or os.PathLike")),
}


def make_session(path: str, options: dict[str, Any]) -> InferSession:
    arguments: dict[str, Any] = {"device_id": 0, "model_path": path, **options}
    return InferSession(**arguments)


@pytest.mark.parametrize(("options", "kind", "texts"), CONSTRUCTOR.values(), ids=list(CONSTRUCTOR))
def test_constructor(options: dict[str, Any], kind: type[AioaisError], texts: tuple[str, ...]) -> None:
    emulator.reset_counts()
    with pytest.raises(kind) as caught:
        make_session("model.onnx", options)
    check(caught.value, texts)
    assert emulator.counts() == {}


# --- opening ------------------------------------------------------------------------------------


def _write(name: str, content: bytes) -> Callable[[Models], str]:
    def make(models: Models) -> str:
        path = models.folder / name
        path.write_bytes(content)
        return str(path)

    return make


def _truncated(models: Models) -> str:
    path = Path(models.conv([1, 3, 8, 8]))
    path.write_bytes(path.read_bytes()[:-100])
    return str(path)


def _folder(models: Models) -> str:
    path = models.folder / "folder.onnx"
    path.mkdir()
    return str(path)


def _name_no_text(models: Models) -> str:
    """A flipped bit in the name of an input."""
    path = Path(models.add([3]))
    path.write_bytes(path.read_bytes().replace(b"input1", b"input\xb1"))
    return str(path)


def _unknown_operator(models: Models) -> str:
    import onnx

    model = onnx.load(models.identity([3]))
    model.graph.node[0].op_type = "NoSuchOperator"
    path = models.folder / "operator.onnx"
    path.write_bytes(model.SerializeToString())
    return str(path)


NO_MODEL = ("cannot be loaded on platform 'cpu'", "expected an ONNX file that ONNX Runtime can run")
OPENING: dict[str, tuple[Callable[[Models], str], dict[str, Any], type[AioaisError], tuple[str, ...], bool]] = {
    # file, options, error, texts, whether the device is asked at all
    "missing": (
        lambda m: str(m.folder / "missing.onnx"),
        {},
        ModelError,
        ("missing.onnx' cannot be read", "No such file", "give the path of a model file"),
        False,
    ),
    "missing-om": (lambda _: "missing.om", {}, ModelError, ("'missing.om' cannot be read", "give the path"), False),
    "folder": (_folder, {}, ModelError, ("folder.onnx' is a folder", "give the path of a model file"), False),
    "empty": (_write("empty.onnx", b""), {}, ModelError, ("empty.onnx' is empty (0 bytes)", "again"), False),
    "garbage": (_write("bad.onnx", bytes(range(256)) * 9), {}, ModelError, ("bad.onnx'", *NO_MODEL), True),
    "text": (_write("text.onnx", b"this is no model at all\n"), {}, ModelError, ("text.onnx'", *NO_MODEL), True),
    "truncated": (_truncated, {}, ModelError, ("conv.onnx'", *NO_MODEL), True),
    "operator": (_unknown_operator, {}, ModelError, ("NoSuchOperator", *NO_MODEL), True),
    "om-inside": (
        _write("wrong.onnx", b"IMOD" + bytes(500)),
        {},
        ModelError,
        ("wrong.onnx'", "an offline model (.om)", *NO_MODEL),
        True,
    ),
    "om-on-the-cpu": (
        _write("model.om", b"IMOD" + bytes(500)),
        {"platform": "cpu"},
        ModelError,
        ("model.om' is compiled for an Ascend NPU", "give the .onnx file", "platform='ascend'"),
        False,
    ),
    "device-too-large": (
        lambda m: m.identity([3]),
        {"device_id": 99},
        DeviceError,
        ("device_id=99 does not exist", "the visible devices are 0 to 3", DEVICE),
        True,
    ),
    "config-missing": (
        lambda m: m.identity([3]),
        {"acl_json_path": "missing.json"},
        ArgumentError,
        ("acl_json_path='missing.json' cannot be read", "No such file"),
        False,
    ),
    "config-no-json": (
        lambda m: m.identity([3]),
        {"acl_json_path": __file__},
        ArgumentError,
        ("test_bad_input.py' is not valid JSON",),
        False,
    ),
    "name-no-text": (_name_no_text, {}, ModelError, ("add.onnx'", "is not UTF-8", *NO_MODEL), True),
}


async def _by_await(session: InferSession) -> None:
    await session


async def _by_with(session: InferSession) -> None:
    async with session:
        raise AssertionError("it was opened")


@pytest.mark.parametrize(("make", "options", "kind", "texts", "asks"), OPENING.values(), ids=list(OPENING))
async def test_opening(
    models: Models,
    make: Callable[[Models], str],
    options: dict[str, Any],
    kind: type[AioaisError],
    texts: tuple[str, ...],
    asks: bool,
) -> None:
    path = make(models)
    await InferSession.finalize()
    emulator.reset_counts()
    for opener in (_by_await, _by_with):
        session = make_session(path, options)
        with pytest.raises(kind) as caught:
            await opener(session)
        check(caught.value, texts)
        assert not session.closed
    done = emulator.counts()
    assert not {name: done[name] for name in WORK if name in done}
    if not asks:
        assert done == {}


async def test_a_configuration_nested_deeper_than_the_parser_goes(models: Models) -> None:
    nested = models.folder / "nested.json"
    nested.write_text("[" * 100_000, encoding="utf-8")
    await InferSession.finalize()
    with pytest.raises(ArgumentError, match=r"nested\.json' is not valid JSON"):
        await InferSession(0, models.identity([3]), nested)


def test_a_model_that_cannot_be_loaded_leaves_stdout_alone(models: Models) -> None:
    """ONNX Runtime's own class tries again with another provider, and prints that it does."""
    path = Path(models.add([3]))
    path.write_bytes(path.read_bytes().replace(b"Add", b"\xffdd"))
    code = f"""
import asyncio
from aioais import InferSession, ModelError, convert
async def main():
    for use in (lambda: InferSession(0, {str(path)!r}).__aenter__(), lambda: asyncio.to_thread(
            convert, {str(path)!r}, "out.onnx", input_shape="input1:3;input2:3")):
        try:
            await use()
        except ModelError:
            continue
        raise AssertionError("it was loaded")
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done


async def test_a_failed_open_leaves_nothing_behind(models: Models) -> None:
    bad = _write("bad.onnx", b"nothing")(models)
    good = models.identity([3])
    async with InferSession(0, good) as session:
        before = emulator.live()
        for _ in range(3):
            with pytest.raises(ModelError):
                await InferSession(0, bad)
        assert emulator.live() == before
        assert (await session.infer([ones(3)]))[0].tolist() == [1, 1, 1]


async def test_a_session_that_failed_to_open_can_be_opened_once_the_file_is_there(models: Models) -> None:
    path = models.folder / "identity.onnx"
    session = InferSession(0, path)
    with pytest.raises(ModelError):
        await session
    models.identity([3])
    async with session:
        assert (await session.infer([ones(3)]))[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("earlier", ["devices()", "a session"])
async def test_a_configuration_after_acl_was_started_without(models: Models, earlier: str) -> None:
    path, config = models.identity([3]), models.folder / "acl.json"
    config.write_text("{}", encoding="utf-8")
    await InferSession.finalize()
    if earlier == "devices()":
        await asyncio.to_thread(aioais.devices)
    else:
        await (await InferSession(0, path)).aclose()
    with pytest.raises(ArgumentError) as caught:
        await InferSession(0, path, config)
    check(caught.value, ("acl.json", "started without one, by devices() or an earlier session", "before these"))
    await InferSession.finalize()


async def test_second_configuration(models: Models) -> None:
    path = models.identity([3])
    one, same, other = (models.folder / f"{name}.json" for name in ("one", "same", "other"))
    one.write_text("{}", encoding="utf-8")
    same.write_text("{ }", encoding="utf-8")
    other.write_text('{"max_opqueue_num": "20000"}', encoding="utf-8")
    await InferSession.finalize()
    async with InferSession(0, path, str(one)) as session, InferSession(0, path, one), InferSession(0, path, same):
        with pytest.raises(ArgumentError) as caught:
            await InferSession(1, path, other)
        check(caught.value, ("other.json", "differs from the configuration", "the same file"))
        assert (await session.infer([ones(3)]))[0].tolist() == [1, 1, 1]
    await InferSession.finalize()


# --- software that is not there -----------------------------------------------------------------

WITHOUT = """
import asyncio, sys

class Without:
    def __init__(self, finder):
        self._finder = finder
    def __getattr__(self, name):
        return getattr(self._finder, name)
    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in {blocked!r} else self._finder.find_spec(name, *rest)

sys.meta_path[:] = map(Without, sys.meta_path)
import aioais

async def main():
    try:
        async with aioais.InferSession(0, sys.argv[1], platform={platform!r}):
            pass
    except aioais.AclNotFoundError as error:
        assert isinstance(error, ImportError)
        print(error.name, error)

asyncio.run(main())
print(sorted({{device.platform for device in aioais.devices()}}))
"""
MISSING: dict[str, tuple[str, str | None, tuple[str, ...], tuple[str, ...]]] = {
    "om-without-cann": (
        "model.om",
        None,
        ("acl",),
        ("acl a .om model needs the module 'acl'", "CANN", "set_env.sh", ".onnx", "['cpu']"),
    ),
    "onnx-for-ascend-without-cann": ("model.onnx", "ascend", ("acl",), ("acl ", "CANN", "set_env.sh", "['cpu']")),
    "onnx-without-onnxruntime": (
        "model.onnx",
        None,
        ("acl", "onnxruntime"),
        ("onnxruntime an .onnx model runs on the CPU device", "not installed", 'pip install "aioais[cpu]"', "[]"),
    ),
}


@pytest.mark.parametrize(("name", "platform", "blocked", "texts"), MISSING.values(), ids=list(MISSING))
def test_missing_software(
    tmp_path: Path, name: str, platform: str | None, blocked: tuple[str, ...], texts: tuple[str, ...]
) -> None:
    path = tmp_path / name
    path.write_bytes(b"IMOD" + bytes(100))
    code = WITHOUT.format(blocked=blocked, platform=platform)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), str(path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for text in texts:
        assert text in done.stdout


def test_not_found_is_an_import_error() -> None:
    assert issubclass(AclNotFoundError, ImportError)


# --- feeds --------------------------------------------------------------------------------------

Which = tuple[str, dict[str, str]]

STATIC: Which = ("static", {})
BATCH = ("batch", {"input_shape": "a:-1,3;b:-1,3", "dynamic_batch_size": "1,2,4"})
IMAGE = ("hw", {"input_shape": "a:1,3,-1,-1;b:1,3,-1,-1", "dynamic_image_size": "8,8;16,4"})
DIMS = ("dims", {"input_shape": "a:-1,3;b:-1,3", "dynamic_dims": "1,2;4,4"})
RANGES = ("ranges", {"input_shape_range": "a:[1~4,3];b:[1~4,3]"})
OPEN: Which = ("open", {})
WANTS = "'a' float32[2, 3], 'b' float32[2, 3]"
A, B = ones(2, 3), ones(2, 3)

FEEDS: dict[str, tuple[Which, Any, dict[str, Any], type[AioaisError], tuple[str, ...]]] = {
    "none": (STATIC, [], {}, FeedError, ("got 0", f"expected 2: {WANTS}", "one feed per input")),
    "one": (STATIC, [A], {}, FeedError, ("got 1", f"expected 2: {WANTS}", "one feed per input")),
    "three": (STATIC, [A, B, A], {}, FeedError, ("got 3", f"expected 2: {WANTS}", "one feed per input")),
    "bare": (STATIC, A, {}, FeedError, ("a bare array float32[2, 3]", WANTS, "infer([array])")),
    "bare-of-two": (STATIC, ones(2, 2, 3), {}, FeedError, ("a bare array", WANTS, "infer([array])")),
    "text": (STATIC, "ab", {}, FeedError, ("got str", WANTS, "a list")),
    "bytes": (STATIC, b"ab", {}, FeedError, ("got bytes", WANTS, "a list")),
    "no-feeds": (STATIC, None, {}, FeedError, ("got NoneType", WANTS, "a list")),
    "generator": (STATIC, (x for x in (A, B)), {}, FeedError, ("got generator", WANTS, "a list")),
    "set": (STATIC, {1, 2}, {}, FeedError, ("got set", WANTS, "a list")),
    "name-missing": (STATIC, {"a": A}, {}, FeedError, ("without ['b']", WANTS, "one feed per name")),
    "name-unknown": (STATIC, {"a": A, "b": B, "c": B}, {}, FeedError, ("unknown ['c']", WANTS, "one feed per name")),
    "name-wrong": (STATIC, {"a": A, "x": B}, {}, FeedError, ("without ['b'] and with unknown ['x']", WANTS)),
    "name-number": (STATIC, {0: A, 1: B}, {}, FeedError, ("unknown [0, 1]", WANTS, "one feed per name")),
    "dtype": (
        STATIC,
        [A, B.astype(np.float64)],
        {},
        FeedError,
        ("'b' (position 1)", "got float64[2, 3]", "expected float32[2, 3]", "astype('float32')"),
    ),
    "dtype-int": (STATIC, [A.astype(int), B], {}, FeedError, ("'a' (position 0)", "int64", "astype('float32')")),
    "big-endian": (STATIC, [A.astype(">f4"), B], {}, FeedError, ("'a'", ">f4", "expected float32", "astype")),
    "bytes-for-float": (
        STATIC,
        [bytes(24), B],
        {},
        FeedError,
        (
            "'a'",
            "got uint8[24]",
            "expected float32[2, 3]",
            "np.frombuffer(feed, 'float32').reshape((2, 3))",
            "check='bytes'",
        ),
    ),
    "bytes-too-few": (STATIC, [bytes(20), B], {}, FeedError, ("'a'", "got uint8[20]", "of that type and shape")),
    "shape": (
        STATIC,
        [A, ones(2, 4)],
        {},
        FeedError,
        ("'b' (position 1)", "got float32[2, 4]", "expected float32[2, 3]", "give an array of that shape"),
    ),
    "transposed": (
        STATIC,
        {"b": B, "a": A.T},
        {},
        FeedError,
        ("'a' (position 0)", "float32[3, 2]", "transpose it: array.transpose(1, 0)"),
    ),
    "rank": (STATIC, [ones(1, 2, 3), B], {}, FeedError, ("'a'", "got float32[1, 2, 3]", "expected float32[2, 3]")),
    "flat": (STATIC, [ones(6), B], {}, FeedError, ("'a'", "got float32[6]", "expected float32[2, 3]", "reshape")),
    "scalar": (STATIC, [np.float32(1), B], {}, FeedError, ("'a'", "got float32[]", "expected float32[2, 3]")),
    "list": (
        STATIC,
        [[[1.0] * 3] * 2, B],
        {},
        FeedError,
        ("'a'", "got list", "np.asarray(value, 'float32')"),
    ),
    "tuple": (
        STATIC,
        [A, (1, 2)],
        {},
        FeedError,
        ("'b'", "got tuple", "np.asarray(value, 'float32')"),
    ),
    "str-feed": (STATIC, ["x", B], {}, FeedError, ("'a'", "got str", "expected an array")),
    "int-feed": (
        STATIC,
        [1, B],
        {},
        FeedError,
        ("'a'", "got int", "np.asarray(value, 'float32')"),
    ),
    "none-feed": (STATIC, [A, None], {}, FeedError, ("'b'", "got NoneType", "expected an array")),
    "objects": (STATIC, [A.astype(object), B], {}, FeedError, ("'a'", "object[2, 3]", "float32[2, 3]", "numeric type")),
    "texts": (
        STATIC,
        [np.full((2, 3), "x"), B],
        {},
        FeedError,
        ("'a'", "<U1[2, 3]", "float32[2, 3]", "of that type"),
    ),
    "mode-unknown": (
        STATIC,
        [A, B],
        {"mode": "fast"},
        ArgumentError,
        ("mode='fast'", "expected 'static' or 'auto' for"),
    ),
    "mode-none": (STATIC, [A, B], {"mode": None}, ArgumentError, ("mode=None", "'static'", "'auto'")),
    "mode-list": (STATIC, [A, B], {"mode": ["static"]}, ArgumentError, ("mode=['static']", "'static'", "'auto'")),
    "mode-batch-of-static": (
        STATIC,
        [A, B],
        {"mode": "dymbatch"},
        ArgumentError,
        ("mode='dymbatch' does not fit", "static.onnx", "shapes are static", "mode='static' or 'auto'"),
    ),
    "mode-shape-of-static": (STATIC, [A, B], {"mode": "dynshape"}, ArgumentError, ("'dynshape'", "mode='static'")),
    "mode-static-of-open": (OPEN, [A, B], {"mode": "static"}, ArgumentError, ("'static'", "mode='dymshape' or 'auto'")),
    "mode-hw-of-batch": (
        BATCH,
        [A, B],
        {"mode": "dymhw"},
        ArgumentError,
        ("'dymhw'", "dymbatch (batch sizes 1, 2, 4)", "mode='dymbatch' or 'auto'"),
    ),
    "mode-shape-of-dims": (DIMS, [A, B], {"mode": "dymshape"}, ArgumentError, ("'dymshape'", "mode='dymdims'")),
    "gear-batch": (
        BATCH,
        [ones(3, 3), ones(3, 3)],
        {"mode": "dymbatch"},
        FeedError,
        ("'a' (position 0)", "got float32[3, 3]", "expected float32[-1, 3]", "batch sizes 1, 2, 4", "use a legal gear"),
    ),
    "gear-mixed": (
        BATCH,
        [ones(1, 3), ones(2, 3)],
        {"mode": "auto"},
        FeedError,
        ("'a' [1, 3], 'b' [2, 3]", "different gears", "batch sizes 1, 2, 4", "the shapes of one gear"),
    ),
    "gear-hw": (
        IMAGE,
        [ones(1, 3, 8, 8), ones(1, 3, 4, 16)],
        {"mode": "dymhw"},
        FeedError,
        ("'b' (position 1)", "float32[1, 3, 4, 16]", "image sizes (H, W) (8, 8), (16, 4)", "use a legal gear"),
    ),
    "gear-dims": (
        DIMS,
        [ones(1, 3), ones(9, 3)],
        {"mode": "dymdims"},
        FeedError,
        ("'b' (position 1)", "float32[9, 3]", "gears [1, 3] x [2, 3]; [4, 3] x [4, 3]", "use a legal gear"),
    ),
    "gear-rank": (
        BATCH,
        [ones(3), ones(3)],
        {"mode": "dymbatch"},
        FeedError,
        ("'a'", "float32[3]", "batch sizes 1, 2, 4"),
    ),
    "gear-dtype": (
        BATCH,
        [ones(2, 3), ones(2, 3, dtype=np.int8)],
        {"mode": "dymbatch"},
        FeedError,
        ("'b'", "got int8[2, 3]", "expected float32[2, 3]", "astype('float32')"),
    ),
    "gear-static": (
        BATCH,
        [ones(2, 3), ones(2, 3)],
        {"mode": "static"},
        FeedError,
        ("'a'", "got float32[2, 3]", "float32[4, 3]", "batch sizes 1, 2, 4", "largest", "mode='dymbatch' or 'auto'"),
    ),
    "range": (
        RANGES,
        [ones(5, 3), ones(5, 3)],
        {"mode": "dymshape"},
        FeedError,
        ("'a'", "got float32[5, 3]", "expected float32[-1, 3]", "[1~4, 3", "give an array with such dims"),
    ),
    "range-low": (RANGES, [ones(0, 3), ones(0, 3)], {"mode": "auto"}, FeedError, ("float32[0, 3]", "[1~4, 3")),
    "range-fixed": (RANGES, [ones(2, 4), ones(2, 3)], {"mode": "auto"}, FeedError, ("'a'", "float32[2, 4]")),
    "range-rank": (OPEN, [ones(3), ones(3)], {"mode": "auto"}, FeedError, ("'a'", "float32[3]", "float32[-1, 3]")),
    "sizes-zero": (OPEN, [A, B], {"custom_sizes": 0}, ArgumentError, ("custom_sizes=0", "a positive int", "leave it")),
    "sizes-negative": (OPEN, [A, B], {"custom_sizes": -5}, ArgumentError, ("custom_sizes=-5", "a positive int")),
    "sizes-bool": (OPEN, [A, B], {"custom_sizes": True}, ArgumentError, ("custom_sizes=True", "a positive int")),
    "sizes-float": (OPEN, [A, B], {"custom_sizes": 1.0}, ArgumentError, ("custom_sizes=1.0", "a positive int")),
    "sizes-str": (OPEN, [A, B], {"custom_sizes": "9"}, ArgumentError, ("custom_sizes='9'", "a positive int")),
    "sizes-bools": (OPEN, [A, B], {"custom_sizes": [True]}, ArgumentError, ("True", "a positive int")),
    "sizes-zeros": (OPEN, [A, B], {"custom_sizes": [0]}, ArgumentError, ("0", "a list of them with one per output")),
    "sizes-empty": (OPEN, [A, B], {"custom_sizes": []}, ArgumentError, ("0 entries", "1 outputs (c)", "one int")),
    "sizes-two": (OPEN, [A, B], {"custom_sizes": [8, 8]}, ArgumentError, ("2 entries", "1 outputs (c)", "one int")),
    "sizes-array": (OPEN, [A, B], {"custom_sizes": np.array([8])}, ArgumentError, ("array([8])", "a positive int")),
}


def _subtract(models: Models, which: Which) -> str:
    name, options = which
    dims: list[int | str]
    if name == "static":
        dims = [2, 3]
    elif name == "hw":
        dims = ["n", 3, "h", "w"]
    else:
        dims = ["n", 3]
    result: list[int | str] = ["m", 3] if name == "dims" else dims
    path = models.subtract(dims, dims, result, name if not options else "plain")
    return models.convert(path, name, **options) if options else path


def _good(which: Which) -> list[np.ndarray[Any, Any]]:
    shape = {"static": (2, 3), "hw": (1, 3, 8, 8)}.get(which[0], (4, 3))
    return [ones(*shape) * 3, ones(*shape)]


@pytest.mark.parametrize(("which", "feeds", "options", "kind", "texts"), FEEDS.values(), ids=list(FEEDS))
async def test_feeds(
    models: Models,
    which: Which,
    feeds: Any,
    options: dict[str, Any],
    kind: type[AioaisError],
    texts: tuple[str, ...],
) -> None:
    options = {"mode": "auto", **options}
    async with InferSession(0, _subtract(models, which)) as session:
        good = _good(which)
        wanted = [[2] * good[0].size]
        # 1 is what True and 1.0 are equal to: a plan of the good call must not serve the bad one.
        assert [y.ravel().tolist() for y in await session.infer(good, "auto", 1)] == wanted
        emulator.reset_counts()
        for _ in range(2):
            with pytest.raises(kind) as caught:
                await session.infer(feeds, **options)
            assert isinstance(caught.value, ValueError)
            check(caught.value, texts)
        assert emulator.counts() == {}
        assert session.statistics().done == 1
        assert [y.ravel().tolist() for y in await session.infer(good, "auto")] == wanted


@pytest.mark.parametrize("kind", ["DOUBLE", "BFLOAT16", "BOOL", "FLOAT16", "UINT64"])
async def test_the_type_to_convert_to_is_numpys_name(models: Models, kind: str) -> None:
    import ml_dtypes
    from onnx import TensorProto

    async with InferSession(0, models.identity([2], getattr(TensorProto, kind))) as session:
        feed = np.ones(2, np.int8)
        with pytest.raises(FeedError, match="convert it") as caught:
            await session.infer([feed])
        found = re.search(r"convert it: (array\.astype\(.*\))$", str(caught.value))
        assert found
        array = eval(found[1], {"array": feed, "ml_dtypes": ml_dtypes})
        assert [y.tolist() for y in await session.infer([array])] == [[1, 1]]


async def test_device_tensors(models: Models) -> None:
    path = models.subtract([2, 3], [2, 3], [2, 3])
    async with InferSession(0, path) as session, InferSession(1, path) as other:
        mine, theirs = await session.to_device(A), await other.to_device(A)
        closed, flat = await session.to_device(A), await session.to_device(ones(6))
        closed.close()
        emulator.reset_counts()
        cases: list[tuple[Any, tuple[str, ...]]] = [
            ([A, theirs], ("'b' (position 1)", "on device 1", "device 0", "to_device(await tensor.to_host())")),
            ({"b": A, "a": closed}, ("'a' (position 0)", "a closed device tensor", "an open one", "to_device()")),
            ([mine, closed], ("'b' (position 1)", "a closed device tensor")),
            ([mine, flat], ("'b' (position 1)", "got float32[6] on device 0", "expected float32[2, 3]", "reshape")),
        ]
        for feeds, texts in cases:
            with pytest.raises(FeedError) as caught:
                await session.infer(feeds)
            check(caught.value, texts)
        assert emulator.counts() == {}
        assert (await session.infer([mine, A]))[0].tolist() == [[0] * 3] * 2


# --- sessions that cannot be used ---------------------------------------------------------------

CALLS: dict[str, Callable[[InferSession], Any]] = {
    "infer": lambda session: session.infer([ones(3)]),
    "to_device": lambda session: session.to_device(ones(3)),
    "record": lambda session: session.record(),
    "get_inputs": lambda session: session.get_inputs(),
    "get_outputs": lambda session: session.get_outputs(),
    "summary": lambda session: session.summary(),
    "reset_summaryinfo": lambda session: session.reset_summaryinfo(),
    "statistics": lambda session: session.statistics(),
}


async def _settle(value: Any) -> Any:
    return await value if asyncio.iscoroutine(value) else value


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
async def test_unusable_sessions(
    models: Models, call: Callable[[InferSession], Any], loop_factory: LoopFactory
) -> None:
    session = InferSession(0, models.identity([3]))
    with pytest.raises(ClosedError) as caught:
        await _settle(call(session))
    check(caught.value, ("identity.onnx", "is not open", "async with", "await InferSession(...)"))

    def elsewhere() -> None:
        loop = loop_factory()
        try:
            loop.run_until_complete(_settle_call(call, session))
        finally:
            loop.close()

    async with session:
        with pytest.raises(WrongLoopError) as wrong:
            await asyncio.to_thread(elsewhere)
        check(wrong.value, ("identity.onnx", "opened by another event loop", "one session per loop"))
        await _settle(call(session))
    if call in (CALLS["infer"], CALLS["to_device"], CALLS["record"]):
        with pytest.raises(ClosedError) as caught:
            await _settle(call(session))
        check(caught.value, ("identity.onnx", "is closed", "open a new session"))
    else:
        await asyncio.to_thread(elsewhere)  # what is known of it can be read everywhere


async def _settle_call(call: Callable[[InferSession], Any], session: InferSession) -> Any:
    return await _settle(call(session))


async def test_opened_twice(models: Models) -> None:
    session = InferSession(0, models.identity([3]))
    async with session:
        for _ in range(2):
            with pytest.raises(ClosedError) as caught:
                await session
            check(caught.value, ("identity.onnx", "is open already", "open each session once"))
        assert (await session.infer([ones(3)]))[0].tolist() == [1, 1, 1]
    with pytest.raises(ClosedError, match="is closed: open a new session"):
        await session


async def test_opened_twice_at_once(models: Models) -> None:
    session = InferSession(0, models.identity([3]))

    async def opening() -> None:
        await session

    results = await asyncio.gather(opening(), opening(), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), ClosedError]
    await session.aclose()


async def test_closed_before_it_was_opened(models: Models) -> None:
    session = InferSession(0, models.identity([3]))
    await session.free_resource()
    with pytest.raises(ClosedError, match="is closed: open a new session"):
        await session
    await session.aclose()


# --- check="bytes" ------------------------------------------------------------------------------


async def test_bytes_ignore_type_and_shape(models: Models) -> None:
    path = models.identity([2, 3])
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    async with InferSession(0, path, check="bytes") as session:
        for feed in (
            x,
            x.ravel(),
            x.reshape(3, 2),
            x.view(np.int32),
            x.view(np.uint8),
            x.tobytes(),
            x.ravel().view(np.float64),
            await session.to_device(x.tobytes()),
        ):
            np.testing.assert_array_equal((await session.infer([feed]))[0], x)
        emulator.reset_counts()
        with pytest.raises(FeedError) as caught:
            await session.infer([x.astype(np.float64)])
        check(
            caught.value,
            (
                "'x' (position 0)",
                "float64[2, 3], 48 bytes",
                "expected float32[2, 3], 24 bytes",
                "array.astype('float32')",
            ),
        )
        with pytest.raises(FeedError, match=r"got object.*numeric type"):
            await session.infer([np.array([None] * 3)])
        assert emulator.counts() == {}
        np.testing.assert_array_equal((await session.infer([x]))[0], x)


async def test_bytes_in_gear_modes(models: Models) -> None:
    path = _subtract(models, BATCH)
    async with InferSession(0, path, check="bytes") as session:
        for n in (4, 1, 2):
            x = np.arange(3 * n, dtype=np.float32)
            square = x.reshape(n, 3)
            for a, b in [(square, square.view(np.int32)), (x, square), (x.tobytes(), x.view(np.uint8))]:
                (out,) = await session.infer([a, b], "dymbatch")
                assert out.tolist() == [[0] * 3] * n
        with pytest.raises(FeedError) as caught:
            await session.infer([ones(9), ones(9)], "dymbatch")
        check(caught.value, ("'a' (position 0)", "float32[9]", "36 bytes", "batch sizes 1, 2, 4"))
        with pytest.raises(FeedError, match="different gears"):
            await session.infer([ones(3), ones(6)], "dymbatch")
        with pytest.raises(FeedError, match=r"24 bytes.*48 bytes.*largest"):
            await session.infer([ones(6), ones(6)], "static")


async def test_bytes_that_several_gears_have(models: Models) -> None:
    path = models.convert(
        models.identity(["n", 3, "h", "w"]), "hw", input_shape="x:1,3,-1,-1", dynamic_image_size="8,8;16,4;4,4"
    )
    async with InferSession(0, path, check="bytes") as session:
        assert (await session.infer([ones(1, 3, 16, 4, dtype=np.int32)], "dymhw"))[0].shape == (1, 3, 16, 4)
        assert (await session.infer([ones(48)], "dymhw"))[0].shape == (1, 3, 4, 4)
        with pytest.raises(FeedError, match=r"768 bytes.*\(8, 8\), \(16, 4\).*shape"):
            await session.infer([ones(192)], "dymhw")
