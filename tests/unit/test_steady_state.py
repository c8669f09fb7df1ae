"""After warm-up a request costs the device nothing but its work; and admission is first come, first served."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import inside

from aioais import InferSession, Mode, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]

WORK = {
    "acl.rt.memcpy_async",
    "acl.mdl.execute_async",
    "acl.rt.record_event",
    "acl.rt.stream_query",
    "acl.rt.stream_wait_event",
    "acl.rt.synchronize_stream",
    "acl.rt.event_elapsed_time",
}
"""All that a request may call once everything is warm."""


def extra() -> dict[str, int]:
    return {name: n for name, n in emulator.counts().items() if name not in WORK}


async def many(session: InferSession, array: Array, count: int, lanes: int = 64) -> None:
    """Run requests in lanes; each keeps a result until it has the next, so twice as many are alive at most."""

    async def lane() -> None:
        for _ in range(count // lanes):
            (result,) = await session.infer([array])
            assert result.shape == array.shape

    await asyncio.gather(*(lane() for _ in range(lanes)))


async def warm(session: InferSession, array: Array, mode: Mode = "static", times: int = 1) -> None:
    """Have a session use every set of buffers, some for several requests: how many it needs is a matter of chance."""
    depth = session.statistics().depth
    with emulator.gate("execute"):
        tasks = [asyncio.ensure_future(session.infer([array], mode)) for _ in range(times * depth)]
        while session.statistics().in_flight < depth:
            await asyncio.sleep(0.001)
    await asyncio.gather(*tasks)
    assert session.statistics().slots == depth


@pytest.mark.usefixtures("patient")
async def test_ten_thousand_make_no_allocation(models: Models) -> None:
    array = np.arange(4, dtype=np.float32).reshape(1, 4)
    async with InferSession(0, models.identity((1, 4)), depth=4) as session:
        await warm(session, array)
        while not inside.is_fast(session):
            await many(session, array, 640)
        while min(inside.places(session)) == 0:
            await warm(session, array, times=inside.MOST_BATCHED)  # all slots are shared
        for _ in range(100):
            await session.infer([array])
        before = session.statistics()
        emulator.reset_counts()
        for _ in range(5000):
            await session.infer([array])
        assert extra() == {}
        assert emulator.counts()["acl.mdl.execute_async"] == 5000
        await many(session, array, 5000)
        assert extra() == {}
        now = session.statistics()
        assert (now.device_bytes, now.pinned_bytes, now.slots) == (
            before.device_bytes,
            before.pinned_bytes,
            before.slots,
        )


async def test_large_requests_make_no_allocation(models: Models) -> None:
    array = np.ones((1, 1 << 17), np.float32)
    async with InferSession(0, models.identity(array.shape), depth=4) as session:
        await warm(session, array)
        # As many results as are ever alive at once, and those that are dropped but not back yet; fewer than the pinned
        # blocks that are kept idle.
        lanes = 32
        alive = 2 * lanes + session.statistics().depth
        results = await asyncio.gather(*(session.infer([array]) for _ in range(alive)))
        assert all(inside.is_leased(result) for (result,) in results)
        del results
        emulator.reset_counts()
        # Results are dropped, so the pinned blocks that they lease come round again.
        for _ in range(300):
            await session.infer([array])
        assert extra() == {}
        await many(session, array, 320, lanes)
        assert extra() == {}


async def test_gears_make_only_gear_calls(models: Models) -> None:
    path = models.convert(models.identity(["n", 4]), "gears", input_shape="x:-1,4", dynamic_batch_size="1,2,4")
    arrays = [np.full((n, 4), n, np.float32) for n in (1, 2, 4)]
    async with InferSession(0, path, depth=4) as session:

        async def rounds(count: int) -> None:
            for i in range(count):
                results = await asyncio.gather(*(session.infer([array], "dymbatch") for array in arrays))
                for array, (result,) in zip(arrays, results, strict=True):
                    np.testing.assert_array_equal(result, array)
                await session.infer([arrays[i % 3]], "auto")

        await warm(session, arrays[0], "dymbatch")
        await rounds(50)
        emulator.reset_counts()
        await rounds(300)
        assert set(extra()) <= {"acl.mdl.set_dynamic_batch_size"}
        emulator.reset_counts()
        for _ in range(100):
            await session.infer([arrays[1]], "dymbatch")
        assert extra().get("acl.mdl.set_dynamic_batch_size", 0) <= session.statistics().slots


@pytest.mark.parametrize("shape", [(1, 4), (1, 1 << 17)], ids=["small", "large"])
async def test_first_come_first_served(models: Models, shape: tuple[int, ...]) -> None:
    order: list[int] = []
    async with InferSession(0, models.identity(shape), depth=2) as session:
        blocks = emulator.live()["device_blocks"]

        async def one(number: int) -> None:
            (result,) = await session.infer([np.full(shape, number, np.float32)])
            assert (result == number).all()
            order.append(number)

        with emulator.gate("execute") as gate:
            tasks = [asyncio.ensure_future(one(number)) for number in range(64)]
            await asyncio.sleep(0)
            assert gate.wait_reached()
            while session.statistics().in_flight < 2:
                await asyncio.sleep(0.001)
            now = session.statistics()
            assert (now.in_flight, now.queued, now.slots, now.done) == (2, 62, 2, 0)
            # One input and one output buffer for each of two, whatever waits.
            assert emulator.live()["device_blocks"] - blocks == 4
        await asyncio.gather(*tasks)
        assert order == list(range(64))
        # And one block for each that requests have shared since.
        shared = sum(count > 1 for count in inside.places(session))
        assert emulator.live()["device_blocks"] - blocks == 4 + shared
        assert session.statistics().done == 64


@pytest.mark.parametrize("run_mode", [1, 0], ids=["card", "board"])
async def test_large_requests_touch_no_new_memory(models: Models, run_mode: int) -> None:
    resource = pytest.importorskip("resource")
    await InferSession.finalize()
    with emulator.configure(run_mode=run_mode):
        array = np.ones((1, 19 << 18), np.float32)  # 19 MiB
        async with InferSession(0, models.identity(array.shape), depth=4) as session:
            # A result may live a moment longer than its caller keeps it, so one more block must be there.
            results = [await session.infer([array]) for _ in range(3)]
            del results
            emulator.reset_counts()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(20):
                (result,) = await session.infer([array])
                assert result[0, -1] == 1
                del result
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
            # A result on a board is the output buffer itself, so the slot is given another each time.
            assert extra() == ({} if run_mode else {"acl.update_data_buffer": 20})
            # Once in and once out on a card; nothing between host and device on a board.
            copied = 20 * array.nbytes if run_mode else 0
            assert emulator.copied() == {"h2d": copied, "d2h": copied, "d2d": 0, "h2h": 0, "pageable": 0}
            # Fresh memory for every result would be 4864 faults each, a fresh copy of the feed as many again.
            assert faults < 20 * 100
        await InferSession.finalize()


async def test_large_results_lease_their_memory_and_feeds_are_copied_once(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.ones((1, 19 << 18), np.float32)
    async with InferSession(0, models.identity(array.shape), depth=4) as session:
        await session.infer([array])
        copied = inside.count_copies_of_feeds(monkeypatch)
        (result,) = await session.infer([array])
        monkeypatch.undo()
        assert copied == [array.nbytes]
        assert inside.is_leased(result), "the result is the pinned block itself"
        del result


async def test_results_are_copied_out_where_too_many_are_kept(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(1 << 18, dtype=np.float32).reshape(1, -1)
    async with InferSession(0, models.identity(array.shape), depth=4) as session:
        inside.limit_leases(monkeypatch, session, 4 * array.nbytes)
        kept = [(await session.infer([array + k]))[0] for k in range(8)]
        assert inside.is_leased(kept[0])
        assert kept[-1].flags.owndata, "memory of its own"
        assert all((result == array + k).all() for k, result in enumerate(kept))
        del kept
        assert inside.is_leased((await session.infer([array]))[0]), "there is room again"
