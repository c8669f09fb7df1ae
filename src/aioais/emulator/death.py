"""Devices that die: every call that needs the device returns one code from then on."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from .._cann.codes import AclCode
from ._state import report, state
from .context import local
from .device import Device, devices
from .faults import check_device, checks
from .stream import streams_of

__all__ = ["kill"]

_MARK = "acl: a device is dead"
"""Not the name of a call: as a key of the armed faults it sends every call through the slow check."""


_NEEDS_THE_DEVICE = frozenset(
    {
        "acl.mdl.execute",
        "acl.mdl.execute_async",
        "acl.mdl.execute_v2",
        "acl.mdl.load_from_file",
        "acl.mdl.load_from_file_with_mem",
        "acl.mdl.load_from_mem",
        "acl.mdl.load_from_mem_with_mem",
        "acl.mdl.load_with_config",
        "acl.rt.create_stream",
        "acl.rt.create_stream_with_config",
        "acl.rt.malloc",
        "acl.rt.malloc_align32",
        "acl.rt.malloc_cached",
        "acl.rt.memcpy",
        "acl.rt.memcpy2d",
        "acl.rt.memcpy_async",
        "acl.rt.memset",
        "acl.rt.memset_async",
    }
)
"""Calls that a dead device refuses in its contexts; calls that name it or wait for it check for themselves."""


def _refuse(name: str) -> int:
    """Return the code of a dead device to the calls that need it."""
    if not state.dead or name not in _NEEDS_THE_DEVICE or local.context is None:
        return 0
    device = local.context.device.index
    return report(state.dead[device], f"{name}: device {device} is dead") if device in state.dead else 0


checks.append(_refuse)


class _Revive(AbstractContextManager[None]):
    """Brings the device back at the end of a ``with`` block."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state.dead.pop(self._device.index, None)
        if not state.dead:
            state.armed.pop(_MARK, None)
        for stream in streams_of(self._device):
            stream.is_halted = False


def kill(device: int, code: int = AclCode.RT_LOST_HEARTBEAT) -> AbstractContextManager[None]:
    """Let a device die, permanently or for a ``with`` block.

    What is queued on it never runs. Every synchronise call in one of its contexts reports the code, each
    time; so do the calls that give it work or allocate on it (``set_device``, contexts, streams,
    device memory, loads, copies, executions). Calls that only release still succeed: they are bookkeeping of the host.

    Parameters
    ----------
    device
        Its id.
    code
        What the calls return; 507010 (lost heartbeat) by default.

    Returns
    -------
    context manager
        Brings the device back; may be ignored, as :func:`aioais.emulator.reset` does it too.

    Raises
    ------
    ValueError
        There is no such device, or the code is 0.
    """
    check_device(device)
    if code == 0:
        raise ValueError("a dead device needs a code other than 0")
    state.dead[device] = int(code)
    for stream in streams_of(devices[device]):
        stream.is_halted = True
        if stream.queue:  # for a synchronise call after the device is back
            stream.fail(int(code), f"device {device} died")
    state.armed[_MARK] = []
    return _Revive(devices[device])
