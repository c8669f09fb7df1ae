"""The slots of a session: made on demand, at most ``depth``, taken in turn."""

from __future__ import annotations

import logging
import threading
from queue import Empty, SimpleQueue

from .._acl.codes import AclCode
from .._acl.model import ModelInfo
from .._acl.release import run_all
from .._acl.stream import Stream
from ..errors import AclError, AclMemoryError, BrokenSessionError
from .device import Device
from .slot import Slot

__all__ = ["SlotPool"]

_log = logging.getLogger("aioais")

_NONE_LEFT = {int(AclCode.RT_NO_EVENT_RESOURCE): "events", int(AclCode.RT_NO_STREAM_RESOURCE): "streams"}
"""What a device has few of besides memory: 1023 events on some (pyACL reference, ``create_event``)."""


class SlotPool:
    """Takes and makes slots for one thread at a time; slots come back from any thread.

    Slots that nobody uses may be given back to the device, by a thread of another session even, when
    memory runs short there; never while somebody waits for one, or makes another of the same session.

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
    hang_timeout
        As in ``InferSession``.

    Attributes
    ----------
    depth
        Most slots; less than asked for once the device had no memory for more.
    """

    def __init__(self, device: Device, info: ModelInfo, depth: int, loop: int, hang_timeout: float | None) -> None:
        self.depth = depth
        self.path = info.path
        self._device = device
        self._info = info
        self._loop = loop
        self._hang_timeout = hang_timeout
        self._all: list[Slot] = []
        self._free: SimpleQueue[Slot | None] = SimpleQueue()
        self._lock = threading.Lock()  # guards the list, and that no slot is given back that somebody waits for
        self._claims = 0
        self._is_interrupted = False
        device.shortage.enter(self)

    @property
    def made(self) -> int:
        """Slots that there are."""
        return len(self._all)

    @property
    def nbytes(self) -> int:
        """Device memory of all slots."""
        with self._lock:
            return sum(slot.nbytes for slot in self._all)

    def streams(self) -> list[Stream]:
        """List the copy streams of all slots."""
        with self._lock:
            return [slot.stream for slot in self._all]

    def take(self) -> Slot | None:
        """Take a free slot or make one; ``None`` if all are in use.

        Raises
        ------
        AclMemoryError
            The device has no room for even one.
        BrokenSessionError
            The session was broken.
        """
        try:
            return self._checked(self._free.get_nowait())
        except Empty:
            pass
        with self._lock:  # another thread may have taken spare ones away since
            if len(self._all) >= self.depth:
                try:
                    return self._checked(self._free.get_nowait())
                except Empty:
                    return None
            self._claims += 1  # one that comes back meanwhile is better than one that might be made of its memory
        try:
            slot = Slot(self._device, self._info, self._loop, self._hang_timeout)
        except AclError as exc:
            with self._lock:
                made = len(self._all)
            if not made or not (isinstance(exc, AclMemoryError) or exc.code in _NONE_LEFT):
                raise
            _log.warning(
                "device %d has no %s for %d requests at once of %s: depth is %d from now on",
                self._device.id,
                _NONE_LEFT.get(exc.code, "memory"),
                made + 1,
                self._info.path,
                made,
            )
            self.depth = made
            return None
        finally:
            self._claims -= 1
        with self._lock:
            self._all.append(slot)
        return slot

    def wait(self) -> Slot:
        """Take a slot, waiting for one that another thread gives back.

        Raises
        ------
        AclMemoryError, BrokenSessionError
            As :meth:`take`.
        """
        with self._lock:
            self._claims += 1
        try:
            # Since the caller has looked, slots may have come back, or been taken away to make room.
            return self.take() or self._checked(self._free.get())
        finally:
            self._claims -= 1

    def give(self, slot: Slot) -> None:
        """Give a slot back; nothing on the device uses it any more."""
        self._free.put(slot)

    def give_back_spare(self) -> None:
        """Free the slots that nobody uses; in any thread that has the device's context."""
        spare: list[Slot] = []
        with self._lock:
            while not self._claims and not self._is_interrupted:
                try:
                    slot = self._free.get_nowait()
                except Empty:
                    break
                if slot is not None:
                    self._all.remove(slot)
                    spare.append(slot)
        run_all(slot.close for slot in spare)

    def interrupt(self) -> None:
        """Let no thread wait for a slot any more: the session is broken."""
        with self._lock:
            self._is_interrupted = True
        self._free.put(None)

    def close(self) -> None:
        """Free all slots; none may be in use. A failure is raised when all else is freed."""
        self._device.shortage.leave(self)
        with self._lock:
            slots, self._all = self._all, []
        run_all(slot.close for slot in slots)

    def _checked(self, slot: Slot | None) -> Slot:
        if slot is None:
            self._free.put(None)  # for whoever comes next
            raise BrokenSessionError("the session broke while the request waited for buffers")
        return slot
