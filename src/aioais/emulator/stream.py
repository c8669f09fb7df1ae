"""Streams: queues of work that run, in order, when somebody waits for them.

Submitting appends an operation; the thread that waits (synchronise calls, ``process_report``,
``destroy_stream``, polls) runs what is due. So work never runs before it has to, a forgotten
synchronise always shows, and threads that wait for different streams work in parallel.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from threading import Lock
from time import perf_counter
from typing import Any

from .._acl.codes import AclCode
from ._args import VALUE, entry
from ._registry import handles, table
from ._state import report, state
from .context import Context, contexts, current
from .device import Device
from .errors import EmulatorError
from .ordering import Mark, Ordered, note_finished
from .timeline import FOREVER, sleep_until

__all__ = ["Failure", "Operation", "Record", "Stream", "default_of", "resolve", "run", "streams", "streams_of"]

Operation = tuple[Any, ...]
"""First item: ``runner(stream, operation, deadline) -> bool``, False when it is blocked."""

_LIMIT = 1984
"""Streams of one device (A2/A3); more give 207008."""


class Failure:
    """An operation that failed on the device; reported once, to whoever synchronises its stream first."""

    __slots__ = ("code", "is_reported", "text")

    def __init__(self, code: int, text: str) -> None:
        self.code: int = code
        self.text: str = text
        self.is_reported: bool = False


class Record(Mark):
    """One recording of an event."""

    __slots__ = ("done", "submitted", "time")

    stream: Stream  # pyright: ignore[reportIncompatibleVariableOverride]  # set once; a record is of a stream

    def __init__(self, stream: Stream, submitted: float) -> None:
        super().__init__(stream)
        self.submitted: float = submitted
        self.done: bool = False
        self.time: float = 0.0


class Stream(Ordered):
    """A stream of a context.

    Parameters
    ----------
    context : Context
        Its owner.
    priority : int
        0 is the highest; has no effect here.
    registered : bool
        False for default streams, which have no handle.
    """

    __slots__ = (
        "blocking",
        "context",
        "device",
        "failure",
        "halt_on_failure",
        "handle",
        "index",
        "is_alive",
        "is_halted",
        "lock",
        "priority",
        "queue",
        "reporter",
        "sleepers",
        "stop",
        "tail",
    )

    def __init__(self, context: Context, priority: int, registered: bool = True) -> None:
        super().__init__()
        self.context: Context = context
        self.device: Device = context.device
        self.priority: int = priority
        self.queue: deque[Operation] = deque()
        self.lock: threading.Lock = Lock()
        """Held by the thread that runs this stream's work."""
        self.sleepers: deque[Any] = deque()
        """Locks of threads that wait for a record or for their turn to run."""
        self.tail: float = 0.0
        """When the last operation that has run ended."""
        self.failure: Failure | None = None
        self.reporter: Any = None
        self.blocking: int = 0
        """Queued callbacks that the stream waits for."""
        self.halt_on_failure: bool = False
        self.is_halted: bool = False
        self.stop: Callable[[], None] | None = None
        """Ends the running model early, while one runs."""
        self.is_alive: bool = True
        self.index: int = next(context.device.stream_ids)
        self.handle: int = next(handles) if registered else 0
        if registered:
            streams[self.handle] = self

    def __str__(self) -> str:
        return f"stream {self.handle:#x}" if self.handle else "the default stream of its context"

    def fail(self, code: int, text: str) -> None:
        """Note that an operation failed; the first failure that nobody has seen stays."""
        if self.failure is None or self.failure.is_reported:
            self.failure = Failure(code, text)
        if self.halt_on_failure:
            self.is_halted = True


streams: dict[int, Stream] = table("streams")
"""Those with a handle: default streams have none."""

_default_lock = Lock()


def default_of(context: Context) -> Stream:
    """Give the default stream of a context, which is made when it is first used."""
    with _default_lock:
        found = context.default_stream
        if not isinstance(found, Stream):
            found = context.default_stream = Stream(context, 0, registered=False)
    return found


def run(stream: Stream, record: Record | None, deadline: float) -> bool:
    """Run queued work of a stream in this thread.

    Parameters
    ----------
    stream : Stream
        The stream.
    record : Record or None
        Run up to this place; ``None`` runs everything queued by now.
    deadline : float
        Moment after which to give up; 0 never waits.

    Returns
    -------
    bool
        Whether everything asked for has run.
    """
    lock = stream.lock
    while not lock.acquire(False):
        if deadline == 0.0:
            return False
        # Another thread runs this stream: sleep until it passes a record or stops running.
        sleeper = Lock()
        sleeper.acquire()
        stream.sleepers.append(sleeper)
        if record is not None and record.done:
            return True
        if lock.acquire(False):
            break
        if not sleeper.acquire(True, -1 if deadline == FOREVER else max(0.0, deadline - perf_counter())):
            return False
        if record is not None and record.done:
            return True
    try:
        queue = stream.queue
        left = len(queue)
        while queue:
            if record is None:
                if left == 0:
                    break
                left -= 1
            elif record.done:
                break
            operation = queue[0]
            if not operation[0](stream, operation, deadline):
                return False
            queue.popleft()
        return True
    finally:
        lock.release()
        if stream.sleepers:
            wake(stream)


def wake(stream: Stream) -> None:
    """Let the threads look again that wait for this stream."""
    sleepers = stream.sleepers
    while sleepers:
        try:
            sleepers.popleft().release()
        except (IndexError, RuntimeError):
            return


def resolve(handle: int, context: Context) -> Stream:
    """Give a stream by handle; 0 is the default stream of the current context.

    Raises
    ------
    EmulatorError
        The handle is stale or invented.
    """
    stream = streams.get(handle)
    if stream is None:
        if handle == 0:
            return default_of(context)
        raise EmulatorError(f"{handle:#x} is no stream: destroyed, lost by a device reset, or never created")
    return stream


def streams_of(device: Device) -> list[Stream]:
    """Give the streams of a device, then the default streams of its contexts; others may come and go meanwhile."""
    found = [stream for stream in list(streams.values()) if stream.device is device]
    return found + [default_of(c) for c in list(contexts.values()) if c.device is device and c.default_stream]


def foreign(call: str) -> int:
    """Report that a stream belongs to another context."""
    return report(AclCode.RT_STREAM_CONTEXT, f"{call}: the stream belongs to another context than the current one")


def take_failure(stream: Stream) -> int:
    """Give the code of a failure that nobody has seen yet, or 0; that of a dead device every time."""
    if state.dead and (code := state.dead.get(stream.device.index)):
        if stream.failure is not None:
            stream.failure.is_reported = True
        return report(code, f"device {stream.device.index} is dead")
    failure = stream.failure
    if failure is None or failure.is_reported:
        return 0
    failure.is_reported = True
    return report(failure.code, failure.text)


def synchronize(stream: Stream, deadline: float, held: bool) -> bool:
    """Run everything queued and let its time pass; False when the deadline comes first."""
    end = Mark(stream)
    if not run(stream, None, deadline):
        return False
    if stream.device.is_virtual:
        if stream.tail > deadline:
            sleep_until(deadline, held)
            return False
        sleep_until(stream.tail, held)
    note_finished(end)
    return True


@entry("acl.rt.create_stream", answer=VALUE)
def create_stream() -> tuple[int, int]:
    """Make a stream in the current context."""
    return _create(0)


@entry("acl.rt.create_stream_with_config", "II", answer=VALUE)
def create_stream_with_config(priority: int, flag: int) -> tuple[int, int]:
    """Make a stream with a priority (0..7) and flags."""
    if priority > 7 or flag > 0x3F:
        return 0, report(AclCode.RT_PARAM_INVALID, f"create_stream_with_config({priority}, {flag}): out of range")
    return _create(priority)


def _create(priority: int) -> tuple[int, int]:
    context = current()
    if context is None:
        return 0, AclCode.RT_CONTEXT_NULL
    device = context.device
    if sum(stream.device is device for stream in list(streams.values())) >= _LIMIT:
        return 0, report(AclCode.RT_NO_STREAM_RESOURCE, f"device {device.index} has {_LIMIT} streams already")
    return Stream(context, priority).handle, 0


def _destroy(handle: int, call: str, force: bool) -> int:
    if handle == 0:
        return report(AclCode.INVALID_PARAM, f"{call} of 0")
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    stream = resolve(handle, context)
    if stream.context is not context:
        return foreign(call)
    if stream.reporter is not None:
        return report(AclCode.RT_STREAM_SUBSCRIBE, f"{call}: unsubscribe_report comes first")
    if force:
        drop(stream)
    else:
        refuse_deadlock(stream, call)
        synchronize(stream, FOREVER, state.settings.gil != "release")
    stream.is_alive = False
    streams.pop(handle, None)
    return 0


def refuse_deadlock(stream: Stream, call: str) -> None:
    """Stop a wait that holds the GIL while a callback needs it: pyACL would hang for ever."""
    if stream.blocking and state.settings.gil != "release":
        raise EmulatorError(f"{call} would hang: it holds the GIL and the stream waits for a Python callback")


@entry("acl.rt.destroy_stream", "k")
def destroy_stream(handle: int) -> int:
    """Wait for a stream's work and destroy it."""
    return _destroy(handle, "destroy_stream", force=False)


@entry("acl.rt.destroy_stream_force", "k")
def destroy_stream_force(handle: int) -> int:
    """Destroy a stream and drop its work."""
    return _destroy(handle, "destroy_stream_force", force=True)


@entry("acl.rt.stream_abort", "k")
def stream_abort(handle: int) -> int:
    """Drop the work of a stream."""
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    drop(resolve(handle, context))
    return 0


def drop(stream: Stream) -> None:
    """Throw queued work away; what waits for it goes on.

    A model that runs ends at its next operator, and its stream fails with 107023: its outputs are not complete.
    """
    stop = stream.stop
    if stop is not None:
        stop()
    end = Mark(stream)
    with stream.lock:
        halt, stream.is_halted = stream.is_halted, True
        queue = stream.queue
        while queue:
            operation = queue.popleft()
            operation[0](stream, operation, 0.0)
        stream.is_halted = halt
    stream.behind = end.behind = {}  # waits are dropped too: they order nothing
    note_finished(end)
    wake(stream)


@entry("acl.rt.stream_get_id", "k", answer=VALUE)
def stream_get_id(handle: int) -> tuple[int, int]:
    """Give the number of a stream."""
    context = current()
    if context is None:
        return 0, AclCode.RT_CONTEXT_NULL
    return resolve(handle, context).index, 0


@entry("acl.rt.set_stream_failure_mode", "kK")
def set_stream_failure_mode(handle: int, mode: int) -> int:
    """Choose whether a stream stops at its first failure (1) or goes on (0)."""
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    if mode not in (0, 1) or handle == 0:
        return report(AclCode.INVALID_PARAM, f"set_stream_failure_mode({handle:#x}, {mode})")
    resolve(handle, context).halt_on_failure = mode == 1
    return 0


def drop_all(device: Device) -> int:
    """Take the streams of a device away; count them."""
    gone = [stream for stream in list(streams.values()) if stream.device is device]
    for stream in gone:
        drop(stream)
        stream.is_alive = False
        streams.pop(stream.handle, None)
    return len(gone)
