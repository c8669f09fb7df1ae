"""What sessions, tensors and results have left on the CPU device."""

from __future__ import annotations

import gc
import sys
import threading
import time

__all__ = ["LeakError", "check_leaks", "leaks"]

_HANDLES = (
    "contexts",
    "streams",
    "events",
    "models",
    "descs",
    "datasets",
    "data_buffers",
    "tensor_descs",
    "device_blocks",
    "host_blocks",
)
"""Devices are not among them: they stay set until ACL is finalised."""

_OF_SESSIONS = ("contexts", "models", "descs")
"""Kinds of which an open session has a fixed number; it makes buffers, streams and events on demand."""

_CONTROL_THREAD = "aioais-ctl-"

_LOOK_S = 0.01
"""How long to wait for a control thread before looking again: it lives on where an earlier test keeps something."""


class LeakError(AssertionError):
    """Something is alive on the CPU device that should not be."""


def leaks() -> dict[str, int]:
    """Count what is alive on the CPU device now, by kind of handle.

    Returns
    -------
    dict
        Names as those of :func:`aioais.emulator.live`, kinds without any left out. Empty too where nothing has used
        the CPU device yet; this function does not start it.
    """
    if "aioais.emulator.control" not in sys.modules:
        return {}
    from aioais import emulator

    live = emulator.live()
    return {name: live[name] for name in _HANDLES if live[name]}


_kept: dict[str, int] = {}
"""What did not go away in time: something keeps it, so waiting again is useless."""


def settled() -> dict[str, int]:
    """Count what is alive, once what an earlier test dropped is gone.

    Where no model is loaded no session is open, and what is left may be about to go. Tensors and results that
    other code keeps delay this by a second, once.
    """
    now = leaks()
    if now and "models" not in now and now != _kept:
        _clean_up({}, 1.0)
        now = leaks()
        _kept.clear()
        _kept.update(now)
    return now


def check_leaks(before: dict[str, int] | None = None, *, timeout_s: float = 5.0) -> None:
    """Raise if anything is alive on the CPU device.

    Parameters
    ----------
    before
        What :func:`leaks` returned at the start: only what is there beyond it counts. Where a session was open already,
        that one makes buffers on demand and keeps them, so only further sessions count: contexts, models and their
        descriptions.
    timeout_s
        Seconds to wait for pending clean-up: what was dropped without being closed is freed by a thread of
        the device. Nothing is waited for where nothing is left.

    Raises
    ------
    LeakError
        The message says what is left. Something still holds a session, a device tensor or a result array.
    """
    before = before or {}
    left = _more(before)
    if not left:
        return
    _clean_up(before, timeout_s)
    left = _more(before)
    if left:
        raise LeakError(
            f"alive on the CPU device: {left}; expected nothing: close every session (async with), "
            "and drop or close device tensors and results"
        )


def _clean_up(before: dict[str, int], timeout_s: float) -> None:
    """Collect what was dropped, and wait until no more than before is left or no thread works on it."""
    deadline = time.monotonic() + timeout_s
    gc.collect()  # results and tensors that were dropped
    while _more(before) and time.monotonic() < deadline:
        # A device's control thread ends once nothing needs the device any more.
        busy = [thread for thread in threading.enumerate() if thread.name.startswith(_CONTROL_THREAD)]
        if not busy:
            return
        busy[0].join(_LOOK_S)


def _more(before: dict[str, int]) -> dict[str, int]:
    now = leaks()
    kinds = _OF_SESSIONS if "models" in before else _HANDLES
    return {kind: now[kind] - before.get(kind, 0) for kind in kinds if now.get(kind, 0) > before.get(kind, 0)}
