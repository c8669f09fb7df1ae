"""What differs between releases of ACL: events without ``ex`` must be reset, types may be new, ranges are wide."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests import inside

from aioais import AclError, DataType, InferSession, ModelError, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

OLD_EVENTS = pytest.mark.usefixtures("_no_ex_events")
LARGE = (300, 400)
"""Above what one thread does alone."""


@pytest.fixture
def _no_ex_events(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(inside.cpu_library(), "has_event_ex", False)
    emulator.reset_counts()
    yield
    assert "acl.rt.create_event_ex_with_flag" not in emulator.counts()


# --- events that stay set until they are reset ----------------------------------------------------


@OLD_EVENTS
@pytest.mark.parametrize("execute_ms", [0, 2], ids=["brief", "long"])
async def test_many_requests_one_set_of_buffers(models: Models, execute_ms: float) -> None:
    ones = np.ones(LARGE, np.float32)
    with emulator.configure(execute_ms=execute_ms):
        async with InferSession(0, models.add(LARGE), depth=1) as session:
            for n in range(8):
                results = await asyncio.gather(*(session.infer([n * ones, k * ones]) for k in range(4)))
                for k, (total,) in enumerate(results):
                    np.testing.assert_array_equal(total, (n + k) * ones)
    assert emulator.counts()["acl.rt.reset_event"] > 0


@OLD_EVENTS
async def test_feeds_of_the_device_then_of_the_host(models: Models) -> None:
    ones = np.ones(LARGE, np.float32)
    async with InferSession(0, models.add(LARGE), depth=1) as session:
        there = await session.to_device(ones)
        for n in range(6):
            (two,), (total,), (four,) = await asyncio.gather(
                session.infer([there, there]),
                session.infer([n * ones, there]),
                session.infer([3 * ones, ones]),
            )
            np.testing.assert_array_equal(two, 2 * ones)
            np.testing.assert_array_equal(total, (n + 1) * ones)
            np.testing.assert_array_equal(four, 4 * ones)


@OLD_EVENTS
@pytest.mark.parametrize("loop", [1, 3])
async def test_iteration(models: Models, loop: int) -> None:
    ones = np.ones(LARGE, np.float32)
    async with InferSession(0, models.add(LARGE), loop=loop) as session:
        for _ in range(3):
            (total,) = await session.infer_iteration([ones, ones], in_out_list=[0, -1], iteration_times=4)
            np.testing.assert_array_equal(total, 5 * ones)


@OLD_EVENTS
async def test_dynamic_shape(models: Models) -> None:
    async with InferSession(0, models.add(["n", "k"])) as session:
        for n in (10, 500, 40):
            ones = np.ones((n, 100), np.float32)
            results = await asyncio.gather(*(session.infer([ones, k * ones], "dymshape") for k in range(4)))
            for k, (total,) in enumerate(results):
                np.testing.assert_array_equal(total, (k + 1) * ones)


@OLD_EVENTS
@pytest.mark.parametrize("call", ["acl.rt.record_event", "acl.rt.stream_wait_event", "acl.rt.reset_event"])
async def test_an_event_that_was_left_set_is_reset(models: Models, call: str) -> None:
    ones = np.ones(LARGE, np.float32)
    struck = 0
    async with InferSession(0, models.add(LARGE), depth=3) as session:
        for after in range(6):
            emulator.reset_counts()
            with emulator.gate("execute") as gate:
                first = asyncio.ensure_future(session.infer([ones, 0 * ones]))
                await asyncio.to_thread(gate.wait_reached)
                emulator.fail(call, 107000, after=after)
                # Each of these waits for the execution before, on another stream.
                others = [asyncio.ensure_future(session.infer([ones, k * ones])) for k in range(1, 3)]
                # One that fails behind its execution waits for the device, and the next one for it.
                while emulator.pending() and emulator.counts().get("acl.mdl.execute_async", 0) < 3:
                    await asyncio.sleep(0.001)
            results = await asyncio.gather(first, *others, return_exceptions=True)
            has_struck = not emulator.pending()
            emulator.disarm()
            struck += has_struck
            assert any(isinstance(result, AclError) for result in results) == has_struck
            for k, (total,) in enumerate(await asyncio.gather(*(session.infer([ones, k * ones]) for k in range(3)))):
                np.testing.assert_array_equal(total, (k + 1) * ones)
    assert struck >= (1 if call == "acl.rt.reset_event" else 2)


# --- other differences ----------------------------------------------------------------------------


async def test_staging_of_a_model_with_ranges_is_for_the_feed(models: Models) -> None:
    wide = "input1:[1~64,3,1~4096,1~4096];input2:[1~64,3,1~4096,1~4096]"  # 12 GiB at most
    path = models.convert(models.add(["n", 3, "h", "w"]), "wide", input_shape_range=wide)
    ones = np.ones((1, 3, 8, 8), np.float32)
    async with InferSession(0, path) as session:
        (total,) = await session.infer([ones, ones], "dymshape")
        np.testing.assert_array_equal(total, 2 * ones)
        assert session.statistics().pinned_bytes < 1 << 20


async def test_a_type_that_a_newer_release_has_added(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    path = models.add([2, 3])
    monkeypatch.setattr(emulator.acl.mdl, "get_input_data_type", lambda desc, index: 4242)
    async with InferSession(0, path) as session:
        assert [desc.datatype for desc in session.get_inputs()] == [DataType.undefined] * 2


async def test_dynamic_aipp_is_refused_before_anything_runs(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    path, mdl = models.add([2, 3]), emulator.acl.mdl
    name_of = mdl.get_input_name_by_index
    monkeypatch.setattr(
        mdl, "get_input_name_by_index", lambda desc, k: "ascend_dynamic_aipp_data" if k else name_of(desc, k)
    )
    async with InferSession(0, path) as session:
        assert [desc.name for desc in session.get_inputs()] == ["input1"]
        emulator.reset_counts()
        with pytest.raises(ModelError, match=r"dynamic AIPP.*static AIPP"):
            await session.infer([np.ones((2, 3), np.float32)])
        assert "acl.mdl.execute_async" not in emulator.counts()
