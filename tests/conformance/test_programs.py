"""Programs of other people run as they are: what they may do with addresses, at the end, and in their children."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import inside

from aioais import emulator
from aioais.emulator import EmulatorError, NotEmulatedError
from aioais.emulator.listing import calls, page

ROOT = Path(__file__).parents[2]


def run(tmp_path: Path, body: str, *options: str, code: int = 0, net: str = "") -> tuple[str, str]:
    """Run a program on the emulator; gives stdout and stderr."""
    for name, text in {"program": body, "net": net}.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    command = [sys.executable, "-m", "aioais.emulator", *options, str(tmp_path / "program.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("count", [8, 60_000])
def test_bytes_that_nothing_holds(ready: Any, count: int) -> None:
    x = np.arange(count, dtype=np.float32)
    device, _ = ready.rt.malloc(x.nbytes, 0)
    pointer = ready.util.bytes_to_ptr((x + 1).tobytes())
    gc.collect()
    others = [bytes(x.nbytes) for _ in range(10)]
    assert ready.rt.memcpy(device, x.nbytes, pointer, x.nbytes, 1) == 0
    back = bytes(x.nbytes)
    assert ready.rt.memcpy(ready.util.bytes_to_ptr(back), x.nbytes, device, x.nbytes, 2) == 0
    assert np.array_equal(np.frombuffer(back, np.float32), x + 1)
    assert len(others) == 10


@pytest.mark.filterwarnings("ignore:acl.util")
def test_arrays_that_nothing_holds(ready: Any) -> None:
    device, _ = ready.rt.malloc(4000, 0)
    for make in (ready.util.numpy_to_ptr, lambda array: ready.util.numpy_contiguous_to_ptr(array)[0]):
        pointer = make(np.full(1000, 7, np.float32))
        others = [np.zeros(1000, np.float32) for _ in range(10)]
        assert ready.rt.memcpy(device, 4000, pointer, 4000, 1) == 0
        assert np.all(np.frombuffer(ready.util.ptr_to_bytes(pointer, 4000), np.float32) == 7)
        with pytest.raises(EmulatorError, match=r"4001 bytes at 0x.* ndarray object .* of 4000 bytes"):
            ready.util.ptr_to_bytes(pointer, 4001)
        assert len(others) == 10
    whole = np.arange(1000, dtype=np.float32)
    part = ready.util.numpy_to_ptr(whole[10:20])
    assert ready.rt.memcpy(device, 4000, part, 990 * 4, 1) == 0, "the array behind a view is memory of the program"
    with pytest.raises(EmulatorError, match="past the end"):
        ready.rt.memcpy(device, 4000, part, 990 * 4 + 1, 1)


def test_past_the_end_of_bytes(ready: Any) -> None:
    data = b"x" * 100
    device, _ = ready.rt.malloc(1 << 20, 0)
    pointer = ready.util.bytes_to_ptr(data)
    for kind, to, origin in ((1, device, pointer), (2, pointer, device)):
        with pytest.raises(EmulatorError, match=rf"memcpy (from|to): 101 bytes at {pointer:#x} .* of 100 bytes"):
            ready.rt.memcpy(to, 1 << 20, origin, 101, kind)
    with pytest.raises(EmulatorError, match="has 90 from there"):
        ready.rt.memcpy(device, 1 << 20, pointer + 10, 91, 1)
    assert ready.rt.memcpy(device, 1 << 20, pointer + 10, 90, 1) == 0
    with pytest.raises(EmulatorError, match="load_from_mem: 101 bytes"):
        ready.mdl.load_from_mem(pointer, 101)


def test_the_host_cannot_read_what_is_not_there(ready: Any) -> None:
    pointer, _ = ready.rt.malloc_host(16)
    assert ready.util.ptr_to_bytes(pointer + 4, 12)
    with pytest.raises(EmulatorError, match=r"ptr_to_bytes: 64 bytes at 0x.* past the end .* of 16 bytes"):
        ready.util.ptr_to_bytes(pointer, 64)
    with pytest.warns(Warning, match="deprecated"), pytest.raises(EmulatorError, match="ptr_to_numpy: 20 bytes"):
        ready.util.ptr_to_numpy(pointer, (5,), 11)
    assert ready.rt.free_host(pointer) == 0
    with pytest.raises(EmulatorError, match="already freed"):
        ready.util.ptr_to_bytes(pointer, 8)
    with pytest.warns(Warning, match="deprecated"), pytest.raises(EmulatorError, match="already freed"):
        ready.util.ptr_to_numpy(pointer, (2,), 11)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not say what is mapped")
def test_memory_that_the_process_does_not_have(ready: Any) -> None:
    import mmap

    device, _ = ready.rt.malloc(1 << 20, 0)
    memory = mmap.mmap(-1, 1 << 20)
    view = np.frombuffer(memory, np.uint8)
    pointer = view.ctypes.data
    assert ready.rt.memcpy(device, 1 << 20, pointer, 1 << 20, 1) == 0
    del view
    memory.close()
    with pytest.raises(EmulatorError, match="not memory of this process"):
        ready.rt.memcpy(device, 1 << 20, pointer, 1 << 20, 1)


def test_what_is_lent_is_bounded(ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    count = inside.hold_lent_bytes(1 << 20, monkeypatch)
    held = [bytes(100_000) for _ in range(30)]
    for one in held:
        ready.util.bytes_to_ptr(one)
    for _ in range(100):
        ready.util.bytes_to_ptr(bytes(100_001))
    assert 16 <= count(100_001) <= 30
    with pytest.raises(EmulatorError, match="past the end"):
        ready.util.ptr_to_bytes(ready.util.bytes_to_ptr(held[0]), 100_001)


def test_an_idle_stream_records_at_once(ready: Any, models: Any, net: Any) -> None:
    stream, _ = ready.rt.create_stream()
    start, _ = ready.rt.create_event_with_flag(8)
    end, _ = ready.rt.create_event_with_flag(8)
    assert ready.rt.record_event(start, stream) == 0
    time.sleep(0.05)
    assert ready.rt.record_event(end, stream) == 0
    assert ready.rt.event_elapsed_time(start, end)[1] == 107006, "not before the stream was waited for"
    assert ready.rt.synchronize_stream(stream) == 0
    assert 45 < ready.rt.event_elapsed_time(start, end)[0] < 500
    # Work begins when it is submitted, however late it is waited for.
    one = net(models.add())
    assert ready.rt.record_event(start, stream) == one.execute_async(stream) == ready.rt.record_event(end, stream) == 0
    time.sleep(0.05)
    assert ready.rt.synchronize_stream(stream) == 0
    assert ready.rt.event_elapsed_time(start, end)[0] < 45


def test_start_thread_says_what_cpython_says(acl: Any) -> None:
    for arguments in ((), (print,), (print, 1, 2)):
        expected = rf"^function takes exactly 2 arguments \({len(arguments)} given\)$"
        with pytest.raises(TypeError, match=expected):
            acl.util.start_thread(*arguments)


def test_the_last_error(acl: Any) -> None:
    assert acl.rt.peek_at_last_error(0) == 0
    assert acl.rt.set_device(0) == 100001
    assert acl.rt.peek_at_last_error(0) == acl.rt.peek_at_last_error(0) == acl.rt.get_last_error(0) == 100001
    assert acl.rt.get_last_error(0) == 0
    assert acl.rt.peek_at_last_error(1) == acl.rt.get_last_error(1) == 107000


@pytest.mark.parametrize(
    "name", ["media.dvpp_malloc", "op.create_attr", "prof.init", "rt.binary_load", "himpi.sys_init"]
)
def test_names_that_are_not_emulated(acl: Any, name: str) -> None:
    module, _, call = name.partition(".")
    with pytest.raises(AttributeError, match=rf"acl\.{name} is not emulated .*docs/emulated_calls\.md") as caught:
        getattr(getattr(acl, module), call)
    assert isinstance(caught.value, (EmulatorError, NotEmulatedError))
    assert not hasattr(getattr(acl, module), call)


def test_a_name_that_is_misspelt(acl: Any) -> None:
    with pytest.raises(AttributeError, match=r"acl\.rt\.mallocc is not emulated.* did you mean acl\.rt\.malloc\?"):
        acl.rt.mallocc  # noqa: B018


def test_the_page_of_the_docs_is_in_step() -> None:
    text = (ROOT / "docs" / "emulated_calls.md").read_text(encoding="utf-8")
    assert text == page(), "python -m aioais.emulator.listing > docs/emulated_calls.md"
    modules = {name.rpartition(".")[0] for name in calls()}
    assert len(re.findall(r"^\| `", text, re.MULTILINE)) == len(calls()) > 150
    assert modules <= set(re.findall(r"^## `(.*)`", text, re.MULTILINE))


def test_released_in_del_at_the_very_end(tmp_path: Path) -> None:
    net = """
        import atexit, acl, numpy
        class Net:
            def __init__(self):
                acl.init(); acl.rt.set_device(0)
                self.stream, _ = acl.rt.create_stream()
            def __del__(self):
                print("del", acl.rt.get_device(), acl.rt.malloc_host(8)[1], acl.util.bytes_to_ptr(b"12") > 0)
                print(acl.rt.destroy_stream(self.stream), acl.rt.reset_device(0), acl.finalize())
        atexit.register(print, "atexit")
        net = Net()
    """
    expected = "atexit\ndel (0, 0) 0 True\n0 0 0\n"
    for body, other in (("import net", net), (net, "")):
        out, err = run(tmp_path, body, net=other)
        assert out == expected
        assert err == "not released before acl.finalize: 1 host_blocks, 8 host_bytes\n"


def test_leaks_without_finalize(tmp_path: Path) -> None:
    _, err = run(
        tmp_path, "import acl; acl.init(); acl.rt.set_device(0); acl.rt.create_stream(); raise SystemExit(3)", code=3
    )
    assert err == "[emulator] not released at exit, and acl.finalize was not called:\n  1 devices\n  1 streams\n"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_children(tmp_path: Path, method: str) -> None:
    body = f"""
        import multiprocessing, subprocess, sys, acl
        def work():
            print("child", acl.init(), acl.rt.set_device(0), acl.rt.get_device_count(), flush=True)
        if __name__ == "__main__":
            child = multiprocessing.get_context({method!r}).Process(target=work)
            child.start(); child.join(); print(child.exitcode, flush=True)
            subprocess.run([sys.executable, "-c", "import acl.rt; print(acl.get_soc_name())"])
    """
    out, _ = run(tmp_path, body, "--devices", "2", "--soc", "Ascend310P3")
    assert out == "child 0 0 (2, 0)\n0\nAscend310P3\n"


def test_options_of_the_runner(tmp_path: Path) -> None:
    body = """
        import acl
        print(acl.rt.get_run_mode(), acl.rt.get_device_count(), acl.get_soc_name(), acl.init(), acl.rt.set_device(0))
        print(acl.rt.get_mem_info(0)[1] >> 20, acl.rt.reset_device(0), acl.finalize())
    """
    options = ("--run-mode", "device", "--devices=3", "--memory", "1G", "--soc", "Ascend310B4")
    assert run(tmp_path, body, *options)[0] == "(0, 0) (3, 0) Ascend310B4 0 0\n1024 0 0\n"


def test_wrong_options_of_the_runner(capsys: pytest.CaptureFixture[str]) -> None:
    for options, text in (
        (["--memory", "0"], "got '0'"),
        (["--devices", "none"], "got 'none'"),
        (["--run-mode", "x"], "'x'"),
    ):
        with pytest.raises(SystemExit):
            inside.run_emulator(options)
        assert text in capsys.readouterr().err
    assert inside.run_emulator([]) == inside.run_emulator(["no-such-script.py"]) == 2
    assert inside.run_emulator(["--list"]) == 0
    assert "acl.rt.malloc\n" in capsys.readouterr().out


def test_memory_is_no_more_than_the_machine_has(acl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from aioais.emulator import memory_calls

    assert acl.init() == acl.rt.set_device(0) == 0
    available, machine = inside.machine_memory()
    assert 0 < available <= machine
    free, total, code = acl.rt.get_mem_info(0)
    assert (total, code) == (min(64 << 30, machine >> 20 << 20), 0)
    assert free <= total
    monkeypatch.setattr(memory_calls, "machine_memory", lambda: (1 << 20, machine))
    assert acl.rt.get_mem_info(0)[0] == 1 << 20
    with emulator.configure(memory_mb=16):
        monkeypatch.setattr(memory_calls, "machine_memory", lambda: (0, 0))
        assert acl.rt.get_mem_info(0)[:2] == (16 << 20, 16 << 20), "a system that does not say"


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch, acl: Any) -> None:
    monkeypatch.setenv("AIOAIS_CPU_MEMORY_MB", "77")
    monkeypatch.setenv("AIOAIS_CPU_RUN_MODE", "7")
    monkeypatch.setenv("AIOAIS_CPU_SOC", "Ascend910B")
    emulator.reset()
    found = emulator.settings()
    assert (found["memory_mb"], found["run_mode"], found["soc_name"]) == (77, 1, "Ascend910B")
    assert os.environ["AIOAIS_CPU_RUN_MODE"] == "7"
