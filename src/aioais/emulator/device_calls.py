"""The calls of devices: counting ``set_device``, resetting, capacity, utilisation.

Facts: pyACL reference, Huawei's device pages and the open runtime source (reference counts per
process and device, 507007 for a reset without a set, the default context of a device).
"""

from __future__ import annotations

from .._cann.codes import AclCode
from .._cann.constants import RunMode
from . import context as contexts
from . import event, faults, memory, model, stream
from ._args import VALUE, entry
from ._registry import lost
from ._state import report, state
from .context import Context, current, local, primaries
from .device import Device, devices, find, find_among
from .timeline import pause

__all__ = ["release"]


@entry("acl.rt.set_device", "i")
def set_device(index: int) -> int:
    """Use a device in this thread: its default context becomes current."""
    if not state.is_initialised:
        return report(AclCode.UNINITIALIZE, "set_device before acl.init")
    device = find(index)
    if device is None:
        return AclCode.RT_INVALID_DEVICEID
    if index in state.dead:
        return report(state.dead[index], f"set_device: device {index} is dead")
    if state.gates:
        faults.pass_gates("set_device", index)
    if index not in primaries:
        pause(state.settings.set_device_ms * 1e-3, state.settings.gil != "release")
    with state.lock:
        if index not in primaries:
            primaries[index] = Context(device, is_primary=True)
        device.count += 1
        local.context = primaries[index]
    return 0


@entry("acl.rt.reset_device", "i")
def reset_device(index: int) -> int:
    """Undo one ``set_device``; the last one frees what lives on the device."""
    device = find_among(index, len(devices))
    if device is None:
        return AclCode.RT_INVALID_DEVICEID
    with state.lock:
        if device.count == 0:
            return report(AclCode.RT_CONTEXT_RELEASE_ERROR, f"device {index} is not set: nothing to reset")
        device.count -= 1
        if device.count == 0:
            release(device)
    return 0


@entry("acl.rt.reset_device_force", "i")
def reset_device_force(index: int) -> int:
    """Free what lives on the device, whatever the count."""
    device = find_among(index, len(devices))
    if device is None:
        return AclCode.RT_INVALID_DEVICEID
    with state.lock:
        if device.count == 0:
            return report(AclCode.RT_CONTEXT_RELEASE_ERROR, f"device {index} is not set: nothing to reset")
        device.count = 0
        release(device)
    return 0


def release(device: Device) -> None:
    """Free everything on a device, and note what the program had not freed itself."""
    for name, number in (
        ("models", model.drop_all(device)),
        ("streams", stream.drop_all(device)),
        ("events", event.drop_all(device)),
        ("contexts", contexts.drop_all(device)),
        ("device_blocks", memory.drop_all(device)),
    ):
        if number:
            lost[name] = lost.get(name, 0) + number
    primaries.pop(device.index, None)
    device.peers.clear()


@entry("acl.rt.get_device", answer=VALUE)
def get_device() -> tuple[int, int]:
    """Return the device of the current context."""
    context = current()
    if context is None:
        return 0, AclCode.RT_CONTEXT_NULL
    return context.device.index, 0


@entry("acl.rt.get_device_count", answer=VALUE)
def get_device_count() -> tuple[int, int]:
    """Count the visible devices; works before ``init``."""
    return state.settings.devices, 0


@entry("acl.rt.get_run_mode", answer=VALUE)
def get_run_mode() -> tuple[int, int]:
    """Return whether the program runs on the SoC (0) or on a host with a card (1)."""
    return int(RunMode(state.settings.run_mode)), 0


def _utilization(cube: int = 0) -> dict[str, int]:
    names = ("cube_utilization", "vector_utilization", "aicpu_utilization", "memory_utilization")
    return {**dict.fromkeys(names, cube), "utilization_extend": 0}


@entry("acl.rt.get_device_utilization_rate", "i", answer=lambda code: (_utilization(), code))
def get_device_utilization_rate(index: int) -> tuple[dict[str, int], int]:
    """Return the utilisation of a device; the emulator knows only that of its memory."""
    rates = _utilization()
    device = find(index)
    if device is None:
        return rates, AclCode.RT_INVALID_DEVICEID
    rates["memory_utilization"] = 100 * device.used // (state.settings.memory_mb << 20 or 1)
    return rates, 0


@entry("acl.rt.query_device_status", "i", answer=lambda code: (65535, code))
def query_device_status(index: int) -> tuple[int, int]:
    """Return whether a device is normal (0)."""
    return (0, 0) if find(index) else (65535, AclCode.RT_INVALID_DEVICEID)


@entry("acl.rt.device_get_stream_priority_range", answer=lambda code: (0, 0, code))
def device_get_stream_priority_range() -> tuple[int, int, int]:
    """Return the least and the greatest priority of streams."""
    return 7, 0, 0


@entry("acl.rt.device_can_access_peer", "ii", answer=VALUE)
def device_can_access_peer(device: int, peer: int) -> tuple[int, int]:
    """Return whether two devices can reach each other's memory."""
    if find(device) is None or find(peer) is None:
        return 0, AclCode.RT_INVALID_DEVICEID
    return int(device != peer), 0


@entry("acl.rt.device_enable_peer_access", "iI")
def device_enable_peer_access(peer: int, flags: int) -> int:
    """Give the current device access to the memory of another one."""
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    if flags != 0 or peer == context.device.index:
        return report(AclCode.INVALID_PARAM, "peer access needs another device and flags of 0")
    if find(peer) is None:
        return AclCode.RT_INVALID_DEVICEID
    context.device.peers.add(peer)
    return 0
