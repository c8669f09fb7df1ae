"""Programs that forget ``async``, or use the names of another library: the error says what to write."""

from __future__ import annotations

import copy
import pickle
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import inside

import aioais
from aioais import ArgumentError, FeedError, InferSession, ModelError, MultiDeviceSession, WrongLoopError
from aioais.demo_data import DIGITS_MODEL


def demo() -> InferSession:
    return InferSession(0, DIGITS_MODEL)


@pytest.mark.parametrize("make", [demo, lambda: MultiDeviceSession(DIGITS_MODEL)])
def test_with_instead_of_async_with(make: Any) -> None:
    with pytest.raises(TypeError, match=r"needs 'async with'.*got 'with'"), make():
        pass


def test_for_and_await_instead_of_async_for() -> None:
    results: Any
    for results in (demo().infer_pipeline([]), MultiDeviceSession(DIGITS_MODEL).stream([])):
        with pytest.raises(TypeError, match=r"needs 'async for'.*got 'for'"):
            list(results)
        with pytest.raises(TypeError, match=r"cannot be awaited.*'\[item async for item in session\."):
            results.__await__()


async def test_for_over_a_pipeline_of_many_devices() -> None:
    async with MultiDeviceSession(DIGITS_MODEL) as session:
        results: Any = session.infer_pipeline({})
        with pytest.raises(TypeError, match=r"needs 'async for'.*got 'for'.*'await session.infer_pipeline"):
            list(results)
        assert await results == {}, "it can still be used"


async def test_the_results_are_an_async_generator() -> None:
    async with demo() as session:
        results = session.infer_pipeline([])
        assert [item async for item in results] == []
        results = session.infer_pipeline([])
        with pytest.raises(StopAsyncIteration):
            await results.__anext__()
        results = session.infer_pipeline([])
        with pytest.raises(KeyError):
            await results.athrow(KeyError())
        results = session.infer_pipeline([])
        with pytest.raises(StopAsyncIteration):
            await results.asend(None)
        await results.aclose()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("run", "session.infer"),
        ("create_tensor_from_arrays_to_device", "to_device"),
        ("convert_tensors_to_host", "to_host"),
        ("set_dynamic_batchsize", "mode='dymbatch'"),
        ("outputs_names", "get_outputs"),
        ("sumary", "session.summary"),
        ("aipp_set_crop", "static AIPP"),
        ("debug", "logging.getLogger"),
        ("acl_json_path", "once for the process"),
    ],
)
def test_names_of_ais_bench(name: str, said: str) -> None:
    session: Any
    for session in (demo(), MultiDeviceSession(DIGITS_MODEL)):
        with pytest.raises(AttributeError, match=rf"no attribute '{name}', as ais_bench has; .*{said}"):
            getattr(session, name)
        assert not hasattr(session, name)
        with pytest.raises(AttributeError, match=r"has no attribute 'nothing'$"):
            session.nothing  # noqa: B018


def test_what_takes_their_place_exists() -> None:
    import re

    owners = {"session": {*dir(InferSession), *dir(MultiDeviceSession)}, "MemorySummary": dir(aioais.MemorySummary)}
    found = re.findall(r"\b(session|MemorySummary)\.(\w+)", " ".join(inside.AIS_BENCH_NAMES.values()))
    assert len(found) > 15
    for owner, name in found:
        assert name in owners[owner]


def test_a_session_of_many_devices_is_not_copied() -> None:
    session = MultiDeviceSession(DIGITS_MODEL)
    for act in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"cannot be copied or pickled.*open another session"):
            act(session)


@pytest.mark.parametrize("is_trio", [True, False])
def test_another_kind_of_loop(monkeypatch: pytest.MonkeyPatch, is_trio: bool) -> None:
    def current_task() -> object:
        if not is_trio:
            raise RuntimeError("must be called from async context")
        return object()

    trio = types.SimpleNamespace(lowlevel=types.SimpleNamespace(current_task=current_task))
    monkeypatch.setitem(__import__("sys").modules, "trio", trio)
    expected = rf"got {'trio' if is_trio else 'no event loop'}.*expected asyncio's.*backend='asyncio'"
    opening = demo().__await__()
    with pytest.raises(WrongLoopError, match=expected):
        next(opening)
    with pytest.raises(WrongLoopError, match=expected):
        MultiDeviceSession(DIGITS_MODEL).__aenter__().send(None)


async def test_a_misspelt_mode_says_which_was_meant() -> None:
    async with demo() as session:
        mode: Any
        for mode, near in (("statc", "static"), ("STATIC", "static"), ("Auto", "auto")):
            with pytest.raises(ArgumentError, match=rf"mode='{mode}'.*did you mean '{near}'\?"):
                await session.infer([np.zeros(1)], mode)
        mode = "fast"
        with pytest.raises(ArgumentError, match="mode='fast'") as caught:
            await session.infer([np.zeros(1)], mode)
        assert "did you mean" not in str(caught.value)


async def test_sizes_that_would_wrap_around() -> None:
    async with demo() as session:
        sizes: Any
        for sizes in (2**64 + 64, [2**64 + 64], 2**48 + 1):
            with pytest.raises(ArgumentError, match=r"at most 2\*\*48"):
                await session.infer([np.zeros(1)], "auto", sizes)


async def test_a_trace_over_an_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    async with demo() as session:
        for overwrite in (False, True, True):
            async with session.trace(path, overwrite=overwrite):
                pass
        with pytest.raises(FileExistsError, match="overwrite=True"):
            session.trace(path).__enter__()
        before = path.read_bytes()
        assert list(tmp_path.iterdir()) == [path]
        with session.trace(path, overwrite=True):
            assert path.read_bytes() == before, "it stays until the new one is complete"
        assert list(tmp_path.iterdir()) == [path]


async def test_a_type_whose_package_is_not_installed(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx import TensorProto

    from aioais.types import DataType

    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    vars(DataType.bfloat16).pop("numpy", None)
    try:
        check: Any
        for check in ("strict", "bytes"):
            async with InferSession(0, models.identity([2], TensorProto.BFLOAT16), check=check) as session:
                with pytest.raises(ModelError, match="bfloat16 need the package ml_dtypes: pip install ml_dtypes"):
                    await session.infer([np.zeros(2, np.uint16)])
    finally:
        vars(DataType.bfloat16).pop("numpy", None)


ADVICE = [
    ([1, 3, 4, 5], np.arange(60, dtype=np.float32).reshape(1, 4, 5, 3), "array.transpose(0, 3, 1, 2)"),
    ([1, 3, 4, 5], np.arange(60, dtype=np.float32).reshape(4, 5, 3), "array.transpose(2, 0, 1).reshape((1, 3, 4, 5))"),
    ([1, 3, 4, 4], np.arange(48, dtype=np.uint8).reshape(4, 4, 3), ".astype('float32').transpose(2, 0, 1).reshape"),
    ([1, 4, 5, 1], np.arange(20, dtype=np.float32).reshape(1, 1, 4, 5), "array.reshape((1, 4, 5, 1))"),
    ([1, 3, "h", "w"], np.arange(60, dtype=np.float32).reshape(1, 4, 5, 3), "array.transpose(0, 3, 1, 2)"),
    (["n", 3, "h", "w"], np.arange(60, dtype=np.float32).reshape(4, 5, 3), "array.transpose(2, 0, 1)[np.newaxis]"),
    ([1, 3, "h", "w"], np.arange(60, dtype=np.float32).reshape(3, 4, 5), "array[np.newaxis]"),
    (["n", 3], np.arange(6, dtype=np.float32).tobytes(), "np.frombuffer(feed, 'float32').reshape((-1, 3))"),
    (["n"], np.arange(6, dtype=np.float32).tobytes(), "np.frombuffer(feed, 'float32')"),
    ([2, 3], bytearray(24), "np.frombuffer(feed, 'float32').reshape((2, 3)), or open the session with check='bytes'"),
    ([2, 3], [[1, 2, 3], [4, 5, 6]], "np.asarray(value, 'float32')"),
    ([2], np.array([b"ab", b"cd"]), "give an array of that type and shape"),
]


@pytest.mark.parametrize(("dims", "feed", "said"), ADVICE)
async def test_advice(models: Any, dims: list[Any], feed: Any, said: str) -> None:
    async with InferSession(0, models.identity(dims)) as session:
        with pytest.raises(FeedError) as caught:
            await session.infer([feed], "auto")
        assert said in str(caught.value)


async def test_advice_about_memory_maps(models: Any, tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32)
    x.tofile(tmp_path / "x.bin")
    async with InferSession(0, models.identity(["n", 3])) as session:
        with pytest.raises(FeedError, match=r"take its bytes: np\.frombuffer\(feed, 'float32'\)\.reshape\(\(-1, 3\)\)"):
            await session.infer([np.memmap(tmp_path / "x.bin")], "auto")


async def test_advice_about_bfloat16(models: Any) -> None:
    import ml_dtypes
    from onnx import TensorProto

    async with InferSession(0, models.identity([2], TensorProto.BFLOAT16)) as session:
        for feed in (np.array([1.5, -2], ml_dtypes.bfloat16).view(np.uint16), np.zeros(2, "V2"), np.zeros(2, np.int16)):
            with pytest.raises(FeedError, match=r"take its bits: array\.view\(ml_dtypes\.bfloat16\)$"):
                await session.infer([feed])
        with pytest.raises(FeedError, match=r"convert it: array\.astype\(ml_dtypes\.bfloat16\)$"):
            await session.infer([np.zeros(2, np.float32)])
