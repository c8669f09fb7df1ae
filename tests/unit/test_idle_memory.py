"""Idle memory: given back before a pool grows and after a time, and kept where requests of the same sizes go on."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import inside

from aioais import InferSession, Mode, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

pytestmark = pytest.mark.usefixtures("clean_slate")

MIB = 1 << 20
FLOATS = 1 << 18
"""Of float32 in one MiB."""


def ones(mib: float) -> np.ndarray[Any, Any]:
    return np.ones((1, int(mib * FLOATS)), np.float32)


async def run(session: InferSession, mib: float, mode: Mode = "dymshape") -> None:
    (got,) = await session.infer([ones(mib)], mode)
    assert got.nbytes == int(mib * FLOATS) * 4
    assert (got == 1).all()


async def run_alone(session: InferSession, mib: float) -> None:
    """Run a request, and wait until its result, which the engine holds for a moment longer, is back."""
    await run(session, mib)
    while session.statistics().pinned_leased:
        await asyncio.sleep(0.001)


def held() -> int:
    live = emulator.live()
    return live["device_bytes"] + live["host_bytes"]


def allocations() -> int:
    counts = emulator.counts()
    return counts.get("acl.rt.malloc", 0) + counts.get("acl.rt.malloc_host", 0)


async def use_all_slots(session: InferSession, depth: int, mode: Mode, mib: float) -> None:
    with emulator.gate("execute"):
        tasks = [asyncio.ensure_future(run(session, mib, mode)) for _ in range(depth)]
        while session.statistics().in_flight < depth:
            await asyncio.sleep(0.001)
    await asyncio.gather(*tasks)
    assert session.statistics().slots == depth


@pytest.mark.parametrize("run_mode", [1, 0], ids=["card", "board"])
async def test_idle_blocks_of_other_sizes_are_given_back(
    models: Models, monkeypatch: pytest.MonkeyPatch, run_mode: int
) -> None:
    inside.limit_idle(monkeypatch, 2 * MIB)
    with emulator.configure(run_mode=run_mode):
        async with InferSession(0, models.identity([1, "n"]), depth=2) as session:
            for mib in (1.1, 3.9, 1.7, 3.1, 2.3, 1.3, 2.9):
                await run(session, mib)
                gc.collect()
                # Staging, input, output, result, each rounded up by a quarter; two pools, and what is kept in slots.
                assert held() <= 4 * 1.25 * mib * MIB + 2 * 2 * MIB + MIB
            statistics = session.statistics()
            assert statistics.device_bytes + run_mode * statistics.pinned_bytes == held()
        await InferSession.finalize()


async def test_a_slot_does_not_keep_the_largest_request(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    inside.limit_idle(monkeypatch, 0)
    async with InferSession(0, models.identity([1, "n"]), depth=4) as session:
        await run(session, 4)  # its outputs are known from now on, so that others need not wait for each other
        await use_all_slots(session, 4, "dymshape", 4)
        await run(session, 1.5)
        await run(session, 1.5)
        assert held() <= 4 * 1.25 * 1.5 * MIB + MIB, "four sets of 4 MiB have been given back"


async def test_requests_of_known_sizes_allocate_nothing(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    inside.limit_idle(monkeypatch, 0)
    async with InferSession(0, models.identity([1, "n"]), depth=2) as session:
        for _ in range(4):
            await run_alone(session, 3)
        emulator.reset_counts()
        for _ in range(20):
            await run_alone(session, 3)
        assert allocations() == 0
        others = {"acl.rt.free", "acl.rt.free_host", "acl.mdl.execute", "acl.update_data_buffer"}
        assert not others & set(emulator.counts()), "each buffer is where it was"


async def test_results_are_copied_where_too_much_is_in_use(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    async with InferSession(0, models.identity([1, "n"]), depth=1) as session:
        await run_alone(session, 3)
        inside.limit_leases(monkeypatch, session, 5 * MIB)
        kept = [(await session.infer([ones(2)], "dymshape"))[0] for _ in range(3)]
        assert [inside.is_leased(array) for array in kept] == [True, False, False]
        assert session.statistics().pinned_bytes <= 6 * MIB, "staging and two results: blocks of 3 MiB are gone"
        del kept
        assert inside.is_leased((await session.infer([ones(2)], "dymshape"))[0])


async def test_tensors_hold_what_they_need(models: Models) -> None:
    async with InferSession(0, models.identity([1, "n"])) as session:
        await run(session, 4)
        for _ in range(2):  # shapes that are new, and that are known
            before = emulator.live()["device_bytes"]
            tensors = []
            for k in range(8):
                tensors += await session.infer([ones(0.01 * (k + 1))], "dymshape", out_array=False)
            more = emulator.live()["device_bytes"] - before - MIB  # an input that the slot keeps
            assert more <= 1.25 * sum(tensor.nbytes for tensor in tensors)
            for tensor in tensors:
                tensor.close()


@pytest.mark.parametrize("run_mode", [1, 0], ids=["card", "board"])
async def test_idle_memory_is_given_back_after_a_time(models: Models, run_mode: int) -> None:
    emulator.configure(run_mode=run_mode)
    async with InferSession(0, models.identity([1, "n"]), depth=2) as session:
        await run_alone(session, 3)
        await run_alone(session, 2)
        await inside.sweep(session)
        await run_alone(session, 3)
        used = held()
        await inside.sweep(session)
        assert session.statistics().pinned_idle
        assert held() < used, "what only the request of 2 MiB had"
        emulator.reset_counts()
        await run_alone(session, 3)
        assert allocations() == 0, "the request of 3 MiB finds its memory"
        await inside.sweep(session)
        await inside.sweep(session)
        assert session.statistics().pinned_idle == 0
        assert held() <= MIB
        await run_alone(session, 3)


async def test_the_device_looks_by_itself(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    inside.keep_idle_for(monkeypatch, 0.01)
    async with InferSession(0, models.identity([1, "n"])) as session:
        await run(session, 3)
        while session.statistics().pinned_idle:
            await asyncio.sleep(0.005)
        await run(session, 3)


async def test_slots_that_rest_are_given_back_but_for_one(models: Models) -> None:
    path = models.identity((1, FLOATS))
    small = models.identity((1, 4), name="small")
    async with InferSession(0, path, depth=4) as session, InferSession(0, small, depth=4) as other:
        await use_all_slots(session, 4, "static", 1)
        await use_all_slots(other, 4, "static", 1 / (FLOATS // 4))
        await inside.sweep(session)
        await run(session, 1, "static")
        await inside.sweep(session)
        assert session.statistics().slots == 1, "the one that was used is kept"
        assert other.statistics().slots == 4, "there is little to gain"
        for _ in range(3):
            await inside.sweep(session)
        assert session.statistics().slots == 1
        emulator.reset_counts()
        await run(session, 1, "static")
        assert "acl.rt.create_stream" not in emulator.counts()
        await use_all_slots(session, 4, "static", 1)


async def test_what_is_leased_stays(models: Models) -> None:
    async with InferSession(0, models.identity((1, FLOATS))) as session:
        (array,) = await session.infer([ones(1)])
        assert inside.is_leased(array)
        for _ in range(3):
            await inside.sweep(session)
        assert (array == 1).all()
        assert session.statistics().pinned_leased


async def test_a_device_that_cannot_free_is_logged(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    async with InferSession(0, models.identity([1, "n"])) as session:
        await run(session, 3)
        await inside.sweep(session)
        emulator.fail("acl.rt.free_host", 507899)
        await inside.sweep(session)
        assert "device 0: idle memory could not be freed: " in caplog.text
        await run(session, 3)
        caplog.clear()
    await InferSession.finalize()
    emulator.reset()  # a block that could not be freed is lost
