"""Traces for Perfetto and Chrome: what each engine did, and the way of each request over them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from ._bridge.offload import run_in_thread
from .timing import Recording, RequestTiming, Span

__all__ = ["Trace", "trace_events"]

_log = logging.getLogger("aioais")

_TRACKS: Final = ("queue", "H2D", "execute", "D2H", "delivery")
_ENGINES: Final = ("H2D", "execute", "D2H")
_AT_ONCE: Final = 50
"""Events encoded in one call: fast, and the GIL is free again after a millisecond."""
_FLOW: Final = {"name": "request", "cat": "flow"}


class Trace:
    """A trace file of what happens inside a ``with`` or ``async with`` block; made by ``InferSession.trace``.

    Both give the :class:`Recording`. The file is made at the start, so that a wrong path shows then, and
    written at the end, also when the block raises.

    Parameters
    ----------
    path
        The file, which must not exist yet.
    recording
        What collects the requests.
    title
        Name of the process in the viewer.
    """

    def __init__(self, path: str, recording: Recording, title: str) -> None:
        self._path = path
        self._recording = recording
        self._title = title
        self._file: TextIOWrapper | None = None

    def __enter__(self) -> Recording:
        return self._begin(self._create())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._recording.__exit__(kind, error, trace)
        self._write(error)

    async def __aenter__(self) -> Recording:
        return self._begin(await run_in_thread("aioais-trace", self._create, _discard))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._recording.__exit__(kind, error, trace)
        await run_in_thread("aioais-trace", lambda: self._write(error))

    def _create(self) -> TextIOWrapper:
        try:
            return open(self._path, "x", encoding="utf-8")
        except OSError as exc:
            what = f"{exc.strerror}: a trace goes to a new file in a folder that exists; choose another path"
            raise OSError(exc.errno, what, self._path) from exc  # of the same subclass, by its number

    def _begin(self, file: TextIOWrapper) -> Recording:
        try:
            recording = self._recording.__enter__()
        except BaseException:
            _discard(file)
            raise
        self._file = file
        return recording

    def _write(self, error: BaseException | None) -> None:
        file, self._file = self._file, None
        assert file is not None
        try:
            with file:
                _dump(file, self._recording, self._title)
        except OSError:
            _discard(file)  # half a trace is no JSON
            if error is None:
                raise
            _log.exception("the trace %s was not written", self._path)  # what ended the block is the one to raise


def trace_events(timings: Iterable[RequestTiming], title: str) -> Iterator[dict[str, Any]]:
    """Give the events of a trace in the Trace Event Format, times in microseconds since the first submission.

    Engines do one thing at a time, so they are tracks of complete slices (``X``) that never overlap: a copy
    that was queued behind another one is drawn from where that ended. Many requests wait and are delivered
    at once, which slices of one track cannot show, so these are asynchronous (``b``, ``e``). Arrows join the
    five: a flow (``s``, ``t``, ``f``) over the engines, ``bind_id`` at both ends, as only that binds to
    asynchronous slices.
    """
    timings = list(timings)
    pid = os.getpid()
    yield {"ph": "M", "pid": pid, "tid": 0, "name": "process_name", "args": {"name": title}}
    for tid, track in enumerate(_TRACKS):
        yield {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": track}}
        yield {"ph": "M", "pid": pid, "tid": tid, "name": "thread_sort_index", "args": {"sort_index": tid}}
    if not timings:
        return
    zero = min(timing.started for timing in timings)
    for timing in timings:
        for name, span in (("queue", timing.queue), ("delivery", timing.delivery)):
            yield from _waiting(name, pid, timing, span, zero)
    for name in _ENGINES:
        yield from _engine(name, pid, timings, zero)


def _waiting(name: str, pid: int, timing: RequestTiming, span: Span, zero: float) -> Iterator[dict[str, Any]]:
    begin, end = _nanoseconds(span, zero)
    event = {"name": name, "cat": name, "id": timing.number, "pid": pid, "tid": _TRACKS.index(name)}
    is_first = name == "queue"
    arrow: dict[str, Any] = {}
    if timing.is_measured:
        arrow = {"bind_id": _bind_id(timing, is_first), "flow_out" if is_first else "flow_in": True}
    yield {"ph": "b", "ts": begin / 1e3, **event, **arrow, "args": _args(timing)}
    yield {"ph": "e", "ts": end / 1e3, **event}


def _engine(name: str, pid: int, timings: list[RequestTiming], zero: float) -> Iterator[dict[str, Any]]:
    tid = _TRACKS.index(name)
    jobs = [(*_nanoseconds(getattr(timing, name.lower()), zero), timing) for timing in timings if timing.is_measured]
    jobs.sort(key=lambda job: job[1])
    free = -1 << 62
    for submitted, end, timing in jobs:
        begin = min(max(submitted, free), end)
        free = end
        event = {"pid": pid, "tid": tid}
        args = {**_args(timing), "waited_us": (begin - submitted) / 1e3}
        arrow: dict[str, Any] = {}
        if name != "execute":
            is_first = name == "H2D"
            arrow = {"bind_id": _bind_id(timing, is_first), "flow_in" if is_first else "flow_out": True}
        # A nanosecond short: begin plus duration must not pass the next begin by rounding.
        times = {"ts": begin / 1e3, "dur": max(0, end - begin - 1) / 1e3}
        yield {"ph": "X", "name": f"{name} {timing.number}", "cat": "engine", **times, **event, **arrow, "args": args}
        # In the middle, where it can belong to no neighbour.
        flow = {**_FLOW, "id": timing.number, "ts": (begin + end) // 2 / 1e3, **event}
        if name == "H2D":
            yield {"ph": "s", **flow}
        elif name == "execute":
            yield {"ph": "t", **flow}
        else:
            yield {"ph": "f", "bp": "e", **flow}


def _bind_id(timing: RequestTiming, is_first: bool) -> str:
    return f"{timing.number}.{'in' if is_first else 'out'}"


def _args(timing: RequestTiming) -> dict[str, Any]:
    return {"request": timing.number, "outcome": timing.outcome, "mode": timing.mode, "shapes": timing.shapes}


def _nanoseconds(span: Span, zero: float) -> tuple[int, int]:
    """Whole numbers, so that neighbours do not overlap by rounding."""
    return round((span.begin - zero) * 1e9), round((span.end - zero) * 1e9)


def _dump(file: TextIOWrapper, recording: Recording, title: str) -> None:
    numbers = {"requests": len(recording), "dropped": recording.dropped, "unfinished": recording.unfinished}
    file.write(f'{{"displayTimeUnit":"ms","otherData":{json.dumps(numbers)},"traceEvents":[')
    encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
    events = trace_events(recording, title)
    separator = "\n"
    while some := list(islice(events, _AT_ONCE)):
        file.write(separator + encode(some)[1:-1])
        separator = ",\n"
    file.write("\n]}\n")


def _discard(file: TextIOWrapper) -> None:
    """Take a file away that has no trace in it."""
    file.close()
    Path(file.name).unlink(missing_ok=True)
