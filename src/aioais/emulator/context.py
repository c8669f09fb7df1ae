"""Contexts and which of them is current in a thread.

Facts: pyACL reference, Huawei's context pages: the current context is per OS thread, new threads
have none, the default context of a device is made by ``set_device``.
"""

from __future__ import annotations

import threading

from .._cann.codes import AclCode
from ._args import VALUE, entry
from ._registry import handles, register, table
from ._state import report, state
from .device import Device
from .device import find as find_device
from .errors import EmulatorError
from .ordering import Queue

__all__ = ["Context", "Local", "contexts", "current", "local", "primaries"]


class Context:
    """A context on a device.

    Parameters
    ----------
    device
        The device.
    is_primary
        Whether it is the device's default context.
    """

    __slots__ = ("default_stream", "device", "handle", "is_alive", "is_primary")

    def __init__(self, device: Device, is_primary: bool = False) -> None:
        self.device: Device = device
        self.is_primary: bool = is_primary
        self.is_alive: bool = True
        self.handle: int = next(handles)
        self.default_stream: Queue | None = None
        """Made on first use, see ``stream.default_of``."""
        contexts[self.handle] = self


class Local(threading.local):
    """What AscendCL keeps per thread."""

    context: Context | None = None


local: Local = Local()


def _forget() -> None:
    for context in contexts.values():
        context.is_alive = False
    local.context = None


register(_forget)
contexts: dict[int, Context] = table("contexts", counts=lambda context: not context.is_primary)
primaries: dict[int, Context] = table()
"""The default contexts, by device."""


def current() -> Context | None:
    """Return this thread's current context; ``None`` and a message when there is none."""
    context = local.context
    if context is not None and context.is_alive:
        return context
    if state.default_device is not None:
        # acl.json may name a device whose default context serves threads without one
        primary = primaries.get(state.default_device)
        if primary is not None:
            return primary
    report(AclCode.RT_CONTEXT_NULL, "this thread has no current context: call set_device or set_context in it")
    return None


def find(handle: int) -> Context:
    """Return a context by handle.

    Raises
    ------
    EmulatorError
        The handle is stale or was never valid.
    """
    context = contexts.get(handle)
    if context is None:
        raise EmulatorError(f"{handle:#x} is not a context: destroyed, lost by a device reset, or never created")
    return context


@entry("acl.rt.create_context", "i", answer=VALUE)
def create_context(index: int) -> tuple[int, int]:
    """Create a context on a device and make it current in this thread."""
    if not state.is_initialised:
        return 0, report(AclCode.UNINITIALIZE, "create_context before acl.init")
    device = find_device(index)
    if device is None:
        return 0, AclCode.RT_INVALID_DEVICEID
    if index in state.dead:
        return 0, report(state.dead[index], f"create_context: device {index} is dead")
    with state.lock:
        context = Context(device)
        local.context = context
    return context.handle, 0


@entry("acl.rt.destroy_context", "k")
def destroy_context(handle: int) -> int:
    """Destroy a context that ``create_context`` made."""
    if handle == 0:
        return report(AclCode.INVALID_PARAM, "destroy_context of 0")
    context = find(handle)
    if context.is_primary:
        return report(AclCode.INVALID_PARAM, "the default context is destroyed by reset_device, not by destroy_context")
    with state.lock:
        context.is_alive = False
        del contexts[handle]
        if local.context is context:
            local.context = None
    return 0


@entry("acl.rt.set_context", "k", hot=True)
def set_context(handle: int) -> int:
    """Make a context current in this thread."""
    context = contexts.get(handle)
    if context is None:
        if handle == 0:
            return report(AclCode.INVALID_PARAM, "set_context of 0")
        find(handle)
    local.context = context
    return 0


@entry("acl.rt.get_context", answer=VALUE)
def get_context() -> tuple[int, int]:
    """Return this thread's current context."""
    context = current()
    return (0, AclCode.RT_CONTEXT_NULL) if context is None else (context.handle, 0)


def drop_all(device: Device) -> int:
    """Remove the contexts of a device; return how many the program had made."""
    gone = [context for context in list(contexts.values()) if context.device is device]
    for context in gone:
        context.is_alive = False
        del contexts[context.handle]
        if local.context is context:
            local.context = None
    return sum(not context.is_primary for context in gone)
