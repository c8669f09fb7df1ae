"""BatchingSession: whatever the model and the other callers, each caller gets what it would have got alone."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiers import Tier
from tests.unit.batching_models import WIDTH, doubled, rows
from tests.unit.conftest import Models, assert_same

import aioais
from aioais import ArgumentError, BatchingSession, FeedError, InferSession, ModelError, MultiDeviceSession
from aioais.demo_data import DIGITS_MODEL, load_digits

Array = np.ndarray[Any, np.dtype[Any]]

pytestmark = pytest.mark.usefixtures("aioais_no_leaks")


async def test_each_caller_gets_its_rows(models: Models) -> None:
    async with InferSession(0, doubled(models)) as session, BatchingSession(session) as batching:
        feeds = [rows(k, 1 + k % 5) for k in range(40)]
        results = await asyncio.gather(*[batching.infer([feed]) for feed in feeds])
        for feed, (result,) in zip(feeds, results, strict=True):
            assert_same([result], [feed + feed])
            assert result.flags.writeable
            result[...] = -1  # its own: no other caller sees it
        found = batching.statistics()
        assert found.done == 40
        assert sum(use.rows for use in found.batches.values()) == sum(map(len, feeds))
        assert sum(use.batches for use in found.batches.values()) < 40
        assert 0 < found.fill <= 1


async def test_static_models_pad_to_their_batch(models: Models) -> None:
    async with InferSession(0, models.add((4, WIDTH))) as session, BatchingSession(session) as batching:
        pairs = [(rows(k, 1 + k % 3), rows(50 + k, 1 + k % 3)) for k in range(7)]
        results = await asyncio.gather(*[batching.infer({"input2": b, "input1": a}) for a, b in pairs])
        for (a, b), result in zip(pairs, results, strict=True):
            assert_same(result, [a + b])
        assert set(batching.statistics().batches) == {4}
        (lonely,) = await batching.infer([rows(1, 9), rows(2, 9)])  # more than a batch
        assert_same([lonely], [rows(1, 9) + rows(2, 9)])


async def test_models_that_take_any_batch(models: Models) -> None:
    async with (
        InferSession(0, models.add(["n", WIDTH])) as session,
        BatchingSession(session, max_batch_size=6) as batching,
    ):
        pairs = [(rows(k, 1 + k % 4), rows(50 + k, 1 + k % 4)) for k in range(12)]
        results = await asyncio.gather(*[batching.infer([a, b]) for a, b in pairs])
        for (a, b), result in zip(pairs, results, strict=True):
            assert_same(result, [a + b])
        found = batching.statistics()
        assert max(found.batches) <= 6
        assert found.fill == 1  # nothing is padded


async def test_rows_of_other_dims_are_grouped_apart(models: Models) -> None:
    path = models.convert(
        models.add(["n", "m"]),
        "dims",
        input_shape="input1:-1,-1;input2:-1,-1",
        dynamic_dims="1,4,1,4;4,4,4,4;1,8,1,8;2,8,2,8",
    )
    async with InferSession(0, path) as session, BatchingSession(session) as batching:
        feeds = [np.full((1 + k % 2, 4 if k % 3 else 8), k, np.float32) for k in range(20)]
        results = await asyncio.gather(*[batching.infer([feed, feed]) for feed in feeds])
        for feed, result in zip(feeds, results, strict=True):
            assert_same(result, [feed + feed])
        with pytest.raises(FeedError, match="without the rows one of"):
            await batching.infer([np.zeros((1, 5), np.float32)] * 2)


async def test_open_dims_are_grouped_apart(models: Models) -> None:
    async with InferSession(0, models.add(["n", "m"])) as session, BatchingSession(session) as batching:
        feeds = [np.full((1 + k % 2, 3 + k % 3), k, np.float32) for k in range(20)]
        results = await asyncio.gather(*[batching.infer([feed, feed]) for feed in feeds])
        for feed, result in zip(feeds, results, strict=True):
            assert_same(result, [feed + feed])
        assert sum(use.batches for use in batching.statistics().batches.values()) <= 20


async def test_ranges_bound_the_batch(models: Models) -> None:
    path = models.convert(models.identity(["n", WIDTH]), "range", input_shape_range=f"x:[2~5,{WIDTH}]")
    async with InferSession(0, path) as session, BatchingSession(session) as batching:
        results = await asyncio.gather(*[batching.infer([rows(k)]) for k in range(11)])
        for k, result in enumerate(results):
            assert_same(result, [rows(k)])
        assert set(batching.statistics().batches) <= {2, 3, 4, 5}
        assert_same(await batching.infer([rows(3)]), [rows(3)])  # padded to the least that the model takes


async def test_rows_along_another_axis(models: Models) -> None:
    path = models.identity([WIDTH, 4])
    async with InferSession(0, path) as session, BatchingSession(session, batch_axes=1) as batching:
        feeds = [rows(k, 1 + k % 3).T for k in range(9)]
        results = await asyncio.gather(*[batching.infer([feed]) for feed in feeds])
        for feed, result in zip(feeds, results, strict=True):
            assert_same(result, [feed])


async def test_inputs_without_rows_must_be_equal(models: Models) -> None:
    path = models.write(
        "scaled", [("Mul", ["x", "s"], ["y"], {})], {"x": (1, [4, WIDTH]), "s": (1, [1])}, {"y": (1, [4, WIDTH])}
    )
    async with InferSession(0, path) as session:
        with pytest.raises(ArgumentError, match="state it"):
            async with BatchingSession(session):
                pass
        async with BatchingSession(session, batch_axes={"s": None}) as batching:
            scales = [np.full(1, k % 2, np.float32) for k in range(8)]
            results = await asyncio.gather(*[batching.infer([rows(k), s]) for k, s in enumerate(scales)])
            for k, (s, result) in enumerate(zip(scales, results, strict=True)):
                assert_same(result, [rows(k) * s])
            assert sum(use.batches for use in batching.statistics().batches.values()) == 2


async def test_outputs_without_rows_are_given_to_each(models: Models) -> None:
    path = models.write(
        "twofold",
        [("Identity", ["x"], ["y"], {}), ("Identity", ["w"], ["table"], {})],
        {"x": (1, [2, WIDTH])},
        {"y": (1, [2, WIDTH]), "table": (1, [3, 3])},
        {"w": np.eye(3, dtype=np.float32)},
    )
    async with InferSession(0, path) as session:
        with pytest.raises(ArgumentError, match=r"'table'.*batch_axes"):
            async with BatchingSession(session):
                pass
        async with BatchingSession(session, batch_axes={"table": None}) as batching:
            first, second = await asyncio.gather(batching.infer([rows(1)]), batching.infer([rows(2)]))
            assert_same([first[0], second[0]], [rows(1), rows(2)])
            assert_same([first[1], second[1]], [np.eye(3, dtype=np.float32)] * 2)
            assert not np.shares_memory(first[1], second[1])


async def test_outputs_that_lack_rows_are_an_error(models: Models) -> None:
    path = models.write(
        "halves",
        [("Reshape", ["x", "shape"], ["y"], {})],
        {"x": (1, ["n", WIDTH])},
        {"y": (1, ["m", 2])},
        {"shape": np.array([-1, 2])},
    )
    async with InferSession(0, path) as session, BatchingSession(session) as batching:
        with pytest.raises(ModelError, match=r"expected 2 rows.*batch_axes"):
            await batching.infer([rows(0, 2)])


async def test_large_results_and_large_feeds(models: Models) -> None:
    path = models.convert(
        models.identity(["n", 100_000]), "large", input_shape="x:-1,100000", dynamic_batch_size="1,2,4"
    )
    async with InferSession(0, path) as session, BatchingSession(session) as batching:
        feeds = [np.full((1 + k % 3, 100_000), k, np.float32) for k in range(6)]
        results = await asyncio.gather(*[batching.infer([feed]) for feed in feeds])
        for feed, result in zip(feeds, results, strict=True):
            assert_same(result, [feed])


@pytest.mark.parametrize(
    ("feeds", "match"),
    [
        ([np.zeros((1, WIDTH), np.float64)], r"'x'.*got float64\[1, 4\]; expected float32\[n, 4\].*astype"),
        ([np.zeros(WIDTH, np.float32)], r"reshape it: array\.reshape\(\(-1, 4\)\)"),
        ([np.zeros((0, WIDTH), np.float32)], "give one row or more"),
        ([np.zeros((1, 3), np.float32)], r"got float32\[1, 3\]; expected float32\[n, 4\]"),
        ([], "expected"),
        (np.zeros((1, WIDTH), np.float32), "bare array"),
    ],
)
async def test_feeds_that_do_not_fit(models: Models, feeds: Any, match: str) -> None:
    async with InferSession(0, doubled(models)) as session, BatchingSession(session) as batching:
        with pytest.raises(FeedError, match=match):
            await batching.infer(feeds)


async def test_different_numbers_of_rows_do_not_fit(models: Models) -> None:
    async with InferSession(0, models.add_in("dymbatch", (4, 3))) as session, BatchingSession(session) as batching:
        with pytest.raises(FeedError, match="different numbers of rows"):
            await batching.infer([np.zeros((2, 3), np.float32), np.zeros((1, 3), np.float32)])


async def test_tensors_on_the_device_are_refused(models: Models) -> None:
    async with InferSession(0, doubled(models)) as session, BatchingSession(session) as batching:
        tensor = await session.to_device(rows(0))
        with pytest.raises(FeedError, match="device tensor"):
            await batching.infer([tensor])
        tensor.close()


async def test_digits_are_read_as_alone(tmp_path: Any) -> None:
    images, _ = load_digits()
    path = aioais.convert(
        DIGITS_MODEL, str(tmp_path / "d.onnx"), input_shape="image:-1,1,8,8", dynamic_batch_size="1,2,4,8,16"
    )
    async with InferSession(0, path) as session:
        alone = [(await session.infer([image], "auto"))[0] for image in images[:64]]
        async with BatchingSession(session) as batching:
            together = await asyncio.gather(*[batching.infer([image]) for image in images[:64]])
        for one, (other,) in zip(alone, together, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
            assert one.argmax() == other.argmax()


Call = tuple[int, int, int, int]
"""Rows, priority, turns of the loop before it comes, and turns until it is cancelled (0: never)."""


async def play(path: str, calls: list[Call], devices: int = 1, **options: Any) -> None:
    """Make calls and check each result."""

    async def call(batching: BatchingSession, k: int, count: int, priority: int, delay: int) -> None:
        for _ in range(delay):
            await asyncio.sleep(0)
        (result,) = await batching.infer([rows(k, count)], priority=priority)
        assert_same([result], [rows(k, count) * 2])

    async def play_on(session: InferSession | MultiDeviceSession) -> None:
        async with BatchingSession(session, **options) as batching:
            tasks = [asyncio.create_task(call(batching, k, *c[:3])) for k, c in enumerate(calls)]
            last = max(c[3] for c in calls)
            for turn in range(1, last + 1):
                await asyncio.sleep(0)
                for task, c in zip(tasks, calls, strict=True):
                    if c[3] == turn:
                        task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            for result, c in zip(done, calls, strict=True):
                if isinstance(result, BaseException) and not (c[3] and isinstance(result, asyncio.CancelledError)):
                    raise result
        found = batching.statistics()
        assert (found.waiting, found.waiting_outside) == (0, 0)
        assert found.failed == 0

    if devices == 1:
        async with InferSession(0, path) as session:
            await play_on(session)
    else:
        async with MultiDeviceSession(path) as several:
            await play_on(several)


@settings(max_examples=60 if Tier.is_full else 12)
@given(
    calls=st.lists(
        st.tuples(st.integers(1, 11), st.integers(-2, 2), st.integers(0, 12), st.integers(0, 20)),
        min_size=1,
        max_size=40,
    ),
    most=st.sampled_from([None, 1, 5, 12]),
)
def test_any_calls_give_the_rows_of_each(tmp_path_factory: Any, calls: list[Call], most: int | None) -> None:
    folder = tmp_path_factory.mktemp("any")
    asyncio.run(play(doubled(Models(folder)), calls, max_queue=most))


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_callers_that_leave_at_random_touch_no_other(models: Models, count: int) -> None:
    random = np.random.default_rng(5)
    calls = [
        (
            int(random.integers(1, 6)),
            int(random.integers(0, 3)),
            int(random.integers(0, count // 20)),
            int(random.integers(1, count // 16)) if random.random() < 0.5 else 0,
        )
        for _ in range(count)
    ]
    await play(doubled(models), calls)


async def test_several_devices(models: Models, aioais_devices: Any) -> None:
    aioais_devices.configure(devices=3)
    calls = [(1 + k % 5, k % 3, k % 7, 3 if k % 11 == 5 else 0) for k in range(120)]
    await play(doubled(models), calls, devices=3)
