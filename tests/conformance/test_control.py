"""The control interface: timings, the GIL, faults, gates, counters, a clean slate, running scripts."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import inside

from aioais import emulator

Make = Callable[..., Any]


def test_configure_restores(acl: Any) -> None:
    with emulator.configure(execute_ms=2, soc_name="Ascend310P3"):
        assert emulator.settings()["execute_ms"] == 2
        assert acl.get_soc_name() == "Ascend310P3"
    assert emulator.settings()["execute_ms"] == 0
    assert acl.get_soc_name() == "CPU"


def test_settings_is_the_function_however_the_emulator_was_imported() -> None:
    code = f"import {inside.EMULATOR_PARTS}; from aioais import emulator; emulator.settings()['gil']"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_configure_checks(ready: Any) -> None:
    with pytest.raises(TypeError, match="no setting 'speed'"):
        emulator.configure(speed=1)
    with pytest.raises(ValueError, match="negative"):
        emulator.configure(h2d_ms=-1)
    for value in (float("nan"), float("inf"), "nan"):
        with pytest.raises(ValueError, match=r"execute_ms is '?(nan|inf)'?: it must be a finite number"):
            emulator.configure(execute_ms=value)
    with pytest.raises(ValueError, match="memory_mb is inf"):
        emulator.configure(memory_mb=float("inf"))
    with pytest.raises(ValueError, match="no device 77: there are 4"):
        emulator.configure(device=77, execute_ms=5)
    with pytest.raises(ValueError, match="not one of real"):
        emulator.configure(gil="free")
    with pytest.raises(ValueError, match="not a setting of a single device"):
        emulator.configure(device=0, load_ms=1)
    with pytest.raises(ValueError, match=r"run_mode cannot change .* until InferSession\.finalize\(\)"):
        emulator.configure(run_mode=0)


def elapsed_of_a_request(acl: Any, one: Any, host: Any) -> tuple[float, float, float]:
    """Submit one request, wait, and give the times of its stages from events."""
    events = [acl.rt.create_event()[0] for _ in range(4)]
    acl.rt.record_event(events[0], 0)
    acl.rt.memcpy_async(one.in_ptrs[0], 24, host.pointer, 24, 1, 0)
    acl.rt.record_event(events[1], 0)
    assert one.execute_async() == 0
    acl.rt.record_event(events[2], 0)
    acl.rt.memcpy_async(host.pointer, 24, one.out_ptrs[0], 24, 2, 0)
    acl.rt.record_event(events[3], 0)
    assert acl.rt.synchronize_event(events[3]) == 0
    first, second, third = (acl.rt.event_elapsed_time(events[i], events[i + 1])[0] for i in range(3))
    return first, second, third


def least_of_five(acl: Any, one: Any, host: Any) -> tuple[float, ...]:
    """Give the least times of several requests, as this thread may be held up between two calls."""
    return tuple(map(min, zip(*(elapsed_of_a_request(acl, one, host) for _ in range(5)), strict=True)))


def test_dialled_times_show_in_events_and_in_the_wait(ready: Any, net: Make, models: Any, pinned: Make) -> None:
    one, host = net(models.add()), pinned(24)
    with emulator.configure(h2d_ms=3, execute_ms=20, d2h_ms=5):
        began = time.perf_counter()
        times = least_of_five(ready, one, host)
        took = (time.perf_counter() - began) * 1e3
    assert times == pytest.approx((3, 20, 5), abs=2)
    assert took >= 5 * 28


def test_one_device_may_differ(ready: Any, net: Make, models: Any, pinned: Make) -> None:
    one, host = net(models.add()), pinned(24)
    emulator.configure(execute_ms=1)
    with emulator.configure(device=0, execute_ms=10):
        assert least_of_five(ready, one, host)[1] == pytest.approx(10, abs=3)
    assert least_of_five(ready, one, host)[1] < 8


def test_bandwidth(ready: Any, pinned: Make) -> None:
    host = pinned(1 << 20)
    block, _ = ready.rt.malloc(1 << 20, 2)
    start, end = ready.rt.create_event()[0], ready.rt.create_event()[0]
    taken = []
    with emulator.configure(h2d_gbps=0.1):
        for _ in range(5):  # this thread may be held up between the first two calls
            ready.rt.record_event(start, 0)
            ready.rt.memcpy_async(block, 1 << 20, host.pointer, 1 << 20, 1, 0)
            ready.rt.record_event(end, 0)
            ready.rt.synchronize_event(end)
            taken.append(ready.rt.event_elapsed_time(start, end)[0])
    assert min(taken) == pytest.approx(10.5, abs=1)


def test_engines_overlap(ready: Any, net: Make, models: Any, pinned: Make) -> None:
    """Copies of later requests take place while an earlier one computes, whichever thread does the work."""
    one, host = net(models.add()), pinned(24)
    streams = [ready.rt.create_stream()[0] for _ in range(3)]
    count = 8

    def run() -> float:
        began = time.perf_counter()
        events = []
        for _ in range(count):
            there, done, back = (ready.rt.create_event()[0] for _ in range(3))
            ready.rt.memcpy_async(one.in_ptrs[0], 24, host.pointer, 24, 1, streams[0])
            ready.rt.record_event(there, streams[0])
            ready.rt.stream_wait_event(streams[1], there)
            assert one.execute_async(streams[1]) == 0
            ready.rt.record_event(done, streams[1])
            ready.rt.stream_wait_event(streams[2], done)
            ready.rt.memcpy_async(host.pointer, 24, one.out_ptrs[0], 24, 2, streams[2])
            ready.rt.record_event(back, streams[2])
            events.append(back)
        for event in events:
            assert ready.rt.synchronize_event(event) == 0
        return (time.perf_counter() - began) * 1e3

    ideal = count * 20 + 20
    with emulator.configure(h2d_ms=10, execute_ms=20, d2h_ms=10):
        took = run()
        for _ in range(4):
            if took >= 1.5 * ideal:  # where this thread was held up
                took = run()
    assert took >= ideal
    assert took < 1.5 * ideal


def test_work_of_one_engine_is_serial(ready: Any, pinned: Make) -> None:
    host = pinned(64)
    block, _ = ready.rt.malloc(64, 2)
    streams = [ready.rt.create_stream()[0] for _ in range(3)]
    with emulator.configure(h2d_ms=10):
        began = time.perf_counter()
        for stream in streams:
            ready.rt.memcpy_async(block, 64, host.pointer, 8, 1, stream)
        ready.rt.synchronize_device()
        assert time.perf_counter() - began >= 0.03


def test_undialled_times_are_real(ready: Any, net: Make, models: Any, pinned: Make) -> None:
    times = elapsed_of_a_request(ready, net(models.add()), pinned(24))
    assert all(0 < milliseconds < 1000 for milliseconds in times)


class Ticker:
    """Counts while other threads hold on to the interpreter, or not."""

    def __init__(self) -> None:
        self.ticks = 0
        self.stop = False
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.stop:
            time.sleep(0.001)
            self.ticks += 1

    def during(self, call: Callable[[], Any]) -> int:
        self.thread.start()
        while not self.ticks:
            time.sleep(0.001)
        before = self.ticks
        call()
        after = self.ticks
        self.stop = True
        self.thread.join()
        return after - before


@pytest.mark.parametrize(
    ("gil", "call", "free"),
    [
        ("real", "execute", False),
        ("real", "memcpy", False),
        ("real", "load", False),
        ("real", "synchronize_stream", True),
        ("real", "synchronize_event", True),
        ("release", "execute", True),
        ("release", "load", True),
        ("hold", "synchronize_stream", False),
        ("hold", "synchronize_event", False),
    ],
)
def test_who_holds_the_gil(ready: Any, net: Make, models: Any, pinned: Make, gil: str, call: str, free: bool) -> None:
    one, host, path = net(models.add()), pinned(24), models.add()
    event, _ = ready.rt.create_event()

    def queued(wait: Callable[[], int]) -> Callable[[], Any]:
        def run() -> None:
            ready.rt.memcpy_async(one.in_ptrs[0], 24, host.pointer, 24, 1, 0)
            ready.rt.record_event(event, 0)
            assert wait() == 0

        return run

    calls = {
        "execute": one.execute,
        "memcpy": lambda: ready.rt.memcpy(one.in_ptrs[0], 24, host.pointer, 24, 1),
        "load": lambda: ready.mdl.load_from_file(path),
        "synchronize_stream": queued(lambda: int(ready.rt.synchronize_stream(0))),
        "synchronize_event": queued(lambda: int(ready.rt.synchronize_event(event))),
    }
    with emulator.configure(gil=gil, h2d_ms=100, execute_ms=100, load_ms=100):
        ticks = Ticker().during(calls[call])
        for _ in range(4):
            if (ticks > 20) is not free:  # where the machine held one of the threads up
                ticks = Ticker().during(calls[call])
    assert (ticks > 20) is free, ticks


def test_calls_fail_on_demand(ready: Any) -> None:
    emulator.fail("acl.rt.malloc", 207001, after=1, times=2)
    codes = [ready.rt.malloc(8, 2)[1] for _ in range(4)]
    assert codes == [0, 207001, 207001, 0]
    emulator.fail("acl.mdl.create_desc", 100000)
    assert ready.mdl.create_desc() == 0
    emulator.fail("acl.rt.set_context", 507901)
    assert ready.rt.set_context(ready.rt.get_context()[0]) == 507901
    assert "injected fault" in ready.get_recent_err_msg()


def test_faults_are_checked(acl: Any) -> None:
    with pytest.raises(ValueError, match="no call"):
        emulator.fail("acl.rt.mallock", 1)
    with pytest.raises(ValueError, match="no device side"):
        emulator.fail("acl.rt.malloc", 1, device_side=True)
    with pytest.raises(ValueError, match="other than 0"):
        emulator.fail("acl.rt.malloc", 0)


@pytest.mark.parametrize("code", [507011, 507014, 507015, 507018, 507901])
def test_executions_fail_on_the_device(ready: Any, net: Make, models: Any, code: int) -> None:
    one = net(models.add())
    emulator.fail("acl.mdl.execute_async", code, device_side=True)
    assert one.execute_async() == 0
    assert ready.rt.synchronize_stream(0) == code
    assert one.execute_async() == 0
    assert ready.rt.synchronize_stream(0) == 0


def test_gates_block_without_the_gil(ready: Any, net: Make, models: Any) -> None:
    context, _ = ready.rt.get_context()
    one = net(models.add())
    codes: list[int] = []

    def work() -> None:
        ready.rt.set_context(context)
        codes.append(one.execute())

    with emulator.gate("execute", device=0) as gate, emulator.gate("execute", device=1) as other:
        thread = threading.Thread(target=work)
        thread.start()
        assert gate.wait_reached(10)
        assert (gate.reached, other.reached, codes) == (1, 0, [])
    thread.join(10)
    assert codes == [0]


def test_unknown_gates(acl: Any) -> None:
    with pytest.raises(ValueError, match="no stage"):
        emulator.gate("lunch")
    for device in (4, -1):
        with pytest.raises(ValueError, match=f"no device {device}: there are 4"):
            emulator.gate("execute", device)
    with pytest.raises(ValueError, match="omit the device"):
        emulator.gate("init", 0)


def test_counts(ready: Any) -> None:
    emulator.reset_counts()
    ready.rt.malloc(8, 2)
    ready.rt.malloc(8, 2)
    assert emulator.counts() == {"acl.rt.malloc": 2}


def test_live(ready: Any, net: Make, models: Any) -> None:
    one = net(models.add())
    ready.rt.create_context(0)
    ready.rt.malloc_host(10)
    assert emulator.live() == {
        "devices": 1,
        "contexts": 1,
        "streams": 0,
        "events": 0,
        "models": 1,
        "descs": 1,
        "datasets": 2,
        "data_buffers": 3,
        "tensor_descs": 0,
        "others": 0,
        "device_blocks": 3,
        "device_bytes": 72,
        "host_blocks": 1,
        "host_bytes": 10,
    }
    assert one.id


def test_reset_makes_everything_stale(ready: Any) -> None:
    stream, _ = ready.rt.create_stream()
    emulator.reset()
    assert emulator.live() == dict.fromkeys(emulator.live(), 0)
    assert ready.rt.synchronize_stream(stream) == 107002
    ready.init()
    ready.rt.set_device(0)
    with pytest.raises(emulator.EmulatorError):
        ready.rt.synchronize_stream(stream)


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args, "-c", textwrap.dedent(code)], capture_output=True, text=True)


def test_onnxruntime_is_imported_by_the_first_load_only() -> None:
    done = run("import sys, aioais.emulator as e; e.acl.init(); assert 'onnxruntime' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_preload(acl: Any) -> None:
    done = run("import sys, aioais.emulator as e; assert e.preload(); assert 'onnxruntime' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_install() -> None:
    done = run(
        """
        import aioais.emulator as e
        e.install()
        import acl.rt, acl
        assert acl is e.acl and acl.rt.get_device_count()[1] == 0
        """
    )
    assert done.returncode == 0, done.stderr


def test_install_refuses_another_acl() -> None:
    done = run("import sys; sys.modules['acl'] = sys; import aioais.emulator as e; e.install()")
    assert "another acl module" in done.stderr


def test_scripts(tmp_path: Path, models: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, acl, helper
            if __name__ == "__main__":
                assert acl.init() == 0 and acl.rt.set_device(0) == 0
                print(helper.NAME, sys.argv[1:], acl.mdl.load_from_file(sys.argv[1])[1])
            """
        )
    )
    (tmp_path / "helper.py").write_text("NAME = 'hello'")
    path = models.add()
    command = [sys.executable, "-m", "aioais.emulator", str(script), path, "--flag"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"hello [{path!r}, '--flag'] 0\n", done.stderr
    assert subprocess.run(command[:3], capture_output=True).returncode == 2


def test_a_dead_device_refuses_work_and_releases(ready: Any, net: Make, models: Any, pinned: Make) -> None:
    acl, path = ready, models.add()
    one, host = net(path), pinned(24)
    stream, _ = acl.rt.create_stream()
    assert acl.rt.memcpy_async(one.in_ptrs[0], 24, host.pointer, 24, 1, stream) == 0
    emulator.reset_counts()
    with emulator.kill(0):
        assert [acl.rt.synchronize_stream(stream) for _ in range(2)] == [507010] * 2, "told every time"
        assert "device 0 is dead" in acl.get_recent_err_msg()
        assert emulator.copied()["h2d"] == 0, "what was queued has not run"
        assert acl.rt.synchronize_device() == 507010
        assert acl.rt.memcpy_async(one.in_ptrs[0], 24, host.pointer, 24, 1, stream) == 507010
        assert one.execute_async() == one.execute() == 507010
        assert acl.rt.malloc(8, 2)[1] == acl.rt.create_stream()[1] == acl.mdl.load_from_file(path)[1] == 507010
        assert acl.rt.set_device(0) == acl.rt.create_context(0)[1] == 507010
        assert acl.rt.destroy_stream(stream) == 0
        assert acl.rt.set_device(1) == 0
        block, code = acl.rt.malloc(8, 2)
        assert code == acl.rt.synchronize_device() == acl.rt.free(block) == 0, "the others are well"
        assert acl.rt.reset_device(1) == 0
    assert acl.rt.set_device(0) == one.execute_async() == acl.rt.synchronize_stream(0) == 0
    assert acl.rt.reset_device(0) == 0


def test_reset_brings_a_dead_device_back(acl: Any) -> None:
    emulator.kill(1, 507899)
    acl.init()
    assert acl.rt.set_device(1) == 507899
    emulator.reset()
    acl.init()
    assert acl.rt.set_device(1) == 0


def test_who_can_die(acl: Any) -> None:
    with pytest.raises(ValueError, match="no device 4: there are 4"):
        emulator.kill(4)
    with pytest.raises(ValueError, match="other than 0"):
        emulator.kill(0, 0)
