"""Streams: queues of work that run, in order, when a thread waits for them.

Submitting appends an operation; the thread that waits (synchronise calls, ``process_report``,
``destroy_stream``, polls) runs what is due. So work never runs before it has to, a missing
synchronise always shows, and threads that wait for different streams work in parallel.
"""

from __future__ import annotations

from collections import deque
from threading import Lock
from time import perf_counter
from typing import Any, Protocol, final

from .._cann.codes import AclCode
from ._registry import handles, table
from ._state import report, state
from .context import Context, contexts
from .device import Device
from .errors import EmulatorError
from .ordering import Behind, Queue, note_finished
from .timeline import FOREVER, sleep_until

__all__ = [
    "Failure",
    "Operation",
    "Record",
    "Stream",
    "default_of",
    "drop",
    "drop_all",
    "foreign",
    "refuse_deadlock",
    "resolve",
    "run",
    "streams",
    "streams_of",
    "synchronize",
    "take_failure",
    "wake",
]

Operation = tuple[Any, ...]
"""What a stream queues, if not a :class:`Record`. First item:
``runner(stream, operation, deadline) -> bool``, False when it is blocked."""


class Failure:
    """A failed operation; reported once, to the first thread that synchronises its stream."""

    __slots__ = ("code", "is_reported", "text")

    def __init__(self, code: int, text: str) -> None:
        self.code: int = code
        self.text: str = text
        self.is_reported: bool = False


@final
class Record:
    """One record of an event: a position in a stream, queued as it is."""

    __slots__ = ("behind", "is_done", "stream", "submitted", "time")

    def __init__(self, stream: Stream, submitted: float) -> None:
        self.stream: Stream = stream
        self.behind: Behind = stream.behind
        self.submitted: float = submitted
        self.is_done: bool = False
        self.time: float = 0.0


class Stoppable(Protocol):
    """A model that runs, as far as streams know it."""

    def stop(self) -> None:
        """End the run early."""


class Stream(Queue):
    """A stream of a context.

    Parameters
    ----------
    context
        Its owner.
    priority
        0 is the highest; has no effect here.
    registered
        False for default streams, which have no handle.
    """

    __slots__ = (
        "blocking",
        "context",
        "device",
        "failure",
        "handle",
        "index",
        "is_alive",
        "is_halted",
        "is_halted_by_failure",
        "is_paused",
        "lock",
        "priority",
        "queue",
        "reporter",
        "running",
        "since",
        "sleepers",
        "tail",
    )

    def __init__(self, context: Context, priority: int, registered: bool = True) -> None:
        super().__init__()
        self.context: Context = context
        self.device: Device = context.device
        self.priority: int = priority
        self.queue: deque[Operation | Record] = deque()
        self.lock: Lock = Lock()
        """Held by the thread that runs this stream's work."""
        self.sleepers: deque[Any] = deque()
        """Locks of threads that wait for a record or for their turn to run."""
        self.tail: float = 0.0
        """When the last finished operation ended, on the device's clock."""
        self.since: float = 0.0
        """Moment of the host that belongs to ``tail``: what runs after it takes as long on the device."""
        self.failure: Failure | None = None
        self.reporter: Any = None
        self.is_paused: bool = False
        """Some of its work has run, and the rest is blocked."""
        self.blocking: int = 0
        """Queued callbacks that the stream waits for."""
        self.is_halted_by_failure: bool = False
        self.is_halted: bool = False
        self.running: Stoppable | None = None
        """The model that it runs, if any."""
        self.is_alive: bool = True
        self.index: int = next(context.device.stream_ids)
        self.handle: int = next(handles) if registered else 0
        if registered:
            streams[self.handle] = self

    def __str__(self) -> str:
        return f"stream {self.handle:#x}" if self.handle else "the default stream of its context"

    def fail(self, code: int, text: str) -> None:
        """Note that an operation failed; the first unreported failure stays."""
        if self.failure is None or self.failure.is_reported:
            self.failure = Failure(code, text)
        if self.is_halted_by_failure:
            self.is_halted = True


streams: dict[int, Stream] = table("streams")
"""Streams by handle; default streams have none."""

_default_lock = Lock()


def default_of(context: Context) -> Stream:
    """Return the default stream of a context, which is made when it is first used."""
    with _default_lock:
        found = context.default_stream
        if not isinstance(found, Stream):
            found = context.default_stream = Stream(context, 0, registered=False)
    return found


def run(stream: Stream, record: Record | None, deadline: float) -> bool:
    """Run queued work of a stream in this thread.

    Parameters
    ----------
    stream
        The stream.
    record
        Run up to this place; ``None`` runs everything queued by now.
    deadline
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
        if record is not None and record.is_done:
            return True
        if lock.acquire(False):
            break
        if not sleeper.acquire(True, -1 if deadline == FOREVER else max(0.0, deadline - perf_counter())):
            return False
        if record is not None and record.is_done:
            return True
    try:
        queue = stream.queue
        pop, is_virtual = queue.popleft, stream.device.is_virtual
        left = len(queue) if record is None else -1
        if not stream.is_paused:
            stream.since = perf_counter()
        while left and queue and (record is None or not record.is_done):
            operation = queue[0]
            if type(operation) is not Record:
                if not operation[0](stream, operation, deadline):
                    stream.is_paused = True
                    return False
            elif is_virtual:
                reach(stream, operation)
            else:  # as reach does it
                now = perf_counter()
                time = stream.tail + now - stream.since
                if time < operation.submitted:
                    time = operation.submitted
                elif time > now:
                    time = now
                operation.time = stream.tail = time
                stream.since = now
                operation.is_done = True
                if stream.sleepers:
                    wake(stream)
            pop()
            left -= 1
        stream.is_paused = False
        return True
    finally:
        lock.release()
        if stream.sleepers:
            wake(stream)


def reach(stream: Stream, record: Record) -> None:
    """Note that a stream is at a record.

    Work runs when a thread waits for it, but on a device it starts when it is submitted. So the record of an idle
    stream has the time of its submission, and one behind work the time of what is before it plus the work's duration.
    """
    if stream.device.is_virtual:
        time = stream.tail
    else:
        now = perf_counter()
        time = min(now, stream.tail + now - stream.since)
        stream.since = now
    record.time = stream.tail = max(time, record.submitted)
    record.is_done = True
    if stream.sleepers:
        wake(stream)


def wake(stream: Stream) -> None:
    """Wake the threads that wait for this stream."""
    sleepers = stream.sleepers
    while sleepers:
        try:
            sleepers.popleft().release()
        except (IndexError, RuntimeError):
            return


def resolve(handle: int, context: Context) -> Stream:
    """Return a stream by handle; 0 is the default stream of the current context.

    Raises
    ------
    EmulatorError
        The handle is stale or was never valid.
    """
    stream = streams.get(handle)
    if stream is None:
        if handle == 0:
            return default_of(context)
        raise EmulatorError(f"{handle:#x} is not a stream: destroyed, lost by a device reset, or never created")
    return stream


def streams_of(device: Device) -> list[Stream]:
    """Return the streams of a device, then the default streams of its contexts; other threads may create more."""
    found = [stream for stream in list(streams.values()) if stream.device is device]
    return found + [default_of(c) for c in list(contexts.values()) if c.device is device and c.default_stream]


def foreign(call: str) -> int:
    """Report that a stream belongs to another context."""
    return report(AclCode.RT_STREAM_CONTEXT, f"{call}: the stream belongs to another context than the current one")


def take_failure(stream: Stream) -> int:
    """Return the code of an unreported failure, or 0; for a dead device its code every time."""
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
    """Run everything queued and let its time pass; return False if the deadline comes first."""
    behind = stream.behind
    if not run(stream, None, deadline):
        return False
    if stream.device.is_virtual:
        if stream.tail > deadline:
            sleep_until(deadline, held)
            return False
        sleep_until(stream.tail, held)
    note_finished(stream, behind)
    return True


def refuse_deadlock(stream: Stream, call: str) -> None:
    """Stop a wait that holds the GIL while a callback needs it: pyACL would hang forever."""
    if stream.blocking and state.settings.gil != "release":
        raise EmulatorError(f"{call} would hang: it holds the GIL and the stream waits for a Python callback")


def drop(stream: Stream) -> None:
    """Drop queued work; what waits for it goes on.

    A model that runs ends at its next operator, and its stream fails with 107023: its outputs are not complete.
    """
    running = stream.running
    if running is not None:
        running.stop()
    with stream.lock:
        halt, stream.is_halted = stream.is_halted, True
        queue = stream.queue
        while queue:
            operation = queue.popleft()
            if isinstance(operation, Record):
                reach(stream, operation)
            else:
                operation[0](stream, operation, 0.0)
        stream.is_halted = halt
        stream.behind = {}  # dropped waits order nothing
    wake(stream)


def drop_all(device: Device) -> int:
    """Remove the streams of a device; return how many."""
    gone = [stream for stream in list(streams.values()) if stream.device is device]
    for stream in gone:
        drop(stream)
        stream.is_alive = False
        streams.pop(stream.handle, None)
    return len(gone)
