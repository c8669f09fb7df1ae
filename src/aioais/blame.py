"""Blame: who is at fault when something fails, and what follows: one table that the whole library asks.

A service asks it too, to say whether it is ready::

    try:
        outputs = await session.infer(feeds)
    except (AclError, BrokenSessionError) as error:
        if not blame(error).is_ready:
            ...  # have this process replaced

``docs/blame.md`` shows the table and explains it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from .errors import (
    AclError,
    AclMemoryError,
    AclNotFoundError,
    BrokenSessionError,
    ClosedError,
    DeviceHangError,
    FeedError,
    ForkError,
    ModelError,
)

__all__ = ["MOST_IN_A_ROW", "TABLE", "Culprit", "Kind", "Often", "Row", "Seen", "Verdict", "blame"]

MOST_IN_A_ROW: Final = 32
"""So many failures of data in a row, with no request done between them, are no failures of data."""


class Culprit(enum.Enum):
    """What is at fault."""

    DATA = "the data"
    REQUEST = "the request"
    SESSION = "the session"
    DEVICE = "the device"
    PROCESS = "the process"


class Seen(enum.Enum):
    """Where a failure was seen."""

    OPEN = "open"
    """While a session was opened."""
    SUBMIT = "submit"
    """A call that queues work of a request returned it."""
    WAIT = "wait"
    """A wait for work of a request returned it."""
    COPY = "copy"
    """A copy to or from a device tensor, outside of any request."""
    HANG = "hang"
    """The device did not finish within ``hang_timeout``."""
    THREAD = "thread"
    """A thread of a session ended with it."""


class Often(enum.Enum):
    """How often a failure was seen."""

    ONCE = "once"
    AGAIN = "on two devices"
    """The same item failed on two devices with the same code, on the second one alone."""
    FINE_ELSEWHERE = "once; ran elsewhere"
    """The same item then ran on another device."""
    IN_A_ROW = f"{MOST_IN_A_ROW} in a row"
    """In one session, with no request done between them."""


_OPERATOR: Final = frozenset({507011, 507015, 507018, 507035})
"""The model failed on the device: of itself, in the AI core, the AI CPU or the vector core. The first of these is how
a release reports an index out of range, say."""

_LOST: Final = frozenset({507010, 507053, 507054, 507901})
"""Lost heartbeat, device memory error, uncorrectable ECC error, closed connection to the device."""


class Kind(enum.Enum):
    """The kinds of failures that the table tells apart."""

    FEEDS = "`FeedError`"
    FILE = "`ModelError`"
    MEMORY = "`AclMemoryError`"
    OPERATOR = ", ".join(map(str, sorted(_OPERATOR)))
    LOST = ", ".join(map(str, sorted(_LOST)))
    HANG = "`DeviceHangError`"
    DEVICE_CODE = "any other 507xxx"
    CODE = "any other code"
    BROKEN = "`BrokenSessionError`"
    CLOSED = "`ClosedError`"
    PROCESS = "`ForkError`, `AclNotFoundError`"
    OTHER = "any other exception"


@dataclass(frozen=True)
class Verdict:
    """Who is at fault, and what follows. An item that runs neither alone nor elsewhere raises at its place.

    Attributes
    ----------
    culprit
        What is at fault.
    runs_alone
        If the item ran together with others, each of them runs again, alone.
    runs_elsewhere
        If there is another device that may run the item, it runs there.
    drops_context
        The next session that is opened on the device makes a context of its own.
    breaks_session
        The session ends, and every request of it fails.
    takes_device_out
        A session of many devices goes on without this one; a later call opens it again.
    is_ready
        Whether a service on this device or session can still be sent requests.
    """

    culprit: Culprit
    runs_alone: bool = False
    runs_elsewhere: bool = False
    drops_context: bool = False
    breaks_session: bool = False
    takes_device_out: bool = False
    is_ready: bool = True


class Row(NamedTuple):
    """A row of the table."""

    kind: Kind
    seen: tuple[Seen, ...]
    often: Often
    verdict: Verdict


_RUN: Final = (Seen.SUBMIT, Seen.WAIT)
_NO_RUN: Final = (Seen.OPEN, Seen.COPY)
_ANYWHERE: Final = (Seen.OPEN, Seen.SUBMIT, Seen.WAIT, Seen.COPY)

_REQUEST: Final = Verdict(Culprit.REQUEST)
_SESSION: Final = Verdict(Culprit.SESSION, is_ready=False)
_DEVICE: Final = Verdict(Culprit.DEVICE, drops_context=True, takes_device_out=True, is_ready=False)
_DEVICE_FIRST: Final = replace(_DEVICE, runs_elsewhere=True)
_DEVICE_LOST: Final = replace(_DEVICE_FIRST, breaks_session=True)
_DATA: Final = Verdict(Culprit.DATA, drops_context=True)
_DATA_HARMS: Final = replace(_DEVICE, culprit=Culprit.DATA)
_DATA_BREAKS: Final = replace(_DATA_HARMS, breaks_session=True)

TABLE: Final[tuple[Row, ...]] = (
    Row(Kind.FEEDS, (Seen.SUBMIT, Seen.COPY), Often.ONCE, replace(_REQUEST, runs_alone=True)),
    Row(Kind.FILE, (Seen.OPEN,), Often.ONCE, _REQUEST),
    Row(Kind.MEMORY, _ANYWHERE, Often.ONCE, _REQUEST),
    Row(Kind.CODE, _RUN, Often.ONCE, replace(_REQUEST, runs_alone=True)),
    Row(Kind.CODE, _NO_RUN, Often.ONCE, _REQUEST),
    Row(Kind.OPERATOR, _RUN, Often.ONCE, replace(_DATA, runs_alone=True, runs_elsewhere=True)),
    Row(Kind.OPERATOR, _RUN, Often.AGAIN, _DATA),
    Row(Kind.OPERATOR, _RUN, Often.FINE_ELSEWHERE, _DEVICE),
    Row(Kind.OPERATOR, _RUN, Often.IN_A_ROW, _DEVICE_LOST),
    Row(Kind.OPERATOR, _NO_RUN, Often.ONCE, _DEVICE_FIRST),
    Row(Kind.DEVICE_CODE, _ANYWHERE, Often.ONCE, _DEVICE_FIRST),
    Row(Kind.DEVICE_CODE, _RUN, Often.AGAIN, _DATA_HARMS),
    Row(Kind.LOST, _ANYWHERE, Often.ONCE, _DEVICE_LOST),
    Row(Kind.LOST, _RUN, Often.AGAIN, _DATA_BREAKS),
    Row(Kind.HANG, (Seen.HANG,), Often.ONCE, _DEVICE_LOST),
    Row(Kind.HANG, (Seen.HANG,), Often.AGAIN, _DATA_BREAKS),
    Row(Kind.BROKEN, (*_RUN, Seen.COPY), Often.ONCE, replace(_SESSION, runs_elsewhere=True, takes_device_out=True)),
    Row(Kind.CLOSED, (Seen.SUBMIT, Seen.COPY), Often.ONCE, _SESSION),
    Row(Kind.PROCESS, (Seen.OPEN, Seen.SUBMIT), Often.ONCE, Verdict(Culprit.PROCESS, is_ready=False)),
    Row(Kind.OTHER, (Seen.SUBMIT,), Often.ONCE, _REQUEST),
    Row(Kind.OTHER, (Seen.THREAD,), Often.ONCE, replace(_SESSION, breaks_session=True)),
)
"""What is seen more often than the rows say has the verdict of once, in other places that of the first of its kind."""

_CLASSES: Final[tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Kind], ...]] = (
    (FeedError, Kind.FEEDS),
    (ModelError, Kind.FILE),
    (AclMemoryError, Kind.MEMORY),
    (DeviceHangError, Kind.HANG),
    (BrokenSessionError, Kind.BROKEN),
    (ClosedError, Kind.CLOSED),
    ((ForkError, AclNotFoundError), Kind.PROCESS),
)

_VERDICTS: Final = {(row.kind, seen, row.often): row.verdict for row in TABLE for seen in row.seen}


def blame(error: BaseException, seen: Seen = Seen.WAIT, often: Often = Often.ONCE) -> Verdict:
    """Return who is at fault for an error, and what follows.

    Parameters
    ----------
    error
        What was raised.
    seen
        Where; by default in a request.
    often
        How often.
    """
    kind = Kind.OTHER if seen is Seen.THREAD else _kind_of(error)
    if kind is Kind.HANG:
        seen = Seen.HANG
    found = _VERDICTS.get((kind, seen, often)) or _VERDICTS.get((kind, seen, Often.ONCE))
    return found or next(row.verdict for row in TABLE if row.kind is kind)


class Streak:
    """Failures of data in a row, of one session."""

    def __init__(self) -> None:
        self._count = self._done = 0

    def blame(self, error: BaseException, seen: Seen, done: int) -> Verdict:
        """Return who is at fault, as :func:`blame`; ``done`` requests of the session have succeeded by now."""
        verdict = blame(error, seen)
        if verdict.culprit is Culprit.DATA:
            self._count, self._done = self._count + 1 if done == self._done else 1, done
            if self._count >= MOST_IN_A_ROW:
                return blame(error, seen, Often.IN_A_ROW)
        return verdict


def _kind_of(error: BaseException) -> Kind:
    for classes, kind in _CLASSES:
        if isinstance(error, classes):
            return kind
    if not isinstance(error, AclError):
        return Kind.OTHER
    if error.code in _OPERATOR:
        return Kind.OPERATOR
    if error.code in _LOST:
        return Kind.LOST
    return Kind.DEVICE_CODE if error.code // 1000 == 507 else Kind.CODE
