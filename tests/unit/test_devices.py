"""What there is to run on: ``devices()``, and ``run()`` on the loop of choice."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import aioais
from aioais import DeviceInfo, InferSession, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

SOURCES = str(Path(aioais.__file__).parents[1])


@pytest.fixture
async def finalised() -> AsyncIterator[None]:
    """Starts and ends without ACL."""
    pytest.importorskip("onnxruntime")
    await InferSession.finalize()
    yield
    await InferSession.finalize()
    assert emulator.live()["devices"] == 0


def _cpu() -> list[DeviceInfo]:
    return [device for device in aioais.devices() if device.platform == "cpu"]


@pytest.mark.usefixtures("finalised")
async def test_devices() -> None:
    found = await asyncio.to_thread(_cpu)
    assert [device.id for device in found] == [0, 1, 2, 3]
    for device in found:
        assert isinstance(device, DeviceInfo)
        assert device.name
        assert 0 < device.free_memory <= device.total_memory
    assert emulator.live()["contexts"] == 0


@pytest.mark.usefixtures("finalised")
async def test_devices_follow_the_settings() -> None:
    with emulator.configure(devices=2, soc_name="AscendTest"):
        assert [(device.id, device.name) for device in await asyncio.to_thread(_cpu)] == [
            (0, "AscendTest"),
            (1, "AscendTest"),
        ]
        await InferSession.finalize()


@pytest.mark.usefixtures("finalised")
async def test_devices_while_sessions_run(models: Models) -> None:
    path = models.add([200, 200])
    x = np.ones((200, 200), np.float32)
    async with InferSession(1, path) as session:
        request = asyncio.create_task(session.infer([x, x]))
        found = await asyncio.to_thread(_cpu)
        assert len(found) == 4
        assert (await request)[0].tolist() == (x + x).tolist()
        tensor = await session.to_device(np.zeros(1 << 20, np.uint8))
        again = await asyncio.to_thread(_cpu)
        assert again[1].free_memory <= again[1].total_memory - (1 << 20)
        tensor.close()
        assert (await session.infer([x, x]))[0].tolist() == (x + x).tolist()


@pytest.mark.usefixtures("finalised")
async def test_every_device_listed_can_be_opened(models: Models) -> None:
    path = models.identity([3])
    for device in await asyncio.to_thread(_cpu):
        async with InferSession(device.id, path) as session:
            x = np.full(3, device.id, np.float32)
            assert (await session.infer([x]))[0].tolist() == x.tolist()


@pytest.mark.usefixtures("finalised")
def test_the_calling_thread_stays_on_its_device() -> None:
    """It may be that of a program which uses another device by itself."""
    _cpu()
    acl = emulator.acl
    assert acl.rt.set_device(1) == 0
    _cpu()
    assert acl.rt.get_device() == (1, 0)
    assert acl.rt.reset_device(1) == 0


@pytest.mark.usefixtures("finalised")
@pytest.mark.parametrize("call", ["set_device", "get_mem_info"])
async def test_a_faulty_device_does_not_hide_the_others(call: str, caplog: pytest.LogCaptureFixture) -> None:
    emulator.fail(f"acl.rt.{call}", 507899, after=2, times=1 if call == "set_device" else 2)
    found = await asyncio.to_thread(_cpu)
    assert [device.id for device in found] == [0, 1, 2, 3]
    assert [bool(device.total_memory) for device in found].count(False) == 1
    if call == "set_device":
        assert "device 1 (platform cpu) does not report its memory: acl.rt.set_device failed with 507899" in caplog.text


@pytest.mark.usefixtures("finalised")
async def test_a_device_that_cannot_be_let_go(caplog: pytest.LogCaptureFixture) -> None:
    emulator.fail("acl.rt.reset_device", 507899)
    assert len(await asyncio.to_thread(_cpu)) == 4
    assert "device 0 (platform cpu) does not report its memory: acl.rt.reset_device failed with 507899" in caplog.text
    assert len(await asyncio.to_thread(_cpu)) == 4, "it was that once"
    assert emulator.acl.rt.reset_device(0) == 0, "it was set, and still is"


def test_an_acl_that_is_not_cann(tmp_path: Path) -> None:
    """PyPI has another package of that name; where it is found first there are no Ascend devices."""
    (tmp_path / "acl.py").write_text("rights = {}\n")
    program = "import aioais; print({device.platform for device in aioais.devices()})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), SOURCES])}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout == "{'cpu'}\n"


# --- run ----------------------------------------------------------------------------------------

WHERE: contextvars.ContextVar[str] = contextvars.ContextVar("WHERE", default="nowhere")


async def _tell(*args: object) -> tuple[str, tuple[object, ...], str]:
    return type(asyncio.get_running_loop()).__module__, args, WHERE.get()


def test_run_uses_uvloop_and_passes_arguments() -> None:
    WHERE.set("here")
    module, args, where = aioais.run(_tell, 1, "two")
    assert (args, where) == ((1, "two"), "here")
    assert module.partition(".")[0] == ("asyncio" if sys.platform == "win32" else "uvloop")


def test_run_takes_a_coroutine() -> None:
    assert aioais.run(_tell())[1] == ()


def test_run_raises_what_the_coroutine_raises() -> None:
    async def fail() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        aioais.run(fail)


def test_run_infers(models: Models) -> None:
    path = models.add([2, 3])

    async def main(value: int) -> float:
        x = np.full((2, 3), value, np.float32)
        async with InferSession(0, path) as session:
            return float((await session.infer([x, x]))[0].sum())

    assert [aioais.run(main, value) for value in (1, 2)] == [12.0, 24.0]


async def test_run_inside_a_loop_is_refused() -> None:
    coroutine = _tell()
    try:
        with pytest.raises(RuntimeError, match="running event loop"):
            aioais.run(coroutine)
    finally:
        coroutine.close()


def test_whatever_stands_in_the_place_of_acl() -> None:
    pytest.importorskip("onnxruntime")
    program = """
import aioais, sys, types
for acl in (types.ModuleType("acl"), types.SimpleNamespace(), None):
    sys.modules["acl"] = acl
    print([device.platform for device in aioais.devices()])
del sys.modules["acl"]
aioais.emulator.install()
print([device.platform for device in aioais.devices()])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCES, "AIOAIS_CPU_DEVICES": "1"},
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [*3 * [str(["cpu"])], str(["ascend", "cpu"])]


def test_memory_by_the_short_name() -> None:
    assert DeviceInfo("cpu", 0, "CPU", 200, 100).memory == 200
