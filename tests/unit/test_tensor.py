"""Device tensors: where they come from, how long they live, who may use them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import threading
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from tests import inside

from aioais import ClosedError, FeedError, InferSession, Tensor, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]


def random(*shape: int) -> Array:
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


FEEDS: dict[str, Any] = {
    "array": random(3, 4),
    "transposed": random(4, 3).T,
    "reversed": random(3, 4)[::-1],
    "fortran": np.asfortranarray(random(3, 4)),
    "bool": random(3, 4) > 0,
    "bfloat16": random(3, 4).astype(ml_dtypes.bfloat16),
    "scalar": np.float64(2.5),
    "bytes": b"sixteen bytes...",
    "empty": np.empty((0, 5), np.int64),
    "large": random(500, 600),
}


@pytest.mark.parametrize("feed", FEEDS.values(), ids=list(FEEDS))
async def test_there_and_back(models: Models, feed: Any) -> None:
    plain = np.frombuffer(feed, np.uint8) if isinstance(feed, bytes) else np.asarray(feed)
    async with InferSession(1, models.identity([1])) as session:
        tensor = await session.to_device(feed)
        assert isinstance(tensor, Tensor)
        assert (tensor.shape, tensor.dtype, tensor.nbytes) == (plain.shape, plain.dtype, plain.nbytes)
        assert (tensor.device_id, tensor.closed) == (1, False)
        back = await tensor.to_host()
        assert (back.shape, back.dtype) == (plain.shape, plain.dtype)
        assert back.tobytes() == plain.tobytes()
        assert back.flags.writeable
        back[...] = 0
        assert (await tensor.to_host()).tobytes() == plain.tobytes()


async def test_repr_says_what_it_is(models: Models) -> None:
    async with InferSession(0, models.identity([1])) as session:
        tensor = await session.to_device(random(3, 4))
        assert repr(tensor) == "<Tensor float32[3, 4] on device 0>"
        tensor.close()
        assert repr(tensor) == "<Tensor closed float32[3, 4] on device 0>"


async def test_numpy_does_not_take_it_for_an_object(models: Models) -> None:
    async with InferSession(0, models.identity([1])) as session:
        tensor = await session.to_device(random(3, 4))
        makes: list[Callable[[Any], Any]] = [np.array, np.asarray, lambda it: np.stack([it, it])]
        for make in makes:
            with pytest.raises(
                TypeError, match=r"float32\[3, 4\] on device 0> is not in host memory.*await tensor\.to_host\(\)"
            ):
                make(tensor)


async def test_close(models: Models) -> None:
    async with InferSession(0, models.identity([3, 4])) as session:
        tensor = await session.to_device(random(3, 4))
        tensor.close()
        tensor.close()
        assert tensor.closed
        assert (tensor.shape, tensor.nbytes, tensor.device_id) == ((3, 4), 48, 0)
        with pytest.raises(ClosedError, match=r"closed float32\[3, 4\].*to_device"):
            await tensor.to_host()
        with pytest.raises(FeedError, match=r"'x'.*closed.*to_device"):
            await session.infer([tensor])
        with pytest.raises(FeedError, match=r"to_device: got <Tensor closed .* is closed; expected an array or an"):
            await session.to_device(tensor)


async def test_a_tensor_of_the_device_is_returned_as_it_is(models: Models) -> None:
    path = models.identity([3])
    async with InferSession(0, path) as one, InferSession(0, path) as two, InferSession(1, path) as other:
        tensor = await one.to_device(random(3))
        assert await two.to_device(tensor) is tensor
        with pytest.raises(FeedError, match=r"another device.*to_host"):
            await other.to_device(tensor)


@pytest.mark.parametrize(
    ("value", "text"),
    [([1.0], "list"), ("text", "str"), (None, "NoneType"), (np.array([None]), "object"), (1.5, "float")],
    ids=["list", "str", "none", "objects", "float"],
)
async def test_what_cannot_be_copied(models: Models, value: Any, text: str) -> None:
    async with InferSession(0, models.identity([3])) as session:
        with pytest.raises(FeedError, match=rf"to_device: .*{text}"):
            await session.to_device(value)


async def test_feeds_every_session_on_its_device(models: Models) -> None:
    path = models.add([3])
    x = random(3)
    async with InferSession(0, path) as one, InferSession(0, path) as two:
        (tensor,) = await one.infer([x, x], out_array=False)
        np.testing.assert_array_equal((await two.infer([tensor, x]))[0], x + x + x)


async def test_outlives_its_session(models: Models) -> None:
    path = models.add([300, 300])
    x = random(300, 300)
    async with InferSession(0, path) as session:
        (kept,) = await session.infer([x, x], out_array=False)
        uploaded = await session.to_device(x)
        for _ in range(10):
            await session.infer([x - 1, x])
    np.testing.assert_array_equal(await kept.to_host(), x + x)
    async with InferSession(0, path) as session:
        np.testing.assert_array_equal((await session.infer([kept, uploaded]))[0], x + x + x)
    np.testing.assert_array_equal(await uploaded.to_host(), x)


async def test_outputs_left_on_the_device_are_their_own(models: Models) -> None:
    path = models.add([2, 3])
    async with InferSession(0, path, depth=2) as session:
        feeds = [np.full((2, 3), k, np.float32) for k in range(20)]
        kept = [(await session.infer([x, x], out_array=False))[0] for x in feeds]
        many = await asyncio.gather(*(session.infer([x, x], out_array=False) for x in feeds))
        for tensor, (other,), x in zip(kept, many, feeds, strict=True):
            np.testing.assert_array_equal(await tensor.to_host(), x + x)
            np.testing.assert_array_equal(await other.to_host(), x + x)


async def test_nothing_crosses_to_the_host_with_out_array_false(models: Models) -> None:
    path = models.add([2, 3])
    async with InferSession(0, path) as session:
        tensor = await session.to_device(random(2, 3))
        emulator.reset_counts()
        (out,) = await session.infer([tensor, tensor], out_array=False)
        assert (emulator.copied()["h2d"], emulator.copied()["d2h"]) == (0, 0)
        out.close()


async def test_closed_as_soon_as_its_request_was_accepted(models: Models) -> None:
    ones = np.ones((3, 4), np.float32)

    async def feeds(session: InferSession) -> AsyncIterator[list[Tensor]]:
        for n in range(20):
            tensor = await session.to_device(n * ones)
            yield [tensor, tensor]
            tensor.close()

    async with InferSession(0, models.add((3, 4)), depth=1) as session:
        n = 0
        async for (total,) in session.infer_pipeline(feeds(session)):
            np.testing.assert_array_equal(total, 2 * n * ones)
            n += 1
        assert n == 20
        with emulator.gate("execute") as gate:
            first = asyncio.ensure_future(session.infer([ones, ones]))
            assert await asyncio.to_thread(gate.wait_reached, 60)
            tensor = await session.to_device(3 * ones)
            second = asyncio.ensure_future(session.infer([tensor, tensor]))
            await asyncio.sleep(0)
            tensor.close()  # its request waits for buffers
        await first
        np.testing.assert_array_equal((await second)[0], 6 * ones)


async def test_closed_while_a_request_uses_it(models: Models) -> None:
    path = models.add([2, 3])
    x = random(2, 3)
    async with InferSession(0, path) as session:
        tensor = await session.to_device(x)
        with emulator.gate("execute") as gate:
            request = asyncio.create_task(session.infer([tensor, x]))
            assert await asyncio.to_thread(gate.wait_reached)
            tensor.close()
            gate.open()
        np.testing.assert_array_equal((await request)[0], x + x)


async def test_memory_comes_back_on_close_and_on_collection(models: Models) -> None:
    async with InferSession(0, models.identity([3])) as session:
        before = session.statistics().device_bytes
        tensor = await session.to_device(random(100, 100))
        assert session.statistics().device_bytes == before + 40_000
        tensor.close()
        dropped: Tensor | None = await session.to_device(random(100, 100))
        del dropped
        gc.collect()
        await (await session.to_device(random(3))).to_host()  # the control thread frees in order
        gc.collect()
        await (await session.to_device(b"")).to_host()
        assert session.statistics().device_bytes <= before + 1


async def test_memory_that_comes_back_is_used_again(models: Models) -> None:
    """State that is fed back costs no allocation once two buffers take turns."""
    array, state = random(3, 4), random(3, 4)
    async with InferSession(0, models.add((3, 4)), depth=1) as session:
        results: list[Any] = await session.infer([array, state], out_array=False)
        for _ in range(3):
            results = await session.infer([array, results[0]], out_array=False)
        await inside.settle_device(session)
        held, made = session.statistics().device_bytes, emulator.counts().copy()
        for _ in range(50):
            results = await session.infer([array, results[0]], out_array=False)
        now = emulator.counts()
        assert all(now[call] == made[call] for call in ("acl.rt.malloc", "acl.rt.free"))
        assert session.statistics().device_bytes == held
        total = state
        for _ in range(54):
            total = total + array
        np.testing.assert_allclose(await results[0].to_host(), total, rtol=1e-5)


async def test_memory_that_is_not_missed_is_freed(models: Models) -> None:
    """A set of buffers takes back one; the others are freed as soon as their tensors are closed."""
    async with InferSession(0, models.add((3, 4)), depth=1) as session:
        await session.infer([random(3, 4), random(3, 4)])
        held = session.statistics().device_bytes
        kept = [await session.infer([random(3, 4), random(3, 4)], out_array=False) for _ in range(4)]
        for (tensor,) in kept:
            tensor.close()
        await inside.settle_device(session)
        assert session.statistics().device_bytes == held
        (tensor,) = await session.infer([random(3, 4), random(3, 4)], out_array=False)
    tensor.close()
    while emulator.live()["device_bytes"]:  # the set of buffers is gone, so this is freed as well
        await asyncio.sleep(0.001)


async def test_tensors_closed_in_many_threads(models: Models) -> None:
    """Whichever comes first returns; none is lost, and none is given to two owners."""
    array = random(3, 4)
    async with InferSession(0, models.add((3, 4)), depth=2) as session:
        while session.statistics().slots < 2:
            await asyncio.gather(*(session.infer([array, array]) for _ in range(8)))
        held = session.statistics().device_bytes

        async def lane(number: int) -> None:
            for turn in range(40):
                feed = np.full((3, 4), number + turn, np.float32)
                tensors = [(await session.infer([feed, array], out_array=False))[0] for _ in range(3)]
                for tensor in tensors[:2]:
                    np.testing.assert_array_equal(await tensor.to_host(), feed + array)
                await asyncio.gather(*(asyncio.to_thread(tensor.close) for tensor in tensors))

        await asyncio.gather(*(lane(number) for number in range(8)))
        await inside.settle_device(session)
        await session.infer([array, array])
        assert session.statistics().device_bytes == held


@pytest.mark.engine
def test_a_block_that_returns_while_its_home_is_asked() -> None:
    """Whatever the order, it is either taken or freed, once."""

    class Memory:
        def __init__(self) -> None:
            self.freed: list[tuple[int, int]] = []

        def discard(self, address: int, nbytes: int) -> None:
            self.freed.append((address, nbytes))

        free = discard

    for orders in itertools.permutations(["miss", "take", "return", "return", "take"]):
        memory: Any = Memory()
        home, blocks, found = inside.block_home(memory), [1, 2], []
        for step in orders:
            if step == "miss":
                home.miss()
            elif step == "take":
                block = home.take()
                if block is not None:
                    found.append((block.address, block.nbytes))
                    block.address = 0
            else:
                home.discard(blocks.pop(), 8)
        block = home.take()
        if block is not None:
            found.append((block.address, block.nbytes))
            block.address = 0
        assert sorted([*found, *memory.freed]) == [(1, 8), (2, 8)]
        assert len(found) <= 1


async def test_finalize_closes_what_is_left(models: Models) -> None:
    async with InferSession(0, models.identity([3])) as session:
        tensor = await session.to_device(random(3))
    with pytest.warns(ResourceWarning, match="1 device tensors were open"):
        await InferSession.finalize()
    assert tensor.closed


async def test_to_device_of_a_session_that_was_finalised(models: Models) -> None:
    async with InferSession(0, models.identity([3])) as session:
        await InferSession.finalize()
        with pytest.raises(ClosedError, match="open a new session"):
            await session.to_device(random(3))


@pytest.mark.parametrize("has_neighbour", [False, True])
async def test_to_device_of_a_session_that_is_closed_meanwhile(models: Models, has_neighbour: bool) -> None:
    """Where the array is not to be had at once, the device may be gone when it is there."""
    path = models.identity([3])
    begun, may_end = threading.Event(), threading.Event()

    class Slow:
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
            begun.set()
            assert may_end.wait(60)
            return random(3)

    async with contextlib.AsyncExitStack() as stack:
        if has_neighbour:
            await stack.enter_async_context(InferSession(0, path))
        session = await InferSession(0, path)
        copying = asyncio.ensure_future(session.to_device(Slow()))
        assert await asyncio.to_thread(begun.wait, 60)
        await session.aclose()
        may_end.set()
        with pytest.raises(ClosedError, match="open a new one"):
            await copying


@pytest.mark.engine
def test_a_worker_that_was_stopped_refuses(caplog: pytest.LogCaptureFixture) -> None:
    """Also what was submitted before, but had no turn: the device is gone."""
    worker = inside.Worker("aioais-test")
    is_free = threading.Event()
    posted: list[str] = []

    def stop() -> None:
        assert is_free.wait(60)
        worker.stop()

    worker.post(stop)
    early = worker.submit(lambda: 1)
    worker.post(lambda: posted.append("ran"))
    is_free.set()
    worker.thread.join()
    late = worker.submit(lambda: 2)
    for future in (early, late):
        with pytest.raises(ClosedError):
            future.result(60)
    assert posted == ["ran"], "clean-up steps are taken all the same"
    assert not caplog.records


async def test_public_names(models: Models) -> None:
    """What is not in the contract is not public."""
    async with InferSession(0, models.identity([3])) as session:
        tensor = await session.to_device(random(3))
        names = {name for name in dir(tensor) if not name.startswith("_")}
    assert names == {"shape", "dtype", "nbytes", "device_id", "closed", "to_host", "close"}
