"""BatchBuffers: what the requests of a batch have on the host, one place each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import numpy as np

from .._acl.memory import view
from .._acl.release import run_all
from .._acl.stream import Event
from .._device.device import Device
from .._feeds.plan import InputPlan, OutputPlan
from ..errors import AclError
from .commands import Marks

__all__ = ["MOST_BATCHED", "BatchBuffers"]

_log = logging.getLogger("aioais")

MOST_BATCHED: Final = 16
"""Requests of a batch. More save little, and the event loop waits longer for the results."""
_ALIGNMENT: Final = 64
_MOST_BYTES: Final = 1 << 20
"""Pinned memory of all places of one slot."""


class BatchBuffers:
    """Pinned memory and events of one slot for the requests of a batch, which use its device buffers in turn.

    Parameters
    ----------
    marks
        Those of the slot, which the first request of a batch has.

    Attributes
    ----------
    serial
        Changes when the memory does; what was recorded for the old one is void.
    """

    def __init__(self, device: Device, marks: Marks) -> None:
        self.serial: int = 0
        self._device = device
        self._marks = [marks]
        self._events: list[Event] = []
        self._counts = len(marks.inputs), len(marks.executions), len(marks.outputs)
        self._most = MOST_BATCHED
        self._address = self._nbytes = 0

    def reserve(self, inputs: Sequence[InputPlan], outputs: Sequence[OutputPlan]) -> int:
        """Have memory and events for as many such requests as may share the slot, and return how many that is.

        It is 1 once there are no events or no memory for more, and for requests that are too large.
        """
        each = _bytes_of(inputs, outputs)
        most = min(self._most, _MOST_BYTES // each)
        if most < 2:
            return 1
        try:
            if self._nbytes < most * each:
                self._release()
                self._address = self._device.pinned.acquire(most * each)
                self._nbytes = most * each
            if len(self._marks) < most:
                self._make_marks()
        except AclError as exc:
            self._most = len(self._marks) if self._address else 1
            _log.warning("device %d: at most %d small requests share a slot: %s", self._device.id, self._most, str(exc))
        return min(most, len(self._marks)) if self._address else 1

    def place(
        self, k: int, inputs: Sequence[InputPlan], outputs: Sequence[OutputPlan]
    ) -> tuple[Marks, list[np.ndarray], list[np.ndarray]]:
        """Return the marks of place ``k``, and its memory as arrays for the feeds and the outputs of a request."""
        address = self._address + k * _bytes_of(inputs, outputs)
        staging: list[np.ndarray] = []
        landing: list[np.ndarray] = []
        for item in inputs:
            staging.append(view(address, item.shape, item.dtype))
            address += _padded(item.nbytes)
        for output in outputs:
            landing.append(view(address, output.shape, output.dtype))
            address += _padded(output.nbytes)
        return self._marks[k], staging, landing

    def close(self) -> None:
        """Free all; idempotent. Nothing queued may use it any more."""
        events, self._events = self._events, []
        del self._marks[1:]
        self._release()
        try:
            run_all(event.close for event in events)
        finally:
            self._device.batch_events.give_back(len(events))

    def _make_marks(self) -> None:
        """Make the events of all places at once, so that none is made between the requests of a batch."""
        each = sum(self._counts)
        left = self._device.batch_events.take((MOST_BATCHED - len(self._marks)) * each, each)
        self._most = len(self._marks) + left // each
        try:
            first = self._marks[0]
            while left:
                groups = []
                for count in self._counts:
                    group: list[Event] = []
                    for _ in range(count):
                        group.append(Event(self._device.library))
                        self._events.append(group[-1])  # one by one: the next may fail
                        left -= 1
                    groups.append(group)
                self._marks.append(Marks(first.start, groups[0], first.ready, groups[1], groups[2]))
        finally:
            self._device.batch_events.give_back(left)

    def _release(self) -> None:
        address, self._address = self._address, 0
        nbytes, self._nbytes = self._nbytes, 0
        self.serial += 1
        if address:
            self._device.pinned.release(address, nbytes)


def _bytes_of(inputs: Sequence[InputPlan], outputs: Sequence[OutputPlan]) -> int:
    return max(1, sum(_padded(item.nbytes) for item in inputs) + sum(_padded(item.nbytes) for item in outputs))


def _padded(nbytes: int) -> int:
    return -(-max(nbytes, 1) // _ALIGNMENT) * _ALIGNMENT
