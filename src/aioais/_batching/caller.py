"""Caller: one call of ``BatchingSession.infer``, from its feeds to its result."""

from __future__ import annotations

import asyncio
import copy
import enum
import itertools
from collections.abc import Sequence
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from ..errors import AclError
from .layout import Kind

__all__ = ["Caller", "Ride", "State", "own_copy", "rows_of"]

_numbers = itertools.count(1)


class Ride(Protocol):
    """A batch, as far as its callers look at it."""

    @property
    def has_begun(self) -> bool:
        """Whether its rows are on the device, or about to be."""
        ...

    def leave(self, caller: Caller) -> None:
        """Take out a caller that has left."""
        ...


class State(enum.Enum):
    """Where a caller's rows are."""

    OUTSIDE = "outside"
    """They wait for room in the queue."""
    WAITING = "waiting"
    """Some of them wait for a batch."""
    PLACED = "placed"
    """All are in batches."""
    ENDED = "ended"
    """The caller has its result or its error, or has left."""


class Caller:
    """One call, with rows that may be spread over several batches.

    Attributes
    ----------
    number
        Of this call in the process.
    future
        What the caller waits for.
    taken
        Rows that are in batches already.
    batches
        Batches under way with rows of it.
    is_alone
        It runs in batches of its own, and failed in one with others before.
    moves
        How often it was moved to another device.
    failures
        How it failed, alone or with its device, by runner.
    """

    __slots__ = (
        "_outputs",
        "_rows_left",
        "batches",
        "content",
        "deadline",
        "entered_at",
        "failures",
        "feeds",
        "future",
        "is_alone",
        "kind",
        "moves",
        "number",
        "priority",
        "rows",
        "state",
        "taken",
    )

    def __init__(self, feeds: list[np.ndarray], rows: int, kind: Kind, content: tuple[Any, ...], priority: int) -> None:
        self.number = next(_numbers)
        self.feeds = feeds
        self.rows = rows
        self.kind = kind
        self.content = content
        self.priority = priority
        self.future: asyncio.Future[list[np.ndarray]] = asyncio.get_running_loop().create_future()
        self.state = State.OUTSIDE
        self.deadline: asyncio.TimerHandle | None = None
        self.entered_at = perf_counter()
        self.taken = 0
        self.batches: list[Ride] = []
        self.is_alone = False
        self.moves = 0
        self.failures: dict[object, AclError] = {}
        self._outputs: list[np.ndarray] | None = None
        self._rows_left = rows

    def __lt__(self, other: Caller) -> bool:
        return (self.priority, self.number) < (other.priority, other.number)

    @property
    def left(self) -> int:
        """Rows that wait for a batch."""
        return self.rows - self.taken

    def restart(self) -> None:
        """Have all its rows wait again; what other batches still return to it is dropped."""
        self.taken = 0
        self.batches = []
        self._outputs, self._rows_left = None, self.rows
        self.entered_at = perf_counter()

    def room(self, first: int, count: int, parts: Sequence[np.ndarray], axes: Sequence[int | None]) -> list[np.ndarray]:
        """Return where the outputs of some of its rows are to be copied to."""
        outputs = self._outputs
        if outputs is None:
            outputs = self._outputs = [_empty(part, axis, self.rows) for part, axis in zip(parts, axes, strict=True)]
        return [rows_of(whole, axis, first, count) for whole, axis in zip(outputs, axes, strict=True)]

    def take_all(self, outputs: list[np.ndarray]) -> None:
        """Take the outputs of all its rows as they are."""
        self._outputs = outputs

    def got(self, count: int) -> bool:
        """Note that the outputs of some rows are there; returns whether those of all are."""
        self._rows_left -= count
        return not self._rows_left

    @property
    def has_begun(self) -> bool:
        """Whether the device has seen rows of it."""
        return (
            self._rows_left < self.rows
            or self.is_alone
            or bool(self.moves)
            or any(batch.has_begun for batch in self.batches)
        )

    def succeed(self) -> None:
        """Set the caller's result."""
        outputs, self._outputs = self._outputs, None
        self._end()
        if not self.future.done():
            assert outputs is not None
            self.future.set_result(outputs)

    def fail(self, error: BaseException) -> None:
        """Set the caller's error, as an exception of its own."""
        self._outputs = None
        self._end()
        if not self.future.done():
            self.future.set_exception(own_copy(error))

    def leave(self) -> None:
        """Drop everything: the caller has left."""
        self._outputs = None
        self._end()

    def _end(self) -> None:
        self.state = State.ENDED
        self.feeds = []
        self.content = ()
        self.failures = {}
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


def rows_of(array: np.ndarray, axis: int | None, first: int, count: int) -> np.ndarray:
    """Return a view of some rows of an array; all of it where it has no rows."""
    if axis is None or count == array.shape[axis]:
        return array
    if not axis:
        return array[first : first + count]
    return array[(slice(None),) * axis + (slice(first, first + count),)]


def _empty(part: np.ndarray, axis: int | None, rows: int) -> np.ndarray:
    shape = part.shape if axis is None else (*part.shape[:axis], rows, *part.shape[axis + 1 :])
    return np.empty(shape, part.dtype)


def own_copy(error: BaseException) -> BaseException:
    """Return the error for one of several callers: each raises an exception of its own where that can be copied."""
    try:
        own = copy.copy(error)
    except Exception:  # noqa: BLE001 - an exception with a constructor of its own kind
        return error
    if type(own) is not type(error) or str(own) != str(error):
        return error
    own.__cause__ = error.__cause__
    notes = getattr(error, "__notes__", None)
    if notes:
        own.__notes__ = [*notes]  # type: ignore[attr-defined,unused-ignore]
    return own
