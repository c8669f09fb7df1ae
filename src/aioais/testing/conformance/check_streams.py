"""Checks of streams and events."""

from __future__ import annotations

from ..._cann.constants import EventFlag, MemcpyKind
from .bench import EVENT, NULL, Bench, Check, Register, Skip, checks_of

__all__ = ["CHECKS"]

CHECKS: list[Check] = []

check: Register = checks_of("streams", CHECKS)

_NBYTES = 1 << 20


def _traffic(bench: Bench, stream: int, content: bytes) -> int:
    """Queue a copy to the device, and return the device address."""
    host, device = bench.pinned(len(content)), bench.memory(len(content))
    bench.put(host, content)
    bench.copy(device, host, len(content), MemcpyKind.HOST_TO_DEVICE, stream)
    return device


def _there_and_back(bench: Bench, stream: int, content: bytes) -> int:
    """Queue a copy to the device and one back, and return the host address that it comes to."""
    device, target = _traffic(bench, stream, content), bench.pinned(len(content))
    bench.copy(target, device, len(content), MemcpyKind.DEVICE_TO_HOST, stream)
    return target


@check("an idle stream is synchronised at once, and so is the default stream 0")
def synchronize_idle(bench: Bench) -> None:
    """``synchronize_stream`` answers the bare code."""
    stream = bench.stream()
    bench.true("create_stream: got a handle of 0", stream != 0)
    bench.wait(stream)
    bench.wait(0)


@check("a stream is synchronised by a thread that did not queue the work")
def synchronize_elsewhere(bench: Bench) -> None:
    """One thread submits, others wait."""
    stream = bench.stream()
    content = bytes(range(256)) * 16
    target = _there_and_back(bench, stream, content)

    def body() -> bytes:
        bench.ok("set_context", bench.acl.rt.set_context(bench.context))
        bench.wait(stream)
        return bench.get(target, len(content))

    bench.true("the bytes were not there after the wait", bench.in_thread(body) == content)


@check("a stream says whether its work is done, and never too early")
def query(bench: Bench) -> None:
    """``(0, 0)`` when it is done, ``(1, 0)`` before."""
    rt, stream = bench.acl.rt, bench.stream()
    content = b"\x3c" * _NBYTES
    target = _there_and_back(bench, stream, content)
    for _ in range(1_000_000):
        if bench.value("stream_query", rt.stream_query(stream)) == 0:
            bench.true("stream_query: 0 before the bytes were there", bench.get(target, _NBYTES) == content)
            break
    bench.wait(stream)
    bench.same("stream_query of an idle stream", rt.stream_query(stream), (0, 0))


@check("destroying a stream waits for its work, or the work is already done")
def destroy_busy(bench: Bench) -> None:
    """The memory of queued copies is freed after it."""
    rt = bench.acl.rt
    host, device = bench.pinned(_NBYTES), bench.memory(_NBYTES)
    stream = bench.value("create_stream", rt.create_stream())
    bench.copy(device, host, _NBYTES, MemcpyKind.HOST_TO_DEVICE, stream)
    bench.ok("destroy_stream", rt.destroy_stream(stream))


@check("an event is complete once its stream has reached it")
def event(bench: Bench) -> None:
    """``synchronize_event`` waits for what was queued before the record."""
    rt, stream = bench.acl.rt, bench.stream()
    content = b"\x5a" * _NBYTES
    target = _there_and_back(bench, stream, content)
    mark = bench.event()
    bench.ok("record_event", rt.record_event(mark, stream))
    bench.ok("synchronize_event", rt.synchronize_event(mark))
    bench.true("the copy before the event was not done", bench.get(target, _NBYTES) == content)
    bench.wait(stream)


@check("the time between two events is a float of milliseconds, and not negative")
def elapsed(bench: Bench) -> None:
    """``(float, 0)``; recorded on one stream around a copy."""
    rt, stream = bench.acl.rt, bench.stream()
    start, end = bench.event(), bench.event()
    bench.ok("record_event", rt.record_event(start, stream))
    _traffic(bench, stream, b"\1" * _NBYTES)
    bench.ok("record_event", rt.record_event(end, stream))
    bench.wait(stream)
    time = bench.value("event_elapsed_time", rt.event_elapsed_time(start, end))
    bench.true(f"event_elapsed_time: got {time!r}, expected a float", isinstance(time, float) and 0 <= time < 60_000)


@check("the time to an event that was never recorded is refused")
def elapsed_unrecorded(bench: Bench) -> None:
    """107006 where the release tells it apart."""
    rt, stream = bench.acl.rt, bench.stream()
    start, end = bench.event(), bench.event()
    bench.ok("record_event", rt.record_event(start, stream))
    bench.wait(stream)
    answer = rt.event_elapsed_time(start, end)
    bench.true(
        f"event_elapsed_time: got {answer!r}, expected two values", isinstance(answer, tuple) and len(answer) == 2
    )
    bench.fails("event_elapsed_time", answer[1])


@check("a stream waits for an event of another one")
def wait_event(bench: Bench) -> None:
    """Copies chained over three streams without a wait on the host; argument order: stream, event."""
    rt = bench.acl.rt
    first, second, third = bench.stream(), bench.stream(), bench.stream()
    content = bytes(range(256)) * (_NBYTES // 256)
    device = _traffic(bench, first, content)
    copy, target = bench.memory(_NBYTES), bench.pinned(_NBYTES)
    there, over = bench.event(), bench.event()
    bench.ok("record_event", rt.record_event(there, first))
    bench.ok("stream_wait_event", rt.stream_wait_event(second, there))
    bench.copy(copy, device, _NBYTES, MemcpyKind.DEVICE_TO_DEVICE, second)
    bench.ok("record_event", rt.record_event(over, second))
    bench.ok("stream_wait_event", rt.stream_wait_event(third, over))
    bench.copy(target, copy, _NBYTES, MemcpyKind.DEVICE_TO_HOST, third)
    bench.wait(third)
    bench.true("a stream ran ahead of the event it waits for", bench.get(target, _NBYTES) == content)
    for stream in (first, second):
        bench.wait(stream)


@check("an event is reset after a wait and used again")
def reset_event(bench: Bench) -> None:
    """What older releases need between two rounds."""
    rt = bench.acl.rt
    first, second = bench.stream(), bench.stream()
    mark = bench.event()
    for _ in range(3):
        _traffic(bench, first, b"\2" * 4096)
        bench.ok("record_event", rt.record_event(mark, first))
        bench.ok("stream_wait_event", rt.stream_wait_event(second, mark))
        bench.ok("reset_event", rt.reset_event(mark, second))
        bench.wait(second)
        bench.wait(first)


@check("an event of create_event_ex_with_flag is recorded again without a reset, with a new time")
def event_again(bench: Bench) -> None:
    """The engine uses these where they exist."""
    rt = bench.acl.rt
    if not hasattr(rt, "create_event_ex_with_flag"):
        raise Skip("the release has no create_event_ex_with_flag")
    stream = bench.stream()
    start, end = bench.event(again=True), bench.event(again=True)
    times = []
    bench.ok("record_event", rt.record_event(start, stream))
    for _ in range(3):
        _traffic(bench, stream, b"\3" * _NBYTES)
        bench.ok("record_event", rt.record_event(end, stream))
        bench.wait(stream)
        times.append(bench.value("event_elapsed_time", rt.event_elapsed_time(start, end)))
    bench.true(f"the times do not grow: {times}", times == sorted(times))


@check("an event with a time only, without SYNC, is recorded and waited for by the host")
def time_only(bench: Bench) -> None:
    """The marks beside the waits where events must be reset."""
    rt, stream = bench.acl.rt, bench.stream()
    mark = bench.value("create_event_with_flag", rt.create_event_with_flag(int(EventFlag.TIME_LINE)))
    bench.later("destroy_event", lambda: rt.destroy_event(mark))
    bench.ok("record_event", rt.record_event(mark, stream))
    bench.wait(stream)
    bench.ok("synchronize_event", rt.synchronize_event(mark))


@check("many streams and events live at once")
def many(bench: Bench) -> None:
    """One stream and up to seven events for each request in flight."""
    streams = [bench.stream() for _ in range(16)]
    events = [bench.event() for _ in range(64)]
    bench.same("handles that are used twice", len({*streams}) + len({*events}), len(streams) + len(events))
    bench.true(f"flags {EVENT}: a handle of 0", 0 not in streams and 0 not in events)


@check("null events are refused")
def null_event(bench: Bench) -> None:
    """With 100000, or 107000 from the layer below."""
    rt, stream = bench.acl.rt, bench.stream()
    bench.one_of("record_event(0, stream)", rt.record_event(0, stream), *NULL)
    bench.one_of("destroy_event(0)", rt.destroy_event(0), *NULL)
