"""Events: places in streams that others wait for, query and time.

Facts: pyACL reference, Huawei's event pages: flags, reversed meanings of the two queries,
time stamps that must have been recorded (107006) in the right order (107007).
"""

from __future__ import annotations

from time import perf_counter

from .._acl.codes import AclCode
from .._acl.constants import EventFlag
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
    wake,
)
from .synchronize import deadline_of
from .timeline import FOREVER, sleep_until

__all__ = ["Event", "events"]

_LIMIT = 65536

# plain ints: operators of an IntFlag are slow, and these run in every call
_SYNC = int(EventFlag.SYNC)
_PROGRESS = int(EventFlag.CAPTURE_STREAM_PROGRESS)
_TIME_LINE = int(EventFlag.TIME_LINE)


class Event:
    """An event; ``record`` is its latest recording.

    Parameters
    ----------
    device : Device
        Device of the context that made it.
    flags : int
        What it can do, see ``EventFlag``.
    extended : bool
        Made by ``create_event_ex_with_flag``.
    sticky : bool
        Made by ``create_event_with_flag``: set until it is reset, however often it is recorded.
    """

    __slots__ = ("device", "flags", "handle", "is_extended", "is_recorded_again", "is_sticky", "record", "waited")

    def __init__(self, device: Device, flags: int, extended: bool, sticky: bool) -> None:
        self.device: Device = device
        self.flags: int = flags
        self.is_extended: bool = extended
        self.is_sticky: bool = sticky
        self.is_recorded_again: bool = False
        """Sticky, and recorded again without a reset."""
        self.record: Record | None = None
        self.waited: tuple[Stream, Record] | None = None
        """Last ``stream_wait_event``: the waiting stream and the mark behind the wait."""
        self.handle: int = next(handles)
        events[self.handle] = self


events: dict[int, Event] = table("events")


def find(handle: int) -> Event | None:
    """Give an event by handle; ``None`` and a message for 0.

    Raises
    ------
    EmulatorError
        The handle is stale or invented.
    """
    event = events.get(handle)
    if event is None:
        if handle != 0:
            raise EmulatorError(f"{handle:#x} is no event: destroyed, lost by a device reset, or never created")
        report(AclCode.INVALID_PARAM, "event 0")
    return event


def _run_record(stream: Stream, operation: Operation, deadline: float) -> bool:
    record: Record = operation[1]
    if stream.device.is_virtual:
        if record.submitted > stream.tail:
            stream.tail = record.submitted
        record.time = stream.tail
    else:
        record.time = stream.tail = perf_counter()
    record.done = True
    if stream.sleepers:
        wake(stream)
    return True


def _run_wait(stream: Stream, operation: Operation, deadline: float) -> bool:
    record: Record = operation[1]
    if stream.is_halted:
        return True
    if not record.done and not run(record.stream, record, deadline):
        return False
    if record.time > stream.tail:
        stream.tail = record.time
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
    """Make an event that can do everything."""
    return _create(_SYNC | _TIME_LINE)


@entry("acl.rt.create_event_with_flag", "I", answer=VALUE)
def create_event_with_flag(flag: int) -> tuple[int, int]:
    """Make an event with chosen abilities; where streams wait for it, it must be reset between two recordings."""
    return _checked_create(flag, sticky=True)


@entry("acl.rt.create_event_ex_with_flag", "I", answer=VALUE)
def create_event_ex_with_flag(flag: int) -> tuple[int, int]:
    """Make an event with chosen abilities that is never reset."""
    return _checked_create(flag, extended=True)


def _checked_create(flag: int, extended: bool = False, sticky: bool = False) -> tuple[int, int]:
    if flag == 0 or flag & ~(_SYNC | _PROGRESS | _TIME_LINE):
        return 0, report(AclCode.RT_PARAM_INVALID, f"event flag {flag:#x}: bits 1, 2 and 8 only, at least one")
    return _create(flag, extended, sticky)


@entry("acl.rt.destroy_event", "k")
def destroy_event(handle: int) -> int:
    """Destroy an event; recordings that are queued stay valid."""
    if find(handle) is None:
        return AclCode.INVALID_PARAM
    del events[handle]
    return 0


@entry("acl.rt.record_event", "kk", hot=True)
def record_event(handle: int, stream_handle: int) -> int:
    """Mark the present end of a stream."""
    context = local.context
    if (context is None or not context.is_alive) and (context := current()) is None:
        return AclCode.RT_CONTEXT_NULL
    event = events.get(handle) or find(handle)
    if event is None:
        return AclCode.INVALID_PARAM
    stream = streams.get(stream_handle) or resolve(stream_handle, context)
    if stream.context is not context:
        return foreign("record_event")
    record = Record(stream, perf_counter() if stream.device.is_virtual else 0.0)
    if event.is_sticky and event.record is not None:
        event.is_recorded_again = True
    event.record = record
    stream.queue.append((_run_record, record))
    return 0


@entry("acl.rt.reset_event", "kk")
def reset_event(handle: int, stream_handle: int) -> int:
    """Make an event as if it had not been recorded."""
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    event = find(handle)
    if event is None:
        return AclCode.INVALID_PARAM
    if event.is_extended or not event.flags & _SYNC:
        return report(AclCode.RT_PARAM_INVALID, "reset_event needs an event of create_event with the flag SYNC")
    stream = resolve(stream_handle, context)
    if stream.context is not context:
        return foreign("reset_event")
    event.record = None
    event.is_recorded_again = False
    return 0


@entry("acl.rt.stream_wait_event", "kk", hot=True)
def stream_wait_event(stream_handle: int, handle: int) -> int:
    """Let a stream wait for the latest recording of an event; without one there is nothing to wait for."""
    context = local.context
    if (context is None or not context.is_alive) and (context := current()) is None:
        return AclCode.RT_CONTEXT_NULL
    event = events.get(handle) or find(handle)
    if event is None:
        return AclCode.INVALID_PARAM
    stream = streams.get(stream_handle) or resolve(stream_handle, context)
    if stream.context is not context:
        return foreign("stream_wait_event")
    if not event.flags & _SYNC:
        return report(AclCode.RT_PARAM_INVALID, "stream_wait_event needs an event with the flag SYNC")
    if event.is_recorded_again:
        raise EmulatorError(
            f"event {handle:#x} of create_event_with_flag was recorded again without a reset, so on a device this wait "
            "may pass at once; call reset_event on the stream that waited, or use create_event_ex_with_flag"
        )
    record = event.record
    if record is not None:
        stream.queue.append((_run_wait, record))
        note_wait(stream, record)
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
    if not record.done and not run(record.stream, record, deadline):
        return report(AclCode.RT_EVENT_SYNC_TIMEOUT, f"the event is not reached after {timeout} ms")
    if record.stream.device.is_virtual:
        if record.time > deadline:
            sleep_until(deadline, state.settings.gil == "hold")
            return report(AclCode.RT_EVENT_SYNC_TIMEOUT, f"the event is not reached after {timeout} ms")
        sleep_until(record.time, state.settings.gil == "hold")
    note_finished(record)
    # A failure is the stream's: the published runtime tells it to whoever synchronises the stream (or the
    # device), never to whoever waits for an event behind it.
    return 0


@entry("acl.rt.synchronize_event", "k", hot=True)
def synchronize_event(handle: int) -> int:
    """Wait until the latest recording of an event is reached."""
    return _synchronize(handle, -1)


@entry("acl.rt.synchronize_event_with_timeout", "ki", hot=True)
def synchronize_event_with_timeout(handle: int, timeout: int) -> int:
    """Wait for an event for some milliseconds; 507047 when that was not enough."""
    if timeout < -1:
        return report(AclCode.RT_PARAM_INVALID, f"timeout of {timeout}: -1 or a number of milliseconds")
    return _synchronize(handle, timeout)


def _reached(event: Event) -> bool:
    record = event.record
    if record is None or not (record.done or run(record.stream, record, 0.0)):
        return False
    if record.stream.device.is_virtual and record.time > perf_counter():
        return False
    note_finished(record)
    return True


@entry("acl.rt.query_event", "k", answer=VALUE)
def query_event(handle: int) -> tuple[int, int]:
    """Tell whether an event is reached: 0 complete, 1 not ready."""
    event = find(handle)
    if event is None:
        return 0, AclCode.INVALID_PARAM
    return int(not _reached(event)), 0


@entry("acl.rt.query_event_status", "k", answer=VALUE, hot=True)
def query_event_status(handle: int) -> tuple[int, int]:
    """Tell whether an event is reached, the other way round: 0 not ready, 1 complete."""
    event = find(handle)
    if event is None:
        return 0, AclCode.INVALID_PARAM
    return int(_reached(event)), 0


@entry("acl.rt.query_event_wait_status", "k", answer=VALUE)
def query_event_wait_status(handle: int) -> tuple[int, int]:
    """Tell whether the streams' waits for an event are over: 0 complete, 1 not ready."""
    event = find(handle)
    if event is None:
        return 0, AclCode.INVALID_PARAM
    if not event.flags & _SYNC:
        return 0, report(AclCode.RT_PARAM_INVALID, "query_event_wait_status needs an event with the flag SYNC")
    if event.waited is None:
        return 0, 0
    stream, record = event.waited
    run(stream, None, 0.0)
    waiting = any(op[0] is _run_wait and op[1] is record for op in list(stream.queue))
    return int(waiting or (stream.device.is_virtual and record.time > perf_counter())), 0


@entry("acl.rt.event_elapsed_time", "kk", answer=lambda code: (0.0, code), hot=True)
def event_elapsed_time(start_handle: int, end_handle: int) -> tuple[float, int]:
    """Give the milliseconds between two recordings that are reached."""
    start = events.get(start_handle) or find(start_handle)
    end = events.get(end_handle) or find(end_handle)
    if start is None or end is None:
        return 0.0, AclCode.INVALID_PARAM
    first, last = start.record, end.record
    if first is None or last is None or not first.done or not last.done or not start.flags & end.flags & _TIME_LINE:
        text = "event_elapsed_time needs two events with a time line, recorded and reached"
        return 0.0, report(AclCode.RT_EVENT_TIMESTAMP_INVALID, text)
    milliseconds = (last.time - first.time) * 1e3
    if milliseconds < 0:
        return 0.0, report(AclCode.RT_EVENT_TIMESTAMP_REVERSAL, "event_elapsed_time: the events are reversed")
    return milliseconds, 0


@entry("acl.rt.event_get_timestamp", "k", answer=VALUE)
def event_get_timestamp(handle: int) -> tuple[int, int]:
    """Give the time stamp of a recording that is reached, in microseconds."""
    event = find(handle)
    if event is None:
        return 0, AclCode.INVALID_PARAM
    if event.record is None or not event.record.done or not event.flags & _TIME_LINE:
        return 0, report(AclCode.RT_EVENT_TIMESTAMP_INVALID, "the event has no time stamp yet")
    return int(event.record.time * 1e6), 0


def drop_all(device: Device) -> int:
    """Take the events of a device away; count them."""
    gone = [handle for handle, event in list(events.items()) if event.device is device]
    for handle in gone:
        events.pop(handle, None)
    return len(gone)
