"""Creating, destroying and configuring streams.

Facts: pyACL reference, Huawei's stream pages: 207008 for too many, 107003 for a stream of another context.
"""

from __future__ import annotations

from .._cann.codes import AclCode
from ._args import VALUE, entry
from ._state import report, state
from .context import current
from .stream import Stream, drop, foreign, refuse_deadlock, resolve, streams, synchronize
from .timeline import FOREVER

__all__: list[str] = []

_LIMIT = 1984
"""Streams of one device (A2/A3); more give 207008."""


@entry("acl.rt.create_stream", answer=VALUE)
def create_stream() -> tuple[int, int]:
    """Create a stream in the current context."""
    return _create(0)


@entry("acl.rt.create_stream_with_config", "II", answer=VALUE)
def create_stream_with_config(priority: int, flag: int) -> tuple[int, int]:
    """Create a stream with a priority (0..7) and flags."""
    if priority > 7 or flag > 0x3F:
        return 0, report(AclCode.RT_PARAM_INVALID, f"create_stream_with_config({priority}, {flag}): out of range")
    return _create(priority)


def _create(priority: int) -> tuple[int, int]:
    context = current()
    if context is None:
        return 0, AclCode.RT_CONTEXT_NULL
    device = context.device
    if sum(stream.device is device for stream in list(streams.values())) >= _LIMIT:
        return 0, report(AclCode.RT_NO_STREAM_RESOURCE, f"device {device.index} has {_LIMIT} streams already")
    return Stream(context, priority).handle, 0


def _destroy(handle: int, call: str, force: bool) -> int:
    if handle == 0:
        return report(AclCode.INVALID_PARAM, f"{call} of 0")
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    stream = resolve(handle, context)
    if stream.context is not context:
        return foreign(call)
    if stream.reporter is not None:
        return report(AclCode.RT_STREAM_SUBSCRIBE, f"{call}: unsubscribe_report must come first")
    if force:
        drop(stream)
    else:
        refuse_deadlock(stream, call)
        synchronize(stream, FOREVER, state.settings.gil != "release")
    stream.is_alive = False
    streams.pop(handle, None)
    return 0


@entry("acl.rt.destroy_stream", "k")
def destroy_stream(handle: int) -> int:
    """Wait for a stream's work and destroy it."""
    return _destroy(handle, "destroy_stream", force=False)


@entry("acl.rt.destroy_stream_force", "k")
def destroy_stream_force(handle: int) -> int:
    """Destroy a stream and drop its work."""
    return _destroy(handle, "destroy_stream_force", force=True)


@entry("acl.rt.stream_abort", "k")
def stream_abort(handle: int) -> int:
    """Drop the work of a stream."""
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    drop(resolve(handle, context))
    return 0


@entry("acl.rt.stream_get_id", "k", answer=VALUE)
def stream_get_id(handle: int) -> tuple[int, int]:
    """Return the number of a stream."""
    context = current()
    if context is None:
        return 0, AclCode.RT_CONTEXT_NULL
    return resolve(handle, context).index, 0


@entry("acl.rt.set_stream_failure_mode", "kK")
def set_stream_failure_mode(handle: int, mode: int) -> int:
    """Choose whether a stream stops at its first failure (1) or goes on (0)."""
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    if mode not in (0, 1) or handle == 0:
        return report(AclCode.INVALID_PARAM, f"set_stream_failure_mode({handle:#x}, {mode})")
    resolve(handle, context).is_halted_by_failure = mode == 1
    return 0
