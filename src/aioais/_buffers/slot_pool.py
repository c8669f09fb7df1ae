"""SlotPool: the slots of a session, made on demand, at most ``depth``."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from .._acl.model import ModelInfo
from .._acl.release import run_all
from .._acl.stream import Stream
from .._cann.codes import AclCode
from .._device.device import Device
from ..errors import AclError, AclMemoryError
from .slot import KEPT_BYTES, Slot

__all__ = ["FIRST_DEPTH", "MOST_DEPTH", "SlotPool"]

_log = logging.getLogger("aioais")

_NONE_LEFT: Final = {int(AclCode.RT_NO_EVENT_RESOURCE): "events", int(AclCode.RT_NO_STREAM_RESOURCE): "streams"}
"""What a device has few of besides memory: 1023 events on some (pyACL reference, ``create_event``)."""

FIRST_DEPTH: Final = 4
MOST_DEPTH: Final = 16
"""With ``depth="auto"``: what it begins with, and how far it grows."""
_MOST_GROWN_BYTES: Final = 64 << 20
"""Device memory of all slots up to which an automatic depth grows."""


class SlotPool:
    """Takes and makes slots for one thread at a time; they come back from any thread.

    Slots that no request uses may be given back to the device when memory runs short, by a thread of another session
    too, but not while a request waits for one. A request is still in line while a slot is made for it.

    Parameters
    ----------
    make
        Makes a slot; in a thread that has the device's context.
    is_awaited
        Tells whether a request waits for a slot.
    is_complete
        Tells whether the submission with a number is complete.

    Attributes
    ----------
    depth
        Most slots now. Less than asked for once the device had no room for more; with ``"auto"`` it grows.
    free
        Those that no request uses. The one that was used last is taken first, so that others can rest.
    may_make
        There are fewer slots than ``depth``.
    """

    def __init__(
        self,
        device: Device,
        make: Callable[[], Slot],
        info: ModelInfo,
        depth: int | str,
        is_awaited: Callable[[], bool],
        is_complete: Callable[[int], bool],
    ) -> None:
        self._most = MOST_DEPTH if isinstance(depth, str) else depth
        self.depth: int = FIRST_DEPTH if isinstance(depth, str) else depth
        self.is_automatic: bool = isinstance(depth, str)
        self.path: str = info.path
        self._device = device
        self._make = make
        self._is_awaited = is_awaited
        self._is_complete = is_complete
        self._is_open = info.kind == "shape"
        self._all: list[Slot] = []
        self.free: deque[Slot] = deque()
        self.may_make: bool = True
        self._lock = threading.Lock()  # guards the list, and that no slot is reclaimed that a request waits for
        self._is_interrupted = False
        device.idle_memory.enter(self)

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
        """List the streams of all slots."""
        with self._lock:
            return [slot.stream for slot in self._all]

    def take(self) -> Slot | None:
        """Take a free slot or make one; ``None`` if all are in use.

        Raises
        ------
        AclError
            The device has no room for even one, or failed.
        """
        try:
            slot = self.free.pop()
        except IndexError:
            pass
        else:
            slot.is_resting = False
            return slot
        if not self.may_make:
            return None
        try:
            slot = self._make()
        except AclError as exc:
            made = self.made
            if not made or not (isinstance(exc, AclMemoryError) or exc.code in _NONE_LEFT):
                raise
            _log.warning(
                "device %d: out of %s for %d concurrent requests of %s; depth reduced to %d",
                self._device.id,
                _NONE_LEFT.get(exc.code, "memory"),
                made + 1,
                self.path,
                made,
            )
            self._most = made
            self._set_depth(made)
            return None
        with self._lock:
            self._all.append(slot)
            self._set_depth(self.depth)
        return slot

    def give(self, slot: Slot) -> None:
        """Return a slot to the pool; nothing on the device uses it any more."""
        if self._is_open:
            slot.give_back()
        self.free.append(slot)

    def grow(self) -> None:
        """Double an automatic depth, within its bounds of slots and bytes."""
        if self.depth < self._most and self.depth * self._all[0].nbytes <= _MOST_GROWN_BYTES // 2:
            with self._lock:
                self._set_depth(min(2 * self.depth, self._most))

    def _set_depth(self, depth: int) -> None:
        self.depth = depth
        self.may_make = self.made < depth

    def reclaim(self) -> None:
        """Free the slots that no request uses; in any thread that has the device's context."""
        self._close_free(lambda slot: True)

    def sweep(self) -> None:
        """Free large slots that no request has used since the sweep before, but for one; in such a thread too."""
        self._close_free(lambda slot: slot.is_resting and self.made > 1 and slot.nbytes > KEPT_BYTES)
        for slot in list(self.free):
            slot.is_resting = True

    def _close_free(self, is_spare: Callable[[Slot], bool]) -> None:
        """Free slots that no request uses, the one that has rested for longest first, as far as they are spare."""
        spare: list[Slot] = []
        with self._lock:
            while not (self._is_interrupted or self._is_awaited()):
                try:
                    if not (is_spare(self.free[0]) and self._is_complete(self.free[0].needed_until)):
                        break
                    slot = self.free.popleft()
                except IndexError:
                    break
                self._all.remove(slot)
                spare.append(slot)
            depth = max(self.made, min(self.depth, FIRST_DEPTH)) if spare and self.is_automatic else self.depth
            self._set_depth(depth)
        run_all(slot.close for slot in spare)

    def interrupt(self) -> None:
        """Keep all slots from now on: the session is broken, and the device may use them."""
        with self._lock:
            self._is_interrupted = True

    def close(self) -> None:
        """Free all slots; none may be in use. A failure is raised when all else is freed."""
        self._device.idle_memory.leave(self)
        with self._lock:
            slots, self._all = self._all, []
            self.free.clear()
        run_all(slot.close for slot in slots)
