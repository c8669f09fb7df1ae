"""CPU devices for one test: settings, faults and gates that are undone at its end."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aioais.emulator import Gate

__all__ = ["EmulatedDevices", "Fault"]


@dataclass(frozen=True)
class Fault:
    """One line of a fault script: which calls fail, and how.

    Parameters
    ----------
    call
        Full name of a pyACL function, such as ``"acl.rt.malloc"``.
    code
        What the failing calls return.
    after
        How many calls succeed before.
    times
        How many calls fail.
    device_side
        The call itself succeeds, its operation fails when the stream runs it (``acl.mdl.execute``,
        ``acl.mdl.execute_async``, ``acl.rt.memcpy_async``, ``acl.rt.memset_async``).
    """

    call: str
    code: int
    after: int = 0
    times: int = 1
    device_side: bool = False


class EmulatedDevices:
    """The CPU devices of this process, restored when the block or :meth:`close` ends.

    The fixture ``aioais_devices`` gives one for each test. Not for several threads at once.

    Notes
    -----
    Nothing happens to sessions: they are the test's, and are to be closed before its end. ``close`` opens every gate
    that was made here and disarms all faults, so what still runs can go on.
    """

    def __init__(self) -> None:
        self._undo = contextlib.ExitStack()

    def configure(self, *, device: int | None = None, **settings: Any) -> None:
        """Change settings until the end: number of devices, memory, timings, behaviour of the GIL.

        Parameters
        ----------
        device
            Change the timings of this device only.
        **settings
            Those of :func:`aioais.emulator.configure`, such as ``devices=2``, ``memory_mb=64``, ``execute_ms=2``.

        Raises
        ------
        TypeError, ValueError
            There is no such setting, its value is out of range, or it cannot change now (``run_mode``, while a
            device is set: call ``InferSession.finalize()`` first).
        """
        from aioais import emulator

        self._undo.enter_context(emulator.configure(device=device, **settings))

    def script(self, *faults: Fault) -> None:
        """Arm faults, in order: those of one call strike one after the other.

        Parameters
        ----------
        *faults
            What is to fail. A script may be extended by another call.

        Raises
        ------
        ValueError
            There is no such call, it has no device side, or the numbers are out of range. Faults before the
            wrong one are armed.
        """
        from aioais import emulator

        for fault in faults:
            emulator.fail(fault.call, fault.code, after=fault.after, times=fault.times, device_side=fault.device_side)

    def pending(self) -> list[Fault]:
        """List the faults that have not struck yet: a fault that never strikes tests nothing.

        Returns
        -------
        list of Fault
            With the numbers that are left of ``after`` and ``times``.
        """
        from aioais import emulator

        return [
            Fault(call, fault.code, fault.after, fault.times, device_side)
            for device_side, table in ((False, emulator.pending()), (True, emulator.pending(device_side=True)))
            for call, waiting in table.items()
            for fault in waiting
        ]

    def gate(self, stage: str, device: int | None = None) -> Gate:
        """Close a gate before all operations of one kind: order without sleeping.

        Parameters
        ----------
        stage
            ``"h2d"``, ``"d2h"``, ``"d2d"``, ``"execute"``, ``"load"``, ``"malloc"``, ``"init"`` or ``"set_device"``.
        device
            Only operations of this device.

        Returns
        -------
        aioais.emulator.Gate
            Has ``open()``, ``wait_reached(timeout, count)``, which blocks, and ``reached``; also a context manager
            that opens it.
        """
        from aioais import emulator

        closed = emulator.gate(stage, device)
        self._undo.callback(closed.open)
        return closed

    def counts(self) -> dict[str, int]:
        """Return how often each pyACL function was called since the last reset, by full name."""
        from aioais import emulator

        return emulator.counts()

    def reset_counts(self) -> None:
        """Set the call counters to zero."""
        from aioais import emulator

        emulator.reset_counts()

    def close(self) -> None:
        """Open the gates, disarm the faults, restore the settings; idempotent."""
        from aioais import emulator

        emulator.disarm()
        self._undo.close()

    def __enter__(self) -> EmulatedDevices:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
