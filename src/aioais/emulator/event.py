"""Events: positions in streams, to wait for, to query and to measure between.

Facts: pyACL reference, Huawei's event pages: flags, reversed meanings of the two queries,
time stamps that must have been recorded (107006) in the right order (107007).
"""

from __future__ import annotations

from time import perf_counter

from .._cann.codes import AclCode
from .._cann.constants import EventFlag
from ._args import VALUE, entry
from ._registry import handles, table
from ._state import report, state
from .context import current, local
from .device import Device
from .errors import EmulatorError
from .ordering import note_finished, note_wait
from .stream import (
    Operation,
    Record,
    Stream,
    foreign,
    resolve,
    run,
    streams,
)
from .synchronize import deadline_of
from .timeline import FOREVER, sleep_until

__all__ = ["Event", "events", "run_wait"]

_LIMIT = 65536

# plain ints: operators of an IntFlag are slow, and these run in every call
_SYNC = int(EventFlag.SYNC)
_PROGRESS = int(EventFlag.CAPTURE_STREAM_PROGRESS)
_TIME_LINE = int(EventFlag.TIME_LINE)


class Event:
    """An event; ``record`` is its latest record.

    Parameters
    ----------
    device
        Device of the context that made it.
    flags
        What it can do, see ``EventFlag``.
    extended
        Made by ``create_event_ex_with_flag``.
    sticky
        Made by ``create_event_with_flag``: set until it is reset, however often it is recorded.
    """

    __slots__ = (
        "device",
        "flags",
        "handle",
        "has_time",
        "is_extended",
        "is_recorded_again",
        "is_sticky",
        "is_waitable",
        "record",
        "waited",
    )

    def __init__(self, device: Device, flags: int, extended: bool, sticky: bool) -> None:
        self.device: Device = device
        self.flags: int = flags
        self.is_waitable: bool = bool(flags & _SYNC)
        self.has_time: bool = bool(flags & _TIME_LINE)
        self.is_extended: bool = extended
        self.is_sticky: bool = sticky
        self.is_recorded_again: bool = False
        """Sticky, and recorded again without a reset: a wait for it may pass at once on a device."""
        self.record: Record | None = None
        self.waited: tuple[Stream, Record] | None = None
        """The last ``stream_wait_event``: the waiting stream and the record it waits for."""
        self.handle: int = next(handles)
        events[self.handle] = self


events: dict[int, Event] = table("events")


def find(handle: int) -> Event | None:
    """Return an event by handle; ``None`` and a message for 0.

    Raises
    ------
    EmulatorError
        The handle is stale or was never valid.
    """
    event = events.get(handle)
    if event is None:
        if handle != 0:
            raise EmulatorError(f"{handle:#x} is not an event: destroyed, lost by a device reset, or never created")
        report(AclCode.INVALID_PARAM, "event 0")
    return event


def run_wait(stream: Stream, operation: Operation, deadline: float) -> bool:
    """Bring the stream of a record up to it; False when it is blocked."""
    record: Record = operation[1]
    if stream.is_halted:
        return True
    if not record.is_done and not run(record.stream, record, deadline):
        return False
    if record.time > stream.tail:
        stream.tail = record.time
    stream.since = perf_counter()  # what ran before it was the work of the other stream
    return True


def _create(flags: int, extended: bool = False, sticky: bool = False) -> tuple[int, int]:
    context = current()
    if context is None:
        return 0, AclCode.RT_CONTEXT_NULL
    if len(events) >= _LIMIT:
        return 0, report(AclCode.RT_NO_EVENT_RESOURCE, f"there are {_LIMIT} events already")
    return Event(context.device, flags, extended, sticky).handle, 0


@entry("acl.rt.create_event", answer=VALUE)
def create_event() -> tuple[int, int]:
    """Create an event with all abilities."""
    return _create(_SYNC | _TIME_LINE)


@entry("acl.rt.create_event_with_flag", "I", answer=VALUE)
def create_event_with_flag(flag: int) -> tuple[int, int]:
    """Create an event with chosen abilities; where streams wait for it, it must be reset between two records."""
    return _checked_create(flag, sticky=True)


@entry("acl.rt.create_event_ex_with_flag", "I", answer=VALUE)
def create_event_ex_with_flag(flag: int) -> tuple[int, int]:
    """Create an event with chosen abilities that is never reset."""
    return _checked_create(flag, extended=True)


def _checked_create(flag: int, extended: bool = False, sticky: bool = False) -> tuple[int, int]:
    if flag == 0 or flag & ~(_SYNC | _PROGRESS | _TIME_LINE):
        return 0, report(AclCode.RT_PARAM_INVALID, f"event flag {flag:#x}: bits 1, 2 and 8 only, at least one")
    return _create(flag, extended, sticky)


@entry("acl.rt.destroy_event", "k")
def destroy_event(handle: int) -> int:
    """Destroy an event; queued records stay valid."""
    if find(handle) is None:
        return AclCode.INVALID_PARAM
    del events[handle]
    return 0


@entry("acl.rt.record_event", "kk", hot=True)
def record_event(handle: int, stream_handle: int) -> int:
    """Record an event at the current end of a stream."""
    context = local.context
    if (context is None or not context.is_alive) and (context := current()) is None:
        return AclCode.RT_CONTEXT_NULL
    event = events.get(handle) or find(handle)
    if event is None:
        return AclCode.INVALID_PARAM
    stream = streams.get(stream_handle) or resolve(stream_handle, context)
    if stream.context is not context:
        return foreign("record_event")
    record = Record(stream, perf_counter())
    if event.is_sticky and event.record is not None:
        event.is_recorded_again = True
    event.record = record
    stream.queue.append(record)
    return 0


@entry("acl.rt.reset_event", "kk")
def reset_event(handle: int, stream_handle: int) -> int:
    """Reset an event to not recorded."""
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    event = find(handle)
    if event is None:
        return AclCode.INVALID_PARAM
    if event.is_extended or not event.is_waitable:
        return report(AclCode.RT_PARAM_INVALID, "reset_event needs an event of create_event with the flag SYNC")
    stream = resolve(stream_handle, context)
    if stream.context is not context:
        return foreign("reset_event")
    event.record = None
    event.is_recorded_again = False
    return 0


@entry("acl.rt.stream_wait_event", "kk", hot=True)
def stream_wait_event(stream_handle: int, handle: int) -> int:
    """Make a stream wait for the latest record of an event; without one it waits for nothing."""
    context = local.context
    if (context is None or not context.is_alive) and (context := current()) is None:
        return AclCode.RT_CONTEXT_NULL
    event = events.get(handle) or find(handle)
    if event is None:
        return AclCode.INVALID_PARAM
    stream = streams.get(stream_handle) or resolve(stream_handle, context)
    if stream.context is not context:
        return foreign("stream_wait_event")
    if not event.is_waitable:
        return report(AclCode.RT_PARAM_INVALID, "stream_wait_event needs an event with the flag SYNC")
    if event.is_recorded_again:
        raise EmulatorError(
            f"event {handle:#x} of create_event_with_flag was recorded again without a reset, so on a device this wait "
            "may pass at once; call reset_event on the stream that waited, or use create_event_ex_with_flag"
        )
    record = event.record
    if record is not None:
        stream.queue.append((run_wait, record))
        note_wait(stream, record.behind)
        event.waited = (stream, record)
    return 0


def _synchronize(handle: int, timeout: int) -> int:
    context = local.context
    if (context is None or not context.is_alive) and current() is None:
        return AclCode.RT_CONTEXT_NULL
    event = events.get(handle) or find(handle)
    if event is None:
        return AclCode.INVALID_PARAM
    record = event.record
    if record is None:
        return 0
    deadline = FOREVER if timeout == -1 else deadline_of(timeout)
    if not record.is_done and not run(record.stream, record, deadline):
        return report(AclCode.RT_EVENT_SYNC_TIMEOUT, f"the event is not reached after {timeout} ms")
    if record.stream.device.is_virtual:
        if record.time > deadline:
            sleep_until(deadline, state.settings.gil == "hold")
            return report(AclCode.RT_EVENT_SYNC_TIMEOUT, f"the event is not reached after {timeout} ms")
        sleep_until(record.time, state.settings.gil == "hold")
    note_finished(record.stream, record.behind)
    # A failure belongs to the stream: the published runtime reports it when the stream or the device is
    # synchronised, never when an event behind it is.
    return 0


@entry("acl.rt.synchronize_event", "k", hot=True)
def synchronize_event(handle: int) -> int:
    """Wait until the latest record of an event is reached."""
    return _synchronize(handle, -1)


@entry("acl.rt.synchronize_event_with_timeout", "ki", hot=True)
def synchronize_event_with_timeout(handle: int, timeout: int) -> int:
    """Wait for an event for some milliseconds; 507047 when that was not enough."""
    if timeout < -1:
        return report(AclCode.RT_PARAM_INVALID, f"timeout of {timeout}: -1 or a number of milliseconds")
    return _synchronize(handle, timeout)


def _reached(event: Event) -> bool:
    record = event.record
    if record is None or not (record.is_done or run(record.stream, record, 0.0)):
        return False
    if record.stream.device.is_virtual and record.time > perf_counter():
        return False
    note_finished(record.stream, record.behind)
    return True


@entry("acl.rt.query_event", "k", answer=VALUE)
def query_event(handle: int) -> tuple[int, int]:
    """Return whether an event is reached: 0 complete, 1 not ready."""
    event = find(handle)
    if event is None:
        return 0, AclCode.INVALID_PARAM
    return int(not _reached(event)), 0


@entry("acl.rt.query_event_status", "k", answer=VALUE, hot=True)
def query_event_status(handle: int) -> tuple[int, int]:
    """Return whether an event is reached, the other way round: 0 not ready, 1 complete."""
    event = find(handle)
    if event is None:
        return 0, AclCode.INVALID_PARAM
    return int(_reached(event)), 0


@entry("acl.rt.query_event_wait_status", "k", answer=VALUE)
def query_event_wait_status(handle: int) -> tuple[int, int]:
    """Return whether the streams' waits for an event are over: 0 complete, 1 not ready."""
    event = find(handle)
    if event is None:
        return 0, AclCode.INVALID_PARAM
    if not event.is_waitable:
        return 0, report(AclCode.RT_PARAM_INVALID, "query_event_wait_status needs an event with the flag SYNC")
    if event.waited is None:
        return 0, 0
    stream, record = event.waited
    run(stream, None, 0.0)
    waiting = any(type(op) is not Record and op[0] is run_wait and op[1] is record for op in list(stream.queue))
    return int(waiting or (stream.device.is_virtual and record.time > perf_counter())), 0


@entry("acl.rt.event_elapsed_time", "kk", answer=lambda code: (0.0, code), hot=True)
def event_elapsed_time(start_handle: int, end_handle: int) -> tuple[float, int]:
    """Return the milliseconds between two records that are reached."""
    start = events.get(start_handle) or find(start_handle)
    end = events.get(end_handle) or find(end_handle)
    if start is None or end is None:
        return 0.0, AclCode.INVALID_PARAM
    first, last = start.record, end.record
    if first is None or last is None or not first.is_done or not last.is_done or not (start.has_time and end.has_time):
        text = "event_elapsed_time needs two events with a time line, recorded and reached"
        return 0.0, report(AclCode.RT_EVENT_TIMESTAMP_INVALID, text)
    milliseconds = (last.time - first.time) * 1e3
    if milliseconds < 0:
        return 0.0, report(AclCode.RT_EVENT_TIMESTAMP_REVERSAL, "event_elapsed_time: the events are reversed")
    return milliseconds, 0


@entry("acl.rt.event_get_timestamp", "k", answer=VALUE)
def event_get_timestamp(handle: int) -> tuple[int, int]:
    """Return the time stamp of a record that is reached, in microseconds."""
    event = find(handle)
    if event is None:
        return 0, AclCode.INVALID_PARAM
    if event.record is None or not event.record.is_done or not event.has_time:
        return 0, report(AclCode.RT_EVENT_TIMESTAMP_INVALID, "the event has no time stamp yet")
    return int(event.record.time * 1e6), 0


def drop_all(device: Device) -> int:
    """Remove the events of a device; return how many."""
    gone = [handle for handle, event in list(events.items()) if event.device is device]
    for handle in gone:
        events.pop(handle, None)
    return len(gone)
