"""BatchingSession: what a batch that fails means for each caller in it, on one device and on several."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from tests import inside
from tests.unit.batching_models import doubled, picking, reached, rows, turns
from tests.unit.conftest import Models, assert_same

from aioais import (
    AclError,
    AclMemoryError,
    BatchingSession,
    BrokenSessionError,
    ClosedError,
    DeviceHangError,
    InferSession,
    MultiDeviceSession,
)
from aioais.testing import EmulatedDevices, Fault

pytestmark = pytest.mark.usefixtures("aioais_no_leaks")

Task = asyncio.Task[list[Any]]
EXECUTE = "acl.mdl.execute_async"


def call(batching: BatchingSession, k: int, count: int = 1) -> Task:
    return asyncio.create_task(batching.infer([rows(k, count)]))


def index(*values: int) -> Any:
    return np.array(values, np.int64)[:, None]


async def test_only_the_guilty_one_gets_the_error(models: Models) -> None:
    async with InferSession(0, picking(models)) as session, BatchingSession(session) as batching:
        values = [3, 7, 1000, 12, 99, 0]
        results = await asyncio.gather(*[batching.infer([index(v)]) for v in values], return_exceptions=True)
        for value, result in zip(values, results, strict=True):
            if value == 1000:
                assert isinstance(result, AclError)
            else:
                assert not isinstance(result, BaseException)
                assert result[0].item() == value
        found = batching.statistics()
        assert (found.done, found.failed, found.rerun) == (5, 1, 6)
        (fine,) = await batching.infer([index(5)])
        assert fine.item() == 5
    del results


async def test_a_guilty_one_that_is_spread_over_batches(models: Models) -> None:
    async with InferSession(0, picking(models)) as session, BatchingSession(session) as batching:
        values = [[1, 2, 3], [4, 5, 6, 7, 8, 1000, 9], [10, 11, 12, 13]]
        results = await asyncio.gather(*[batching.infer([index(*v)]) for v in values], return_exceptions=True)
        assert isinstance(results[1], AclError)
        for k in (0, 2):
            assert np.array(results[k])[0, :, 0].tolist() == values[k]
    del results


@pytest.mark.parametrize("device_side", [False, True])
@pytest.mark.parametrize("code", [507011, 500002, 145000])
async def test_a_fault_that_passes_fails_no_caller(
    models: Models, aioais_devices: EmulatedDevices, device_side: bool, code: int
) -> None:
    async with InferSession(0, doubled(models)) as session, BatchingSession(session) as batching:
        aioais_devices.script(Fault(EXECUTE, code, device_side=device_side))
        results = await asyncio.gather(*[call(batching, k) for k in range(4)])
        for k, result in enumerate(results):
            assert_same(result, [rows(k) * 2])
        assert batching.statistics().rerun == 4


async def test_a_lonely_caller_is_not_run_again(models: Models, aioais_devices: EmulatedDevices) -> None:
    async with InferSession(0, doubled(models)) as session, BatchingSession(session) as batching:
        aioais_devices.script(Fault(EXECUTE, 507011, device_side=True))
        with pytest.raises(AclError) as caught:
            await call(batching, 1)
        assert caught.value.code == 507011
        assert batching.statistics().rerun == 0
        del caught


async def test_a_fault_that_stays_fails_each_with_an_error_of_its_own(
    models: Models, aioais_devices: EmulatedDevices
) -> None:
    async with InferSession(0, doubled(models)) as session, BatchingSession(session) as batching:
        aioais_devices.script(Fault(EXECUTE, 500002, times=5, device_side=True))
        found = await asyncio.gather(*[call(batching, k) for k in range(4)], return_exceptions=True)
        assert all(isinstance(error, AclError) for error in found)
        assert len({id(error) for error in found}) == 4
        assert_same(await call(batching, 1), [rows(1) * 2])
        del found


@pytest.mark.parametrize(("code", "kind"), [(207001, AclMemoryError), (507899, AclError)])
async def test_faults_that_no_data_can_cause(
    models: Models, aioais_devices: EmulatedDevices, code: int, kind: type[Exception]
) -> None:
    async with InferSession(0, doubled(models)) as session, BatchingSession(session) as batching:
        aioais_devices.script(Fault(EXECUTE, code, device_side=True))
        found = await asyncio.gather(*[call(batching, k) for k in range(4)], return_exceptions=True)
        assert all(isinstance(error, kind) for error in found)
        assert len({id(error) for error in found}) == 4
        assert batching.statistics().rerun == 0
        assert_same(await call(batching, 1), [rows(1) * 2])
        del found


async def test_a_device_that_hangs(models: Models, aioais_devices: EmulatedDevices) -> None:
    async with InferSession(0, doubled(models), hang_timeout=0.05) as session, BatchingSession(session) as batching:
        with aioais_devices.gate("execute"):
            found = await asyncio.gather(*[call(batching, k) for k in range(4)], return_exceptions=True)
        assert all(isinstance(error, DeviceHangError) for error in found)
        with pytest.raises(BrokenSessionError):
            await call(batching, 1)
        del found


async def test_a_caller_that_leaves_before_the_batch_runs_again(
    models: Models, aioais_devices: EmulatedDevices
) -> None:
    async with InferSession(0, doubled(models)) as session, BatchingSession(session) as batching:
        gate = aioais_devices.gate("execute")
        aioais_devices.script(Fault(EXECUTE, 507011, device_side=True))
        tasks = [call(batching, k) for k in range(4)]
        await reached(gate)
        tasks[1].cancel()
        await turns()
        gate.open()
        for k in (0, 2, 3):
            assert_same(await tasks[k], [rows(k) * 2])
        assert batching.statistics().rerun == 3


# --- several devices ------------------------------------------------------------------------------


async def test_each_device_has_its_own_batches(models: Models, aioais_devices: EmulatedDevices) -> None:
    aioais_devices.configure(devices=2)
    async with MultiDeviceSession(doubled(models)) as session, BatchingSession(session, max_delay=3600) as batching:
        first, second = (aioais_devices.gate("execute", k) for k in range(2))
        tasks = [call(batching, 0)]
        await reached(first)
        tasks.append(call(batching, 1))
        await reached(second)  # to the one that is idle
        tasks += [call(batching, 2 + k) for k in range(16)]  # a full batch behind each
        await turns()
        assert (batching.statistics().in_flight, batching.statistics().waiting) == (4, 0)
        tasks += [call(batching, 18)]
        await turns()
        assert batching.statistics().waiting == 1
        first.open()
        second.open()
        for k, task in enumerate(tasks):
            assert_same(await task, [rows(k) * 2])


async def test_a_slow_device_gets_fewer(models: Models, aioais_devices: EmulatedDevices) -> None:
    aioais_devices.configure(devices=2)
    aioais_devices.configure(device=0, execute_ms=20)
    aioais_devices.configure(device=1, execute_ms=1)
    async with MultiDeviceSession(doubled(models)) as session, BatchingSession(session) as batching:

        async def work() -> None:
            for k in range(20):
                assert_same(await batching.infer([rows(k)]), [rows(k) * 2])

        await asyncio.gather(*[work() for _ in range(6)])
        found = session.statistics()
        slow, fast = (found[k].session for k in range(2))
        assert slow is not None
        assert fast is not None
        assert fast.done > slow.done


async def test_rows_of_a_device_that_fails_run_elsewhere(models: Models, aioais_devices: EmulatedDevices) -> None:
    aioais_devices.configure(devices=2)
    async with MultiDeviceSession(doubled(models)) as session, BatchingSession(session) as batching:
        await asyncio.gather(*[call(batching, k) for k in range(16)])
        aioais_devices.script(Fault(EXECUTE, 507010, device_side=True))
        tasks = [call(batching, k) for k in range(30)]
        for k, task in enumerate(tasks):
            assert_same(await task, [rows(k) * 2])
        found = batching.statistics()
        assert found.moved
        assert found.failed == 0
        while session.statistics()[0].opened + session.statistics()[1].opened < 3:  # it is opened anew
            await asyncio.sleep(0.001)


async def test_bad_data_costs_no_device(
    models: Models, aioais_devices: EmulatedDevices, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside.chain_executions(monkeypatch)  # on one stream a failure concerns all that was queued
    aioais_devices.configure(devices=2)
    async with MultiDeviceSession(picking(models)) as session, BatchingSession(session) as batching:
        values = [k if k % 5 else 1000 for k in range(30)]
        results = await asyncio.gather(*[batching.infer([index(v)]) for v in values], return_exceptions=True)
        for value, result in zip(values, results, strict=True):
            if value == 1000:
                assert isinstance(result, AclError)
            else:
                assert not isinstance(result, BaseException)
                assert result[0].item() == value
        assert all(device.failure is None for device in session.statistics().values())
    del results, result


async def test_the_last_device_fails(models: Models, aioais_devices: EmulatedDevices) -> None:
    aioais_devices.configure(devices=1)
    async with MultiDeviceSession(doubled(models)) as session, BatchingSession(session) as batching:
        # It never worked, so it is not opened anew before another request comes.
        aioais_devices.script(Fault(EXECUTE, 507010, device_side=True))
        found = await asyncio.gather(*[call(batching, k) for k in range(4)], return_exceptions=True)
        assert all(isinstance(error, AclError) for error in found)
        del found
        assert_same(await call(batching, 7), [rows(7) * 2])


async def test_a_device_that_cannot_be_opened_again(models: Models, aioais_devices: EmulatedDevices) -> None:
    aioais_devices.configure(devices=1)
    async with MultiDeviceSession(doubled(models)) as session, BatchingSession(session) as batching:
        await call(batching, 1)
        aioais_devices.script(Fault(EXECUTE, 507010, device_side=True), Fault("acl.mdl.load_from_file", 507899))
        with pytest.raises(BrokenSessionError, match="no device is left"):
            await call(batching, 2)
        assert_same(await call(batching, 7), [rows(7) * 2])


async def test_some_devices_cannot_be_opened(models: Models, aioais_devices: EmulatedDevices) -> None:
    aioais_devices.configure(devices=2)
    async with MultiDeviceSession(doubled(models)) as session:
        aioais_devices.script(Fault("acl.mdl.load_from_file", 507899))
        async with BatchingSession(session) as batching:
            assert_same(await call(batching, 7), [rows(7) * 2])
        await session.aclose()
        with pytest.raises(ClosedError):
            await BatchingSession(session).__aenter__()


async def test_no_device_can_be_opened(models: Models, aioais_devices: EmulatedDevices) -> None:
    aioais_devices.configure(devices=2)
    async with MultiDeviceSession(doubled(models)) as session:
        aioais_devices.script(Fault("acl.mdl.load_from_file", 507899, times=2))
        with pytest.raises(BrokenSessionError, match="no device is left"):
            await BatchingSession(session).__aenter__()


async def test_a_session_of_devices_that_is_closed_below(models: Models, aioais_devices: EmulatedDevices) -> None:
    aioais_devices.configure(devices=2)
    async with MultiDeviceSession(doubled(models)) as session, BatchingSession(session) as batching:
        await call(batching, 1)
        await session.aclose()
        with pytest.raises(ClosedError):
            await call(batching, 2)
