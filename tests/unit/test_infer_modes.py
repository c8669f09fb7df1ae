"""Every mode gives what bare ONNX Runtime gives on the same file, in the shapes of the call."""

from __future__ import annotations

import gc
import itertools
import logging
import pickle
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aioais import InferSession, Mode, ModelError, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]
Same = Callable[[Sequence[Array], Sequence[Array]], None]

OPEN: list[int | str] = ["n", 3, "h", "w"]
BATCHES = "input1:-1,3,8,8;input2:-1,3,8,8"
SIZES = "input1:2,3,-1,-1;input2:2,3,-1,-1"
HW = [(8, 8), (8, 16), (16, 8), (12, 20)]


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


# --- one model, one mode ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["static", "auto"])
async def test_static(models: Models, same: Same, mode: Mode) -> None:
    path = models.add([2, 3, 5, 7])
    a, b = random(2, 3, 5, 7), random(2, 3, 5, 7, seed=1)
    async with InferSession(0, path) as session:
        outputs = await session.infer([a, b], mode)
        assert [d.shape for d in session.get_outputs()] == [[2, 3, 5, 7]]
    same(outputs, models.run(path, input1=a, input2=b))


@pytest.mark.parametrize("convert", [False, True])
async def test_an_output_of_unknown_rank(models: Models, same: Same, convert: bool) -> None:
    path = models.write(
        "squeeze", [("Squeeze", ["x", "axes"], ["y"], {})], {"x": (1, [1, 1, 4]), "axes": (7, ["n"])}, {"y": (1, None)}
    )
    if convert:
        path = models.convert(path, "converted", input_shape="x:1,1,4;axes:1~2")
    async with InferSession(0, path) as session:
        assert session.get_outputs()[0].shape == [-2]
        for axes in ([0], [0, 1], [1]):
            feeds = {"x": random(1, 1, 4), "axes": np.array(axes)}
            same(await session.infer(feeds, "auto"), models.run(path, **feeds))


@pytest.mark.parametrize("mode", ["dymbatch", "dynbatch", "auto"])
async def test_dymbatch(models: Models, same: Same, mode: Mode) -> None:
    path = models.convert(models.add(OPEN), "batch", input_shape=BATCHES, dynamic_batch_size="1,2,4,8")
    async with InferSession(0, path) as session:
        for n in (8, 1, 4, 2, 1, 8):
            a, b = random(n, 3, 8, 8), random(n, 3, 8, 8, seed=1)
            same(await session.infer([a, b], mode), models.run(path, input1=a, input2=b))


@pytest.mark.parametrize("mode", ["dymhw", "dynhw", "auto"])
async def test_dymhw_nchw(models: Models, same: Same, mode: Mode) -> None:
    path = models.convert(
        models.add(OPEN), "hw", input_shape=SIZES, dynamic_image_size="8,8;8,16;16,8;12,20", input_format="NCHW"
    )
    async with InferSession(0, path) as session:
        for h, w in [*HW, *reversed(HW)]:
            a, b = random(2, 3, h, w), random(2, 3, h, w, seed=1)
            same(await session.infer([a, b], mode), models.run(path, input1=a, input2=b))


async def test_dymhw_nhwc(models: Models, same: Same) -> None:
    plain = models.conv(["n", "h", "w", 3], nhwc=True)
    path = models.convert(
        plain, "nhwc", input_shape="image:1,-1,-1,3", dynamic_image_size="8,8;8,16;16,8;12,20", input_format="NHWC"
    )
    async with InferSession(0, path) as session:
        (desc,) = session.get_inputs()
        assert (desc.shape, int(desc.format)) == ([1, -1, -1, 3], 1)
        for h, w in [*HW, *reversed(HW)]:
            image = random(1, h, w, 3)
            same(await session.infer([image], "dymhw"), models.run(path, image=image))


async def test_conv_in_dymhw_with_two_outputs(models: Models, same: Same) -> None:
    path = models.convert(
        models.conv(OPEN), "conv_hw", input_shape="image:1,3,-1,-1", dynamic_image_size="8,8;8,16;16,8;12,20"
    )
    async with InferSession(0, path) as session:
        assert [d.name for d in session.get_outputs()] == ["pixels", "mean"]
        for h, w in [*HW, *reversed(HW)]:
            image = random(1, 3, h, w)
            same(await session.infer({"image": image}, "dymhw"), models.run(path, image=image))


async def test_conv_in_dymbatch(models: Models, same: Same) -> None:
    path = models.convert(models.conv(OPEN), "conv_batch", input_shape="image:-1,3,9,6", dynamic_batch_size="1,3,8")
    async with InferSession(0, path) as session:
        for n in (3, 8, 1, 3):
            image = random(n, 3, 9, 6)
            same(await session.infer([image], "dymbatch"), models.run(path, image=image))


DIMS = {
    "graph-order": ("a:-1,-1;b:-1,-1", "2,4,1,4;3,6,3,1;8,2,8,2"),
    "other-order": ("b:-1,-1;a:-1,-1", "1,4,2,4;3,1,3,6;8,2,8,2"),
}


@pytest.mark.parametrize("mode", ["dymdims", "dyndims", "auto"])
@pytest.mark.parametrize(("shape", "gears"), DIMS.values(), ids=list(DIMS))
async def test_dymdims(models: Models, same: Same, mode: Mode, shape: str, gears: str) -> None:
    plain = models.subtract(["n", "k"], ["m", "j"], ["p", "q"])
    path = models.convert(plain, "dims", input_shape=shape, dynamic_dims=gears)
    async with InferSession(0, path) as session:
        names = [d.name for d in session.get_inputs()]
        for first, second in [((8, 2), (8, 2)), ((2, 4), (1, 4)), ((3, 6), (3, 1)), ((8, 2), (8, 2))]:
            feeds = {"a": random(*first), "b": random(*second, seed=1)}
            wanted = models.run(path, **feeds)
            same(await session.infer([feeds[name] for name in names], mode), wanted)
            same(await session.infer(feeds, mode), wanted)


async def test_dymdims_of_different_ranks_in_another_order(models: Models, same: Same) -> None:
    plain = models.subtract(["n", "k"], ["j"], ["n", "k"])
    path = models.convert(plain, "dims", input_shape="b:-1;a:4,-1", dynamic_dims="3,3;1,5;7,7")
    async with InferSession(0, path) as session:
        for wide, narrow in [(3, 3), (5, 1), (7, 7), (5, 1)]:
            a, b = random(4, wide), random(narrow, seed=1)
            same(await session.infer([a, b], "dymdims"), models.run(path, a=a, b=b))


RANGES = {
    "bare": None,
    "bounded": "input1:[1~4,3,1~32,1~32];input2:[1~4,3,1~32,1~32]",
    "unlimited": "input1:[-1,3,1~32,-1];input2:[-1,3,1~32,-1]",
}


@pytest.mark.parametrize("mode", ["dymshape", "dynshape", "auto"])
@pytest.mark.parametrize("ranges", RANGES.values(), ids=list(RANGES))
async def test_dymshape(models: Models, same: Same, mode: Mode, ranges: str | None) -> None:
    path = models.add(OPEN)
    if ranges is not None:
        path = models.convert(path, "ranges", input_shape_range=ranges)
    async with InferSession(0, path) as session:
        for shape in [(1, 3, 4, 4), (4, 3, 32, 32), (2, 3, 1, 9), (1, 3, 4, 4)]:
            a, b = random(*shape), random(*shape, seed=1)
            same(await session.infer([a, b], mode), models.run(path, input1=a, input2=b))


# --- shapes from call to call -------------------------------------------------------------------


async def test_static_on_a_gear_model_runs_the_largest_gear(models: Models, same: Same) -> None:
    path = models.convert(models.add(OPEN), "batch", input_shape=BATCHES, dynamic_batch_size="1,8,2")
    async with InferSession(0, path) as session:
        calls: list[tuple[int, Mode]] = [(1, "dymbatch"), (8, "static"), (2, "auto"), (8, "static"), (8, "dymbatch")]
        for n, mode in calls:
            a, b = random(n, 3, 8, 8), random(n, 3, 8, 8, seed=1)
            same(await session.infer([a, b], mode), models.run(path, input1=a, input2=b))


@pytest.mark.parametrize("depth", [1, 3])
async def test_nothing_sticks_between_calls(models: Models, same: Same, depth: int) -> None:
    rng = np.random.default_rng(depth)
    modes: list[Mode] = ["dymhw", "dynhw", "auto"]
    path = models.convert(models.conv(OPEN), "hw", input_shape="image:1,3,-1,-1", dynamic_image_size="8,8;8,16;16,8")
    async with InferSession(0, path, depth=depth) as session:
        for _ in range(40):
            h, w = HW[rng.integers(3)]
            mode: Mode = modes[rng.integers(3)]
            image = random(1, 3, h, w, seed=int(rng.integers(1000)))
            if rng.random() < 0.2:
                with pytest.raises(ValueError, match="image"):
                    await session.infer([random(1, 3, 5, 5)], mode)
            same(await session.infer([image], mode), models.run(path, image=image))


@pytest.mark.parametrize("kind", ["batch", "shape"])
async def test_concurrent_calls_of_different_shapes(models: Models, same: Same, kind: str) -> None:
    import asyncio

    path = models.add(OPEN)
    if kind == "batch":
        path = models.convert(path, "batch", input_shape=BATCHES, dynamic_batch_size="1,2,4,8")
    pairs = [(random(n, 3, 8, 8, seed=k), random(n, 3, 8, 8, seed=-k % 99)) for k, n in enumerate([8, 1, 2, 4] * 6)]
    async with InferSession(0, path) as session:
        results = await asyncio.gather(*(session.infer([a, b], "auto") for a, b in pairs))
    for (a, b), outputs in zip(pairs, results, strict=True):
        same(outputs, models.run(path, input1=a, input2=b))


# --- outputs of all kinds -----------------------------------------------------------------------


async def test_several_and_scalar_outputs(models: Models, same: Same) -> None:
    path = models.write(
        "several",
        [
            ("ReduceSum", ["x"], ["total"], {"keepdims": 0}),
            ("ReduceMax", ["x", "last"], ["tops"], {"keepdims": 0}),
            ("Identity", ["x"], ["copy"], {}),
            ("Shape", ["x"], ["dims"], {}),
        ],
        {"x": (1, [3, 4])},
        {"total": (1, []), "tops": (1, [3]), "copy": (1, [3, 4]), "dims": (7, [2])},
        {"last": np.array([1])},
    )
    x = random(3, 4)
    async with InferSession(0, path) as session:
        outputs = await session.infer([x])
    assert outputs[0].shape == ()
    assert isinstance(outputs[0], np.ndarray)
    same(outputs, models.run(path, x=x))


async def test_empty_tensors_in_dymshape(models: Models, same: Same) -> None:
    path = models.add(["n", "k"])
    async with InferSession(0, path) as session:
        for shape in [(0, 4), (2, 3), (3, 0), (1, 1), (0, 0)]:
            a, b = random(*shape), random(*shape, seed=1)
            same(await session.infer([a, b], "dymshape"), models.run(path, input1=a, input2=b))


async def test_size_that_depends_on_the_data(models: Models, same: Same) -> None:
    path = models.write(
        "nonzero", [("NonZero", ["x"], ["where"], {})], {"x": (1, ["n", "k"])}, {"where": (7, [2, "found"])}
    )
    async with InferSession(0, path) as session:
        for keep in (0.5, 0.0, 1.0, 0.1):
            x = random(20, 30)
            x[np.random.default_rng(3).random(x.shape) >= keep] = 0
            same(await session.infer([x], "dymshape"), models.run(path, x=x))


def growth(records: Sequence[logging.LogRecord]) -> list[str]:
    return [r.getMessage() for r in records if r.name == "aioais" and r.levelno >= logging.WARNING]


async def test_output_beyond_custom_sizes_grows_and_says_so_once(
    models: Models, same: Same, caplog: pytest.LogCaptureFixture
) -> None:
    path = models.add(["n", "k"])
    async with InferSession(0, path) as session:
        for n in (10, 100, 200, 50):
            a, b = random(n, 100), random(n, 100, seed=1)
            same(await session.infer([a, b], "dymshape", 4096), models.run(path, input1=a, input2=b))
    (message,) = growth(caplog.records)
    assert "custom_sizes=[4096]" in message
    assert path in message


async def test_enough_custom_sizes_say_nothing(models: Models, same: Same, caplog: pytest.LogCaptureFixture) -> None:
    path = models.conv(OPEN)
    image = random(2, 3, 10, 11)
    async with InferSession(0, path) as session:
        choices: list[Any] = [[2 * 4 * 110 * 4, 32], (100_000, 32), 100_000, np.int64(4000)]
        for sizes in choices:
            same(await session.infer([image], "dymshape", sizes), models.run(path, image=image))
    assert not growth(caplog.records)


async def test_a_list_of_custom_sizes_grows_where_needed(
    models: Models, same: Same, caplog: pytest.LogCaptureFixture
) -> None:
    path = models.conv(OPEN)
    image = random(2, 3, 10, 11)
    async with InferSession(0, path) as session:
        same(await session.infer([image], "dymshape", [64, 1]), models.run(path, image=image))
    assert len(growth(caplog.records)) == 1


async def test_the_executions_of_a_request_are_all_done_again_when_its_outputs_grow(models: Models, same: Same) -> None:
    path = models.add(["n", "k"])
    a, b = random(50, 100), random(50, 100, seed=1)
    with emulator.configure(execute_ms=1):
        async with InferSession(0, path, loop=3) as session:
            same(await session.infer([a, b], "dymshape", 4), models.run(path, input1=a, input2=b))
            times = session.summary()
    assert len(times) == 3
    assert min(times) >= 0.99


async def test_outputs_that_grow_with_each_run_are_an_error(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    path = models.add(["n", "k"])
    dim, growing = emulator.acl.get_tensor_desc_dim_v2, itertools.count(10)

    def larger(desc: int, index: int) -> tuple[int, int]:
        size, code = dim(desc, index)
        return size * 2 ** next(growing) if index == 0 else size, code

    ones = np.ones((1, 1), np.float32)
    async with InferSession(0, path) as session:
        with monkeypatch.context() as patch:
            patch.setattr(emulator.acl, "get_tensor_desc_dim_v2", larger)
            with pytest.raises(ModelError, match=r"larger than the buffers.*custom_sizes"):
                await session.infer([ones, ones], "dymshape", 64)
        (total,) = await session.infer([ones, ones], "dymshape", 64)
        np.testing.assert_array_equal(total, 2 * ones)


# --- who owns the results -----------------------------------------------------------------------


@pytest.mark.parametrize("side", [16, 300], ids=["small", "large"])
async def test_results_are_independent_and_writable(models: Models, side: int) -> None:
    path = models.add([side, side])
    a, b = random(side, side), random(side, side, seed=1)
    wanted = a + b
    async with InferSession(0, path) as session:
        first = (await session.infer([a, b]))[0]
        second = (await session.infer([a, b]))[0]
        assert not np.shares_memory(first, second)
        for array in (first, second):
            assert array.flags.writeable
            assert array.flags.c_contiguous
            assert type(array) is np.ndarray
        first[:] = -1
        third = (await session.infer([a, b]))[0]
        np.testing.assert_array_equal(second, wanted)
        np.testing.assert_array_equal(third, wanted)
        third += 1
        np.testing.assert_array_equal(second, wanted)


async def test_large_results_keep_their_values(models: Models) -> None:
    side = 300  # 360 000 bytes: a leased block of pinned memory
    path = models.add([side, side])
    rng = np.random.default_rng(5)
    kept: list[tuple[Array, Array]] = []
    zero = np.zeros((side, side), np.float32)
    async with InferSession(0, path) as session:
        for k in range(30):
            a = rng.standard_normal((side, side)).astype(np.float32)
            out = (await session.infer([a, zero]))[0]
            if k % 3 == 0:
                kept += [(out, a)]
            elif k % 3 == 1:
                kept += [(out[10:200:3, ::-2], a[10:200:3, ::-2].copy()), (out.T.reshape(-1)[5:], a.T.ravel()[5:])]
            else:
                kept += [(pickle.loads(pickle.dumps(out)), a), (out.copy(), a), (out.view(np.int32), a.view(np.int32))]
            del out
        gc.collect()
        for _ in range(20):
            await session.infer([zero, zero])
    for array, wanted in kept:
        np.testing.assert_array_equal(array, wanted)
    await InferSession.finalize()
    for array, wanted in kept:
        np.testing.assert_array_equal(array, wanted)
    one = kept[0][0]
    one += 1
    np.testing.assert_array_equal(one, kept[0][1] + 1)
    del one, array, wanted
    kept.clear()


async def test_a_session_after_finalize(models: Models, same: Same) -> None:
    path = models.add([2, 2])
    a, b = random(2, 2), random(2, 2, seed=1)
    for _ in range(2):
        async with InferSession(1, path) as session:
            same(await session.infer([a, b]), models.run(path, input1=a, input2=b))
        await InferSession.finalize()


async def test_session_opened_again_while_results_hold_pinned_memory(models: Models) -> None:
    path = models.add([300, 300])
    a = random(300, 300)
    async with InferSession(0, path) as session:
        out = (await session.infer([a, a]))[0]
    await InferSession.finalize()
    async with InferSession(0, path) as session:
        again = (await session.infer([a, a]))[0]
        np.testing.assert_array_equal(again, out)
    np.testing.assert_array_equal(again, a + a)
