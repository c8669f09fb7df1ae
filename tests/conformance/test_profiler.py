"""The ``profiler`` part of acl.json: the trace of a run, its places, its errors."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import inside
from tests.inside import emulator_observers as observers

from aioais import emulator

from .conftest import H2D, Models, Net

Init = Callable[..., int]


@pytest.fixture
def init(acl: Any, tmp_path: Path) -> Init:
    """Initialises with a profiler part."""

    def start(**part: Any) -> int:
        path = tmp_path / "acl.json"
        path.write_text(json.dumps({"profiler": {"switch": "on", "output": str(tmp_path / "prof"), **part}}))
        code: int = acl.init(str(path))
        return code

    return start


def traces(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "prof").glob("PROF_*/mindstudio_profiler_output/msprof_*.json"))


def events(path: Path, kind: str = "X") -> list[dict[str, Any]]:
    content = json.loads(path.read_text())
    return [event for event in content["traceEvents"] if event["ph"] == kind]


def of(found: list[dict[str, Any]], engine: str) -> list[dict[str, Any]]:
    return [event for event in found if event["cat"] == engine]


def assert_apart(found: list[dict[str, Any]]) -> None:
    """No two events of one track overlap."""
    for track in {(event["pid"], event["tid"]) for event in found}:
        spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in found if (e["pid"], e["tid"]) == track)
        for (_, stop), (start, _) in itertools.pairwise(spans):
            assert start >= stop - 1e-4  # the nanoseconds are exact, float microseconds are not


def run_some(acl: Any, path: str, pinned_bytes: int, runs: int) -> tuple[Net, int]:
    """Copy in, run and copy out on one stream, several times."""
    net = Net(acl, path)
    host, code = acl.rt.malloc_host(pinned_bytes)
    assert code == 0
    stream, code = acl.rt.create_stream()
    assert code == 0
    for _ in range(runs):
        for pointer in net.in_ptrs:
            assert acl.rt.memcpy_async(pointer, 24, host, 24, H2D, stream) == 0
        assert net.execute_async(stream) == 0
        assert acl.rt.memcpy_async(host, 24, net.out_ptrs[0], 24, 2, stream) == 0
    assert acl.rt.synchronize_stream(stream) == 0
    return net, stream


@pytest.mark.parametrize("virtual", [False, True])
def test_the_trace_of_a_run(acl: Any, init: Init, models: Models, tmp_path: Path, virtual: bool) -> None:
    if virtual:
        emulator.configure(h2d_ms=1, execute_ms=2, d2h_ms=1)
    assert init() == 0
    assert acl.rt.set_device(0) == 0
    net, stream = run_some(acl, models.add(), 24, runs=5)
    number, code = acl.rt.stream_get_id(stream)
    assert code == 0
    assert acl.finalize() == 0

    (path,) = traces(tmp_path)
    assert re.fullmatch(r"PROF_000001_\d{17}_[A-Z]{16}", path.parent.parent.name)
    assert re.fullmatch(r"msprof_\d{14}\.json", path.name)
    found = events(path)
    assert len(found) == 20
    assert_apart(found)
    copies_in, runs, copies_out = of(found, "h2d"), of(found, "execute"), of(found, "d2h")
    assert [len(copies_in), len(runs), len(copies_out)] == [10, 5, 5]
    assert {event["name"] for event in copies_in + copies_out} == {"memcpy_async"}
    assert all(event["args"] == {"stream_id": number, "bytes": 24} for event in copies_in + copies_out)
    name = Path(models.add()).stem
    assert {event["name"] for event in runs} == {name}
    assert all(e["args"] == {"stream_id": number, "model_id": net.id, "model_name": name} for e in runs)
    assert {event["pid"] for event in found} == {1}
    assert len({event["tid"] for event in found}) == 3
    assert len({event["tid"] for event in runs}) == 1
    for before, run, after in zip(copies_in[1::2], runs, copies_out, strict=True):
        assert before["ts"] + before["dur"] <= run["ts"] + 1e-4
        assert run["ts"] + run["dur"] <= after["ts"] + 1e-4
    if virtual:
        assert [event["dur"] for event in runs] == pytest.approx([2000] * 5, abs=0.01)
        assert [event["dur"] for event in copies_in] == pytest.approx([1000] * 10, abs=0.01)

    names = {(e["pid"], e["tid"], e["name"]): e["args"].get("name") for e in events(path, "M")}
    assert names[1, 0, "process_name"] == "device 0"
    tracks = {value for (_, _, kind), value in names.items() if kind == "thread_name"}
    assert tracks == {"h2d", "execute", "d2h"}


def test_engines_overlap_on_the_virtual_timeline(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    emulator.configure(h2d_ms=3, execute_ms=6, d2h_ms=3)
    assert init() == 0
    assert acl.rt.set_device(0) == 0
    nets = [Net(acl, models.add()) for _ in range(2)]
    streams = [acl.rt.create_stream()[0] for _ in nets]
    host = acl.rt.malloc_host(24)[0]
    for net, stream in zip(nets, streams, strict=True):
        assert acl.rt.memcpy_async(net.in_ptrs[0], 24, host, 24, H2D, stream) == 0
        assert net.execute_async(stream) == 0
    for stream in streams:
        assert acl.rt.synchronize_stream(stream) == 0
    assert acl.finalize() == 0
    found = events(traces(tmp_path)[0])
    assert_apart(found)
    first, second = of(found, "execute")[0], of(found, "h2d")[1]
    assert first["ts"] < second["ts"] + second["dur"] < first["ts"] + first["dur"]


def test_synchronous_calls_and_devices(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    assert init() == 0
    for device in (0, 2):
        assert acl.rt.set_device(device) == 0
        net = Net(acl, models.add())
        net.put(0, np.ones((2, 3), np.float32))
        assert net.execute() == 0
        net.get(0, (2, 3))
    assert acl.finalize() == 0
    found = events(traces(tmp_path)[0])
    assert [(e["pid"], e["cat"], e["name"]) for e in found if e["cat"] != "execute"] == [
        (pid, engine, "memcpy") for pid in (1, 3) for engine in ("h2d", "d2h")
    ]
    assert [e["pid"] for e in of(found, "execute")] == [1, 3]
    assert all("stream_id" not in e["args"] for e in found)
    processes = [e["args"]["name"] for e in events(traces(tmp_path)[0], "M") if e["name"] == "process_name"]
    assert processes == ["device 0", "device 2"]


def test_many_threads_give_one_whole_trace(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    assert init() == 0
    path = models.add()

    def work() -> None:
        assert acl.rt.set_device(0) == 0
        run_some(acl, path, 24, runs=100)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert acl.finalize() == 0
    found = events(traces(tmp_path)[0])
    assert len(found) == 4 * 400
    assert_apart(found)


def test_each_initialisation_has_a_folder_of_its_own(acl: Any, init: Init, tmp_path: Path) -> None:
    for _ in range(3):
        assert init() == 0
        assert acl.finalize() == 0
    found = traces(tmp_path)
    assert [path.parent.parent.name[:11] for path in found] == ["PROF_000001", "PROF_000002", "PROF_000003"]
    assert [events(path) for path in found] == [[], [], []]


@pytest.mark.parametrize(
    "ending",
    ["os._exit(0)", *(pytest.param(ending, marks=pytest.mark.full) for ending in ("sys.exit(0)", "raise ValueError"))],
)
def test_an_exit_without_finalize_leaves_a_valid_file(models: Models, tmp_path: Path, ending: str) -> None:
    (tmp_path / "acl.json").write_text(json.dumps({"profiler": {"switch": "on", "output": str(tmp_path / "prof")}}))
    script = f"""
import ctypes, os, sys, time
from aioais.emulator import acl
assert acl.init({str(tmp_path / "acl.json")!r}) == 0
assert acl.rt.set_device(0) == 0
host, _ = acl.rt.malloc_host(8)
there, _ = acl.rt.malloc(8, 2)
for i in range(300):
    assert acl.rt.memcpy(there, 8, host, 8, 1) == 0
{ending}
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(emulator.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=60, check=False)
    number = len(events(traces(tmp_path)[0]))
    assert number == 300 if "_exit" not in ending else 200 <= number <= 300


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_does_not_touch_the_trace(acl: Any, init: Init, tmp_path: Path) -> None:
    assert init() == 0
    assert acl.rt.set_device(0) == 0
    there, host = acl.rt.malloc(8, 2)[0], acl.rt.malloc_host(8)[0]
    assert acl.rt.memcpy(there, 8, host, 8, H2D) == 0
    child = os.fork()
    if child == 0:
        os._exit(0 if observers.profiler is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert acl.rt.memcpy(there, 8, host, 8, H2D) == 0
    assert acl.finalize() == 0
    assert len(events(traces(tmp_path)[0])) == 2


def test_the_storage_limit_ends_the_trace(acl: Any, init: Init, tmp_path: Path, caplog: Any) -> None:
    assert init(storage_limit="1MB") == 0
    assert acl.rt.set_device(0) == 0
    there, host = acl.rt.malloc(8, 2)[0], acl.rt.malloc_host(8)[0]
    for _ in range(12_000):
        assert acl.rt.memcpy(there, 8, host, 8, H2D) == 0
    assert acl.finalize() == 0
    (path,) = traces(tmp_path)
    assert path.stat().st_size <= (1 << 20) + 16
    assert 5000 < len(events(path)) < 12_000
    assert caplog.text.count("storage_limit") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource")
@pytest.mark.parametrize("room", [pytest.param(10, marks=pytest.mark.full), 30_000])
def test_a_full_disk_ends_the_trace(tmp_path: Path, room: int) -> None:
    (tmp_path / "acl.json").write_text(json.dumps({"profiler": {"switch": "on", "output": str(tmp_path / "prof")}}))
    script = f"""
import logging, resource
from aioais.emulator import acl
logging.basicConfig(format="%(message)s")
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, resource.RLIM_INFINITY))
code = acl.init({str(tmp_path / "acl.json")!r})
assert (code == 0) == ({room} > 10), code
print("code", code)
if code == 0:
    acl.rt.set_device(0)
    host, _ = acl.rt.malloc_host(8)
    there, _ = acl.rt.malloc(8, 2)
    for i in range(1000):
        assert acl.rt.memcpy(there, 8, host, 8, 1) == 0
    assert acl.finalize() == 0
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(emulator.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    if room == 10:
        assert done.stdout == "code 100004\n"
        return
    assert done.stderr.count("the trace cannot be written, later events are dropped: File too large") == 1
    (path,) = traces(tmp_path)
    assert path.stat().st_size <= room
    assert 50 < len(events(path)) < 1000, "what was written before is a whole trace"


@pytest.mark.parametrize("switch", ["off", "ON", "", None])
def test_anything_but_on_is_off(acl: Any, init: Init, tmp_path: Path, switch: str | None) -> None:
    assert init(switch=switch) == 0
    assert acl.finalize() == 0
    assert not (tmp_path / "prof").exists()


def test_without_output_it_is_the_working_directory(acl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acl.json").write_text('{"profiler": {"switch": "on"}}')
    assert acl.init("acl.json") == 0
    assert acl.finalize() == 0
    assert len(list(tmp_path.glob("PROF_*"))) == 1


@pytest.mark.parametrize("part", [{"output": 3}, {"storage_limit": "lots"}, {"storage_limit": 200}, {"ascendcl": 1}])
def test_wrong_values_are_100010(acl: Any, init: Init, tmp_path: Path, part: dict[str, Any]) -> None:
    assert init(**part) == 100010
    assert next(iter(part)) in acl.get_recent_err_msg()
    assert not (tmp_path / "prof").exists()
    assert acl.rt.set_device(0) == 100001


def test_a_folder_that_cannot_be_written_is_100004(acl: Any, init: Init, tmp_path: Path) -> None:
    (tmp_path / "prof").write_text("a file")
    assert init() == 100004
    assert "cannot be written" in acl.get_recent_err_msg()
    assert (tmp_path / "prof").read_text() == "a file"
    (tmp_path / "prof").unlink()
    assert init() == 0


def test_the_umask_is_respected(acl: Any, init: Init, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert init() == 0
    finally:
        os.umask(before)
    path = traces(tmp_path)[0]
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.parent.stat().st_mode & 0o777 == 0o750


def test_reset_closes_the_trace(acl: Any, init: Init, tmp_path: Path) -> None:
    assert init() == 0
    profiler = observers.profiler
    assert profiler is not None
    assert acl.rt.set_device(0) == 0
    there, host = acl.rt.malloc(8, 2)[0], acl.rt.malloc_host(8)[0]
    assert acl.rt.memcpy(there, 8, host, 8, H2D) == 0
    emulator.reset()
    assert observers.profiler is None
    assert inside.is_file_closed(profiler)
    (path,) = traces(tmp_path)
    assert len(events(path)) == 1
    size = path.stat().st_size
    assert acl.init() == 0
    assert acl.rt.set_device(0) == 0
    there, host = acl.rt.malloc(8, 2)[0], acl.rt.malloc_host(8)[0]
    assert acl.rt.memcpy(there, 8, host, 8, H2D) == 0
    assert acl.finalize() == 0
    assert path.stat().st_size == size
