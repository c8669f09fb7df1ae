"""Traces: a file that Perfetto reads, with five events and their arrows for each request."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import inside

from aioais import AclError, ArgumentError, ClosedError, InferSession, RequestTiming, Span, Trace, emulator
from aioais.trace import trace_events

if TYPE_CHECKING:
    from tests.unit.conftest import Models

SMALL = (1, 8)
LARGE = (1, 1 << 17)
ENGINES = ("H2D", "execute", "D2H")
Event = dict[str, Any]


def ones(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.ones(shape, np.float32)


class TraceFile:
    """A trace, read and checked as a viewer would."""

    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_text("utf-8"))
        assert content["displayTimeUnit"] == "ms"
        self.counts: dict[str, int] = content["otherData"]
        self.events: list[Event] = content["traceEvents"]
        self.tracks = {e["args"]["name"]: e["tid"] for e in self.events if e["name"] == "thread_name"}
        (self.title,) = [e["args"]["name"] for e in self.events if e["name"] == "process_name"]
        assert len({event["pid"] for event in self.events}) == 1
        assert list(self.tracks) == ["queue", "H2D", "execute", "D2H", "delivery"]
        self.slices = {name: self._complete(name) for name in ENGINES}
        self.waits = {name: self._async(name) for name in ("queue", "delivery")}

    def _complete(self, name: str) -> dict[int, tuple[float, float]]:
        """Slices of an engine by request, in order of time; none overlap."""
        mine = sorted(
            (e for e in self.events if e["ph"] == "X" and e["tid"] == self.tracks[name]), key=lambda e: e["ts"]
        )
        for event in mine:
            assert event["dur"] >= 0
            assert event["name"] == f"{name} {event['args']['request']}"
        for one, other in pairwise(mine):
            assert one["ts"] + one["dur"] < other["ts"], "an engine does one thing at a time"
        spans = {e["args"]["request"]: (e["ts"], e["ts"] + e["dur"]) for e in mine}
        assert len(spans) == len(mine)
        return spans

    def _async(self, name: str) -> dict[int, tuple[float, float]]:
        """Begin and end of asynchronous slices by request; pairs of the same category, id and name."""
        begun: dict[int, float] = {}
        ended: dict[int, float] = {}
        for event in self.events:
            if event["ph"] in "be" and event["cat"] == name:
                assert (event["name"], event["tid"]) == (name, self.tracks[name])
                times = begun if event["ph"] == "b" else ended
                assert event["id"] not in times
                times[event["id"]] = event["ts"]
        assert begun.keys() == ended.keys()
        spans = {number: (begin, ended[number]) for number, begin in begun.items()}
        assert all(begin <= end for begin, end in spans.values())
        return spans

    def check_flows(self) -> None:
        """Arrows lead from stage to stage, and bind to the slices that they shall."""
        flows: dict[int, list[Event]] = defaultdict(list)
        for event in self.events:
            if event["ph"] in "stf":
                flows[event["id"]].append(event)
        assert flows.keys() == self.slices["execute"].keys()
        for number, arrows in flows.items():
            arrows.sort(key=lambda event: event["ts"])
            assert [event["ph"] for event in arrows] == ["s", "t", "f"]
            assert {(event["name"], event["cat"]) for event in arrows} == {("request", "flow")}
            for engine, event in zip(ENGINES, arrows, strict=True):
                begin, end = self.slices[engine][number]
                assert event["tid"] == self.tracks[engine]
                assert begin <= event["ts"] <= end
            assert arrows[-1]["bp"] == "e"
        ends: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for event in self.events:
            if "bind_id" in event:
                way = "out" if event.get("flow_out") else "in" if event.get("flow_in") else "none"
                ends[event["bind_id"]].append((way, event["tid"]))
        tracks = self.tracks
        for number in flows:
            assert sorted(ends.pop(f"{number}.in")) == [("in", tracks["H2D"]), ("out", tracks["queue"])]
            assert sorted(ends.pop(f"{number}.out")) == [("in", tracks["delivery"]), ("out", tracks["D2H"])]
        assert not ends

    def check_order(self, number: int) -> None:
        """Queue, H2D, execute, D2H, delivery; the two clocks may differ by what an anchor does not tell."""
        stages = [self.waits["queue"], *(self.slices[name] for name in ENGINES), self.waits["delivery"]]
        spans = [stage[number] for stage in stages]
        _, h2d, execute, d2h, _ = spans
        assert h2d[1] <= execute[0] <= execute[1] <= d2h[0]
        assert all(one[1] <= other[0] + 2000 for one, other in pairwise(spans))

    def outcomes(self) -> dict[int, str]:
        return {e["id"]: e["args"]["outcome"] for e in self.events if e["ph"] == "b" and e["cat"] == "queue"}


async def test_a_pipeline(models: Models, dialled: None, tmp_path: Path) -> None:
    async with InferSession(0, models.identity(LARGE)) as session, session.trace(tmp_path / "out.json") as timings:
        async for _ in session.infer_pipeline([[ones(LARGE)] for _ in range(20)]):
            pass
    trace = TraceFile(tmp_path / "out.json")
    assert trace.title == "identity.onnx on cpu device 0"
    assert trace.counts == {"requests": 20, "dropped": 0, "unfinished": 0}
    numbers = {timing.number for timing in timings}
    assert len(numbers) == 20
    for spans in (*trace.slices.values(), *trace.waits.values()):
        assert spans.keys() == numbers
    trace.check_flows()
    for number in numbers:
        trace.check_order(number)
    # The engines really work at once, on different requests.
    copies, executions = trace.slices["H2D"], trace.slices["execute"]
    ways_home = trace.slices["D2H"]

    def beside(one: dict[int, tuple[float, float]], other: dict[int, tuple[float, float]]) -> int:
        return sum(a[0] < b[1] and b[0] < a[1] for i, a in one.items() for j, b in other.items() if i != j)

    assert beside(copies, executions) >= 3
    assert beside(ways_home, executions) >= 3
    (sample,) = [e for e in trace.events if e["name"] == f"execute {min(numbers)}"]
    assert sample["args"]["mode"] == "static"
    assert sample["args"]["shapes"] == [list(LARGE)]
    assert sample["dur"] >= 1990


@pytest.mark.parametrize("dial", [True, False], ids=["dialled", "real time"])
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
async def test_many_at_once(models: Models, tmp_path: Path, shape: tuple[int, ...], dial: bool) -> None:
    times: dict[str, Any] = {"h2d_ms": 0.2, "execute_ms": 0.3, "d2h_ms": 0.2} if dial else {}
    with emulator.configure(**times):
        async with InferSession(0, models.identity(shape)) as session, session.trace(tmp_path / "out.json"):
            await session.infer([ones(shape)])
            await asyncio.gather(*(session.infer([ones(shape)]) for _ in range(40)))
            await session.infer([ones(shape)])
    trace = TraceFile(tmp_path / "out.json")
    assert trace.counts["requests"] == len(trace.slices["execute"]) == 42
    trace.check_flows()
    for number in trace.slices["execute"]:
        trace.check_order(number)


async def test_dynamic_shape_loops_and_device_tensors(models: Models, dialled: None, tmp_path: Path) -> None:
    path = models.identity(("n", "m"))
    async with InferSession(0, path, loop=2) as session, session.trace(tmp_path / "out.json"):
        await session.infer([ones(SMALL)], mode="auto", custom_sizes=1 << 10)
        (tensor,) = await session.infer([ones(SMALL)], mode="auto", out_array=False)
        await session.infer([tensor], mode="auto")
        tensor.close()
    trace = TraceFile(tmp_path / "out.json")
    trace.check_flows()
    first, second, third = trace.slices["execute"]
    for number in (first, second, third):
        trace.check_order(number)
        begin, end = trace.slices["execute"][number]
        assert end - begin >= 3990, "both executions"
    assert trace.slices["D2H"][second][0] == trace.slices["D2H"][second][1]
    assert trace.slices["H2D"][third][0] == trace.slices["H2D"][third][1]


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
async def test_failed_and_cancelled_requests(models: Models, tmp_path: Path, shape: tuple[int, ...]) -> None:
    async with InferSession(0, models.identity(shape), depth=1) as session:
        await session.infer([ones(shape)])
        async with session.trace(tmp_path / "out.json"):
            emulator.fail("acl.mdl.execute_async", 507011, device_side=True)
            with pytest.raises(AclError):
                await session.infer([ones(shape)])
            with emulator.gate("execute") as gate:
                running = asyncio.ensure_future(session.infer([ones(shape)]))
                await asyncio.sleep(0)
                assert gate.wait_reached()
                queued = asyncio.ensure_future(session.infer([ones(shape)]))
                await asyncio.sleep(0)
                running.cancel()
                queued.cancel()
                await asyncio.wait([running, queued])
            await session.infer([ones(shape)])
    trace = TraceFile(tmp_path / "out.json")
    outcomes = trace.outcomes()
    failed, given_up, never_ran, done = sorted(outcomes)
    assert [outcomes[number] for number in sorted(outcomes)] == ["failed", "cancelled", "cancelled", "done"]
    assert trace.slices["execute"].keys() == {given_up, done}, "the device tells times of these only"
    assert trace.waits["delivery"].keys() == {failed, given_up, never_ran, done}
    trace.check_flows()
    trace.check_order(given_up)
    trace.check_order(done)


async def test_two_at_once_have_all(models: Models, tmp_path: Path) -> None:
    async with InferSession(0, models.identity(SMALL)) as session, session.trace(tmp_path / "outer.json"):
        await session.infer([ones(SMALL)])
        async with session.trace(tmp_path / "inner.json"):
            await session.infer([ones(SMALL)])
    outer, inner = (TraceFile(tmp_path / f"{name}.json") for name in ("outer", "inner"))
    assert (outer.counts["requests"], inner.counts["requests"]) == (2, 1)
    assert inner.slices["execute"].keys() < outer.slices["execute"].keys()


async def test_it_is_bounded_and_says_so(models: Models, tmp_path: Path) -> None:
    async with InferSession(0, models.identity(SMALL)) as session, session.trace(tmp_path / "out.json", limit=5):
        for _ in range(8):
            await session.infer([ones(SMALL)])
    trace = TraceFile(tmp_path / "out.json")
    assert trace.counts == {"requests": 5, "dropped": 3, "unfinished": 0}
    assert len(trace.slices["execute"]) == 5


async def test_nothing_happened(models: Models, tmp_path: Path) -> None:
    async with InferSession(0, models.identity(SMALL)) as session, session.trace(tmp_path / "out.json"):
        pass
    assert TraceFile(tmp_path / "out.json").counts["requests"] == 0


async def test_plain_with(models: Models, tmp_path: Path) -> None:
    async with InferSession(0, models.identity(SMALL)) as session:
        with session.trace(str(tmp_path / "out.json")) as timings:
            await session.infer([ones(SMALL)])
        assert TraceFile(tmp_path / "out.json").outcomes() == {timings[0].number: "done"}


async def test_the_loop_runs_while_the_file_is_made_and_written(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is a pipe without a reader yet, so making it and writing it both block, in a thread."""
    path = tmp_path / "out.json"
    os.mkfifo(path)
    real_open = open
    monkeypatch.setattr("builtins.open", lambda file, mode="r", **more: real_open(file, mode.replace("x", "w"), **more))

    async def body() -> None:
        async with session.trace(path):
            for _ in range(50):  # more than a pipe holds
                await session.infer([ones(SMALL)])

    async with InferSession(0, models.identity(SMALL)) as session:
        task = asyncio.ensure_future(body())
        await session.infer([ones(SMALL)])
        assert not task.done()
        reader = os.open(path, os.O_RDONLY)
        try:
            while not select_readable(reader):
                await asyncio.sleep(0.001)
            for _ in range(10):
                await session.infer([ones(SMALL)])
            assert not task.done(), "it waits for its reader, and the loop does not"
            text = b""
            while not text.endswith(b"]}\n"):
                text += os.read(reader, 1 << 16)
            await task
        finally:
            os.close(reader)
    assert json.loads(text)["otherData"]["requests"] == 50


def select_readable(file: int) -> bool:
    import select

    return bool(select.select([file], [], [], 0)[0])


# --- the file -----------------------------------------------------------------------------------


async def within(trace: Trace, is_async: bool, body: Callable[[], Awaitable[None]] | None) -> None:
    if is_async:
        async with trace:
            assert body is not None, "entered"
            await body()
    else:
        with trace:
            assert body is not None, "entered"
            await body()


def existing(folder: Path) -> Path:
    (folder / "old.json").write_text("precious")
    return folder / "old.json"


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize(
    ("place", "error"),
    [
        (existing, FileExistsError),
        (lambda folder: folder / "nowhere" / "out.json", FileNotFoundError),
        (lambda folder: folder, FileExistsError),
        (lambda folder: existing(folder) / "out.json", NotADirectoryError),
    ],
)
async def test_a_file_that_cannot_be_made(
    models: Models, tmp_path: Path, place: Callable[[Path], Path], error: type[OSError], is_async: bool
) -> None:
    path = place(tmp_path)
    async with InferSession(0, models.identity(SMALL)) as session:
        with pytest.raises(error, match="new file in an existing folder") as caught:
            await within(session.trace(path), is_async, None)
        assert caught.value.filename == str(path)
        assert caught.value.errno
        await session.infer([ones(SMALL)])
    if path.is_file():
        assert path.read_text() == "precious"


async def test_the_umask_is_respected(models: Models, tmp_path: Path) -> None:
    async with InferSession(0, models.identity(SMALL)) as session:
        before = os.umask(0o027)
        try:
            async with session.trace(tmp_path / "out.json"):
                pass
        finally:
            os.umask(before)
    assert (tmp_path / "out.json").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("path", [None, 7, b"out.json", "", "a\0b"])
async def test_a_wrong_path(models: Models, path: Any) -> None:
    async with InferSession(0, models.identity(SMALL)) as session:
        with pytest.raises(ArgumentError, match="path="):
            session.trace(path)


async def test_a_closed_session_and_a_second_use(models: Models, tmp_path: Path) -> None:
    session = InferSession(0, models.identity(SMALL))
    with pytest.raises(ClosedError):
        session.trace(tmp_path / "out.json")
    async with session:
        trace = session.trace(tmp_path / "out.json")
        with trace:
            await session.infer([ones(SMALL)])
            await session.aclose()
        (tmp_path / "out.json").rename(tmp_path / "first.json")
        with pytest.raises(ClosedError, match="opened only once"):
            trace.__enter__()
    assert not (tmp_path / "out.json").exists(), "what was made for the second use is gone again"
    assert TraceFile(tmp_path / "first.json").counts["requests"] == 1


async def test_a_block_that_raises_leaves_its_trace(models: Models, tmp_path: Path) -> None:
    async with InferSession(0, models.identity(SMALL)) as session:

        async def body() -> None:
            await session.infer([ones(SMALL)])
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await within(session.trace(tmp_path / "out.json"), True, body)
    assert TraceFile(tmp_path / "out.json").counts["requests"] == 1


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("block_raises", [True, False])
async def test_a_disk_that_is_full(
    models: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture, block_raises: bool, is_async: bool
) -> None:
    path = tmp_path / "out.json"

    async def body() -> None:
        await session.infer([ones(SMALL)])
        if block_raises:
            raise ZeroDivisionError

    async with InferSession(0, models.identity(SMALL)) as session:
        trace = session.trace(path)

        def full(_: object) -> Any:
            path.symlink_to("/dev/full")
            return path.open("w", encoding="utf-8")

        inside.file_of_trace(trace, full)
        with pytest.raises(ZeroDivisionError if block_raises else OSError) as caught:
            await within(trace, is_async, body)
    if not block_raises:
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == errno.ENOSPC
    assert not path.is_symlink(), "what is half written goes away"
    assert ("was not written" in caplog.text) is block_raises


async def test_cancelled_while_entering(models: Models, tmp_path: Path) -> None:
    async with InferSession(0, models.identity(SMALL)) as session:
        path = tmp_path / "out.json"
        trace = session.trace(path)
        may_create = threading.Event()

        def late(create: Callable[[], Any]) -> Any:
            may_create.wait()
            return create()

        inside.file_of_trace(trace, late)

        async def body() -> None:
            async with trace:
                await asyncio.Event().wait()

        task = asyncio.ensure_future(body())
        await asyncio.sleep(0)
        threads = [thread for thread in threading.enumerate() if thread.name == "aioais-trace"]
        assert threads
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        may_create.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert not path.exists(), "a file without a writer goes away"
        assert inside.recordings(session) == 0


# --- the format, from times as a device may give them ---------------------------------------------


def made_up(number: int, *stages: float) -> RequestTiming:
    """A request from the begins and ends of its stages."""
    queue, h2d, execute, d2h, delivery = (Span(a, b) for a, b in zip(stages[::2], stages[1::2], strict=True))
    return RequestTiming(number, "done", True, "static", ((1,),), queue, h2d, execute, d2h, delivery)


def test_copies_that_queued_for_their_engine_do_not_overlap() -> None:
    """A mark is passed when its stream is there; the copy behind it may wait for the engine."""
    timings = [
        made_up(1, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5),
        made_up(2, 0, 1, 1, 3, 3, 4, 4, 5, 5, 6),
        made_up(3, 0, 1, 1, 4, 4, 5, 5, 6, 6, 7),
    ]
    copies = [e for e in trace_events(timings, "x") if e["ph"] == "X" and e["name"].startswith("H2D")]
    assert [(e["ts"], e["dur"]) for e in copies] == [
        (1e6, 1e6 - 0.001),
        (2e6, 1e6 - 0.001),
        (3e6, 1e6 - 0.001),
    ]
    assert [e["args"]["waited_us"] for e in copies] == [0, 1e6, 2e6]


def test_times_begin_at_zero() -> None:
    events = list(trace_events([made_up(1, 50, 51, 51, 52, 52, 53, 53, 54, 54, 55)], "x"))
    assert min(event["ts"] for event in events if "ts" in event) == 0
