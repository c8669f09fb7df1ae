"""Waiting for streams and devices, and querying them.

Facts: pyACL reference, Huawei's stream pages: 507046 for an expired timeout, 107000 for a timeout below -1.
"""

from __future__ import annotations

from time import perf_counter

from .._cann.codes import AclCode
from ._args import entry
from ._state import report, state
from .context import current
from .ordering import note_finished
from .stream import refuse_deadlock, resolve, run, streams_of, synchronize, take_failure
from .timeline import FOREVER

__all__ = ["deadline_of"]


@entry("acl.rt.synchronize_stream", "k", hot=True)
def synchronize_stream(handle: int) -> int:
    """Wait until everything queued on a stream is done; report its failures."""
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    stream = resolve(handle, context)
    synchronize(stream, FOREVER, state.settings.gil == "hold")
    return take_failure(stream)


def deadline_of(milliseconds: int) -> float:
    """Convert a timeout to a moment; -1 is forever."""
    return FOREVER if milliseconds == -1 else perf_counter() + milliseconds * 1e-3


@entry("acl.rt.synchronize_stream_with_timeout", "ki")
def synchronize_stream_with_timeout(handle: int, timeout: int) -> int:
    """Wait for a stream for some milliseconds; 507046 when that was not enough."""
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    if timeout < -1:
        return report(AclCode.RT_PARAM_INVALID, f"timeout of {timeout}: -1 or a number of milliseconds")
    stream = resolve(handle, context)
    if not synchronize(stream, deadline_of(timeout) or 1e-9, state.settings.gil == "hold"):
        return report(AclCode.RT_STREAM_SYNC_TIMEOUT, f"the stream is not done after {timeout} ms")
    return take_failure(stream)


def _synchronize_device(call: str, deadline: float, held: bool, refuse: bool) -> int:
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    result = 0
    for stream in streams_of(context.device):
        if refuse:
            refuse_deadlock(stream, call)
        if not synchronize(stream, deadline, held):
            return report(AclCode.RT_STREAM_SYNC_TIMEOUT, f"{call}: the device is not done in time")
        result = result or take_failure(stream)
    return result


@entry("acl.rt.synchronize_device")
def synchronize_device() -> int:
    """Wait for every stream of the current device."""
    return _synchronize_device("synchronize_device", FOREVER, state.settings.gil == "hold", refuse=False)


@entry("acl.rt.synchronize_device_with_timeout", "i")
def synchronize_device_with_timeout(timeout: int) -> int:
    """Wait for the current device for some milliseconds; here pyACL keeps the GIL."""
    if timeout < -1 or timeout == 0:
        return report(AclCode.RT_PARAM_INVALID, f"timeout of {timeout}: -1 or more than 0")
    held = state.settings.gil != "release"
    return _synchronize_device("synchronize_device_with_timeout", deadline_of(timeout), held, refuse=True)


@entry("acl.rt.stream_query", "k", answer=lambda code: (65535, code))
def stream_query(handle: int) -> tuple[int, int]:
    """Return whether a stream is done (0) or not (1), without waiting."""
    context = current()
    if context is None:
        return 65535, AclCode.RT_CONTEXT_NULL
    stream = resolve(handle, context)
    behind = stream.behind
    done = run(stream, None, 0.0) and not (stream.device.is_virtual and stream.tail > perf_counter())
    if done:
        note_finished(stream, behind)
    return (0 if done else 1), 0
