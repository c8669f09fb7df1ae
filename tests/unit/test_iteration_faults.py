"""A step that fails: a typed error, nothing lost, and no other request is given a wrong result."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests import inside
from tests.unit.sums import feeds, wanted

from aioais import AclError, InferSession, Mode, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

pytestmark = pytest.mark.usefixtures("clean_slate")

CODE = 507899
SMALL = (2, 8)
LARGE = (2, 1 << 17)
WAYS = pytest.mark.parametrize("mem_copy", [True, False], ids=["copy", "exchange"])
MODES = pytest.mark.parametrize("mode", ["static", "dymbatch", "dymshape"])


@pytest.mark.pairs
@WAYS
@MODES
@pytest.mark.parametrize("device_side", [False, True])
@pytest.mark.parametrize("step", [0, 1, 4, 9])
async def test_a_step_fails(models: Models, mode: Mode, step: int, device_side: bool, mem_copy: bool) -> None:
    path = models.add_in(mode, SMALL)
    async with InferSession(0, path, depth=2) as session, InferSession(0, path) as other:
        await session.infer_iteration(feeds(SMALL), [0, -1], 3, mode, mem_copy=mem_copy)
        session.reset_summaryinfo()
        emulator.reset_counts()
        emulator.fail("acl.mdl.execute_async", CODE, after=step, device_side=device_side)
        with pytest.raises(AclError) as caught:
            await session.infer_iteration(feeds(SMALL), [0, -1], 10, mode, mem_copy=mem_copy)
        assert caught.value.code == CODE
        assert emulator.counts()["acl.mdl.execute_async"] == step + 1, "no step follows a failed one"
        assert session.summary().count == step
        for steps in (1, 10):
            (got,) = await session.infer_iteration(feeds(SMALL), [0, -1], steps, mode, mem_copy=mem_copy)
            np.testing.assert_array_equal(got, wanted(SMALL, steps=steps))
        (got,) = await session.infer(feeds(SMALL, 3), mode)
        np.testing.assert_array_equal(got, wanted(SMALL, 3))
        (got,) = await other.infer(feeds(SMALL, 3), mode)
        np.testing.assert_array_equal(got, wanted(SMALL, 3))
        now = session.statistics()
        assert (now.in_flight, now.queued, now.failed) == (0, 0, 1)
        del caught


IN_EACH_MODE = ["static", "dymbatch", "dymshape"]
CALLED = {
    "acl.rt.memcpy_async": IN_EACH_MODE,
    "acl.rt.record_event": IN_EACH_MODE,
    "acl.rt.synchronize_stream": IN_EACH_MODE,
    "acl.rt.event_elapsed_time": IN_EACH_MODE,
    "acl.rt.malloc": IN_EACH_MODE,
    "acl.update_data_buffer": IN_EACH_MODE,
    "acl.mdl.set_dynamic_batch_size": ["dymbatch"],
    "acl.mdl.set_dataset_tensor_desc": ["dymshape"],
}
"""Which modes make a call."""


def is_called(call: str, mode: str, mem_copy: bool) -> bool:
    """Whether an iteration makes a call: where shapes are fixed, only the exchange gives buffers other places."""
    return mode in CALLED[call] and not (call == "acl.update_data_buffer" and mem_copy and mode != "dymshape")


@pytest.mark.pairs
@pytest.mark.parametrize(
    ("call", "mode", "mem_copy"),
    [
        pytest.param(call, mode, mem_copy, id=f"{call}-{mode}-{'copy' if mem_copy else 'exchange'}")
        for call in CALLED
        for mode in IN_EACH_MODE
        for mem_copy in (True, False)
        if is_called(call, mode, mem_copy)
    ],
)
async def test_a_call_is_refused(
    models: Models, call: str, mode: Mode, mem_copy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside.chain_executions(monkeypatch)  # one stream for all is waited for once more
    path = models.add_in(mode, SMALL)
    for nth in range(30):
        async with InferSession(0, path, depth=1) as session:
            emulator.fail(call, CODE, after=nth)
            try:
                (got,) = await session.infer_iteration(feeds(SMALL), [0, -1], 4, mode, mem_copy=mem_copy)
            except AclError as exc:
                assert exc.code == CODE  # noqa: PT017 - it may be called less often
            else:
                np.testing.assert_array_equal(got, wanted(SMALL, steps=4))
                assert nth, f"nothing calls {call}"
                assert emulator.pending()
                emulator.disarm()
                break
            for steps in (4, 1):
                (got,) = await session.infer_iteration(feeds(SMALL), [0, -1], steps, mode, mem_copy=mem_copy)
                np.testing.assert_array_equal(got, wanted(SMALL, steps=steps))
            (got,) = await session.infer(feeds(SMALL, 3), mode)
            np.testing.assert_array_equal(got, wanted(SMALL, 3))
            now = session.statistics()
            assert (now.in_flight, now.queued, now.failed) == (0, 0, 1)


@pytest.mark.parametrize("copy", [0, 1, 2, 5, 6])
@MODES
async def test_a_copy_fails_on_the_device(models: Models, mode: Mode, copy: int) -> None:
    """Two copies in, four between the steps, one out."""
    async with InferSession(0, models.add_in(mode, SMALL), depth=2) as session:
        emulator.fail("acl.rt.memcpy_async", CODE, after=copy, device_side=True)
        with pytest.raises(AclError) as caught:
            await session.infer_iteration(feeds(SMALL), [0, -1], 5, mode)
        assert caught.value.code == CODE
        (got,) = await session.infer_iteration(feeds(SMALL), [0, -1], 5, mode)
        np.testing.assert_array_equal(got, wanted(SMALL, steps=5))
        del caught


@pytest.mark.pairs
@WAYS
@MODES
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("call", ["acl.mdl.execute_async", "acl.rt.memcpy_async"])
async def test_a_failure_amid_many_is_told_to_those_concerned(
    models: Models, call: str, mode: Mode, shape: tuple[int, ...], mem_copy: bool
) -> None:
    """The step that waits may be told of what an earlier request of another has done, and the other way round."""
    async with InferSession(0, models.add_in(mode, shape), depth=4) as session:
        await session.infer(feeds(shape), mode)
        for nth in range(14):
            emulator.fail(call, CODE, after=nth, device_side=True)
            jobs = [
                *(session.infer(feeds(shape, seed), mode) for seed in range(4)),
                session.infer_iteration(feeds(shape, 4), [0, -1], 4, mode, mem_copy=mem_copy),
                *(session.infer(feeds(shape, seed), mode) for seed in range(5, 9)),
                session.infer_iteration(feeds(shape, 9), [0, -1], 4, mode, mem_copy=mem_copy),
            ]
            results = await asyncio.gather(*jobs, return_exceptions=True)
            errors = [result for result in results if isinstance(result, BaseException)]
            if call == "acl.rt.memcpy_async" and emulator.pending(device_side=True):
                emulator.disarm()  # small requests share copies, so there are fewer
                assert not errors
                assert nth >= 8
                continue
            assert errors, "a failure on the device was lost"
            assert all(isinstance(error, AclError) and error.code == CODE for error in errors)
            assert len({id(error) for error in errors}) == len(errors), "each waiter has an error of its own"
            for seed, result in enumerate(results):
                if isinstance(result, list):
                    np.testing.assert_array_equal(result[0], wanted(shape, seed, 4 if seed in (4, 9) else 1))
            (got,) = await session.infer_iteration(feeds(shape), [0, -1], 3, mode, mem_copy=mem_copy)
            np.testing.assert_array_equal(got, wanted(shape, steps=3))
            del errors, results, jobs, got
        now = session.statistics()
        assert (now.in_flight, now.queued) == (0, 0)


@WAYS
async def test_a_neighbour_that_failed_before_is_told(models: Models, mem_copy: bool) -> None:
    """Its run fails while the first step is waited for; the step must not swallow that."""
    async with InferSession(0, models.add(LARGE), depth=4) as session:
        await session.infer_iteration(feeds(LARGE), [0, -1], 3, mem_copy=mem_copy)
        for _ in range(20):
            with emulator.gate("execute") as gate:
                emulator.fail("acl.mdl.execute_async", CODE, device_side=True)
                first = asyncio.ensure_future(session.infer(feeds(LARGE)))
                second = asyncio.ensure_future(session.infer_iteration(feeds(LARGE), [0, -1], 3, mem_copy=mem_copy))
                await asyncio.sleep(0)
                assert gate.wait_reached()
            results = await asyncio.gather(first, second, return_exceptions=True)
            assert isinstance(results[0], AclError), "the failed run was delivered as good"
            if isinstance(results[1], list):
                np.testing.assert_array_equal(results[1][0], wanted(LARGE, steps=3))
            del first, second, results
