"""BatchBuffers: the memory of requests that share a slot, one place each, side by side on host and device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from .._acl.dataset import Dataset
from .._acl.memory import DeviceBlock, view
from .._acl.model import ModelInfo, TensorInfo
from .._acl.release import run_all
from .._device.device import Device
from .._feeds.plan import InputPlan, OutputPlan, Plan
from ..errors import AclError
from .commands import Copy

__all__ = ["MOST_BATCHED", "BatchBuffers", "Place"]

_log = logging.getLogger("aioais")

MOST_BATCHED: Final = 32
"""Requests of a batch. More save little, and the event loop waits longer for the results."""
_ALIGNMENT: Final = 64
_MOST_BYTES: Final = 1 << 20
"""Pinned memory of all places of one slot, and as much device memory."""
_MOST_PLANS: Final = 16
"""Plans of which a slot keeps the arrays of all places."""
_MOST_ROOM: Final = 1 << 16
"""Bytes of one place, unless the requests fill half of it."""


class Place(NamedTuple):
    """What one request of a batch has of its own on the device."""

    in_data: Dataset
    out_data: Dataset


class Areas(NamedTuple):
    """For each place the arrays over pinned memory that feeds are copied to, and those that outputs arrive in."""

    staging: list[list[np.ndarray]]
    landing: list[list[np.ndarray]]


class _Side:
    """Where the inputs of all places are in a block, or their outputs: place by place, each tensor aligned."""

    def __init__(self, tensors: tuple[TensorInfo, ...]) -> None:
        self.begin = 0
        self.offsets: list[int] = []
        self.stride = 0
        """Bytes of one place."""
        for tensor in tensors:
            self.offsets.append(self.stride)
            self.stride += _room(tensor.size)

    def offset(self, k: int, position: int) -> int:
        """Return where a tensor of place ``k`` begins in the block."""
        return self.begin + k * self.stride + self.offsets[position]

    def views(self, block: int, k: int, items: Sequence[InputPlan | OutputPlan]) -> list[np.ndarray]:
        """Return the tensors of place ``k``, in a host block at this address, as arrays."""
        return [view(block + self.offset(k, item.position), item.shape, item.dtype) for item in items]


class BatchBuffers:
    """Pinned memory, device memory and datasets of one slot for the requests of a batch.

    Host and device have all inputs side by side, and all outputs. So one copy brings the feeds of a batch to the
    device, and one its results back: with few bytes each, a copy costs what the call costs.

    Parameters
    ----------
    info
        Of the model; of fixed sizes.
    bound
        By index in the model, the memory of the inputs that all places have in common: the hidden ones.

    Attributes
    ----------
    places
        Those that were made; empty before the first batch.
    commands
        The command lists of batches.
    """

    def __init__(self, device: Device, info: ModelInfo, bound: dict[int, tuple[int, int]]) -> None:
        self.places: list[Place] = []
        self.commands: dict[Any, Any] = {}
        self._areas: dict[int, Areas] = {}
        self._device = device
        self._info = info
        self._bound = bound
        self._inputs, self._outputs = _Side(info.inputs), _Side(info.outputs)
        self._room: int = self._inputs.stride + self._outputs.stride
        self._most = max(1, min(MOST_BATCHED, _MOST_BYTES // max(1, self._room)))
        self._block: DeviceBlock | None = None
        self._pinned = self._pinned_bytes = 0

    @property
    def nbytes(self) -> int:
        """Device memory of all places."""
        return 0 if self._block is None else self._block.nbytes

    def suits(self, plan: Plan) -> bool:
        """Whether small requests of a plan may share the slot.

        They may not where there is no memory for that, or where what is copied would be mostly room for larger gears.
        """
        return self._most > 1 and self._room <= max(_MOST_ROOM, 2 * _bytes_of(plan))

    def reserve(self, plan: Plan) -> int:
        """Have what requests of a plan need to share the slot; returns how many may, 1 where none can."""
        if not self.suits(plan):
            return 1
        if not self.places:
            self._reserve()
        return self._most

    def areas(self, plan: Plan) -> Areas:
        """Return where the requests of a plan have their tensors."""
        found = self._areas.get(plan.serial)
        if found is None:
            assert plan.outputs is not None
            if len(self._areas) >= _MOST_PLANS:
                self._areas.clear()
            places = range(len(self.places))
            staging = [self._inputs.views(self._pinned, k, plan.inputs) for k in places]
            landing = [self._outputs.views(self._pinned, k, plan.outputs) for k in places]
            found = self._areas[plan.serial] = Areas(staging, landing)
        return found

    def copies(self, count: int) -> tuple[list[Copy], list[Copy]]:
        """Return the copies of the first ``count`` requests: one to the device and one back, if there are tensors."""
        block, pinned = self._block, self._pinned
        assert block is not None
        into, back = self._inputs, self._outputs
        read, written = count * into.stride, count * back.stride
        device, host = block.address + back.begin, pinned + back.begin
        there = [Copy(block.address, back.begin, pinned, read)] if read else []
        return there, [Copy(host, self._pinned_bytes - back.begin, device, written)] if written else []

    def in_datas(self, count: int) -> list[Dataset]:
        """Return the input datasets of the first ``count`` requests."""
        return [place.in_data for place in self.places[:count]]

    def close(self) -> None:
        """Free all; idempotent. Nothing queued may use it any more."""
        datasets = [dataset for place in self.places for dataset in (place.in_data, place.out_data)]
        self.places.clear()
        self.commands.clear()
        self._areas.clear()
        block, self._block = self._block, None
        pinned, self._pinned = self._pinned, 0
        if pinned:
            self._device.pinned.release(pinned, self._pinned_bytes)
        closed = [dataset.close for dataset in datasets]
        run_all([*closed, block.close] if block is not None else closed)

    def _reserve(self) -> None:
        try:
            self._make_places()
        except AclError as exc:
            self._most = max(1, len(self.places))
            _log.warning("device %d: at most %d small requests share a slot: %s", self._device.id, self._most, str(exc))
        if self._most == 1:
            try:
                self.close()
            except AclError as exc:
                _log.warning("device %d: what they were to share is not free: %s", self._device.id, str(exc))

    def _make_places(self) -> None:
        """Make all places at once, so that nothing is made between the requests of a batch."""
        nbytes = self._most * self._room
        self._block = self._device.alloc(nbytes)
        self._pinned, self._pinned_bytes = self._device.pinned.acquire(nbytes), nbytes
        self._outputs.begin = self._most * self._inputs.stride
        for k in range(self._most):
            self._make_place(k)

    def _make_place(self, k: int) -> None:
        info, library, block = self._info, self._device.library, self._block
        assert block is not None
        bound = self._bound.copy()
        for position, tensor in enumerate(info.inputs):
            bound[tensor.index] = block.address + self._inputs.offset(k, position), tensor.size
        in_data = Dataset(library, [bound.get(index, (0, 0)) for index in range(info.input_count)], _ignore)
        try:
            offsets = [self._outputs.offset(k, position) for position in range(len(info.outputs))]
            buffers = [(block.address + at, tensor.size) for at, tensor in zip(offsets, info.outputs, strict=True)]
            self.places.append(Place(in_data, Dataset(library, buffers, _ignore)))
        except BaseException:
            in_data.close()
            raise


def _bytes_of(plan: Plan) -> int:
    return sum(item.nbytes for item in plan.inputs) + sum(item.nbytes for item in plan.outputs or ())


def _room(nbytes: int) -> int:
    """Return the bytes of one of several buffers in a block; each needs 32 behind its end (pyACL page of malloc)."""
    return -(-(nbytes + 32) // _ALIGNMENT) * _ALIGNMENT


def _ignore() -> None:
    """Do nothing: no buffer of a place ever changes."""
