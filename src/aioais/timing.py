"""Times of single requests: when each stage began and ended, collected while a recording is open."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, overload

from .errors import ArgumentError, ClosedError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DEFAULT_RECORDS", "Outcome", "Recorded", "Recording", "RequestTiming", "Span"]

Outcome = Literal["done", "failed", "cancelled"]
"""How a request ended: with a result, with an error, or its caller stopped waiting."""

DEFAULT_RECORDS: Final = 10_000
"""Most requests that a recording keeps, about 1 KiB each."""


class Span(NamedTuple):
    """An interval of time, in seconds of ``time.perf_counter``."""

    begin: float
    """Its begin."""
    end: float
    """Its end."""

    @property
    def ms(self) -> float:
        """Its length in milliseconds."""
        return (self.end - self.begin) * 1e3


class RequestTiming(NamedTuple):
    """The times of one request; an immutable record.

    The times of the three stages on the device come from ACL's event time stamps, translated to the host's clock. A
    stage is empty, with 0.0 milliseconds, if it had nothing to do (feeds that are on the device already, or results
    that stay there). All three are empty if the request failed or never ran: ``is_measured`` is then false. A request
    that was cancelled while the device worked on it has all times.
    """

    number: int
    """Number of the request in this process, as in the log."""
    outcome: Outcome
    """``"done"``, ``"failed"`` or ``"cancelled"``."""
    is_measured: bool
    """Whether the times of the device stages are known."""
    mode: str
    """Mode of the model, one of ``static``, ``dymbatch``, ``dymhw``, ``dymdims`` or ``dymshape``."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the feeds, in model order."""
    queue: Span
    """From its submission until it had a set of buffers or was dropped."""
    h2d: Span
    """Copies to the device, with the wait for the engine."""
    execute: Span
    """All its executions."""
    d2h: Span
    """Copies to the host, with the wait for the engine."""
    delivery: Span
    """From its end on the device until its future was set on the event loop. For a request that failed on the device:
    from the moment at which the library noticed."""
    riders: tuple[int, ...] = ()
    """A batch of a ``BatchingSession``: the numbers of the calls whose rows rode in it."""

    @property
    def queue_ms(self) -> float:
        """Milliseconds that it waited for buffers."""
        return self.queue.ms

    @property
    def h2d_ms(self) -> float:
        """Milliseconds of its copies to the device."""
        return self.h2d.ms

    @property
    def execute_ms(self) -> float:
        """Milliseconds of its executions."""
        return self.execute.ms

    @property
    def d2h_ms(self) -> float:
        """Milliseconds of its copies to the host."""
        return self.d2h.ms

    @property
    def delivery_ms(self) -> float:
        """Milliseconds from its end on the device to its future."""
        return self.delivery.ms

    @property
    def started(self) -> float:
        """The moment of its submission, in seconds of ``time.perf_counter``."""
        return self.queue.begin

    @property
    def total_ms(self) -> float:
        """Milliseconds from its submission to its future; more than the sum, as stages wait for one another."""
        return (self.delivery.end - self.queue.begin) * 1e3


class Recorded(Protocol):
    """An object that reports each request to the recordings that are open when it is submitted."""

    recordings: tuple[Recording, ...]


class Recording(Sequence[RequestTiming]):
    """Collects the times of requests inside a ``with`` block; made by ``InferSession.record``.

    A sequence, oldest first, which grows as requests end and does not change after the block. Requests that were
    submitted before the block or end after it are left out. Not for use from several threads.

    Parameters
    ----------
    source
        The object to record.
    limit
        Most requests kept; the oldest are dropped.
    """

    def __init__(self, source: Recorded, limit: int) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ArgumentError(f"got limit={limit!r}; expected an int of at least 1, the number of requests to keep")
        self._source: Recorded | None = source
        self._kept: deque[RequestTiming] = deque(maxlen=limit)
        self._is_open = False
        self._begun = self._ended = 0

    @property
    def dropped(self) -> int:
        """Requests that ended in the block and are no longer kept."""
        return self._ended - len(self._kept)

    @property
    def unfinished(self) -> int:
        """Requests that were submitted in the block and did not end in it."""
        return self._begun - self._ended

    def __enter__(self) -> Self:
        source = self._source
        if source is None or self._is_open:
            raise ClosedError("a recording can be opened only once; call record() or trace() again")
        self._is_open = True
        source.recordings += (self,)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        source, self._source = self._source, None
        self._is_open = False
        if source is not None:
            source.recordings = tuple(other for other in source.recordings if other is not self)

    def begin(self) -> None:
        """Count a request that was submitted; for the library's own use."""
        self._begun += 1

    def add(self, timing: RequestTiming) -> None:
        """Add the times of a request that has ended; for the library's own use."""
        if self._is_open:
            self._ended += 1
            self._kept.append(timing)

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[RequestTiming]:
        return iter(self._kept.copy())  # a loop over it may await, and then requests end

    @overload
    def __getitem__(self, index: int) -> RequestTiming: ...
    @overload
    def __getitem__(self, index: slice) -> list[RequestTiming]: ...
    def __getitem__(self, index: int | slice) -> RequestTiming | list[RequestTiming]:
        return list(self._kept)[index] if isinstance(index, slice) else self._kept[index]

    def __repr__(self) -> str:
        state = "open" if self._is_open else "not open"
        return f"<Recording of {len(self._kept)} requests, {self.dropped} dropped, {state}>"
