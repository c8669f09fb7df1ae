"""infer_iteration: the bits that a loop of infer gives, with nothing crossing to the host in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aioais import InferSession, MemorySummary, Mode, emulator
from aioais.errors import ArgumentError, ClosedError, FeedError

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]
Same = Callable[[Sequence[Array], Sequence[Array]], None]
Wires = list[int]

OPEN: list[int | str] = ["n", 3, "h", "w"]
WAYS = pytest.mark.parametrize("mem_copy", [True, False], ids=["copy", "exchange"])
WIRES = pytest.mark.parametrize("wires", [[-1, -1], [0, -1], [-1, 0], [1, -1], [0, 1], [1, 0], [0, 0], [1, 1]], ids=str)
SHAPES: dict[str, tuple[dict[str, str], list[tuple[int, ...]]]] = {
    "static": ({}, [(2, 3, 8, 8)]),
    "dymbatch": ({"input_shape": "x:-1,3,8,8;y:-1,3,8,8", "dynamic_batch_size": "1,2,4"}, [(1, 3, 8, 8), (4, 3, 8, 8)]),
    "dymhw": (
        {"input_shape": "x:2,3,-1,-1;y:2,3,-1,-1", "dynamic_image_size": "8,8;8,16", "input_format": "NCHW"},
        [(2, 3, 8, 8), (2, 3, 8, 16)],
    ),
    "dymdims": (
        {
            "input_shape": "x:-1,3,-1,-1;y:-1,3,-1,-1",
            "dynamic_dims": "1,8,8,1,8,8;2,4,8,2,4,8",
            "input_format": "ND",
        },
        [(2, 3, 4, 8), (1, 3, 8, 8)],
    ),
    "dymshape": ({"input_shape_range": "x:[1~4,3,1~16,1~16];y:[1~4,3,1~16,1~16]"}, [(1, 3, 5, 7), (4, 3, 16, 16)]),
}
MODES = pytest.mark.parametrize("mode", list(SHAPES))


def mix(models: Models, dims: Sequence[int | str], name: str = "mix") -> str:
    """``p = x / 2 + y / 4`` and ``q = x - p``: neither grows, and which is which matters."""
    half, quarter = np.array([0.5], np.float32), np.array([0.25], np.float32)
    nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = [
        ("Mul", ["x", "half"], ["u"], {}),
        ("Mul", ["y", "quarter"], ["v"], {}),
        ("Add", ["u", "v"], ["p"], {}),
        ("Sub", ["x", "p"], ["q"], {}),
    ]
    weights: dict[str, Array] = {"half": half, "quarter": quarter}
    return models.write(name, nodes, {"x": (1, dims), "y": (1, dims)}, {"p": (1, dims), "q": (1, dims)}, weights)


def mix_of(models: Models, mode: str) -> str:
    options, shapes = SHAPES[mode]
    if not options:
        return mix(models, shapes[0])
    return models.convert(mix(models, OPEN), mode, **options)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def pair(shape: tuple[int, ...], seed: int = 0) -> list[Array]:
    return [random(*shape, seed=2 * seed), random(*shape, seed=2 * seed + 1)]


async def host_loop(
    session: InferSession, feeds: Sequence[Any], wires: Wires, steps: int, mode: Mode = "auto"
) -> list[Array]:
    """Do the same with one infer after the other."""
    outputs: list[Array] = []
    for _ in range(steps):
        outputs = await session.infer(feeds, mode)
        feeds = [feed if k < 0 else outputs[k] for feed, k in zip(feeds, wires or [-1] * len(feeds), strict=True)]
    return outputs


async def idle(session: InferSession) -> None:
    """Wait until nothing is under way any more."""
    deadline = time.monotonic() + 20
    while session.statistics().in_flight or session.statistics().queued:
        assert time.monotonic() < deadline, session.statistics()
        await asyncio.sleep(0.0005)


def executed() -> int:
    return emulator.counts().get("acl.mdl.execute_async", 0)


# --- results ------------------------------------------------------------------------------------------


@pytest.mark.pairs
@WAYS
@WIRES
@MODES
async def test_every_mode_and_wiring(models: Models, same: Same, mode: Mode, wires: Wires, mem_copy: bool) -> None:
    async with InferSession(0, mix_of(models, mode)) as session:
        for shape in SHAPES[mode][1] * 2:
            feeds = pair(shape)
            for steps in (1, 2, 3, 8):
                got = await session.infer_iteration(feeds, wires, steps, mode, mem_copy=mem_copy)
                same(got, await host_loop(session, feeds, wires, steps))


@pytest.mark.pairs
@WAYS
@pytest.mark.parametrize("wires", [[0, 1], [1, 0], [0, 0], [1, -1]], ids=str)
@MODES
async def test_a_thousand_steps(models: Models, same: Same, mode: Mode, wires: Wires, mem_copy: bool) -> None:
    shape = SHAPES[mode][1][-1]
    async with InferSession(0, mix_of(models, mode)) as session:
        feeds = pair(shape)
        wanted = await host_loop(session, feeds, wires, 1000)
        emulator.reset_counts()
        MemorySummary.reset()
        session.reset_summaryinfo()
        got = await session.infer_iteration(feeds, wires, 1000, "auto", mem_copy=mem_copy)
        same(got, wanted)
        copied = emulator.copied()
        nbytes = feeds[0].nbytes
        assert (copied["h2d"], copied["d2h"], copied["pageable"]) == (2 * nbytes, 2 * nbytes, 0)
        fed = sum(k >= 0 for k in wires or [])
        assert copied["d2d"] == (999 * fed * nbytes if mem_copy else 0)
        assert len(MemorySummary.get_h2d_time_list()) == len(MemorySummary.get_d2h_time_list()) == 2
        assert session.summary().count == len(session.summary()) == 1000
        assert executed() == 1000


@WAYS
async def test_a_matrix_that_turns(models: Models, same: Same, mem_copy: bool) -> None:
    q, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((8, 8)))
    path = models.write(
        "turn",
        [("MatMul", ["x", "w"], ["y"], {})],
        {"x": (1, [4, 8])},
        {"y": (1, [4, 8])},
        {"w": q.astype(np.float32)},
    )
    x = random(4, 8)
    async with InferSession(0, path) as session:
        got = await session.infer_iteration([x], [0], 1000, mem_copy=mem_copy)
        same(got, await host_loop(session, [x], [0], 1000))


@WAYS
async def test_large_results_are_leased(models: Models, same: Same, mem_copy: bool) -> None:
    shape = (1, 1 << 17)
    feeds = pair(shape)
    async with InferSession(0, mix(models, shape)) as session:
        got = await session.infer_iteration(feeds, [1, 0], 5, mem_copy=mem_copy)
        again = await session.infer_iteration(feeds, [1, 0], 6, mem_copy=mem_copy)
        same(got, await host_loop(session, feeds, [1, 0], 5))
        same(again, await host_loop(session, feeds, [1, 0], 6))
        got[0][:] = 0
    assert got[0].sum() == 0


@pytest.mark.pairs
@WAYS
@pytest.mark.parametrize("loop", [2, 3])
@pytest.mark.parametrize("mode", ["static", "dymbatch", "dymshape"])
async def test_loop_repeats_each_execution(models: Models, same: Same, mode: Mode, loop: int, mem_copy: bool) -> None:
    feeds = pair(SHAPES[mode][1][0])
    async with InferSession(0, mix_of(models, mode), loop=loop) as session:
        wanted = await host_loop(session, feeds, [1, 0], 7)
        session.reset_summaryinfo()
        emulator.reset_counts()
        same(await session.infer_iteration(feeds, [1, 0], 7, mode, mem_copy=mem_copy), wanted)
        assert session.summary().count == executed() == 7 * loop
        assert session.statistics().stages["execute"].total_ms >= session.summary().total


@WAYS
async def test_by_name_and_other_kinds_of_feeds(models: Models, same: Same, mem_copy: bool) -> None:
    one = np.array([2.0], np.float32)
    times: Any = np.int64(3)
    wires: Any = (0, np.int32(-1))
    async with InferSession(0, mix(models, [1])) as session:
        feeds = {"y": bytearray(one.tobytes()), "x": np.float32(8.0)}
        with pytest.raises(FeedError):
            await session.infer_iteration(feeds, wires, times, mem_copy=mem_copy)
        feeds = {"y": one.data, "x": np.float32(8.0)}
        got = await session.infer_iteration(feeds, [0, -1], times, mem_copy=mem_copy)
        same(got, await host_loop(session, [4 * one, one], [0, -1], 3))
        same(await session.infer_iteration(feeds, wires, 3, mem_copy=mem_copy), got)


# --- dynamic shape: shapes that change on the way -----------------------------------------------------


def concat(models: Models, ranges: str | None = None) -> str:
    """``z = x above y``, and ``x`` itself."""
    path = models.write(
        "concat",
        [("Concat", ["x", "y"], ["z"], {"axis": 0}), ("Identity", ["x"], ["same"], {})],
        {"x": (1, ["n", 4]), "y": (1, ["m", 4])},
        {"z": (1, ["k", 4]), "same": (1, ["n", 4])},
    )
    return models.convert(path, "concat_ranges", input_shape_range=ranges) if ranges else path


@pytest.mark.pairs
@WAYS
@pytest.mark.parametrize("custom_sizes", [100_000, 16])
@pytest.mark.parametrize("wires", [[0, -1], [-1, 0], [1, 0]], ids=str)
async def test_outputs_that_grow(
    models: Models, same: Same, wires: list[int], custom_sizes: int, mem_copy: bool
) -> None:
    feeds = [random(2, 4), random(1, 4, seed=1)]
    async with InferSession(0, concat(models)) as session:
        for steps in (40, 7, 40):
            got = await session.infer_iteration(feeds, wires, steps, "dymshape", custom_sizes, mem_copy)
            same(got, await host_loop(session, feeds, wires, steps))


@WAYS
async def test_outputs_that_double(models: Models, same: Same, mem_copy: bool) -> None:
    feeds = [random(1, 4), random(1, 4, seed=1)]
    async with InferSession(0, concat(models)) as session:
        got = await session.infer_iteration(feeds, [0, 0], 12, "dymshape", 16, mem_copy)
        same(got, await host_loop(session, feeds, [0, 0], 12))
        assert got[0].shape == (4096, 4)


@WAYS
async def test_outputs_that_shrink_to_nothing(models: Models, same: Same, mem_copy: bool) -> None:
    weights: dict[str, Array] = {
        "one": np.array([1], np.int64),
        "end": np.array([1 << 30], np.int64),
        "axis": np.array([0], np.int64),
    }
    path = models.write(
        "slice",
        [("Slice", ["x", "one", "end", "axis"], ["y"], {})],
        {"x": (1, ["n", 4])},
        {"y": (1, ["m", 4])},
        weights,
    )
    x = random(9, 4)
    async with InferSession(0, path) as session:
        for steps in (5, 8, 9, 12):
            got = await session.infer_iteration([x], [0], steps, "dymshape", mem_copy=mem_copy)
            same(got, await host_loop(session, [x], [0], steps))
            assert got[0].shape == (max(0, 9 - steps), 4)


@WAYS
async def test_a_shape_out_of_range_names_the_step(models: Models, same: Same, mem_copy: bool) -> None:
    feeds = [random(1, 4), random(1, 4, seed=1)]
    async with InferSession(0, concat(models, "x:[1~3,4];y:[1~2,4]")) as session:
        emulator.reset_counts()
        with pytest.raises(FeedError) as caught:
            await session.infer_iteration(feeds, [0, -1], 9, "dymshape", mem_copy=mem_copy)
        text = str(caught.value)
        assert "step 4 of 9" in text
        assert "'z'" in text
        assert "'x'" in text
        assert "[4, 4]" in text
        assert "[1, 3]" in text
        assert executed() == 3
        got = await session.infer_iteration(feeds, [0, -1], 3, "dymshape", mem_copy=mem_copy)
        same(got, await host_loop(session, feeds, [0, -1], 3))


# --- arguments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wires", "times", "said"),
    [
        ([0], 1, "got 1 entries; expected one for each of 2 inputs ['x', 'y']"),
        ([], 2, "0 entries"),
        ([0, 1, -1], 2, "3 entries"),
        ([0, 2], 2, "in_out_list[1]=2"),
        ([-2, 0], 1, "in_out_list[0]=-2"),
        ([True, 0], 2, "in_out_list[0]=True"),
        ([0.0, 0], 2, "in_out_list[0]=0.0"),
        ([None, 0], 2, "in_out_list[0]=None"),
        ("00", 2, "in_out_list='00'"),
        (0, 2, "in_out_list=0"),
        ({0: 1, 1: 0}, 2, "expected a list"),
        ([0, 1], 0, "iteration_times=0"),
        ([0, 1], -1, "iteration_times=-1"),
        ([0, 1], True, "iteration_times=True"),
        ([0, 1], 2.0, "iteration_times=2.0"),
        (None, 2, "in_out_list=[-1, -1] repeats the first step"),
        (None, None, "iteration_times=None"),
        (None, "3", "iteration_times='3'"),
    ],
)
async def test_wrong_arguments(models: Models, wires: Any, times: Any, said: str) -> None:
    async with InferSession(0, mix(models, [2, 4])) as session:
        emulator.reset_counts()
        with pytest.raises(ArgumentError) as caught:
            await session.infer_iteration(pair((2, 4)), wires, times)
        assert said in str(caught.value)
        assert "expected" in str(caught.value)
        with pytest.raises(ArgumentError):
            await session.infer_iteration(pair((2, 4)), [0, 1], 2, "fast")  # type: ignore[arg-type]
        with pytest.raises(FeedError):
            await session.infer_iteration(pair((2, 5)), [0, 1], 2)
        with pytest.raises(FeedError):
            await session.infer_iteration(pair((2, 4))[:1], [0, 1], 2)
        assert emulator.counts() == {}, "nothing was asked of the device"
        assert session.statistics().failed == 0


def reduce(models: Models, dims: Sequence[int | str], gone: Sequence[int | str]) -> str:
    """``y = x`` as float32, ``n = x`` as int32, ``s`` without its last dim."""
    weights: dict[str, Array] = {"last": np.array([-1], np.int64)}
    return models.write(
        "reduce",
        [
            ("Identity", ["x"], ["y"], {}),
            ("Cast", ["x"], ["n"], {"to": 6}),
            ("ReduceSum", ["x", "last"], ["s"], {"keepdims": 0}),
            ("Cast", ["x"], ["d"], {"to": 11}),
        ],
        {"x": (1, dims)},
        {"y": (1, dims), "n": (6, dims), "s": (1, gone), "d": (11, dims)},
        weights,
    )


@WAYS
@pytest.mark.parametrize("times", [1, 3])
async def test_an_output_that_does_not_fit_its_input(models: Models, same: Same, times: int, mem_copy: bool) -> None:
    path = reduce(models, [2, 4], [2])
    x = random(2, 4)
    async with InferSession(0, path) as session:
        emulator.reset_counts()
        with pytest.raises(FeedError, match=r"output 'n' to input 'x': got int32; expected float"):
            await session.infer_iteration([x], [1], times, mem_copy=mem_copy)
        with pytest.raises(FeedError, match=r"output 's' to input 'x'.*8 bytes \[2\].*32 bytes \[2, 4\]"):
            await session.infer_iteration([x], [2], times, mem_copy=mem_copy)
        assert emulator.counts() == {}
        same(await session.infer_iteration([x], [0], times, mem_copy=mem_copy), await session.infer([x]))
    async with InferSession(0, path, check="bytes") as session:
        with pytest.raises(FeedError, match="64 bytes"):
            await session.infer_iteration([x], [3], times, mem_copy=mem_copy)
        got = await session.infer_iteration([x], [1], 2, mem_copy=mem_copy)
        same(got, await session.infer([x.astype(np.int32).view(np.float32)]))


@WAYS
async def test_bytes_of_a_gear_are_checked_before_it_runs(models: Models, same: Same, mem_copy: bool) -> None:
    path = models.convert(reduce(models, ["n", 4], ["n"]), "batch", input_shape="x:-1,4", dynamic_batch_size="1,2,8")
    x = random(2, 4)
    async with InferSession(0, path) as session:
        emulator.reset_counts()
        for _ in range(2):  # the second time the shapes are known on the loop
            with pytest.raises(FeedError, match=r"output 's' to input 'x'.*8 bytes \[2\].*32 bytes \[2, 4\]"):
                await session.infer_iteration([x], [2], 3, "dymbatch", mem_copy=mem_copy)
        assert executed() == 0
        got = await session.infer_iteration([x], [0], 3, "dymbatch", mem_copy=mem_copy)
        same(got, await session.infer([x], "auto"))
        await idle(session)


async def test_dymshape_is_checked_as_far_as_it_is_known(models: Models) -> None:
    path = reduce(models, ["n", 4], ["n"])
    weights: dict[str, Array] = {"all": np.ones((3, 4), np.float32)}
    fixed = models.write("fixed", [("Shape", ["x"], ["s"], {}), ("Identity", ["all"], ["y"], {})],
                         {"x": (1, ["n", 5])}, {"s": (7, [2]), "y": (1, [3, 4])}, weights)  # fmt: skip
    async with InferSession(0, path) as session, InferSession(0, path, check="bytes") as loose:
        emulator.reset_counts()
        with pytest.raises(FeedError, match="got int32"):
            await session.infer_iteration([random(2, 4)], [1], 2, "dymshape")
        with pytest.raises(FeedError, match="which has other bytes"):
            await loose.infer_iteration([random(2, 4)], [3], 2, "dymshape")
        assert emulator.counts() == {}
        with pytest.raises(FeedError, match="step 2 of 2"):
            await session.infer_iteration([random(2, 4)], [2], 2, "dymshape")
        assert executed() == 1
    async with InferSession(0, fixed) as session:
        emulator.reset_counts()
        with pytest.raises(FeedError, match=r"got shape \[3, 4\]; expected \[-1, 5\]"):
            await session.infer_iteration([random(2, 5)], [1], 2, "dymshape")
        assert executed() == 0


async def test_closed(models: Models) -> None:
    session = InferSession(0, mix(models, [2, 4]))
    with pytest.raises(ClosedError):
        await session.infer_iteration(pair((2, 4)), [0, 1], 2)
    async with session:
        pass
    with pytest.raises(ClosedError):
        await session.infer_iteration(pair((2, 4)), [0, 1], 2)


# --- device tensors -------------------------------------------------------------------------------------


@pytest.mark.pairs
@WAYS
@WIRES
@pytest.mark.parametrize("mode", ["static", "dymbatch", "dymshape"])
@pytest.mark.parametrize("on_device", [(True, False), (False, True), (True, True)], ids=str)
async def test_device_tensors_are_never_overwritten(
    models: Models, same: Same, mode: Mode, wires: Wires, on_device: tuple[bool, bool], mem_copy: bool
) -> None:
    feeds = pair(SHAPES[mode][1][-1])
    async with InferSession(0, mix_of(models, mode)) as session:
        tensors = [await session.to_device(feed) for feed in feeds]
        mixed = [t if here else feed for t, feed, here in zip(tensors, feeds, on_device, strict=True)]
        wanted = await host_loop(session, feeds, wires, 6)
        for _ in range(3):
            same(await session.infer_iteration(mixed, wires, 6, mode, mem_copy=mem_copy), wanted)
            same(await session.infer_iteration(feeds, wires, 6, mode, mem_copy=mem_copy), wanted)
            same([await tensor.to_host() for tensor in tensors], feeds)
        same(await session.infer(tensors, mode), await session.infer(feeds, mode))
        for tensor in tensors:
            tensor.close()


async def test_a_tensor_closed_meanwhile_stays_until_the_end(models: Models, same: Same) -> None:
    feeds = pair((2, 4))
    async with InferSession(0, mix(models, [2, 4])) as session:
        tensor = await session.to_device(feeds[1])
        wanted = await host_loop(session, feeds, [0, -1], 50)
        with emulator.gate("execute") as gate:
            task = asyncio.ensure_future(session.infer_iteration([feeds[0], tensor], [0, -1], 50))
            await asyncio.sleep(0)
            assert gate.wait_reached()
            tensor.close()
        same(await task, wanted)


@WAYS
async def test_results_left_on_the_device_feed_an_iteration(models: Models, same: Same, mem_copy: bool) -> None:
    feeds = pair((2, 4))
    async with InferSession(0, mix(models, [2, 4])) as session:
        first = await session.infer(feeds, out_array=False)
        got = await session.infer_iteration(first, [1, 0], 5, mem_copy=mem_copy)
        again = await session.infer(first, out_array=False)  # the slot's buffers have changed places
        same([await t.to_host() for t in again], await session.infer([await t.to_host() for t in first]))
        same(got, await host_loop(session, [await t.to_host() for t in first], [1, 0], 5))
        for tensor in (*first, *again):
            tensor.close()


# --- memory -----------------------------------------------------------------------------------------------


@pytest.mark.pairs
@WAYS
@WIRES
@MODES
async def test_no_allocation_once_it_is_warm(models: Models, mode: Mode, wires: Wires, mem_copy: bool) -> None:
    async with InferSession(0, mix_of(models, mode), depth=1) as session:
        for shape in SHAPES[mode][1]:
            await session.infer_iteration(pair(shape), wires, 4, mode, mem_copy=mem_copy)
        held = session.statistics().device_bytes
        emulator.reset_counts()
        for shape in SHAPES[mode][1] * 2:
            await session.infer_iteration(pair(shape), wires, 50, mode, mem_copy=mem_copy)
        counts = emulator.counts()
        assert not [name for name in counts if "malloc" in name or "free" in name], counts
        assert session.statistics().device_bytes == held


@WAYS
async def test_inputs_and_outputs_of_different_capacity(models: Models, same: Same, mem_copy: bool) -> None:
    """Buffers that change places must not outgrow one another."""
    feeds = [random(1, 4), random(1, 4, seed=1)]
    async with InferSession(0, concat(models), depth=1) as session:
        await session.infer_iteration([random(200, 4), feeds[1]], [0, -1], 3, "dymshape", [40_000, 70], mem_copy)

        async def every_wiring() -> None:
            for wires in ([1, -1], [-1, 1], [1, 1], [0, -1]):
                got = await session.infer_iteration(feeds, wires, 5, "dymshape", [500, 70], mem_copy)
                same(got, await host_loop(session, feeds, wires, 5))

        for _ in range(3):
            await every_wiring()
        held = session.statistics().device_bytes
        for _ in range(5):
            await every_wiring()
        assert session.statistics().device_bytes == held


# --- neighbours -------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("mode", ["static", "dymbatch", "dymshape"])
@pytest.mark.parametrize("turns", [4, pytest.param(20, marks=pytest.mark.slow)])
async def test_others_have_their_turn(models: Models, same: Same, turns: int, mode: Mode, mem_copy: bool) -> None:
    shapes = SHAPES[mode][1]
    async with InferSession(0, mix_of(models, mode)) as session:
        for _ in range(60):  # until it is known how light the model is
            await session.infer(pair(shapes[0]), mode)
        wanted = [await session.infer(pair(shape), mode) for shape in shapes]
        task = asyncio.ensure_future(session.infer_iteration(pair(shapes[0]), [1, 0], 10**7, mode, mem_copy=mem_copy))
        await asyncio.sleep(0)
        for k in range(turns):
            same(await session.infer(pair(shapes[k % len(shapes)]), mode), wanted[k % len(shapes)])
        k = 0
        async for outputs in session.infer_pipeline([pair(shape) for shape in shapes] * (turns // 2), mode):
            same(outputs, wanted[k % len(shapes)])
            k += 1
        short = session.infer_iteration(pair(shapes[-1]), [1, 0], 9, mode, mem_copy=mem_copy)
        got = await short
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])
        await idle(session)
        same(got, await host_loop(session, pair(shapes[-1]), [1, 0], 9))
        now = session.statistics()
        assert (now.failed, now.cancelled) == (0, 1)


@pytest.mark.pairs
@WAYS
@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("mode", ["static", "dymbatch", "dymhw", "dymshape"])
async def test_everything_at_once(models: Models, same: Same, mode: Mode, depth: int, mem_copy: bool) -> None:
    shapes = SHAPES[mode][1]
    async with InferSession(0, mix_of(models, mode), depth=depth) as session:
        singles = {
            (k, seed): await session.infer(pair(shape, seed), mode)
            for k, shape in enumerate(shapes)
            for seed in range(3)
        }
        loops = {
            (k, seed): await host_loop(session, pair(shape, seed), [1, 0], 5 + seed)
            for k, shape in enumerate(shapes)
            for seed in range(3)
        }  # fmt: skip

        async def alone(k: int, seed: int) -> None:
            for _ in range(15):
                same(await session.infer(pair(shapes[k], seed), mode), singles[k, seed])

        async def repeat(k: int, seed: int) -> None:
            for turn in range(6):
                copies = mem_copy ^ (turn % 3 == 2)
                feeds = pair(shapes[k], seed)
                same(await session.infer_iteration(feeds, [1, 0], 5 + seed, mode, mem_copy=copies), loops[k, seed])

        async def stream(k: int, seed: int) -> None:
            async for outputs in session.infer_pipeline([pair(shapes[k], seed)] * 15, mode):
                same(outputs, singles[k, seed])

        await asyncio.gather(*(work(*key) for work in (alone, repeat, stream) for key in singles))
        assert session.statistics().failed == 0


# --- cancelling and closing -------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("mode", ["static", "dymbatch", "dymshape"])
async def test_cancelled_in_the_first_step(models: Models, same: Same, mode: Mode, mem_copy: bool) -> None:
    feeds = pair(SHAPES[mode][1][0])
    async with InferSession(0, mix_of(models, mode), depth=1) as session:
        wanted = await host_loop(session, feeds, [1, 0], 4)
        session.reset_summaryinfo()
        emulator.reset_counts()
        with emulator.gate("execute") as gate:
            task = asyncio.ensure_future(session.infer_iteration(feeds, [1, 0], 1000, mode, mem_copy=mem_copy))
            await asyncio.sleep(0)
            assert gate.wait_reached()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert session.statistics().in_flight == 1, "its buffers are still the device's"
        await idle(session)
        assert executed() == session.summary().count == 1
        assert session.statistics().cancelled == 1
        same(await session.infer_iteration(feeds, [1, 0], 4, mode, mem_copy=mem_copy), wanted)
        same(await session.infer(feeds, mode), await host_loop(session, feeds, [-1, -1], 1))


@pytest.mark.parametrize("mode", ["static", "dymbatch", "dymshape"])
async def test_cancelled_between_two_steps(models: Models, same: Same, mode: Mode) -> None:
    feeds = pair(SHAPES[mode][1][0])
    async with InferSession(0, mix_of(models, mode), depth=2) as session:
        wanted = await host_loop(session, feeds, [1, 0], 4)
        emulator.reset_counts()
        with emulator.gate("d2d") as gate:
            task = asyncio.ensure_future(session.infer_iteration(feeds, [1, 0], 1000, mode))
            await asyncio.sleep(0)
            assert gate.wait_reached()
            task.cancel()
            await asyncio.wait([task])
        await idle(session)
        assert executed() == 2, "the step under way ends, no other begins"
        same(await session.infer_iteration(feeds, [1, 0], 4, mode), wanted)


@WAYS
async def test_cancelled_while_queued(models: Models, same: Same, mem_copy: bool) -> None:
    feeds = pair((2, 4))
    async with InferSession(0, mix(models, [2, 4]), depth=1) as session:
        emulator.reset_counts()
        with emulator.gate("execute") as gate:
            first = asyncio.ensure_future(session.infer_iteration(feeds, [1, 0], 3, mem_copy=mem_copy))
            second = asyncio.ensure_future(session.infer_iteration(feeds, [1, 0], 100, mem_copy=mem_copy))
            await asyncio.sleep(0)
            assert gate.wait_reached()
            second.cancel()
            await asyncio.wait([second])
        got = await first
        await idle(session)
        assert executed() == 3
        same(got, await host_loop(session, feeds, [1, 0], 3))


@WAYS
async def test_cancelled_again_and_again(models: Models, same: Same, mem_copy: bool) -> None:
    feeds = pair((2, 4))
    async with InferSession(0, mix(models, [2, 4]), depth=2) as session:
        wanted = await host_loop(session, feeds, [1, 0], 30)
        for k in range(60):
            tasks = [
                asyncio.ensure_future(session.infer_iteration(feeds, [1, 0], 30, mem_copy=mem_copy)) for _ in range(3)
            ]
            for _ in range(k % 12):
                await asyncio.sleep(0)
            tasks[k % 3].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for result in results:
                if isinstance(result, list):
                    same(result, wanted)
                else:
                    assert isinstance(result, asyncio.CancelledError)
        await idle(session)
        assert session.statistics().failed == 0


@WAYS
async def test_closing_waits_for_the_last_step(models: Models, same: Same, mem_copy: bool) -> None:
    feeds = pair((2, 4))
    async with InferSession(0, mix(models, [2, 4])) as session:
        wanted = await host_loop(session, feeds, [1, 0], 200)
        with emulator.gate("execute") as gate:
            task = asyncio.ensure_future(session.infer_iteration(feeds, [1, 0], 200, mem_copy=mem_copy))
            await asyncio.sleep(0)
            assert gate.wait_reached()
            closing = asyncio.ensure_future(session.aclose())
            await asyncio.sleep(0)
            with pytest.raises(ClosedError):
                await session.infer_iteration(feeds, [1, 0], 2)
        same(await task, wanted)
        await closing
