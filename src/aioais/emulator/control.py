"""Controlling and observing the emulator: settings, counters, leaks, reset.

>>> from aioais import emulator
>>> with emulator.configure(execute_ms=2, h2d_ms=1):
...     pass
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from . import _registry
from ._registry import leaks, live
from ._settings import PER_DEVICE, Settings
from ._state import state
from .death import kill
from .device import build_devices, devices, redial
from .faults import check_device, disarm, fail, gate, pending
from .memory import device_memory, host_memory

__all__ = [
    "configure",
    "copied",
    "counts",
    "disarm",
    "fail",
    "gate",
    "kill",
    "leaks",
    "live",
    "pending",
    "reset",
    "reset_counts",
    "settings",
]


class _Restore(AbstractContextManager[None]):
    """Restores settings at the end of a ``with`` block."""

    def __init__(self, device: int | None, before: dict[str, Any]) -> None:
        self._device = device
        self._before = before

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _apply(self._device, self._before)


def _apply(device: int | None, values: dict[str, Any]) -> None:
    if device is None:
        for name, value in values.items():
            setattr(state.settings, name, value)
        if "devices" in values:
            build_devices()
    else:
        own = state.overrides.setdefault(device, {})
        for name, value in values.items():
            if value is None:
                own.pop(name, None)
            else:
                own[name] = value
    redial()


def configure(*, device: int | None = None, **settings: Any) -> AbstractContextManager[None]:
    """Change settings, permanently or for a ``with`` block.

    Parameters
    ----------
    device
        Change the timings of this device only.
    **settings
        ``devices``, ``threads``, ``spin``, ``memory_mb``, ``run_mode``, ``soc_name``, ``gil`` ("real", "release",
        "hold"), ``poison``, ``h2d_ms``, ``execute_ms``, ``execute_row_ms`` (for each row of the batch on top),
        ``d2h_ms``, ``h2d_gbps``, ``d2h_gbps``, ``init_ms``, ``set_device_ms``, ``load_ms``, ``malloc_us``.
        ``run_mode`` only before ``set_device`` and without live memory. What is open on a device keeps working when
        ``devices`` becomes too small for it; the device cannot be set again. With ``device``: ``h2d_ms``,
        ``execute_ms``, ``execute_row_ms``, ``d2h_ms``, ``h2d_gbps``, ``d2h_gbps``.

    Returns
    -------
    context manager
        Restores the previous settings; may be ignored.

    Raises
    ------
    TypeError
        There is no such setting.
    ValueError
        The value is out of range or cannot change now, or there is no such device.
    """
    checked = {name: state.settings.checked(name, value) for name, value in settings.items()}
    if device is not None:
        check_device(device)
        refused = sorted(set(checked) - PER_DEVICE)
        if refused:
            raise ValueError(f"{', '.join(refused)}: not a setting of a single device")
        before: dict[str, Any] = {name: state.overrides.get(device, {}).get(name) for name in checked}
    else:
        before = {name: getattr(state.settings, name) for name in checked}
    changes_mode = checked.get("run_mode", state.settings.run_mode) != state.settings.run_mode
    if changes_mode and (any(d.count for d in devices) or device_memory.blocks or host_memory.blocks):
        raise ValueError(
            "run_mode cannot change while a device is set or memory is allocated; close what uses the devices, and "
            "reset them: aioais keeps a device set until InferSession.finalize()"
        )
    _apply(device, checked)
    return _Restore(device, before)


def settings() -> dict[str, Any]:
    """Return the current settings by name."""
    return dict(vars(state.settings))


def reset() -> None:
    """Forget everything: handles, memory, counters, faults, gates, settings; read the environment again.

    Handles and addresses from before are stale afterwards. Threads must not be inside a call.
    """
    for closed in list(state.gates):
        closed.open()
    _registry.clear()
    state.clear()
    state.settings = Settings()
    state.overrides.clear()
    build_devices()


def forget_config() -> None:
    """Let the next ``acl.init`` after ``acl.finalize`` use another configuration, as a new process could.

    Without it the first one stays for the life of the process, as with CANN.
    """
    with state.lock:
        if not state.is_initialised:
            state.first_config = None


def counts() -> dict[str, int]:
    """Return how often each function was called, by full name; functions never called are left out."""
    return {name: number for name, number in state.counts.items() if number}


def reset_counts() -> None:
    """Set the call counters and the copied bytes to zero."""
    for name in state.counts:
        state.counts[name] = 0
    for name in state.copied:
        state.copied[name] = 0


def copied() -> dict[str, int]:
    """Return the bytes copied: ``h2d``, ``d2h``, ``d2d``, ``h2h``.

    ``pageable`` are the bytes among them that ``memcpy_async`` had to copy at once.
    """
    return dict(state.copied)
