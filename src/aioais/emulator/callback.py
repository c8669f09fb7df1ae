"""Host callbacks: functions that a stream calls in a thread that sits in ``process_report``.

Facts: pyACL reference, Huawei's callback pages: 107011 and 107012 for subscriptions, 107015 for a
stream without one, 507012 when no callback arrives in time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any

from .._cann.codes import AclCode
from ._args import entry
from ._registry import table
from ._state import report
from .context import current
from .ordering import Behind, note_finished
from .stream import Operation, Stream, foreign, resolve, run
from .timeline import FOREVER, sleep_until

__all__ = ["Reporter"]

_POLL = 0.001
"""Seconds between two polls of streams whose work another thread has to run."""


class Call:
    """One queued callback."""

    __slots__ = ("argument", "behind", "function", "is_blocking", "is_done", "is_posted", "stream", "time")

    def __init__(self, function: Callable[[Any], Any], argument: Any, block: bool, stream: Stream) -> None:
        self.stream: Stream = stream
        self.behind: Behind = stream.behind
        """Its position in the stream: everything before it has finished once the host runs the function."""
        self.function: Callable[[Any], Any] = function
        self.argument: Any = argument
        self.is_blocking: bool = block
        self.is_posted: bool = False
        self.is_done: bool = False
        self.time: float = 0.0


class Reporter:
    """A thread that runs callbacks, with the streams it serves."""

    __slots__ = ("calls", "changed", "streams", "thread_id")

    def __init__(self, thread_id: int) -> None:
        self.thread_id: int = thread_id
        self.streams: list[Stream] = []
        self.calls: deque[Call] = deque()
        self.changed: threading.Condition = threading.Condition()

    def notify(self) -> None:
        """Wake the thread, and threads that wait for one of its callbacks."""
        with self.changed:
            self.changed.notify_all()


reporters: dict[int, Reporter] = table()
"""By thread id."""


@entry("acl.rt.subscribe_report", "Kk")
def subscribe_report(thread_id: int, handle: int) -> int:
    """Subscribe a thread to the callbacks of a stream."""
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    stream = resolve(handle, context)
    if stream.reporter is not None:
        return report(AclCode.RT_STREAM_SUBSCRIBE, "subscribe_report: the stream is subscribed already")
    reporter = reporters.get(thread_id)
    if reporter is None:
        reporter = reporters[thread_id] = Reporter(thread_id)
    elif any(other.device is not stream.device for other in reporter.streams):
        return report(AclCode.RT_THREAD_SUBSCRIBE, "subscribe_report: the thread serves another device")
    reporter.streams.append(stream)
    stream.reporter = reporter
    return 0


@entry("acl.rt.unsubscribe_report", "Kk")
def unsubscribe_report(thread_id: int, handle: int) -> int:
    """End a subscription."""
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    stream = resolve(handle, context)
    reporter = reporters.get(thread_id)
    if reporter is None:
        return report(AclCode.RT_THREAD_SUBSCRIBE, "unsubscribe_report: the thread is not subscribed")
    if stream.reporter is not reporter:
        return report(AclCode.RT_STREAM_SUBSCRIBE, "unsubscribe_report: the stream is not that thread's")
    reporter.streams.remove(stream)
    stream.reporter = None
    if not reporter.streams:
        del reporters[thread_id]
        reporter.notify()
    return 0


@entry("acl.rt.launch_callback", "OOik")
def launch_callback(function: Any, argument: Any, block_type: int, handle: int) -> int:
    """Queue ``function(argument)`` on a stream; with block type 1 the stream waits for its end."""
    if not callable(function):
        raise TypeError("parameter must be callable")
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    if block_type not in (0, 1):
        return report(AclCode.INVALID_PARAM, f"launch_callback: block type {block_type}")
    stream = resolve(handle, context)
    if stream.context is not context:
        return foreign("launch_callback")
    if stream.reporter is None:
        return report(AclCode.RT_STREAM_NO_CB_REG, "launch_callback: subscribe_report must come first")
    stream.blocking += block_type
    call = Call(function, argument, block_type == 1, stream)
    stream.queue.append((_run_call, call, stream.reporter))
    stream.reporter.notify()
    return 0


def _run_call(stream: Stream, operation: Operation, deadline: float) -> bool:
    call: Call = operation[1]
    reporter: Reporter = operation[2]
    if stream.is_halted:
        stream.blocking -= call.is_blocking
        return True
    if not call.is_posted:
        call.is_posted = True
        call.time = stream.tail
        reporter.calls.append(call)
        reporter.notify()
    if not call.is_blocking:
        return True
    with reporter.changed:
        if not call.is_done and (deadline == 0.0 or threading.get_ident() == reporter.thread_id):
            return False
        timeout = None if deadline == FOREVER else max(0.0, deadline - perf_counter())
        if not reporter.changed.wait_for(lambda: call.is_done, timeout):
            return False
    stream.blocking -= 1
    stream.tail = max(stream.tail, perf_counter())
    return True


@entry("acl.rt.process_report", "i")
def process_report(timeout: int) -> int:
    """Wait for due callbacks of this thread's streams and run them here."""
    if timeout == 0 or timeout < -1:
        return report(AclCode.INVALID_PARAM, f"process_report({timeout}): -1 or more than 0")
    reporter = reporters.get(threading.get_ident())
    if reporter is None:
        return report(AclCode.RT_THREAD_SUBSCRIBE, "process_report: this thread is not subscribed")
    deadline = FOREVER if timeout == -1 else perf_counter() + timeout * 1e-3
    while True:
        for stream in list(reporter.streams):
            run(stream, None, 0.0)
        if reporter.calls:
            break
        left = deadline - perf_counter()
        if left <= 0:
            return report(AclCode.RT_REPORT_TIMEOUT, f"no callback within {timeout} ms")
        if not reporter.streams:
            return report(AclCode.RT_THREAD_SUBSCRIBE, "process_report: the last subscription ended")
        with reporter.changed:
            if not reporter.calls:
                waiting = any(stream.queue for stream in reporter.streams)
                pause = min(left, _POLL) if waiting else left
                reporter.changed.wait(None if pause == FOREVER else pause)
    _deliver(reporter)
    return 0


def _deliver(reporter: Reporter) -> None:
    """Run what is due; an exception leaves as a SystemError, as from the C extension."""
    while reporter.calls:
        call = reporter.calls.popleft()
        sleep_until(call.time)
        note_finished(call.stream, call.behind)
        try:
            call.function(call.argument)
        except BaseException as exc:  # the C extension does not handle it either
            raise SystemError("acl.rt.process_report returned a result with an exception set") from exc
        finally:
            call.is_done = True
            reporter.notify()
