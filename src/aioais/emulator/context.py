"""Contexts and which of them is current in a thread.

Facts: pyACL reference, Huawei's context pages: the current context is per OS thread, new threads
have none, the default context of a device is made by ``set_device``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aioais._acl.codes import AclCode
from aioais.emulator._args import VALUE, entry
from aioais.emulator._state import local, report, state
from aioais.emulator.errors import EmulatorError

if TYPE_CHECKING:
    from aioais.emulator.device import Device
    from aioais.emulator.stream import Stream

__all__ = ["Context", "current"]


class Context:
    """A context on a device, with its default stream.

    Parameters
    ----------
    device : Device
        The device.
    primary : bool
        Whether it is the device's default context.
    """

    __slots__ = ("alive", "default_stream", "device", "handle", "primary")

    def __init__(self, device: Device, primary: bool = False) -> None:
        from aioais.emulator.stream import Stream

        self.device = device
        self.primary = primary
        self.alive = True
        self.handle = next(state.handles)
        self.default_stream: Stream = Stream(self, 0, registered=False)
        state.contexts[self.handle] = self


def current() -> Context | None:
    """Give this thread's current context; ``None`` and a message when there is none."""
    context = local.context
    if context is not None and context.alive:
        return context
    if state.default_device is not None:
        # acl.json may name a device whose default context threads without one get implicitly
        primary = state.devices[state.default_device].primary
        if primary is not None:
            return primary
    report(AclCode.RT_CONTEXT_NULL, "this thread has no current context: call set_device or set_context in it")
    return None


def find(handle: int) -> Context:
    """Give a context by handle.

    Raises
    ------
    EmulatorError
        The handle is stale or invented.
    """
    context = state.contexts.get(handle)
    if context is None:
        raise EmulatorError(f"{handle:#x} is no context: destroyed, lost by a device reset, or never created")
    return context


@entry("acl.rt.create_context", "i", answer=VALUE)
def create_context(index: int) -> tuple[int, int]:
    """Make a context on a device and make it current in this thread."""
    from aioais.emulator.device import find as find_device

    if not state.initialised:
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
    if context.primary:
        return report(AclCode.INVALID_PARAM, "the default context goes with reset_device, not destroy_context")
    with state.lock:
        context.alive = False
        del state.contexts[handle]
        if local.context is context:
            local.context = None
    return 0


@entry("acl.rt.set_context", "k", hot=True)
def set_context(handle: int) -> int:
    """Make a context current in this thread."""
    context = state.contexts.get(handle)
    if context is None:
        if handle == 0:
            return report(AclCode.INVALID_PARAM, "set_context of 0")
        find(handle)
    local.context = context
    return 0


@entry("acl.rt.get_context", answer=VALUE)
def get_context() -> tuple[int, int]:
    """Give this thread's current context."""
    context = current()
    return (0, AclCode.RT_CONTEXT_NULL) if context is None else (context.handle, 0)


def drop_all(device: Device) -> int:
    """Take the contexts of a device away; count those that the program made."""
    gone = [context for context in list(state.contexts.values()) if context.device is device]
    for context in gone:
        context.alive = False
        del state.contexts[context.handle]
        if local.context is context:
            local.context = None
    return sum(not context.primary for context in gone)
