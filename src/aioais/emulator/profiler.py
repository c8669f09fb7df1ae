"""The ``profiler`` part of acl.json: a trace of what the engines of each device did.

The trace is a Chrome/Perfetto JSON file in a folder laid out as CANN's profiler does. The file is
complete after every write, because each write ends with the closing brackets and the next one
begins on top of them: a process that dies leaves a valid file without its last events.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import re
import secrets
import string
from datetime import datetime
from threading import Lock
from time import perf_counter
from typing import Any

from .._cann.codes import AclCode
from .config import ConfigError
from .device import Device

__all__ = ["Profiler", "open_profiler"]

_log = logging.getLogger("aioais.emulator")

_ENGINES = ("h2d", "execute", "d2h", "d2d")
_HELD = 256
"""Events kept in memory at most."""
_STALE = 0.5
"""Seconds after which the next event flushes the earlier ones."""
_LETTERS = 16
_FOOTER = b"\n]}\n"


class Profiler:
    """An open trace.

    Parameters
    ----------
    path
        The file, which must not exist yet.
    limit
        Bytes after which events are dropped; 0 = none.

    Raises
    ------
    OSError
        The file cannot be made.
    """

    def __init__(self, path: str, limit: int = 0) -> None:
        self.path = path
        self._limit = limit
        self._lock = Lock()
        self._events: list[str] = []
        self._written = perf_counter()
        self._is_first = True
        self._left_out = 0
        self._lanes: dict[tuple[int, str], list[int]] = {}
        """For each engine the moments at which its tracks are free."""
        self._named: set[tuple[int, str, int]] = set()
        head = '{"displayTimeUnit":"ms","otherData":{"clock":"monotonic","started":%s},"traceEvents":['
        header = (head % json.dumps(datetime.now().astimezone().isoformat())).encode()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        self._end = 0
        try:
            self._write(header)
        except OSError:
            os.close(self._file)
            raise
        atexit.register(self.close)

    def record(
        self,
        device: Device,
        engine: str,
        name: str,
        began: float,
        worked: float,
        end: float,
        count: int = 0,
        stream: int | None = None,
        model: tuple[int, str] | None = None,
    ) -> None:
        """Note one finished job of an engine.

        Parameters
        ----------
        device
            Where.
        engine
            ``h2d``, ``execute``, ``d2h`` or ``d2d``; anything else is ignored.
        name
            What the event is called.
        began
            When the work really began: the event's begin where time is real.
        worked
            Seconds of work, as booked on the virtual timeline.
        end
            When the engine ends the job on the virtual timeline.
        count
            Bytes copied, or rows of the batch.
        stream
            Number of the stream; synchronous calls have none.
        model
            Id and name of the model that ran.
        """
        if engine not in _ENGINES:
            return
        if device.is_virtual:
            unit = getattr(device, engine)
            began = end - max(unit.fixed + unit.per_item * count, worked)
        else:
            end = perf_counter()
        # whole nanoseconds inside the job, so that neighbours never overlap by rounding
        start, stop = math.ceil(began * 1e9), math.floor(end * 1e9)
        stop = max(stop, start)
        args: dict[str, Any] = {}
        if stream is not None:
            args["stream_id"] = stream
        if model is not None:
            args["model_id"], args["model_name"] = model
        else:
            args["bytes"] = count
        with self._lock:
            if self._file < 0:
                return
            lane = 0 if device.is_virtual else self._lane(device.index, engine, start, stop)
            process, track = self._track(device.index, engine, lane)
            length = stop - start
            self._events.append(
                f'{{"ph":"X","name":{json.dumps(name)},"cat":"{engine}","pid":{process},"tid":{track},'
                f'"ts":{start // 1000}.{start % 1000:03d},"dur":{length // 1000}.{length % 1000:03d},'
                f'"args":{json.dumps(args)}}}'
            )
            if len(self._events) >= _HELD or perf_counter() - self._written > _STALE:
                self._flush()

    def _lane(self, device: int, engine: str, start: int, stop: int) -> int:
        """Return the track of a job; in real time two threads may use one engine at once."""
        free = self._lanes.setdefault((device, engine), [])
        for lane, moment in enumerate(free):
            if moment <= start:
                free[lane] = stop
                return lane
        free.append(stop)
        return len(free) - 1

    def _track(self, device: int, engine: str, lane: int) -> tuple[int, int]:
        """Return process and thread of a track, named on first use."""
        process = device + 1
        place = _ENGINES.index(engine)
        track = process * 1000 + place * 100 + lane
        if (device, engine, lane) not in self._named:
            if not any(named[0] == device for named in self._named):
                self._meta("process_name", process, 0, name=f"device {device}")
            self._named.add((device, engine, lane))
            self._meta("thread_name", process, track, name=f"{engine} ({lane + 1})" if lane else engine)
            self._meta("thread_sort_index", process, track, sort_index=track)
        return process, track

    def _meta(self, name: str, process: int, track: int, /, **args: Any) -> None:
        event = {"ph": "M", "name": name, "pid": process, "tid": track, "args": args}
        self._events.append(json.dumps(event, separators=(",", ":")))

    def _write(self, data: bytes) -> None:
        """Write on top of the closing brackets, and close them again."""
        view, place = memoryview(data + _FOOTER), self._end
        while view:
            done = os.pwrite(self._file, view, place)
            view, place = view[done:], place + done
        self._end += len(data)

    def _flush(self) -> None:
        events, self._events = self._events, []
        self._written = perf_counter()
        if not events or self._left_out:
            self._left_out += len(events)
            return
        data = ("\n" if self._is_first else ",\n").encode() + ",\n".join(events).encode()
        if self._limit and self._end + len(data) > self._limit:
            _log.warning("the trace has reached its storage_limit: later events are dropped")
            self._left_out = len(events)
            return
        try:
            self._write(data)
        except OSError as exc:
            _log.warning("the trace cannot be written, later events are dropped: %s", exc.strerror or exc)
            self._left_out = len(events)
            self._repair()
        self._is_first = False

    def _repair(self) -> None:
        """Restore the last complete state of the file."""
        try:
            os.ftruncate(self._file, self._end)
            self._write(b"")
        except OSError:
            pass

    def close(self) -> None:
        """Write pending events; further events are ignored."""
        atexit.unregister(self.close)
        with self._lock:
            if self._file >= 0:
                self._flush()
                os.close(self._file)
                self._file = -1

    def abandon(self) -> None:
        """Forget the file in a forked child: it belongs to the parent, as does the thread that holds the lock."""
        atexit.unregister(self.close)
        os.close(self._file)
        self._file = -1


def _limit(text: str) -> int:
    """Read ``storage_limit``, as in ``200MB``."""
    if not text:
        return 0
    match = re.fullmatch(r"(\d+)MB", text)
    if match is None or int(match[1]) == 0:
        raise ConfigError(AclCode.INVALID_PROFILING_CONFIG, f'"storage_limit" is {text!r}, not a size as in "200MB"')
    return int(match[1]) << 20


def open_profiler(config: dict[str, Any]) -> Profiler | None:
    """Open a trace if the configuration asks for one.

    Parameters
    ----------
    config
        The content of acl.json, checked.

    Returns
    -------
    Profiler or None
        Writes ``<output>/PROF_<n>_<time>_<letters>/mindstudio_profiler_output/msprof_<time>.json``.

    Raises
    ------
    ConfigError
        A value cannot be used, or the folder cannot be written.
    """
    part = config.get("profiler")
    if part is None or part.get("switch") != "on":
        return None
    limit = _limit(part.get("storage_limit", ""))
    output = os.path.abspath(part.get("output") or ".")
    now = datetime.now()
    try:
        os.makedirs(output, exist_ok=True)
        numbers = [int(found[1]) for name in os.listdir(output) if (found := re.match(r"PROF_(\d{6})_", name))]
        stamp = f"{now:%Y%m%d%H%M%S}{now.microsecond // 1000:03d}"
        letters = "".join(secrets.choice(string.ascii_uppercase) for _ in range(_LETTERS))
        folder = os.path.join(output, f"PROF_{max(numbers, default=0) + 1:06d}_{stamp}_{letters}")
        inner = os.path.join(folder, "mindstudio_profiler_output")
        os.mkdir(folder)
        os.mkdir(inner)
        return Profiler(os.path.join(inner, f"msprof_{now:%Y%m%d%H%M%S}.json"), limit)
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        text = f'profiler: the folder {output!r} of "output" cannot be written: {reason}'
        raise ConfigError(AclCode.WRITE_FILE, text) from exc
