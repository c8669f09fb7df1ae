"""A batch under the checks: sets of buffers side by side, with one copy each way for all of them."""

from __future__ import annotations

from ..._cann.constants import MemcpyKind
from .net import Net, Slot

__all__ = ["Batch"]

_ALIGNMENT = 64
_BEHIND = 32
"""Bytes that each buffer needs behind its end where several are parts of one block (pyACL page of malloc)."""


class Batch:
    """Several runs of one model at once, as small requests that share a slot.

    Parameters
    ----------
    beside
        A slot of the model, whose hidden inputs all of them have.
    count
        How many runs.
    """

    def __init__(self, beside: Slot, count: int) -> None:
        net, bench = beside.net, beside.net.bench
        self.net: Net = net
        sizes = [beside.sizes[index] for index in net.visible]
        self._inputs: list[list[int]]
        self._outputs: list[list[int]]
        self._into, self._inputs = _side_by_side(sizes, count, 0)
        self._back, self._outputs = _side_by_side(beside.out_sizes, count, self._into)
        self._device: int = bench.memory(self._into + self._back)
        self._host: int = bench.pinned(self._into + self._back)
        self.slots: list[Slot] = []
        for at, out in zip(self._inputs, self._outputs, strict=True):
            in_memory = [*beside.in_memory]
            for index, offset in zip(net.visible, at, strict=True):
                in_memory[index] = self._device + offset
            self.slots.append(Slot(net, memory=(in_memory, [self._device + offset for offset in out])))

    def run(self, first_seed: int, stream: int, dims: list[tuple[int, ...]] | None = None) -> list[list[bytes]]:
        """Upload, execute, fetch and wait, queued in one go; return the outputs of each."""
        bench, device, host = self.net.bench, self._device, self._host
        for seed, at in enumerate(self._inputs, first_seed):
            for index, offset in zip(self.net.visible, at, strict=True):
                bench.put(host + offset, self.slots[0].content(index, seed))
        bench.copy(device, host, self._into, MemcpyKind.HOST_TO_DEVICE, stream)
        for slot in self.slots:
            slot.submit(stream)
        bench.copy(host + self._into, device + self._into, self._back, MemcpyKind.DEVICE_TO_HOST, stream)
        bench.wait(stream)
        sizes = self.slots[0].fetched(dims)
        return [
            [bench.get(host + offset, nbytes) for offset, nbytes in zip(out, sizes, strict=True)]
            for out in self._outputs
        ]


def _side_by_side(sizes: list[int], count: int, begin: int) -> tuple[int, list[list[int]]]:
    """Return the bytes of all places, and where each tensor of each place begins."""
    rooms = [-(-(size + _BEHIND) // _ALIGNMENT) * _ALIGNMENT for size in sizes]
    stride = sum(rooms)
    offsets = [[begin + k * stride + sum(rooms[:n]) for n in range(len(rooms))] for k in range(count)]
    return count * stride, offsets
