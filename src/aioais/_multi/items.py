"""The items of a stream, the devices that take part in it, and which device is to run an item."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .._engine.core import SessionCore
from .._engine.request import Request
from ..errors import AclError
from .pool import DeviceState

__all__ = ["Item", "Member", "device_for"]


class Item:
    """One item of the source, until its result is with the consumer."""

    __slots__ = ("device_id", "error", "failures", "feeds", "index", "is_done", "outputs", "request")

    def __init__(self, index: int, feeds: Any) -> None:
        self.index = index
        self.feeds = feeds  # kept until it is done: it may have to run again elsewhere
        self.device_id = -1
        self.request: Request | None = None
        self.outputs: list[np.ndarray] | None = None
        self.error: BaseException | None = None
        self.is_done = False
        self.failures: dict[int, AclError] = {}
        """How it failed, by device."""

    @property
    def where(self) -> str:
        """The devices on which it failed."""
        ids = sorted(self.failures) or [self.device_id]
        return f"device {ids[0]}" if len(ids) == 1 else f"devices {' and '.join(map(str, ids))}"


class Member:
    """A device that takes part in a stream."""

    __slots__ = ("_prefetch", "id", "in_flight", "is_on_trial", "is_wide", "session", "state")

    def __init__(self, device_id: int, session: SessionCore, prefetch: int | None, state: DeviceState) -> None:
        self.id = device_id
        self.session = session
        self.in_flight = 0
        self.is_on_trial = False
        """It runs an item that failed elsewhere, and no other one before that is done."""
        self.is_wide = False
        """As in ``Pipeline.window``."""
        self.state = state
        self._prefetch = prefetch

    @property
    def most(self) -> int:
        """Most items that it has at once: as many as its depth, and those read ahead."""
        return self.session.known().window(self._prefetch, self.is_wide)

    @property
    def room(self) -> int:
        """How many more items it can take now."""
        return 0 if self.is_on_trial else self.most - self.in_flight


def device_for(item: Item, devices: Iterable[Member]) -> Member | None:
    """Return the device with most room; for an item that failed, one without others on which it has not run yet."""
    best: Member | None = None
    most = 0
    for device in devices:
        room = device.room
        if room > most and not (item.failures and (device.in_flight or device.id in item.failures)):
            best, most = device, room
    return best
