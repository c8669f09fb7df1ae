"""BatchBuffers: what requests that share a slot have of their own, one place each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from .._acl.dataset import Dataset
from .._acl.memory import DeviceBlock, view
from .._acl.model import ModelInfo
from .._acl.release import run_all
from .._acl.stream import Event
from .._device.device import Device
from .._feeds.plan import InputPlan, OutputPlan
from ..errors import AclError
from .commands import Marks

__all__ = ["MOST_BATCHED", "BatchBuffers", "Place"]

_log = logging.getLogger("aioais")

MOST_BATCHED: Final = 16
"""Requests of a batch. More save little, and the event loop waits longer for the results."""
_ALIGNMENT: Final = 64
_MOST_BYTES: Final = 1 << 20
"""Pinned memory of all places of one slot, and as much device memory."""

Bound = tuple[int, int]
"""Address and bytes of the memory of one tensor."""


class Place(NamedTuple):
    """Where one request of a batch is on the device, but for the first, which has the buffers of the slot."""

    marks: Marks
    in_data: Dataset
    out_data: Dataset
    inputs: list[Bound]
    outputs: list[Bound]


class BatchBuffers:
    """Pinned memory, device memory, datasets and events of one slot for the requests of a batch.

    Parameters
    ----------
    info
        Of the model; of fixed sizes.
    marks
        Those of the slot, which the first request of a batch has.
    bound
        By index in the model, the memory of the inputs that all places have in common: the hidden ones.

    Attributes
    ----------
    serial
        Changes when the pinned memory does; what was recorded for the old one is void.
    places
        Those of all requests but the first.
    """

    def __init__(self, device: Device, info: ModelInfo, marks: Marks, bound: dict[int, Bound]) -> None:
        self.serial: int = 0
        self.places: list[Place] = []
        self._device = device
        self._info = info
        self._bound = bound
        self._first = marks
        self._datasets: list[Dataset] = []
        self._events: list[Event] = []
        self._block: DeviceBlock | None = None
        self._most = MOST_BATCHED
        self._address = self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Device memory of all places."""
        return 0 if self._block is None else self._block.nbytes

    def reserve(self, inputs: Sequence[InputPlan], outputs: Sequence[OutputPlan]) -> int:
        """Have all that as many such requests need as may share the slot, and return how many that is.

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
            if len(self.places) < most - 1:
                self._make_places()
        except AclError as exc:
            self._most = 1 + len(self.places) if self._address else 1
            _log.warning("device %d: at most %d small requests share a slot: %s", self._device.id, self._most, str(exc))
        return min(most, 1 + len(self.places)) if self._address else 1

    def staging(
        self, k: int, inputs: Sequence[InputPlan], outputs: Sequence[OutputPlan]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return pinned memory of the request at position ``k`` as arrays for its feeds and its outputs."""
        address = self._address + k * _bytes_of(inputs, outputs)
        staging: list[np.ndarray] = []
        landing: list[np.ndarray] = []
        for item in inputs:
            staging.append(view(address, item.shape, item.dtype))
            address += _padded(item.nbytes)
        for output in outputs:
            landing.append(view(address, output.shape, output.dtype))
            address += _padded(output.nbytes)
        return staging, landing

    def in_datas(self, count: int) -> list[Dataset]:
        """Return the input datasets of a batch of so many, but for that of the first request."""
        return [place.in_data for place in self.places[: count - 1]]

    def close(self) -> None:
        """Free all; idempotent. Nothing queued may use it any more."""
        datasets, self._datasets = self._datasets, []
        events, self._events = self._events, []
        block, self._block = self._block, None
        self.places.clear()
        self._release()
        closed = [dataset.close for dataset in datasets] + [event.close for event in events]
        try:
            run_all([*closed, block.close] if block is not None else closed)
        finally:
            self._device.batch_events.give_back(len(events))

    def _make_places(self) -> None:
        """Make all places at once, so that nothing is made between the requests of a batch."""
        first, info = self._first, self._info
        counts = len(info.inputs), len(first.executions), len(info.outputs)
        room = sum(_room(tensor.size) for tensor in (*info.inputs, *info.outputs))
        wanted = min(MOST_BATCHED, _MOST_BYTES // room) - 1
        left = self._device.batch_events.take(max(wanted, 0) * sum(counts), sum(counts))
        count = left // sum(counts)
        self._most = 1 + count
        try:
            if not count:
                return
            self._block = self._device.alloc(count * room)
            for address in range(self._block.address, self._block.address + count * room, room):
                groups = []
                for number in counts:
                    group: list[Event] = []
                    for _ in range(number):
                        group.append(Event(self._device.library))
                        self._events.append(group[-1])  # one by one: the next may fail
                        left -= 1
                    groups.append(group)
                marks = Marks(first.start, groups[0], first.ready, groups[1], groups[2])
                self.places.append(self._place(marks, address))
        finally:
            self._device.batch_events.give_back(left)

    def _place(self, marks: Marks, address: int) -> Place:
        info = self._info
        bound = self._bound.copy()
        inputs: list[Bound] = []
        outputs: list[Bound] = []
        for tensors, side in ((info.inputs, inputs), (info.outputs, outputs)):
            for tensor in tensors:
                side.append((address, tensor.size))
                address += _room(tensor.size)
        bound.update(zip((tensor.index for tensor in info.inputs), inputs, strict=True))
        in_data = self._dataset([bound.get(index, (0, 0)) for index in range(info.input_count)])
        return Place(marks, in_data, self._dataset(outputs), inputs, outputs)

    def _dataset(self, buffers: list[Bound]) -> Dataset:
        dataset = Dataset(self._device.library, buffers, _ignore)
        self._datasets.append(dataset)
        return dataset

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


def _room(nbytes: int) -> int:
    """Return the bytes of one of several buffers in a block; each needs 32 behind its end (pyACL page of malloc)."""
    return _padded(nbytes + 32)


def _ignore() -> None:
    """Do nothing: no buffer of a place ever changes."""
