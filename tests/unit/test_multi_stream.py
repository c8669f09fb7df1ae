"""MultiDeviceSession.stream: one source over all devices, every result once, bounded, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aioais import (
    ArgumentError,
    ClosedError,
    DeviceError,
    FeedError,
    InferSession,
    MultiDeviceSession,
    StreamOutput,
    emulator,
)

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]
SHAPE = (1, 8)
ITEMS = int(os.environ.get("AIOAIS_TEST_PIPELINE_ITEMS", "200"))


def pair(seed: int) -> list[Array]:
    return [np.arange(8, dtype=np.float32).reshape(SHAPE) + seed, np.full(SHAPE, 2 * seed, np.float32)]


def right(one: StreamOutput) -> bool:
    first, second = pair(one.index)
    return len(one.outputs) == 1 and bool((one.outputs[0] == first + second).all())


class Source:
    """Counts what was taken."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken = 0

    def plain(self) -> Iterator[list[Array]]:
        while self.taken < self.count:
            self.taken += 1
            yield pair(self.taken - 1)

    async def awaited(self) -> AsyncIterator[list[Array]]:
        for feeds in self.plain():
            await asyncio.sleep(0)
            yield feeds

    def get(self, kind: str) -> Any:
        return self.plain() if kind == "plain" else self.awaited()


async def warm(session: MultiDeviceSession, devices: Sequence[int] = range(4)) -> None:
    await session.infer({device: [pair(0)] for device in devices})


@pytest.mark.parametrize("kind", ["plain", "awaited"])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("devices", [1, 2, 3, 4])
async def test_every_result_comes_once(models: Models, devices: int, ordered: bool, kind: str) -> None:
    source = Source(ITEMS)
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        got = [one async for one in session.stream(source.get(kind), range(devices), ordered=ordered)]
        assert all(right(one) for one in got)
        indices = [one.index for one in got]
        assert (indices if ordered else sorted(indices)) == list(range(ITEMS))
        assert {one.device_id for one in got} <= set(range(devices))
        assert sum(s.streamed for s in session.statistics().values()) == ITEMS
        assert session.summary() == {}


async def test_results_are_those_of_a_single_session(models: Models) -> None:
    path = models.convert(
        models.add(["n", 3, "h", "w"]), "b", input_shape="input1:-1,3,8,8;input2:-1,3,8,8", dynamic_batch_size="1,2,4"
    )
    rng = np.random.default_rng(1)
    feeds = [[rng.random((int(n), 3, 8, 8), np.float32) for _ in "ab"] for n in rng.choice([1, 2, 4], 50)]
    async with MultiDeviceSession(path) as session, InferSession(0, path) as single:
        singles = [outputs async for outputs in single.infer_pipeline(feeds, "dymbatch")]
        got = [one.outputs async for one in session.stream(feeds, "all", "dymbatch")]
        assert [a[0].shape for a in got] == [b[0].shape for b in singles]
        assert all((a[0] == b[0]).all() for a, b in zip(got, singles, strict=True))


async def test_a_busy_device_gets_fewer(models: Models) -> None:
    async with MultiDeviceSession(models.add(SHAPE), depth=2) as session:
        await warm(session, [0, 1])
        with emulator.gate("execute", device=1) as gate:
            stream = session.stream(Source(40).plain(), [0, 1], ordered=False, prefetch=0)
            got = [await anext(stream) for _ in range(38)]
            assert {one.device_id for one in got} == {0}, "two stand at the gate, all others went past"
            gate.open()
            got += [one async for one in stream]
        assert sorted(one.index for one in got) == list(range(40))
        assert session.statistics()[1].streamed == 2


async def test_order_waits_within_bounds(models: Models) -> None:
    source = Source(1000)
    async with MultiDeviceSession(models.add(SHAPE), depth=2) as session:
        await warm(session, [0, 1])
        with emulator.gate("execute", device=0) as gate:
            stream = session.stream(source.plain(), [0, 1], prefetch=0)
            first = asyncio.ensure_future(anext(stream))
            # The first item went to device 0. Device 1 does what may wait for it: 4 times the depth of both, but 2.
            while session.statistics()[1].streamed < 4 * 4 - 2:  # the suite's timeout ends it
                await asyncio.sleep(0.001)
            for _ in range(20):
                await asyncio.sleep(0)
            assert source.taken == 4 * 4
            gate.open()
            assert (await first).index == 0
        got = [one async for one in stream]
        assert [one.index for one in got] == list(range(1, 1000))
        assert all(right(one) for one in got)


@pytest.mark.parametrize("kind", ["plain", "awaited"])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("prefetch", [None, 0, 3])
@pytest.mark.pairs
async def test_a_slow_consumer_stops_the_source(models: Models, kind: str, ordered: bool, prefetch: int | None) -> None:
    source = Source(1000)
    room = 2 * (2 + (2 if prefetch is None else prefetch))
    async with MultiDeviceSession(models.add(SHAPE), depth=2) as session:
        await warm(session, [0, 1])
        stream = session.stream(source.get(kind), [0, 1], ordered=ordered, prefetch=prefetch)
        for taken in range(1, 30):
            await anext(stream)
            await warm(session, [0, 1])  # time goes by, everywhere
            # Those of both devices; in order, what waits for an earlier one comes on top.
            assert source.taken <= taken + (4 * room if ordered else room)
        await stream.aclose()


@pytest.mark.parametrize("kind", ["plain", "awaited"])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.pairs
@pytest.mark.usefixtures("clean_slate", "patient")
async def test_a_long_stream_of_small_items_is_read_further_ahead(models: Models, kind: str, ordered: bool) -> None:
    """As in ``infer_pipeline``: where requests share slots, while the consumer waits for the device."""
    source = Source(10**9)
    async with MultiDeviceSession(models.add(SHAPE), depth=4) as session:
        stream = session.stream(source.get(kind), [0], ordered=ordered)
        most = taken = 0
        while most <= 2 * 4 * (4 if ordered else 1):  # the suite's timeout ends it
            assert right(await anext(stream))
            taken += 1
            most = max(most, source.taken - taken)
        assert source.taken >= 128
        for _ in range(600):
            assert right(await anext(stream))
            taken += 1
            assert source.taken - taken <= 64 * (4 if ordered else 1)
        await stream.aclose()


@pytest.mark.parametrize("kind", ["plain", "awaited"])
@pytest.mark.parametrize("way", ["break", "raise", "close", "cancel"])
async def test_leaving_early(models: Models, kind: str, way: str) -> None:
    source = Source(10_000)
    async with MultiDeviceSession(models.add(SHAPE)) as session:

        async def consume() -> None:
            stream = session.stream(source.get(kind))
            async for one in stream:
                if one.index == 30:
                    if way == "raise":
                        raise ZeroDivisionError
                    if way == "cancel":
                        reached.set()
                        await asyncio.sleep(100)
                    if way == "close":
                        await stream.aclose()
                    break

        reached = asyncio.Event()
        task = asyncio.ensure_future(consume())
        if way == "cancel":
            await reached.wait()
            task.cancel()
        await asyncio.wait([task])
        if way == "raise":
            assert isinstance(task.exception(), ZeroDivisionError)
        else:
            assert task.cancelled() == (way == "cancel")
        del task
        gc.collect()
        await asyncio.sleep(0)
        assert source.taken <= 31 + 5 * 2 * 16
        assert len([one async for one in session.stream(Source(50).plain())]) == 50


@pytest.mark.parametrize("kind", ["plain", "awaited"])
@pytest.mark.parametrize("ordered", [True, False])
async def test_a_bad_item_raises_at_its_place(models: Models, kind: str, ordered: bool) -> None:
    async def awaited(items: list[Any]) -> AsyncIterator[Any]:
        for item in items:
            yield item

    items = [pair(k) if k != 20 else [np.zeros((3, 3), np.float32)] * 2 for k in range(100)]
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        got: list[int] = []
        with pytest.raises(FeedError, match="input1"):
            await collect(session.stream(items if kind == "plain" else awaited(items), ordered=ordered), got)
        assert got == list(range(20)) if ordered else set(got) <= set(range(20))


class Lazy:
    """Becomes an array in a thread, when it is let; item 20 cannot."""

    may_go = threading.Event()

    def __init__(self, index: int, which: int) -> None:
        self.index = index
        self.which = which

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        assert Lazy.may_go.wait(10)
        if self.index == 20:
            raise OSError("the picture cannot be read")
        return pair(self.index)[self.which]


@pytest.mark.parametrize("ordered", [True, False])
async def test_an_item_that_is_no_array_raises_at_its_place(models: Models, ordered: bool) -> None:
    items = [[Lazy(k, 0), Lazy(k, 1)] for k in range(100)]
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        Lazy.may_go.set()
        got: list[int] = []
        with pytest.raises(FeedError, match="the picture cannot be read"):
            await collect(session.stream(items, ordered=ordered), got)
        assert got == list(range(20)) if ordered else set(got) <= set(range(20))


async def test_given_up_while_an_item_becomes_an_array(models: Models) -> None:
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        await warm(session)
        Lazy.may_go.clear()
        task = asyncio.ensure_future(collect(session.stream([[Lazy(0, 0), Lazy(0, 1)]]), []))
        while not any(thread.name == "aioais-feeds" for thread in threading.enumerate()):
            await asyncio.sleep(0.001)
        task.cancel()
        Lazy.may_go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len([one async for one in session.stream(Source(50).plain())]) == 50


async def collect(stream: Any, got: list[int]) -> None:
    async for one in stream:
        assert right(one)
        got.append(one.index)


@pytest.mark.parametrize("kind", ["plain", "awaited"])
@pytest.mark.parametrize("ordered", [True, False])
async def test_a_source_that_raises(models: Models, kind: str, ordered: bool) -> None:
    def plain() -> Iterator[list[Array]]:
        yield from (pair(k) for k in range(20))
        raise OSError("the disk is gone")

    async def awaited() -> AsyncIterator[list[Array]]:
        for feeds in plain():
            yield feeds

    async with MultiDeviceSession(models.add(SHAPE)) as session:
        got: list[int] = []
        with pytest.raises(OSError, match="the disk is gone"):
            await collect(session.stream(plain() if kind == "plain" else awaited(), ordered=ordered), got)
        assert sorted(got) == list(range(20)), "after all that came before"


async def test_devices_are_checked(models: Models) -> None:
    async with MultiDeviceSession(models.add(SHAPE)) as session:

        async def refused(device_ids: Any) -> str:
            with pytest.raises((DeviceError, ArgumentError)) as caught:
                await anext(session.stream([pair(0)], device_ids))
            return str(caught.value)

        assert "device 7 does not exist: the visible devices of platform 'cpu' are 0 to 3" in await refused([0, 7])
        assert "device -1 does not exist" in await refused([-1])
        assert "[1, 0, 1]: a device comes twice" in await refused([1, 0, 1])
        assert "0 to 3" in await refused([1, 1])
        wrong: Any
        for wrong in ("every", [], 1):
            assert "expected 'all' or a list of device ids" in await refused(wrong)
        assert "device True: expected an int" in await refused([True])
        assert session.statistics() == {}, "nothing was opened"
        with pytest.raises(FeedError, match="feeds: got int; expected an iterable"):
            await anext(session.stream(3))  # type: ignore[arg-type]
        np_ids = np.array([2, 0])
        await warm(session, [2, 0])  # else one may have done all when the other is open
        assert {one.device_id async for one in session.stream(Source(60).plain(), np_ids)} == {0, 2}
        assert [one async for one in session.stream([], "all")] == []


async def test_no_devices(models: Models) -> None:
    path = models.add(SHAPE)
    await InferSession.finalize()
    with emulator.configure(devices=0):
        async with MultiDeviceSession(path) as session:
            with pytest.raises(
                DeviceError, match="no device to run on: the visible devices of platform 'cpu' are none"
            ):
                await anext(session.stream([pair(0)]))
            with pytest.raises(DeviceError, match="the visible devices of platform 'cpu' are none"):
                await session.infer({0: [pair(0)]})
        await InferSession.finalize()


async def test_a_device_takes_part_as_soon_as_it_is_open(models: Models) -> None:
    with emulator.gate("load", device=0) as gate:
        async with MultiDeviceSession(models.add(SHAPE)) as session:
            stream = session.stream(Source(300).plain(), [0, 1])
            first = await anext(stream)
            assert first.device_id == 1
            gate.open()
            got = [first, *[one async for one in stream]]
            assert [one.index for one in got] == list(range(300))


@pytest.mark.parametrize("cancel", [False, True])
@pytest.mark.parametrize("ordered", [True, False])
async def test_closing_under_a_stream(models: Models, cancel: bool, ordered: bool) -> None:
    session = MultiDeviceSession(models.add(SHAPE), depth=2)
    await warm(session)
    source = Source(10_000)
    stream = session.stream(source.plain(), ordered=ordered)
    for _ in range(5):
        await anext(stream)
    taken = source.taken
    await session.aclose(cancel)
    got: list[int] = []
    with pytest.raises(ClosedError):
        await collect(stream, got)
    assert source.taken == taken
    assert len(got) == (0 if cancel else taken - 5), "what was under way can still be taken"


async def test_closing_while_a_stream_waits_for_its_devices(models: Models) -> None:
    session = MultiDeviceSession(models.add(SHAPE))
    with emulator.gate("load") as gate:
        first = asyncio.ensure_future(anext(session.stream([pair(0)])))
        await asyncio.to_thread(gate.wait_reached, 10, 4)
        closing = asyncio.ensure_future(session.aclose(cancel=True))
        with pytest.raises(ClosedError):
            await first
        gate.open()
        await closing


async def test_many_streams_at_once(models: Models) -> None:
    with ExitStack() as stack:
        for device in range(4):
            stack.enter_context(emulator.configure(device=device, execute_ms=0.2 * (device + 1)))
        async with MultiDeviceSession(models.add(SHAPE)) as session:
            many: list[list[int]] = [[] for _ in range(4)]
            await asyncio.gather(
                *(collect(session.stream(Source(60).plain(), ordered=k % 2 == 0), got) for k, got in enumerate(many))
            )
            assert all(sorted(got) == list(range(60)) for got in many)


async def test_slow_feeds_are_converted_elsewhere(models: Models) -> None:
    class Slow:
        """Its array is made on demand, so it is asked for off the loop's thread."""

        def __init__(self, array: Array) -> None:
            self.array = array

        def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
            return self.array

    feeds = [[Slow(array) for array in pair(k)] for k in range(40)]
    async with MultiDeviceSession(models.add(SHAPE)) as session:
        for ordered in (True, False):
            got: list[int] = []
            await collect(session.stream(feeds, ordered=ordered), got)
            assert sorted(got) == list(range(40))
