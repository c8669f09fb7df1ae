"""infer_pipeline: the results of single infers, in order, of any source, and nothing left behind however it ends."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import os
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import inside

from aioais import AclError, ArgumentError, ClosedError, FeedError, InferSession, Mode, emulator
from aioais.types import SessionStatistics

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]
Same = Callable[[Sequence[Array], Sequence[Array]], None]
Build = Callable[["Models"], str]
Shape = tuple[int, ...]

SMALL = (1, 8)
"""Submitted and awaited by one thread where it is alone or takes little time."""
LARGE = (1, 1 << 17)
"""Goes through all threads, and its result leases pinned memory."""
OPEN: list[int | str] = ["n", 3, "h", "w"]
ITEMS = int(os.environ.get("AIOAIS_TEST_PIPELINE_ITEMS", "200"))


def pair(shape: Shape, seed: int) -> list[Array]:
    base = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return [base + seed, np.full(shape, 2.0 * seed, np.float32)]


def total(shape: Shape, seed: int) -> Array:
    first, second = pair(shape, seed)
    return first + second


def check(outputs: Sequence[Array], shape: Shape, seed: int) -> None:
    (output,) = outputs
    np.testing.assert_array_equal(output, total(shape, seed))


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.0005)


async def all_home(session: InferSession) -> SessionStatistics:
    """Wait until nothing is under way; every buffer is home then, once."""
    await until(lambda: not session.statistics().in_flight and not session.statistics().queued)
    await until(lambda: len(inside.idle_slots(session)) == session.statistics().slots)
    assert len(set(inside.idle_slots(session))) == session.statistics().slots
    return session.statistics()


# --- the results of single infers, in every mode ------------------------------------------------


def build_static(models: Models) -> str:
    return models.add([2, 3, 5, 7])


def build_batch(models: Models) -> str:
    shapes = "input1:-1,3,8,8;input2:-1,3,8,8"
    return models.convert(models.add(OPEN), "batch", input_shape=shapes, dynamic_batch_size="1,2,4,8")


def build_hw(models: Models) -> str:
    shapes = "input1:2,3,-1,-1;input2:2,3,-1,-1"
    return models.convert(models.add(OPEN), "hw", input_shape=shapes, dynamic_image_size="8,8;8,16;16,8;12,20")


def build_dims(models: Models) -> str:
    shapes = "input1:-1,3,-1,-1;input2:-1,3,-1,-1"
    gears = ";".join(",".join(map(str, (n, h, w) * 2)) for n, h, w in ((1, 8, 8), (3, 8, 4), (2, 5, 9)))
    return models.convert(models.add(OPEN), "dims", input_shape=shapes, dynamic_dims=gears)


def build_shape(models: Models) -> str:
    return models.add(OPEN)


def shapes_static(rng: np.random.Generator) -> Shape:
    return 2, 3, 5, 7


def shapes_batch(rng: np.random.Generator) -> Shape:
    return int(rng.choice([1, 2, 4, 8])), 3, 8, 8


def shapes_hw(rng: np.random.Generator) -> Shape:
    h, w = rng.choice([(8, 8), (8, 16), (16, 8), (12, 20)])
    return 2, 3, int(h), int(w)


def shapes_dims(rng: np.random.Generator) -> Shape:
    n, h, w = rng.choice([(1, 8, 8), (3, 8, 4), (2, 5, 9)])
    return int(n), 3, int(h), int(w)


def shapes_any(rng: np.random.Generator) -> Shape:
    n, h, w = rng.integers(1, [5, 33, 33])
    return int(n), 3, int(h), int(w)


KINDS: dict[Mode, tuple[Build, Callable[[np.random.Generator], Shape]]] = {
    "static": (build_static, shapes_static),
    "dymbatch": (build_batch, shapes_batch),
    "dymhw": (build_hw, shapes_hw),
    "dymdims": (build_dims, shapes_dims),
    "dymshape": (build_shape, shapes_any),
}
MODES: list[tuple[Mode, Mode]] = [(kind, mode) for kind in KINDS for mode in (kind, "auto")]


@pytest.mark.parametrize(("kind", "mode"), MODES, ids=[f"{kind}-{mode}" for kind, mode in MODES])
@pytest.mark.parametrize("depth", [1, 4])
async def test_results_are_those_of_single_infers(
    models: Models, same: Same, kind: Mode, mode: Mode, depth: int
) -> None:
    build, shape = KINDS[kind]
    rng = np.random.default_rng(depth)
    path = build(models)
    items = []
    for _ in range(ITEMS):
        a, b = rng.standard_normal((2, *shape(rng))).astype(np.float32)
        items.append([a, b])
    sizes: Any = ([1 << 16], 1 << 18, 64)[depth % 3] if kind == "dymshape" else 100_000
    async with InferSession(0, path, depth=depth) as session:
        single = [await session.infer(feeds, mode, sizes) for feeds in items]
        got = [outputs async for outputs in session.infer_pipeline(items, mode, sizes)]
        assert (await all_home(session)).done == 2 * ITEMS
    for mine, wanted in zip(got, single, strict=True):
        same(mine, wanted)
    for feeds, outputs in list(zip(items, got, strict=True))[:: max(1, ITEMS // 20)]:
        same(outputs, models.run(path, input1=feeds[0], input2=feeds[1]))


async def test_static_runs_the_largest_gear(models: Models, same: Same) -> None:
    async with InferSession(0, build_batch(models)) as session:
        items = [pair((8, 3, 8, 8), k) for k in range(10)]
        await session.infer(pair((1, 3, 8, 8), 0), "dymbatch")
        for k, outputs in enumerate([o async for o in session.infer_pipeline(items)]):
            check(outputs, (8, 3, 8, 8), k)


# --- sources ------------------------------------------------------------------------------------


class Queue:
    """An async iterator that is no generator."""

    def __init__(self, count: int) -> None:
        self.queue: asyncio.Queue[int | None] = asyncio.Queue()
        self.count = count
        self.filler = asyncio.ensure_future(self.fill())

    async def fill(self) -> None:
        for k in range(self.count):
            self.queue.put_nowait(k)
            if k % 3 == 0:
                await asyncio.sleep(0.0003)
        self.queue.put_nowait(None)

    def __aiter__(self) -> Queue:
        return self

    async def __anext__(self) -> list[Array]:
        k = await self.queue.get()
        if k is None:
            raise StopAsyncIteration
        return pair(SMALL, k)


class Sequence4:
    """An iterable of the old kind is none of ours; one with ``__iter__`` is."""

    def __iter__(self) -> Iterator[list[Array]]:
        return (pair(SMALL, k) for k in range(30))


async def steps(count: int, pause: float | None = None) -> AsyncGenerator[list[Array], None]:
    for k in range(count):
        if pause is not None:
            await asyncio.sleep(pause)
        yield pair(SMALL, k)


SOURCES: dict[str, Callable[[], Any]] = {
    "list": lambda: [pair(SMALL, k) for k in range(30)],
    "generator": lambda: (pair(SMALL, k) for k in range(30)),
    "iterable": Sequence4,
    "map": lambda: map(functools.partial(pair, SMALL), range(30)),
    "names": lambda: ({"input2": b, "input1": a} for a, b in (pair(SMALL, k) for k in range(30))),
    "ready async generator": lambda: steps(30),
    "yielding async generator": lambda: steps(30, 0),
    "slow async generator": lambda: steps(30, 0.001),
    "queue": lambda: Queue(30),
}


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("source", SOURCES.values(), ids=list(SOURCES))
async def test_sources(models: Models, source: Callable[[], Any], depth: int) -> None:
    async with InferSession(0, models.add(SMALL), depth=depth) as session:
        got = [outputs async for outputs in session.infer_pipeline(source())]
        assert len(got) == 30
        for k, outputs in enumerate(got):
            check(outputs, SMALL, k)
        assert (await all_home(session)).done == 30


@pytest.mark.parametrize("source", [[], iter(()), steps(0)], ids=["list", "iterator", "async generator"])
async def test_an_empty_source(models: Models, source: Any) -> None:
    async with InferSession(0, models.add(SMALL)) as session:
        assert [outputs async for outputs in session.infer_pipeline(source)] == []


@pytest.mark.parametrize("source", [3, None, object()], ids=["number", "none", "object"])
async def test_no_source_at_all(models: Models, source: Any) -> None:
    async with InferSession(0, models.add(SMALL)) as session:
        with pytest.raises(FeedError, match="feeds_list"):
            await anext(session.infer_pipeline(source))


async def test_host_and_device_feeds(models: Models) -> None:
    async with InferSession(0, models.add(SMALL)) as session:
        on_device = [await session.to_device(pair(SMALL, k)[0]) for k in range(3)]

        def mixed() -> Iterator[list[Any]]:
            for k in range(60):
                a, b = pair(SMALL, k % 3)
                yield [on_device[k % 3] if k % 2 else a, on_device[0] if k % 3 == 0 and k % 5 == 0 else b]

        k = 0
        async for outputs in session.infer_pipeline(mixed()):
            a, b = pair(SMALL, k % 3)
            np.testing.assert_array_equal(outputs[0], a + (pair(SMALL, 0)[0] if k % 15 == 0 else b))
            k += 1
        assert k == 60
        for tensor in on_device:
            tensor.close()


async def test_a_feed_may_change_once_its_result_is_there(models: Models) -> None:
    """Feeds belong to the library until their result is there: a source may have a ring of ``depth`` buffers."""
    depth = 3
    ring = [pair(LARGE, 0) for _ in range(depth)]

    def frames() -> Iterator[list[Array]]:
        for k in range(30):
            ring[k % depth][0][:] = k
            yield ring[k % depth]

    async with InferSession(0, models.add(LARGE), depth=depth) as session:
        k = 0
        async for (outputs,) in session.infer_pipeline(frames(), prefetch=0):
            assert (outputs == k).all()
            k += 1
        del outputs
        assert k == 30


async def test_results_are_the_consumers_own(models: Models) -> None:
    async with InferSession(0, models.add(LARGE), depth=2) as session:
        kept = []
        async for (output,) in session.infer_pipeline(pair(LARGE, k) for k in range(12)):
            kept.append(output)
        del output
    for k, output in enumerate(kept):
        np.testing.assert_array_equal(output, total(LARGE, k))
        output += 1
    kept.clear()


async def test_the_generator_keeps_no_result(models: Models) -> None:
    async with InferSession(0, models.add(LARGE)) as session:
        pipe = session.infer_pipeline(pair(LARGE, k) for k in range(9))
        outputs = await anext(pipe)
        gone = weakref.ref(outputs[0])
        del outputs
        # The finish thread may be about to let go of it.
        await until(lambda: gone() is None)
        await pipe.aclose()
        await all_home(session)


# --- how far the source is read -----------------------------------------------------------------


class Counted:
    """Counts what is taken from it; endless, plain and async."""

    def __init__(self, shape: Shape = SMALL) -> None:
        self.shape = shape
        self.pulled = 0

    def plain(self) -> Iterator[list[Array]]:
        for k in itertools.count():
            self.pulled += 1
            yield pair(self.shape, k)

    async def awaited(self) -> AsyncIterator[list[Array]]:
        for k in itertools.count():
            await asyncio.sleep(0)
            self.pulled += 1
            yield pair(self.shape, k)

    def of(self, kind: str) -> Any:
        return self.plain() if kind == "plain" else self.awaited()


@pytest.mark.parametrize("kind", ["plain", "awaited"])
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("prefetch", [None, 0, 3])
@pytest.mark.pairs
async def test_the_source_is_read_ahead_so_far_and_no_further(
    models: Models, kind: str, shape: Shape, depth: int, prefetch: int | None
) -> None:
    source = Counted(shape)
    room = 2 * depth if prefetch is None else depth + prefetch
    async with InferSession(0, models.add(shape), depth=depth) as session:
        with emulator.gate("execute") as gate:
            pipe = session.infer_pipeline(source.of(kind), prefetch=prefetch)
            first = asyncio.ensure_future(anext(pipe))
            await until(lambda: source.pulled == room)
            assert await asyncio.to_thread(gate.wait_reached)
            await until(lambda: session.statistics()[:2] == (depth, room - depth))
            await asyncio.sleep(0.02)
            assert source.pulled == room
            assert session.statistics()[:2] == (depth, room - depth)
        check(await first, shape, 0)
        del first
        for k in range(1, 20):
            assert source.pulled <= room + k
            check(await anext(pipe), shape, k)
            assert source.pulled <= room + k
            assert session.statistics().in_flight <= depth
            assert session.statistics().in_flight + session.statistics().queued <= room
        await asyncio.sleep(0.02)
        # A consumer that has stopped: nothing is submitted any more, and nothing is under way for long.
        assert source.pulled == room + 19
        await until(lambda: session.statistics()[:2] == (0, 0))
        done = session.statistics().done
        await asyncio.sleep(0.02)
        assert session.statistics().done == done
        await pipe.aclose()
        await all_home(session)


@pytest.mark.parametrize("kind", ["plain", "awaited"])
async def test_a_slow_consumer_stops_the_source(models: Models, kind: str) -> None:
    source = Counted()
    async with InferSession(0, models.add(SMALL), depth=3) as session:
        pipe = session.infer_pipeline(source.of(kind))
        for k in range(20):
            check(await anext(pipe), SMALL, k)
            await asyncio.sleep(0.002)
            assert source.pulled <= 2 * 3 + k
        await pipe.aclose()
        await all_home(session)


@pytest.mark.parametrize("kind", ["plain", "awaited"])
async def test_a_long_stream_of_small_items_is_read_further_ahead(models: Models, kind: str) -> None:
    """Where the device is so fast that requests share slots; but not for a consumer that is slower than it is."""
    source = Counted()
    async with InferSession(0, models.add(SMALL), depth=4) as session:
        pipe = session.infer_pipeline(source.of(kind))
        most = taken = 0
        while most <= 2 * 4:  # the suite's timeout ends it
            check(await anext(pipe), SMALL, taken)
            taken += 1
            most = max(most, source.pulled - taken)
            assert most <= 64
        assert taken >= 128
        while source.pulled - taken > 2 * 4:
            check(await anext(pipe), SMALL, taken)
            taken += 1
            await asyncio.sleep(0.002)
        for _ in range(10):
            check(await anext(pipe), SMALL, taken)
            taken += 1
            await asyncio.sleep(0.002)
            assert source.pulled - taken <= 2 * 4
        await pipe.aclose()
        await all_home(session)


async def test_a_long_stream_is_read_as_far_ahead_as_was_asked_for(models: Models) -> None:
    source = Counted()
    async with InferSession(0, models.add(SMALL), depth=4) as session:
        pipe = session.infer_pipeline(source.plain(), prefetch=4)
        taken = 0
        while not (inside.is_fast(session) and taken >= 1000):
            check(await anext(pipe), SMALL, taken)
            taken += 1
            assert source.pulled - taken <= 2 * 4
        await pipe.aclose()
        await all_home(session)


async def test_a_result_does_not_wait_for_the_next_feeds(models: Models) -> None:
    more = asyncio.Event()

    async def camera() -> AsyncIterator[list[Array]]:
        for k in range(6):
            yield pair(SMALL, k)
            await more.wait()
            more.clear()

    async with InferSession(0, models.add(SMALL)) as session:
        k = 0
        async for outputs in session.infer_pipeline(camera()):
            assert not more.is_set()
            check(outputs, SMALL, k)
            k += 1
            more.set()
        assert k == 6


async def test_an_async_source_runs_in_one_task(models: Models) -> None:
    tasks = set()

    async def source() -> AsyncIterator[list[Array]]:
        for k in range(12):
            tasks.add(asyncio.current_task())
            await asyncio.sleep(0)
            yield pair(SMALL, k)
        tasks.add(asyncio.current_task())

    async with InferSession(0, models.add(SMALL)) as session:
        assert len([o async for o in session.infer_pipeline(source())]) == 12
    assert len(tasks) == 1


async def test_the_device_works_while_the_consumer_does(models: Models) -> None:
    async with InferSession(0, models.add(LARGE), depth=4) as session:
        results = session.infer_pipeline(pair(LARGE, k) for k in range(20))
        for k in range(5):
            check(await anext(results), LARGE, k)
        # The consumer has one result and takes no other: all that may be started now is finished all the same.
        while session.statistics().done < 4 + 2 * 4:
            await asyncio.sleep(0.001)
        await until(lambda: session.statistics().in_flight == 0)
        rest = [outputs async for outputs in results]
        assert len(rest) == 15


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 7])
@pytest.mark.parametrize(
    ("what", "kind"),
    # A cancellation out of a plain source goes through at once, as from any plain call.
    [("feeds", "plain"), ("source", "plain"), ("feeds", "awaited"), ("source", "awaited"), ("cancelled", "awaited")],
)
async def test_a_bad_item_raises_at_its_place(models: Models, kind: str, place: int, what: str) -> None:
    class Broken(Exception):
        pass

    def make(k: int) -> list[Array]:
        if k == place:
            if what == "source":
                raise Broken
            if what == "cancelled":
                raise asyncio.CancelledError
            return pair((2, 2), k)
        return pair(SMALL, k)

    async def awaited() -> AsyncIterator[list[Array]]:
        for k in itertools.count():
            yield make(k)

    error = {"feeds": FeedError, "source": Broken, "cancelled": asyncio.CancelledError}[what]
    async with InferSession(0, models.add(SMALL), depth=4) as session:
        pipe = session.infer_pipeline(map(make, itertools.count()) if kind == "plain" else awaited())
        for k in range(place):
            check(await anext(pipe), SMALL, k)
        with pytest.raises(error):
            await anext(pipe)
        with pytest.raises(StopAsyncIteration):
            await anext(pipe)
        await all_home(session)
        check(await session.infer(pair(SMALL, 5)), SMALL, 5)


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("device_side", [False, True], ids=["call", "device"])
@pytest.mark.parametrize("call", ["acl.mdl.execute_async", "acl.rt.memcpy_async"])
@pytest.mark.parametrize("place", [0, 3])
async def test_a_device_failure(models: Models, shape: Shape, call: str, device_side: bool, place: int) -> None:
    async with InferSession(0, models.add(shape), depth=2) as session:
        await session.infer(pair(shape, 0))

        async def source() -> AsyncIterator[list[Array]]:
            for k in itertools.count():
                if k == place:
                    await until(lambda: seen == place)
                    emulator.fail(call, 507011, device_side=device_side)
                yield pair(shape, k)

        seen = 0
        pipe = session.infer_pipeline(source())
        for k in range(place):
            check(await anext(pipe), shape, k)
            seen = k + 1
        with pytest.raises(AclError) as caught:
            await anext(pipe)
        assert caught.value.code == 507011
        with pytest.raises(StopAsyncIteration):
            await anext(pipe)
        await all_home(session)
        for k in range(6):
            check(await session.infer(pair(shape, k)), shape, k)


async def test_dymshape_failure_on_the_device(models: Models) -> None:
    async with InferSession(0, models.add(["n", "k"])) as session:
        await session.infer(pair(SMALL, 0), "dymshape")
        emulator.fail("acl.mdl.execute_async", 507011, device_side=True, after=5)
        got = 0
        with pytest.raises(AclError):  # noqa: PT012 - a loop is what is tested
            async for outputs in session.infer_pipeline((pair((1, 8 + k), k) for k in range(50)), "dymshape"):
                check(outputs, (1, 8 + got), got)
                got += 1
        assert got == 5
        await all_home(session)
        check(await session.infer(pair(SMALL, 1), "dymshape"), SMALL, 1)


async def test_a_pipeline_of_a_closed_session(models: Models) -> None:
    session = InferSession(0, models.add(SMALL))
    with pytest.raises(ClosedError):
        await anext(session.infer_pipeline([pair(SMALL, 0)]))
    async with session:
        pass
    with pytest.raises(ClosedError):
        await anext(session.infer_pipeline([pair(SMALL, 0)]))
    with pytest.raises(ClosedError):
        await anext(session.infer_pipeline(steps(3)))


@pytest.mark.parametrize("kind", ["plain", "awaited"])
async def test_closing_the_session_between_items(models: Models, kind: str) -> None:
    """What was submitted before is delivered; then comes the error."""
    source = Counted()
    async with InferSession(0, models.add(SMALL), depth=3) as session:
        pipe = session.infer_pipeline(source.of(kind))
        check(await anext(pipe), SMALL, 0)
        await until(lambda: source.pulled == 6)
        await asyncio.sleep(0.01)
        await session.aclose()
        for k in range(1, 6):
            check(await anext(pipe), SMALL, k)
        with pytest.raises(ClosedError):
            await anext(pipe)


async def test_closing_the_session_from_the_body(models: Models) -> None:
    async with InferSession(0, models.add(SMALL), depth=3) as session:
        got = 0
        with pytest.raises(ClosedError):  # noqa: PT012 - a loop is what is tested
            async for _ in session.infer_pipeline(pair(SMALL, k) for k in itertools.count()):
                got += 1
                if got == 5:
                    await session.aclose()
        assert got == 5 + 2 * 3 - 1


async def test_a_generator_left_suspended_beyond_its_session(models: Models) -> None:
    async with InferSession(0, models.add(LARGE)) as session:
        pipe = session.infer_pipeline(Counted(LARGE).awaited())
        check(await anext(pipe), LARGE, 0)
    await pipe.aclose()
    await pipe.aclose()


# --- leaving early ------------------------------------------------------------------------------

WAYS = ["break", "exception", "aclose", "cancel", "drop"]


def emulator_is_gated() -> bool:
    return bool(inside.emulator_state.gates)


class Stop(Exception):
    pass


async def leave(way: str, pipe_of: list[AsyncGenerator[list[Array], None]], taken: int, ready: Any) -> None:
    """Take some results, wait for ``ready`` and leave; the list holds the only reference to the generator."""
    if way in ("break", "exception"):
        got = 0
        async for outputs in pipe_of.pop():
            check(outputs, LARGE if outputs[0].size > 8 else SMALL, got)
            got += 1
            if got == taken:
                await ready()
                if way == "exception":
                    raise Stop
                break
        return
    pipe = pipe_of.pop()
    for k in range(taken):
        outputs = await anext(pipe)
        check(outputs, LARGE if outputs[0].size > 8 else SMALL, k)
    if way == "cancel":
        task = asyncio.ensure_future(anext(pipe))
        await ready()
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        assert done
        # A result that was there already may have been faster, where nothing is held up.
        assert task.cancelled() or (not emulator_is_gated() and len(task.result()) == 1)
        del task, done
    else:
        await ready()
        if way == "aclose":
            await asyncio.wait_for(pipe.aclose(), 5)
    # dropped here


@pytest.mark.pairs
@pytest.mark.parametrize(
    ("way", "taken"),
    # Before the first result there is no body yet and nothing has started: see test_a_generator_never_started.
    [("cancel", 0), *((way, taken) for way in WAYS for taken in (1, 5))],
)
@pytest.mark.parametrize("stage", ["h2d", "execute", "d2h"])
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
async def test_leaving_early(models: Models, way: str, stage: str, shape: Shape, taken: int) -> None:
    """Requests stand at a stage of the device when the consumer leaves."""
    depth = 4
    async with InferSession(0, models.add(shape), depth=depth) as session:
        await asyncio.gather(*(session.infer(pair(shape, k)) for k in range(2 * depth)))
        before, own = await all_home(session), inside.own_bytes(session)
        waiting = asyncio.Event()
        gates: list[emulator.Gate] = []
        seen_end: list[str] = []

        async def source() -> AsyncIterator[list[Array]]:
            try:
                for k in itertools.count():
                    if k == taken:
                        await waiting.wait()
                        gates.append(emulator.gate(stage))
                    yield pair(shape, k)
            finally:
                seen_end.append("closed")

        async def ready() -> None:
            waiting.set()
            await until(lambda: bool(gates) and gates[0].reached > 0)
            await asyncio.sleep(0.003)

        pipes = [session.infer_pipeline(source())]
        try:
            try:
                await leave(way, pipes, taken, ready)
            except Stop:
                assert way == "exception"
            # Gone at once for the consumer, though the device still stands.
            single = asyncio.ensure_future(session.infer(pair(shape, 77)))
            await until(lambda: bool(seen_end))
            assert not single.done()
        finally:
            gates[0].open()
        check(await single, shape, 77)
        del single
        statistics = await all_home(session)
        # Slots are made on demand; each has the same memory as before.
        assert inside.own_bytes(session) * before.slots == own * statistics.slots
        # Staging of both inputs and an area for the output each, and what batches have.
        await until(lambda: session.statistics().pinned_leased <= 4 * statistics.slots)
        assert emulator.live()["datasets"] == 2 * sum(1 + places for places in inside.places(session))
        results = await asyncio.gather(*(session.infer(pair(shape, k)) for k in range(2 * depth)))
        for k, outputs in enumerate(results):
            check(outputs, shape, k)
        results.clear()
        del outputs
        again = [o async for o in session.infer_pipeline(pair(shape, k) for k in range(3 * depth))]
        for k, outputs in enumerate(again):
            check(outputs, shape, k)
        again.clear()
        del outputs
        await all_home(session)


@pytest.mark.parametrize(
    ("way", "taken", "shape"),
    [
        # After the last item there is nothing to wait for any more, and nothing to cancel.
        pytest.param(way, taken, shape, id=f"{way}-{taken}-{name}", marks=[] if is_default else pytest.mark.full)
        for w, way in enumerate(WAYS)
        for t, taken in enumerate((1, 2, 9, 10))
        for s, (name, shape) in enumerate((("small", SMALL), ("large", LARGE)))
        for is_default in [(w + t + s) % 2 == 0]
        if (way, taken) != ("cancel", 10)
    ],
)
async def test_leaving_a_plain_source_early(models: Models, way: str, taken: int, shape: Shape) -> None:
    """Of ten items, at the first, in the middle, at the last but one and at the last."""

    async def ready() -> None:
        await asyncio.sleep(0)

    async with InferSession(0, models.add(shape), depth=3) as session:
        with emulator.configure(h2d_ms=1, execute_ms=2, d2h_ms=1):
            pipes = [session.infer_pipeline(pair(shape, k) for k in range(10))]
            try:
                await leave(way, pipes, taken, ready)
            except Stop:
                assert way == "exception"
            gc.collect()
            await asyncio.sleep(0)
            statistics = await all_home(session)
            assert statistics.done + statistics.cancelled <= 10
        for k in range(6):
            check(await session.infer(pair(shape, k)), shape, k)


@pytest.mark.parametrize("kind", ["plain", "awaited"])
async def test_cancelled_while_the_source_waits(models: Models, kind: str) -> None:
    """With nothing under way, and with an error that no caller will see."""
    came: list[str] = []

    async def source() -> AsyncIterator[list[Array]]:
        yield pair(SMALL, 0)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            came.append("cancelled")
            if kind == "awaited":
                raise ValueError("too late to be seen") from None
            raise

    async with InferSession(0, models.add(SMALL)) as session:
        pipe = session.infer_pipeline(source())
        check(await anext(pipe), SMALL, 0)
        task = asyncio.ensure_future(anext(pipe))
        await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert came == ["cancelled"]
        await all_home(session)


async def test_a_source_that_swallows_its_cancellation(models: Models) -> None:
    pulled = 0

    async def source() -> AsyncIterator[list[Array]]:
        nonlocal pulled
        while True:
            try:
                if pulled:
                    await asyncio.sleep(30)
            except asyncio.CancelledError:
                pass
            pulled += 1
            yield pair(SMALL, 0)

    async with InferSession(0, models.add(SMALL)) as session:
        pipe = session.infer_pipeline(source())
        await anext(pipe)
        await asyncio.sleep(0.005)
        await asyncio.wait_for(pipe.aclose(), 5)
        assert pulled == 2
        assert (await all_home(session)).done == 1


async def test_a_generator_never_started(models: Models) -> None:
    source = Counted()
    async with InferSession(0, models.add(SMALL)) as session:
        session.infer_pipeline(source.plain())
        pipe = session.infer_pipeline(source.plain())
        await pipe.aclose()
        assert source.pulled == 0
        assert session.statistics().done == 0


async def test_unseen_failures_make_no_noise(models: Models, loop_errors: list[str]) -> None:
    async with InferSession(0, models.add(LARGE), depth=4) as session:
        emulator.fail("acl.mdl.execute_async", 507011, after=1, times=3)
        async for outputs in session.infer_pipeline(pair(LARGE, k) for k in range(9)):
            check(outputs, LARGE, 0)
            await until(lambda: session.statistics().failed == 3)
            break
        del outputs
        await all_home(session)
    gc.collect()
    assert not loop_errors


async def test_a_failure_leaves_no_garbage(models: Models) -> None:
    """The error that a pipeline raises makes no reference cycle with its window and the feeds in it."""

    class Feeds(list[Array]):
        pass

    async with InferSession(0, models.add(SMALL)) as session:
        await session.infer(pair(SMALL, 0))
        bad = Feeds(pair((2, 2), 0))
        gone = weakref.ref(bad)
        gc.collect()
        gc.disable()
        try:
            with pytest.raises(FeedError):
                await anext(session.infer_pipeline([bad]))
            del bad
            assert gone() is None
        finally:
            gc.enable()


# --- together -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
async def test_pipelines_and_single_infers_share_a_session(models: Models, shape: Shape) -> None:
    depth, streams, count = 4, 3, 40
    order: list[int] = []
    async with InferSession(0, models.add(shape), depth=depth) as session:

        async def pipeline(name: int) -> None:
            k = 0
            async for outputs in session.infer_pipeline(pair(shape, 100 * name + k) for k in range(count)):
                check(outputs, shape, 100 * name + k)
                order.append(name)
                k += 1
            assert k == count

        async def singles() -> None:
            for k in range(count // 2):
                before = len(order)
                check(await session.infer(pair(shape, k)), shape, k)
                # First come, first served: it waits for what was before it and what came home with it.
                assert len(order) - before <= streams * (3 * depth)
                order.append(streams)

        with emulator.configure(execute_ms=0.5):
            await asyncio.gather(*(pipeline(name) for name in range(streams)), singles())
        for name in range(streams):
            places = [place for place, other in enumerate(order) if other == name]
            gaps = [after - before for before, after in itertools.pairwise(places[:-depth])]
            assert max(gaps) <= 3 * depth * streams + 2
            # None is far behind the others in the end.
            assert places[-1] >= len(order) - (streams + 1) * (3 * depth)
        await all_home(session)


async def test_two_pipelines_in_one_task(models: Models) -> None:
    async with InferSession(0, models.add(SMALL), depth=2) as session:
        one = session.infer_pipeline(Counted().plain())
        other = session.infer_pipeline(Counted().awaited())
        for k in range(30):
            check(await anext(one), SMALL, k)
            check(await anext(other), SMALL, k)
        await one.aclose()
        await other.aclose()
        await all_home(session)


async def test_a_pipeline_feeds_a_pipeline(models: Models) -> None:
    async with InferSession(0, models.add(SMALL), depth=2) as session:

        async def sums() -> AsyncIterator[list[Array]]:
            async for (output,) in session.infer_pipeline(pair(SMALL, k) for k in range(20)):
                yield [output, output]

        k = 0
        async for (output,) in session.infer_pipeline(sums()):
            np.testing.assert_array_equal(output, 2 * total(SMALL, k))
            k += 1
        assert k == 20


async def test_another_task_takes_over(models: Models) -> None:
    async with InferSession(0, models.add(SMALL)) as session:
        pipe = session.infer_pipeline(Counted().awaited())
        for k in range(10):
            check(await asyncio.ensure_future(anext(pipe)), SMALL, k)
        await pipe.aclose()


async def test_a_source_that_has_only_items(models: Models) -> None:
    """As the data sets of torch: no ``__iter__``, but ``__getitem__``."""

    class Items:
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> list[Array]:
            if index >= len(self):
                raise IndexError(index)
            return pair(SMALL, index)

    source: Any = Items()
    async with InferSession(0, models.add(SMALL)) as session:
        seed = 0
        async for outputs in session.infer_pipeline(source):
            check(outputs, SMALL, seed)
            seed += 1
        assert seed == 5


@pytest.mark.parametrize("wrong", [{"mode": "nope"}, {"mode": "dymbatch"}, {"custom_sizes": "x"}])
async def test_bad_arguments_are_told_before_the_source_is_read(models: Models, wrong: dict[str, Any]) -> None:
    read = []

    def source() -> Iterator[list[Array]]:
        read.append(0)
        yield pair(SMALL, 0)

    async with InferSession(0, models.add(SMALL)) as session:
        sources: list[Any] = [source(), []]
        for feeds_list in sources:
            with pytest.raises(ArgumentError):
                async for _ in session.infer_pipeline(feeds_list, **wrong):
                    pass
    assert read == []
