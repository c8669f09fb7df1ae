"""Initializers that are inputs of the graph as well: they have a default, and may be fed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from aioais import BatchingSession, FeedError, InferSession, MultiDeviceSession, emulator
from aioais.types import Mode

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]
Same = Callable[[Sequence[Array], Sequence[Array]], None]

Nodes = list[tuple[str, list[str], list[str], dict[str, Any]]]

SCALE = np.array([2], np.float32)
OFFSET = np.array([10, 20, 30], np.float32)


def scaled(models: Models, rows: int | str = 2, ir_version: int = 9) -> str:
    """``y = x * scale + offset``, where scale and offset have a default."""
    return models.write(
        f"scaled_{rows}_{ir_version}",
        [("Mul", ["x", "scale"], ["m"], {}), ("Add", ["m", "offset"], ["y"], {})],
        {"x": (1, [rows, 3]), "scale": (1, [1]), "offset": (1, [3])},
        {"y": (1, [rows, 3])},
        {"scale": SCALE, "offset": OFFSET},
        ir_version,
    )


def in_kind(models: Models, kind: str) -> tuple[str, Mode]:
    """The model with fixed rows, with gears or open; and a mode."""
    if kind == "static":
        return scaled(models), "static"
    path = scaled(models, "n")
    if kind == "dymshape":
        return path, "dymshape"
    return models.convert(path, "gears", input_shape="x:-1,3", dynamic_batch_size="1,2,4"), "dymbatch"


def ramp(rows: int = 2, start: float = 0) -> Array:
    return np.arange(start, start + 3 * rows, dtype=np.float32).reshape(rows, 3)


async def test_described_apart(models: Models) -> None:
    """What has a default is no input that a program must feed."""
    async with InferSession(0, scaled(models)) as session:
        assert [tensor.name for tensor in session.get_inputs()] == ["x"]
        optional = session.get_optional_inputs()
    assert [(tensor.name, tensor.shape, tensor.size) for tensor in optional] == [("scale", [1], 4), ("offset", [3], 12)]


@pytest.mark.parametrize("kind", ["static", "dymbatch", "dymshape"])
@pytest.mark.parametrize("depth", [1, 4])
async def test_each_way_to_feed(models: Models, same: Same, kind: str, depth: int) -> None:
    """By position the required ones or all, by name any; what one request feeds is not there for the next."""
    path, mode = in_kind(models, kind)
    x, scale, offset = ramp(), np.array([-3], np.float32), np.array([1, 2, 4], np.float32)
    async with InferSession(0, path, depth=depth) as session:
        device_scale = await session.to_device(scale)
        cases: list[tuple[Any, Array]] = [
            ([x], x * SCALE + OFFSET),
            ([x, scale, offset], x * scale + offset),
            ({"x": x}, x * SCALE + OFFSET),
            ({"offset": offset, "x": x}, x * SCALE + offset),
            ({"x": x, "scale": scale}, x * scale + OFFSET),
            ([x, device_scale, None], x * scale + OFFSET),
            ([x, None, offset], x * SCALE + offset),
            ({"x": x, "scale": device_scale, "offset": memoryview(cast("Any", offset))}, x * scale + offset),
        ]
        order = np.random.default_rng(3).integers(len(cases), size=60)
        for k in order[:20]:
            same(await session.infer(cases[k][0], mode), [cases[k][1]])
        results = await asyncio.gather(*(session.infer(cases[k][0], mode) for k in order))
        for k, result in zip(order, results, strict=True):
            same(result, [cases[k][1]])
        many = [result async for result in session.infer_pipeline([cases[k][0] for k in order], mode)]
        for k, result in zip(order, many, strict=True):
            same(result, [cases[k][1]])


@pytest.mark.parametrize("kind", ["static", "dymbatch", "dymshape"])
@pytest.mark.parametrize("mem_copy", [True, False])
async def test_iteration_keeps_them(models: Models, same: Same, kind: str, mem_copy: bool) -> None:
    """An entry of in_out_list for each required input; the others keep what they were fed, or their default."""
    path, mode = in_kind(models, kind)
    x, scale = ramp(), np.array([0.5], np.float32)
    async with InferSession(0, path) as session:
        for feeds, factor in (({"x": x, "scale": scale}, scale), ([x], SCALE), ({"x": x, "scale": scale}, scale)):
            expected = x
            for _ in range(3):
                expected = expected * factor + OFFSET
            same(await session.infer_iteration(feeds, [0], 3, mode, mem_copy=mem_copy), [expected])


async def test_on_several_devices(models: Models, same: Same) -> None:
    """Lanes and streams take them too."""
    x, scale = ramp(), np.array([7], np.float32)
    async with MultiDeviceSession(scaled(models)) as multi:
        results = await multi.infer({0: [[x]], 1: [{"x": x, "scale": scale}]})
        same(results[0][0], [x * SCALE + OFFSET])
        same(results[1][0], [x * scale + OFFSET])
        source: list[Any] = [[x], {"x": x, "scale": scale}] * 10
        async for item in multi.stream(source, [0, 1]):
            same(item.outputs, [x * (scale if item.index % 2 else SCALE) + OFFSET])


async def test_batches_have_the_default(models: Models, same: Same) -> None:
    """Callers that share a batch cannot each have a value of their own: an error that says where to go."""
    path, _ = in_kind(models, "dymbatch")
    x, scale = ramp(1), np.array([7], np.float32)
    async with InferSession(0, path) as session, BatchingSession(session) as batching:
        for feeds in ([x, scale, OFFSET], {"x": x, "scale": scale}):
            with pytest.raises(
                FeedError, match=r"inputs that have a default \(scale, offset\).*use InferSession.infer"
            ):
                await batching.infer(feeds)
            same(await session.infer(feeds, "dymbatch"), [x * scale + OFFSET])
        results = await asyncio.gather(*(batching.infer([ramp(1, k)]) for k in range(4)))
        for k, result in enumerate(results):
            same(result, [ramp(1, k) * SCALE + OFFSET])


async def test_constants_of_older_files(models: Models, same: Same) -> None:
    """Up to IR version 3 each initializer has to be an input, and none can be fed."""
    x = ramp()
    async with InferSession(0, scaled(models, ir_version=3)) as session:
        assert [tensor.name for tensor in session.get_inputs()] == ["x"]
        assert session.get_optional_inputs() == []
        same(await session.infer([x]), [x * SCALE + OFFSET])
        with pytest.raises(FeedError, match="with unknown \\['scale'\\]") as caught:
            await session.infer({"x": x, "scale": SCALE})
        assert "default" not in str(caught.value)


WRONG: dict[str, tuple[Any, str]] = {
    "too few": ([ramp(), SCALE], r"got 2; expected 1: 'x' float32\[2, 3\].*default.*'scale' float32\[1\], 'offset'"),
    "no required one": ({"scale": SCALE}, r"without \['x'\].*by name: 'scale' float32\[1\], 'offset' float32\[3\]"),
    "unknown": ({"x": ramp(), "scal": SCALE}, r"unknown \['scal'\]; expected 'x'.*'scale'"),
    "shape": (
        {"x": ramp(), "offset": SCALE},
        r"input 'offset' \(position 2\): got float32\[1\]; expected float32\[3\]",
    ),
    "type": ([ramp(), SCALE.astype(np.float64), OFFSET], r"input 'scale' \(position 1\).*astype\('float32'\)"),
    "none at all": ([None, SCALE, OFFSET], r"input 'x' \(position 0\): got NoneType"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_errors_name_them(models: Models, name: str) -> None:
    """Errors say which are optional."""
    feeds, text = WRONG[name]
    async with InferSession(0, scaled(models)) as session:
        with pytest.raises(FeedError, match=text):
            await session.infer(feeds)


async def test_a_default_that_decides_the_shape(models: Models, same: Same) -> None:
    """The outputs of the same inputs differ when another optional input is fed: they are asked for."""
    path = models.write(
        "tile",
        [("Tile", ["x", "repeats"], ["y"], {})],
        {"x": (1, ["n"]), "repeats": (7, [1])},
        {"y": (1, ["m"])},
        {"repeats": np.array([2], np.int64)},
    )
    x = np.arange(5, dtype=np.float32)
    async with InferSession(0, path) as session:
        for repeats in (None, 3, None, 7, 1, None):
            feeds = {"x": x} if repeats is None else {"x": x, "repeats": np.array([repeats])}
            same(await session.infer(feeds, "dymshape"), [np.tile(x, repeats or 2)])


async def test_only_inputs_with_a_default(models: Models, same: Same) -> None:
    """A model whose inputs all have one needs no feeds."""
    nodes: Nodes = [("Neg", ["a"], ["y"], {})]
    path = models.write("neg", nodes, {"a": (1, [3])}, {"y": (1, [3])}, {"a": OFFSET})
    async with InferSession(0, path) as session:
        same(await session.infer([]), [-OFFSET])
        same(await session.infer({"a": 2 * OFFSET}), [-2 * OFFSET])
        same(await session.infer({}), [-OFFSET])


async def test_open_dims_stay_constant(models: Models, same: Same) -> None:
    """An initializer of open dims cannot be fed: a model is static or dynamic by what must be fed."""
    nodes: Nodes = [("Add", ["x", "w"], ["y"], {})]
    path = models.write("open", nodes, {"x": (1, [3]), "w": (1, ["k"])}, {"y": (1, [3])}, {"w": OFFSET})
    async with InferSession(0, path) as session:
        assert session.get_optional_inputs() == []
        same(await session.infer([OFFSET]), [2 * OFFSET])


async def test_memory_only_for_what_is_fed(models: Models) -> None:
    """Weights that an exporter made inputs cost neither device memory nor copies."""
    weights = np.ones((64, 1000), np.float32)
    nodes: Nodes = [("MatMul", ["x", "w"], ["y"], {})]
    path = models.write(
        "weights", nodes, {"x": (1, [1, 64]), "w": (1, [64, 1000])}, {"y": (1, [1, 1000])}, {"w": weights}
    )
    async with InferSession(0, path) as session:
        emulator.reset_counts()
        await session.infer([np.ones((1, 64), np.float32)])
        assert emulator.copied()["h2d"] == 256
        assert session.statistics().device_bytes < weights.nbytes


@pytest.mark.parametrize("fed", [False, True])
async def test_dumped_as_they_were(models: Models, tmp_path: Path, fed: bool) -> None:
    """A dump shows the value that the execution had."""
    config = tmp_path / "acl.json"
    dump = {"dump_list": [{"model_name": "scaled_2_9"}], "dump_mode": "all", "dump_path": str(tmp_path)}
    config.write_text(json.dumps({"dump": dump}))
    await InferSession.finalize()
    scale = np.array([5], np.float32)
    try:
        async with InferSession(0, scaled(models), config) as session:
            await session.infer({"x": ramp(), "scale": scale} if fed else [ramp()])
    finally:
        await InferSession.finalize()
    (file,) = tmp_path.rglob("Mul.*.input.1.npy")
    assert np.load(file) == (scale if fed else SCALE)


def test_a_pyacl_program_sees_constants(models: Models) -> None:
    """As in a .om, they are not counted; a dataset may have buffers for them all the same."""
    acl = emulator.acl
    assert acl.init() == 0
    assert acl.rt.set_device(0) == 0
    model, code = acl.mdl.load_from_file(scaled(models))
    assert code == 0
    desc = acl.mdl.create_desc()
    assert acl.mdl.get_desc(desc, model) == 0
    assert acl.mdl.get_num_inputs(desc) == 1
    assert emulator.count_optional_inputs(desc) == 2
    assert [acl.mdl.get_input_name_by_index(desc, k) for k in range(3)] == ["x", "scale", "offset"]
    assert acl.mdl.get_input_index_by_name(desc, "offset") == (2, 0)

    def run(*arrays: Array | None, cut: int = 0) -> tuple[int, Array]:
        memory = []
        datasets = []
        result = np.zeros((2, 3), np.float32)
        for group in (arrays, [result]):
            dataset = acl.mdl.create_dataset()
            datasets.append(dataset)
            for array in group:
                pointer = nbytes = 0
                if array is not None:
                    nbytes = array.nbytes
                    pointer, _ = acl.rt.malloc(nbytes, 0)
                    memory.append(pointer)
                    source = acl.util.bytes_to_ptr(array.tobytes())
                    assert acl.rt.memcpy(pointer, nbytes, source, nbytes, 1) == 0
                buffer = acl.create_data_buffer(pointer, max(0, nbytes - (cut if nbytes == 12 else 0)))
                acl.mdl.add_dataset_buffer(dataset, buffer)
        code = acl.mdl.execute(model, *datasets)
        back = bytes(24)
        assert acl.rt.memcpy(acl.util.bytes_to_ptr(back), 24, memory[-1], 24, 2) == 0
        for dataset in datasets:
            for k in range(acl.mdl.get_dataset_num_buffers(dataset)):
                acl.destroy_data_buffer(acl.mdl.get_dataset_buffer(dataset, k))
            acl.mdl.destroy_dataset(dataset)
        for pointer in memory:
            acl.rt.free(pointer)
        return code, np.frombuffer(back, np.float32).reshape(2, 3)

    x, scale = ramp(), np.array([4], np.float32)
    for arrays, expected in (
        ((x,), x * SCALE + OFFSET),
        ((x, scale), x * scale + OFFSET),
        ((x, None, -OFFSET), x * SCALE - OFFSET),
    ):
        code, got = run(*arrays)
        assert code == 0
        np.testing.assert_array_equal(got, expected)
    assert run(x, scale, OFFSET, OFFSET)[0] == 145000  # more than there are
    assert run(x, scale, OFFSET, cut=4)[0] == 500002  # too few bytes
    acl.mdl.destroy_desc(desc)
    acl.mdl.unload(model)
    acl.rt.reset_device(0)
    acl.finalize()
