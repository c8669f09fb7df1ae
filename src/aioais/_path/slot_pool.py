"""The slots of a session: made on demand, at most ``depth``, taken in turn."""

from __future__ import annotations

import logging
from queue import Empty, SimpleQueue

from .._acl.model import ModelInfo
from .._acl.release import run_all
from ..errors import AclMemoryError
from .device import Device
from .slot import Slot

__all__ = ["SlotPool"]

_log = logging.getLogger("aioais")


class SlotPool:
    """Takes and makes slots for one thread at a time; slots come back from any thread.

    Parameters
    ----------
    device
        The opened device.
    info
        The model.
    depth
        Most slots.
    loop
        Executions per request.

    Attributes
    ----------
    depth
        Most slots; less than asked for once the device had no memory for more.
    made
        Slots so far.
    """

    def __init__(self, device: Device, info: ModelInfo, depth: int, loop: int) -> None:
        self.depth = depth
        self.made = 0
        self._device = device
        self._info = info
        self._loop = loop
        self._all: list[Slot] = []
        self._free: SimpleQueue[Slot] = SimpleQueue()

    @property
    def in_use(self) -> int:
        """Slots that requests own."""
        return self.made - self._free.qsize()

    def take(self) -> Slot | None:
        """Take a free slot or make one; ``None`` if all are in use.

        Raises
        ------
        AclMemoryError
            The device has no room for even one.
        """
        try:
            return self._free.get_nowait()
        except Empty:
            pass
        if self.made >= self.depth:
            return None
        try:
            slot = Slot(self._device, self._info, self._loop)
        except AclMemoryError:
            if not self.made:
                raise
            _log.warning(
                "device %d has no memory for %d requests at once of %s: depth is %d from now on",
                self._device.id,
                self.made + 1,
                self._info.path,
                self.made,
            )
            self.depth = self.made
            return None
        self._all.append(slot)
        self.made += 1
        return slot

    def wait(self) -> Slot:
        """Wait for a slot that another thread gives back."""
        return self._free.get()

    def give(self, slot: Slot) -> None:
        """Give a slot back; nothing on the device uses it any more."""
        self._free.put(slot)

    def close(self) -> None:
        """Free all slots; none may be in use. A failure is raised when all else is freed."""
        slots, self._all = self._all, []
        run_all(slot.close for slot in slots)
