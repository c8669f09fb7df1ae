"""Fault injection: calls that fail, operations that fail on the device, gates that block."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter
from types import TracebackType
from typing import Any

from .._cann.codes import AclCode
from ._state import report, state
from .timeline import FOREVER

__all__ = [
    "STAGES",
    "Fault",
    "Gate",
    "check_device",
    "disarm",
    "fail",
    "gate",
    "intercept",
    "pass_gates",
    "pending",
    "take_device_fault",
]

STAGES = ("h2d", "d2h", "d2d", "execute", "load", "malloc", "init", "set_device")

DEVICE_SIDE = ("acl.mdl.execute", "acl.mdl.execute_async", "acl.rt.memcpy_async", "acl.rt.memset_async")


checks: list[Callable[[str], int]] = []
"""Further reasons for a call to fail: each takes the name of the call and returns a code or 0."""

_lock = threading.Lock()
"""Guards the faults. Not the lock of the devices: a call that waits at a gate may hold that one."""


def check_device(device: int) -> None:
    """Refuse a device that is not there.

    Raises
    ------
    ValueError
        There is none.
    """
    if device not in range(state.settings.devices):
        raise ValueError(f"there is no device {device}: there are {state.settings.devices}")


class Fault:
    """Calls that fail.

    Parameters
    ----------
    code
        What they return.
    after
        Calls that still succeed before.
    times
        Calls that fail.
    """

    __slots__ = ("after", "code", "times")

    def __init__(self, code: int, after: int, times: int) -> None:
        self.code: int = code
        self.after: int = after
        self.times: int = times

    def strike(self) -> bool:
        """Count one call; return whether it fails."""
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


def fail(call: str, code: int, *, after: int = 0, times: int = 1, device_side: bool = False) -> None:
    """Make the next calls of one function fail.

    Parameters
    ----------
    call
        Full name, such as ``"acl.rt.malloc"``.
    code
        Return code of the failing calls.
    after
        How many calls succeed before.
    times
        How many calls fail.
    device_side
        The call itself succeeds; its operation fails when the stream runs it, and the next
        synchronise call that depends on it reports the code, once.

    Raises
    ------
    ValueError
        There is no such call, or it has no device side.
    """
    if call not in state.counts:
        raise ValueError(f"no call {call!r}")
    if code == 0 or times < 1 or after < 0:
        raise ValueError("a fault needs a code other than 0, times >= 1 and after >= 0")
    if device_side and call not in DEVICE_SIDE:
        raise ValueError(f"{call} has no device side; these have: {', '.join(DEVICE_SIDE)}")
    table = state.device_faults if device_side else state.armed
    table.setdefault(call, []).append(Fault(code, after, times))


def pending(*, device_side: bool = False) -> dict[str, list[Fault]]:
    """Return the faults that have not fully struck, by call, as they are now.

    Parameters
    ----------
    device_side
        Those of operations on the device, else those of calls.
    """
    with _lock:
        table: dict[str, list[Fault]] = state.device_faults if device_side else state.armed
        return {
            name: [Fault(fault.code, fault.after, fault.times) for fault in waiting] for name, waiting in table.items()
        }


def disarm() -> None:
    """Forget all faults that have not struck."""
    with _lock:
        for name in [name for name in state.armed if name]:  # "" keeps the check for forks enabled
            del state.armed[name]
        state.device_faults.clear()


def _take(table: dict[str, list[Any]], name: str) -> int:
    waiting: list[Fault] = table.get(name, [])
    if not waiting:
        return 0
    fault = waiting[0]
    code = fault.code if fault.strike() else 0
    if not fault.times:
        waiting.pop(0)
        if not waiting:
            del table[name]
    return code


def take_device_fault(name: str) -> int:
    """Return the code with which this operation is to fail on the device, or 0."""
    with _lock:
        return _take(state.device_faults, name)


def intercept(name: str, answer: Callable[[int], Any]) -> tuple[bool, Any]:
    """Stop a call that is about to fail; used only while a fault is armed.

    Parameters
    ----------
    name
        Name of the call.
    answer
        Builds the call's result from a code.

    Returns
    -------
    bool, object
        Whether to stop, and the result of the call then.
    """
    if state.is_forked:
        text = "this process was forked after acl.init: a child cannot use its parent's devices"
        return True, answer(report(AclCode.RT_INTERNAL_ERROR, text))
    for check in checks:
        code = check(name)
        if code:
            return True, answer(code)
    with _lock:
        code = _take(state.armed, name)
    return (True, answer(report(code, f"{name}: injected fault"))) if code else (False, None)


class Gate:
    """A closed gate: operations of one kind wait at it until it opens.

    Parameters
    ----------
    stage
        ``h2d``, ``d2h``, ``d2d``, ``execute``, ``load``, ``malloc``, ``init`` or ``set_device``.
    device
        Only this device's operations.
    """

    def __init__(self, stage: str, device: int | None) -> None:
        self.stage = stage
        self.device = device
        self.reached: int = 0
        """How many operations have reached the gate so far."""
        self._is_open = False
        self._changed = threading.Condition()

    def open(self) -> None:
        """Let everything pass, from now on."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()
        if self in state.gates:
            state.gates.remove(self)

    def wait_reached(self, timeout: float | None = 10.0, count: int = 1) -> bool:
        """Wait until operations have reached the gate.

        Parameters
        ----------
        timeout
            Seconds; ``None`` waits forever.
        count
            How many operations.

        Returns
        -------
        bool
            Whether they did in time.
        """
        with self._changed:
            return self._changed.wait_for(lambda: self.reached >= count, timeout)

    def stand(self, deadline: float) -> bool:
        """Wait at the gate until it opens or the deadline passes."""
        with self._changed:
            if self._is_open:
                return True
            if deadline == 0.0:
                return False
            self.reached += 1
            self._changed.notify_all()
            timeout = None if deadline == FOREVER else max(0.0, deadline - perf_counter())
            return self._changed.wait_for(lambda: self._is_open, timeout)

    def __enter__(self) -> Gate:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open()


def gate(stage: str, device: int | None = None) -> Gate:
    """Close a gate before all operations of one kind.

    Parameters
    ----------
    stage
        ``"h2d"``, ``"d2h"``, ``"d2d"``, ``"execute"``, ``"load"``, ``"malloc"``, ``"init"`` or ``"set_device"``.
    device
        Only operations of this device; pinned host memory and ``"init"`` belong to none.

    Returns
    -------
    Gate
        Has ``open()``, ``wait_reached(timeout, count)`` and ``reached``; also a context manager that opens it.

    Raises
    ------
    ValueError
        There is no such stage or device, or the stage belongs to no device.
    """
    if stage not in STAGES:
        raise ValueError(f"no stage {stage!r}; there are {', '.join(STAGES)}")
    if device is not None:
        check_device(device)
        if stage == "init":
            raise ValueError("acl.init belongs to no device: omit the device")
    closed = Gate(stage, device)
    state.gates.append(closed)
    return closed


def pass_gates(stage: str, device: int | None, deadline: float = FOREVER) -> bool:
    """Wait at the closed gates of a stage, without the GIL.

    Returns
    -------
    bool
        False when the deadline passed first; a deadline of 0 never waits.
    """
    return all(
        closed.stand(deadline)
        for closed in list(state.gates)
        if closed.stage == stage and closed.device in (None, device)
    )
