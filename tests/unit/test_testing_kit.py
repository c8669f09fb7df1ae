"""The kit for users: fixtures under pytest-asyncio and anyio's plugin, leak check, faults, gates, loop lag."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import aioais
from aioais import AclMemoryError, AioaisError, InferSession, emulator
from aioais.demo_data import DIGITS_MODEL
from aioais.testing import EmulatedDevices, Fault, LeakError, LoopLag, LoopLagError, check_leaks, leaks
from aioais.testing.leaks import settled

if TYPE_CHECKING:
    from tests.unit.conftest import Models

pytest_plugins = ["pytester"]

ARRAY = np.zeros((1, 8), np.float32)


@pytest.fixture
def devices() -> Iterator[EmulatedDevices]:
    with EmulatedDevices() as devices:
        yield devices


# --- devices --------------------------------------------------------------------------------------


def test_settings_are_put_back() -> None:
    before = emulator.settings()
    with EmulatedDevices() as devices:
        devices.configure(execute_ms=3, memory_mb=64)
        devices.configure(execute_ms=5)
        devices.configure(device=1, h2d_ms=2)
        assert emulator.settings()["execute_ms"] == 5
    assert emulator.settings() == before
    devices.close()
    assert emulator.settings() == before


def test_wrong_settings_are_refused(devices: EmulatedDevices) -> None:
    with pytest.raises(TypeError, match="no setting 'speed'"):
        devices.configure(speed=3)
    with pytest.raises(ValueError, match="gil is 'none'"):
        devices.configure(gil="none")


async def test_the_number_of_devices_may_change_behind_a_session(models: Models, devices: EmulatedDevices) -> None:
    path = models.identity(ARRAY.shape)
    async with InferSession(3, path) as session:
        devices.configure(devices=2)
        assert len(aioais.devices()) == 2
        await session.infer([ARRAY])
    await InferSession.finalize()  # until its thread has ended a device can be joined, whatever its number
    with pytest.raises(AioaisError, match="device_id=3 does not exist"):
        await InferSession(3, path)
    async with InferSession(1, path):
        devices.close()
        assert len(aioais.devices()) == 4


async def test_a_fault_script(models: Models, devices: EmulatedDevices) -> None:
    async with InferSession(0, models.identity(ARRAY.shape)) as session:
        devices.script(Fault("acl.rt.malloc", 207001, times=3), Fault("acl.mdl.execute", 507000, after=1000))
        with pytest.raises(AclMemoryError, match="207001"):
            await session.infer([ARRAY])
        assert Fault("acl.mdl.execute", 507000, after=1000) in devices.pending()
        devices.close()
        assert devices.pending() == []
        await session.infer([ARRAY])


def test_pending_tells_what_is_left(devices: EmulatedDevices) -> None:
    rows = [Fault("acl.rt.get_run_mode", 500000, after=1, times=2), Fault("acl.mdl.execute", 507011, device_side=True)]
    devices.script(*rows)
    assert devices.pending() == rows
    for _ in range(2):
        emulator.acl.rt.get_run_mode()
    assert devices.pending() == [Fault("acl.rt.get_run_mode", 500000, times=1), rows[1]]
    emulator.disarm()
    assert devices.pending() == []


def test_wrong_faults_are_refused(devices: EmulatedDevices) -> None:
    with pytest.raises(ValueError, match=r"no call 'acl\.rt\.mallok'"):
        devices.script(Fault("acl.rt.mallok", 1))
    with pytest.raises(ValueError, match="no device side"):
        devices.script(Fault("acl.rt.malloc", 1, device_side=True))
    assert devices.pending() == []


async def test_a_gate_is_opened_at_the_end(models: Models) -> None:
    async with InferSession(0, models.identity(ARRAY.shape)) as session:
        with EmulatedDevices() as devices:
            gate = devices.gate("execute")
            devices.reset_counts()
            task = asyncio.ensure_future(session.infer([ARRAY]))
            await asyncio.sleep(0)
            assert await asyncio.to_thread(gate.wait_reached)
            assert devices.counts()["acl.mdl.execute_async"] == 1
            assert not task.done()
        await task


def test_a_closed_gate_does_not_hold_up_the_end(models: Models) -> None:
    """Calls that wait for a gate, or for what stands at one, keep no thread from opening it."""
    code = f"""
        import threading
        from aioais import emulator
        from aioais.testing import EmulatedDevices
        acl = emulator.acl
        with EmulatedDevices() as devices:
            gate = devices.gate("init")
            first = threading.Thread(target=acl.init)
            first.start()
            assert gate.wait_reached()
            assert acl.finalize() == 0 and devices.pending() == []
        first.join()
        assert acl.rt.set_device(0) == 0
        model, _ = acl.mdl.load_from_file({models.identity(ARRAY.shape)!r})
        datasets = [acl.mdl.create_dataset() for _ in range(2)]
        for dataset in datasets:
            acl.mdl.add_dataset_buffer(dataset, acl.create_data_buffer(acl.rt.malloc(32, 2)[0], 32))
        stream, _ = acl.rt.create_stream()
        context, _ = acl.rt.get_context()
        assert acl.mdl.execute_async(model, *datasets, stream) == 0

        def wait():
            acl.rt.set_context(context)
            acl.rt.synchronize_stream(stream)

        with EmulatedDevices() as devices:
            gate = devices.gate("execute")
            waiting = threading.Thread(target=wait)
            waiting.start()
            assert gate.wait_reached()
            resetting = threading.Thread(target=acl.rt.reset_device, args=(0,))
            resetting.start()
            while emulator.live()["models"]:  # gone before its streams are
                pass
            assert devices.pending() == []
        waiting.join()
        resetting.join()
        print("done")
    """
    assert child(code) == "done"


# --- leaks ----------------------------------------------------------------------------------------


async def test_leaks_are_told(models: Models) -> None:
    session_path = models.identity(ARRAY.shape)
    async with InferSession(0, session_path) as session:
        before = leaks()
        assert before["models"] == 1
        with pytest.raises(LeakError, match="'models': 1"):
            check_leaks(timeout_s=0)
        # What an open session makes on demand is no leak, another session is one.
        await session.infer([ARRAY])
        check_leaks(before)
        async with InferSession(0, session_path):
            with pytest.raises(LeakError, match=r"\{'models': 1, 'descs': 1\}"):
                check_leaks(before, timeout_s=0)
        tensor = await session.to_device(ARRAY)
    with pytest.raises(LeakError, match="'device_blocks': 1"):
        check_leaks(timeout_s=0)
    tensor.close()
    check_leaks()


async def test_what_was_kept_before_hides_no_leak(models: Models) -> None:
    large = np.zeros((512, 512), np.float32)  # its result is no copy
    path = models.identity(large.shape)

    async def keep() -> list[Any]:
        async with InferSession(0, path) as session:
            return [await session.to_device(large), await session.infer([large])]

    kept = await keep()
    before = settled()
    assert before["device_blocks"] == before["host_blocks"] == 1
    assert not (await keep())[0].closed  # dropped at once
    check_leaks(before)
    more = await keep()
    while sum(number - before.get(name, 0) for name, number in leaks().items()) > 2:
        await asyncio.sleep(0.001)  # what is idle is freed by the control thread
    with pytest.raises(LeakError, match=r"\{'device_blocks': 1, 'host_blocks': 1\}"):
        check_leaks(before, timeout_s=0)
    kept.clear()
    more.clear()
    check_leaks()


def test_leaks_of_a_process_that_never_used_a_device() -> None:
    code = "from aioais.testing import check_leaks; import sys; check_leaks(); print('onnxruntime' in sys.modules)"
    assert child(code) == "False"


# --- loop lag -------------------------------------------------------------------------------------


async def test_a_blocked_loop_is_told() -> None:
    with pytest.raises(LoopLagError, match="something blocks the loop"):
        async with LoopLag(limit_ms=30):
            time.sleep(0.1)
    async with LoopLag() as lag:
        await asyncio.sleep(0.01)
        time.sleep(0.05)
        await asyncio.sleep(0.01)
    assert lag.max_ms >= 40
    assert 0 <= lag.percentile(0) <= lag.p50_ms <= lag.p99_ms <= lag.max_ms
    assert LoopLag().p50_ms == LoopLag().p99_ms == 0.0


async def blocked_and_failed() -> None:
    time.sleep(0.02)
    raise KeyError


async def test_the_error_of_the_block_goes_first() -> None:
    with pytest.raises(KeyError):
        async with LoopLag(limit_ms=1):
            await blocked_and_failed()
    assert len(asyncio.all_tasks()) == 1


# --- the plugin -----------------------------------------------------------------------------------

SUITE = """
import asyncio
import pytest
from aioais import AclMemoryError, InferSession
from aioais.demo_data import DIGITS_MODEL, load_digits
from aioais.testing import Fault
{mark}

IMAGE = load_digits()[0][0]
kept = []

async def test_gates(aioais_devices, aioais_no_leaks):
    async with InferSession(0, DIGITS_MODEL) as session:
        with aioais_devices.gate("execute") as gate:
            task = asyncio.ensure_future(session.infer([IMAGE]))
            assert await asyncio.to_thread(gate.wait_reached)
            assert not task.done()
        await task

async def test_faults(aioais_devices):
    async with InferSession(0, DIGITS_MODEL) as session:
        aioais_devices.script(Fault("acl.rt.malloc", 207001, times=2))
        with pytest.raises(AclMemoryError):
            await session.infer([IMAGE])

async def test_a_fault_that_does_not_strike(aioais_devices):
    aioais_devices.script(Fault("acl.rt.malloc", 207001, times=2))

async def test_leak(aioais_no_leaks):
    async with InferSession(0, DIGITS_MODEL) as session:
        kept.append(await session.to_device(IMAGE))

async def test_no_leak_after_one(aioais_no_leaks):
    async with InferSession(0, DIGITS_MODEL) as session:
        await session.infer([IMAGE])
    kept.clear()

async def test_lag(aioais_loop_lag):
    import time
    async with aioais_loop_lag(limit_ms=30):
        time.sleep(0.2)
"""

PLUGINS = {
    "pytest-asyncio": ("", ["-p", "no:anyio", "-o", "asyncio_mode=auto"]),
    "anyio": (
        """
pytestmark = pytest.mark.anyio

@pytest.fixture(params=['asyncio', ('asyncio', {'use_uvloop': True})], ids=['asyncio', 'uvloop'])
def anyio_backend(request):
    return request.param
""",
        # pytest loads anyio's plugin and pytest-asyncio by themselves where both are installed.
        ["-p", "no:asyncio"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("runner", PLUGINS)
def test_the_fixtures(pytester: pytest.Pytester, runner: str) -> None:
    mark, options = PLUGINS[runner]
    pytester.makepyfile(SUITE.format(mark=mark))
    result = pytester.runpytest_subprocess("-p", "aioais_pytest", "-W", "error::ResourceWarning", *options)
    rounds = 2 if runner == "anyio" else 1
    # A fixture that fails at its end is an error beside the test that passed.
    result.assert_outcomes(passed=5 * rounds, failed=rounds, errors=2 * rounds)
    result.stdout.fnmatch_lines_random(
        [
            "*faults that never occurred: Fault(call='acl.rt.malloc'*",
            "*alive on the CPU device: *device_blocks*",
            "*late*",
        ]
    )


@pytest.mark.slow
def test_a_test_that_failed_is_no_leak(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from aioais import InferSession
        from aioais.demo_data import DIGITS_MODEL, load_digits

        pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("aioais_no_leaks")]

        async def tensor():
            async with InferSession(0, DIGITS_MODEL) as session:
                return await session.to_device(load_digits()[0][0])

        async def test_fails():
            there = await tensor()
            assert there is None

        async def test_is_skipped():
            there = await tensor()
            pytest.skip("it needs another tensor")

        async def test_passes():
            assert await tensor()
        """
    )
    result = pytester.runpytest_subprocess("-p", "aioais_pytest", "-p", "no:anyio")
    result.assert_outcomes(passed=1, failed=1, skipped=1)


def child(code: str, *options: str) -> str:
    return subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()


@pytest.mark.slow
def test_the_plugin_costs_nothing_until_it_is_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import sys\ndef test_a():\n    assert 'aioais_pytest' in sys.modules and 'aioais' not in sys.modules\n"
        "    assert 'numpy' not in sys.modules\n"
    )
    result = pytester.runpytest_subprocess("-p", "aioais_pytest", "-p", "no:anyio")
    result.assert_outcomes(passed=1)


def test_the_entry_point_is_the_module() -> None:
    tomllib: Any = pytest.importorskip("tomllib")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"aioais_pytest": "aioais_pytest"}


def test_import_leaves_the_heavy_packages_alone() -> None:
    heavy = "{'onnx', 'onnxruntime', 'pytest', 'ml_dtypes', 'acl'}"
    assert child(f"import aioais.testing, sys; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_all_is_what_the_kit_shows() -> None:
    import aioais.testing as kit

    assert all(getattr(kit, name).__doc__ for name in kit.__all__)
    assert Path(DIGITS_MODEL).exists()
