"""Traces for Perfetto and Chrome: the work of each engine, and the path of each request through them."""

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
"""Events encoded in one call: enough to be fast, few enough to release the GIL after a millisecond."""
_FLOW: Final = {"name": "request", "cat": "flow"}


class Trace:
    """Writes the requests of a ``with`` or ``async with`` block to a file; made by ``InferSession.trace``.

    The value of the block is the :class:`Recording`. The file is created on entry, so that a wrong path raises at
    once, and written on exit, also if the block raises.

    Parameters
    ----------
    path
        The file, which must not exist.
    recording
        Collects the requests.
    title
        Name of the process in the viewer.
    overwrite
        Replace a file that exists, when the trace is complete.
    """

    def __init__(self, path: str, recording: Recording, title: str, overwrite: bool = False) -> None:
        self._path = path
        self._overwrite = bool(overwrite)
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
            if self._overwrite and Path(self._path).is_file():
                return open(f"{self._path}.{os.getpid()}.{id(self):x}.part", "x", encoding="utf-8")
            return open(self._path, "x", encoding="utf-8")
        except OSError as exc:
            what = f"{exc.strerror}; expected the path of a new file in an existing folder: choose another path"
            if isinstance(exc, FileExistsError) and Path(self._path).is_file():
                what = f"{what}, or give overwrite=True"
            raise OSError(exc.errno, what, self._path) from exc  # the number selects the same subclass

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
            if file.name != self._path:
                os.replace(file.name, self._path)
        except OSError:
            _discard(file)  # an incomplete trace is not valid JSON
            if error is None:
                raise
            _log.exception("the trace %s was not written", self._path)  # the block's own error is raised


def trace_events(timings: Iterable[RequestTiming], title: str) -> Iterator[dict[str, Any]]:
    """Return the events of a trace in the Trace Event Format, times in microseconds since the first submission.

    An engine does one thing at a time, so its track has complete slices (``X``) that never overlap: a copy that was
    queued behind another is drawn from the end of that one. Many requests wait or are delivered at the same time,
    which one track of slices cannot show, so these are asynchronous events (``b``, ``e``). Arrows join the five: a
    flow (``s``, ``t``, ``f``) over the engines, and ``bind_id`` at both ends, as flows cannot bind to asynchronous
    events.
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
        # A nanosecond less, so that rounding does not move the end past the next begin.
        times = {"ts": begin / 1e3, "dur": max(0, end - begin - 1) / 1e3}
        yield {"ph": "X", "name": f"{name} {timing.number}", "cat": "engine", **times, **event, **arrow, "args": args}
        # In the middle of the slice, so that it cannot bind to a neighbour.
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
    args = {"request": timing.number, "outcome": timing.outcome, "mode": timing.mode, "shapes": timing.shapes}
    return {**args, "riders": timing.riders} if timing.riders else args


def _nanoseconds(span: Span, zero: float) -> tuple[int, int]:
    """Return integers, so that rounding makes no neighbours overlap."""
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
    """Remove a file that has no complete trace in it."""
    file.close()
    Path(file.name).unlink(missing_ok=True)
