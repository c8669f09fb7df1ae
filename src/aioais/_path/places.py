"""What the requests of a burst have on the host, one place each; made on demand, used by one burst at a time."""

from __future__ import annotations

from typing import Final

import numpy as np

from .._acl.memory import view
from .._acl.release import run_all
from .._acl.stream import Event
from .cells import Marks
from .device import Device
from .plan import Plan

__all__ = ["Places", "bytes_of"]

_ALIGNMENT: Final = 64
_MOST_BYTES: Final = 1 << 20
"""Pinned memory of all places, unless one alone needs more."""


class NoEventsLeftError(Exception):
    """Other sessions have the events that bursts may have."""


class Places:
    """Events and pinned memory for bursts; on the execute thread.

    Parameters
    ----------
    device
        Where memory and events come from.
    first, most
        Places that are made when a second one is needed, and when one more is.
    counts
        Copies to the device, executions and copies back of a request.

    Attributes
    ----------
    serial
        Changes when the memory does, so that nobody goes on using the old.
    """

    def __init__(self, device: Device, first: int, most: int, counts: tuple[int, int, int]) -> None:
        self.serial = 0
        self._library = device.library
        self._pinned = device.pinned
        self._budget = device.burst_events
        self._taken = 0
        self._first = min(first, most)
        self._most = most
        self._counts = counts
        self._marks: list[Marks] = []
        self._events: list[Event] = []
        self._address = self._nbytes = 0

    def reserve(self, each: int, most: int) -> int:
        """Have memory for so many requests of so many bytes, or for fewer large ones; gives for how many.

        Raises
        ------
        AclMemoryError
            There is none.
        """
        most = min(most, max(1, _MOST_BYTES // each))
        if self._nbytes < most * each:
            self._release()
            address = self._pinned.acquire(most * each, force=True)
            assert address is not None
            self._address, self._nbytes = address, most * each
        return most

    def views(self, k: int, plan: Plan) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """See the memory of place ``k`` as the feeds and the outputs of a plan it is reserved for."""
        assert plan.outputs is not None
        address = self._address + k * bytes_of(plan)
        found: tuple[list[np.ndarray], list[np.ndarray]] = [], []
        for item in plan.inputs:
            found[0].append(view(address, item.shape, item.dtype))
            address += _padded(item.nbytes)
        for output in plan.outputs:
            found[1].append(view(address, output.shape, output.dtype))
            address += _padded(output.nbytes)
        return found

    def marks(self, k: int) -> Marks:
        """Give the events of place ``k``; no place before it may be missing.

        Only the first has one before its steps, as all are on one stream.

        Raises
        ------
        AclError, NoEventsLeftError
            There is no event left, or none for bursts.
        """
        if k >= len(self._marks):
            # At once, so that none is made in the midst of work: as many as come first, or all.
            end = 1 if not k else self._first if k < self._first else self._most
            wanted = (end - len(self._marks)) * sum(self._counts)
            if k:  # the first is no more than a request alone would have
                if not self._budget.take(wanted):
                    raise NoEventsLeftError(f"{wanted} more events are not left of those that are for bursts")

                self._taken += wanted
            for _ in range(len(self._marks), end):
                start = self._marks[0].h2d[0] if self._marks else self._event()
                self._marks.append(Marks(*[[start, *[self._event() for _ in range(count)]] for count in self._counts]))
        return self._marks[k]

    def close(self) -> None:
        """Free all; idempotent. Nothing queued may use it any more."""
        events, self._events = self._events, []
        taken, self._taken = self._taken, 0
        self._marks.clear()
        self._release()
        try:
            run_all(event.close for event in events)
        finally:
            self._budget.give_back(taken)

    def _event(self) -> Event:
        event = Event(self._library)
        self._events.append(event)
        return event

    def _release(self) -> None:
        address, self._address = self._address, 0
        nbytes, self._nbytes = self._nbytes, 0
        self.serial += 1
        if address:
            self._pinned.release(address, nbytes)


def bytes_of(plan: Plan) -> int:
    """Give the bytes of a place for requests of a plan."""
    assert plan.outputs is not None
    return sum(_padded(item.nbytes) for item in plan.inputs) + sum(_padded(item.nbytes) for item in plan.outputs)


def _padded(nbytes: int) -> int:
    return -(-max(nbytes, 1) // _ALIGNMENT) * _ALIGNMENT
