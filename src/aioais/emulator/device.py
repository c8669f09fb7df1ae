"""Devices: engines and capacity.

The calls are in ``device_calls``.
"""

from __future__ import annotations

import itertools

from .._cann.codes import AclCode
from ._registry import register
from ._state import report, state
from .timeline import Engine

__all__ = ["Device", "build_devices", "devices", "find", "find_among", "redial"]


class Device:
    """One emulated device.

    Parameters
    ----------
    index
        Its id.
    """

    __slots__ = (
        "count",
        "d2d",
        "d2h",
        "execute",
        "h2d",
        "index",
        "is_virtual",
        "peers",
        "stream_ids",
        "used",
    )

    def __init__(self, index: int) -> None:
        self.index: int = index
        self.count: int = 0
        self.used: int = 0
        self.peers: set[int] = set()
        self.stream_ids: itertools.count[int] = itertools.count(1)  # 0 means no stream
        self.h2d: Engine = Engine("h2d")
        self.execute: Engine = Engine("execute")
        self.d2h: Engine = Engine("d2h")
        self.d2d: Engine = Engine("d2d")
        self.is_virtual: bool = False
        """Whether any timing is set: if so, the engines' timelines give the time."""


devices: list[Device] = []
register(devices.clear, devices=lambda found=devices: sum(device.count > 0 for device in found))  # type: ignore[misc]


def build_devices() -> None:
    """Create missing devices; those beyond the configured number stay for what is open on them."""
    devices.extend(map(Device, range(len(devices), state.settings.devices)))
    redial()


def redial() -> None:
    """Apply the configured timings to the engines."""
    for device in devices:
        own = state.overrides.get(device.index, {})

        def value(name: str, own: dict[str, float] = own) -> float:
            return own[name] if name in own else float(getattr(state.settings, name))

        dialled = (
            device.h2d.dial(value("h2d_ms"), value("h2d_gbps")),
            device.execute.dial(value("execute_ms"), per_item_ms=value("execute_row_ms")),
            device.d2h.dial(value("d2h_ms"), value("d2h_gbps")),
        )
        device.is_virtual = any(dialled)


def find(index: int) -> Device | None:
    """Return a device by id; ``None`` and a message when there is none."""
    return find_among(index, state.settings.devices)


def find_among(index: int, count: int) -> Device | None:
    """Return a device by id, of the first ``count``; ``None`` and a message when there is none."""
    if 0 <= index < count:
        return devices[index]
    report(AclCode.RT_INVALID_DEVICEID, f"there is no device {index}: there are {count}")
    return None
