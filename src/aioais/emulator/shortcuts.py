"""The usual case of the calls that make up a request, without the layers around it.

Each function takes the arguments as they come. It does the call only if they are plain ints, all handles are valid,
nothing is armed and nothing has to be reported; anything else goes to the checked entry point, where the rules are.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

from ._args import ENTRIES, shortcut
from ._state import state
from .context import contexts, local
from .event import events, run_wait
from .execute import run_execute
from .memory import device_memory, host_memory
from .model import models
from .ordering import note_finished, note_wait
from .stream import Record, run, streams, take_failure
from .timeline import FOREVER
from .transfer import run_copy

__all__: list[str] = []

# Emptied in place, never replaced.
_armed, _counts, _dead, _device_faults = state.armed, state.counts, state.dead, state.device_faults
_device_blocks, _host_blocks = device_memory.blocks, host_memory.blocks

_NOT_USUAL = (ValueError, KeyError, TypeError)
"""A wrong number of arguments, an unknown handle, something that is not hashable or not a number."""

_set_context = ENTRIES["acl.rt.set_context"]
_record = ENTRIES["acl.rt.record_event"]
_wait = ENTRIES["acl.rt.stream_wait_event"]
_copy = ENTRIES["acl.rt.memcpy_async"]
_execute = ENTRIES["acl.mdl.execute_async"]
_synchronize = ENTRIES["acl.rt.synchronize_stream"]
_elapsed = ENTRIES["acl.rt.event_elapsed_time"]


@shortcut("acl.rt.set_context")
def set_context(*args: Any) -> Any:
    """Make a context current in this thread."""
    try:
        (handle,) = args
        context = contexts[handle]
    except _NOT_USUAL:
        pass
    else:
        if type(handle) is int and not _armed:
            _counts["acl.rt.set_context"] += 1
            local.context = context
            return 0
    return _set_context(*args)


@shortcut("acl.rt.record_event")
def record_event(*args: Any) -> Any:
    """Record an event that may be recorded again."""
    try:
        handle, stream_handle = args
        event, stream = events[handle], streams[stream_handle]
    except _NOT_USUAL:
        pass
    else:
        context = stream.context
        if (
            type(handle) is type(stream_handle) is int
            and local.context is context
            and context.is_alive
            and not event.is_sticky
            and not _armed
        ):
            _counts["acl.rt.record_event"] += 1
            event.record = record = Record(stream, perf_counter())
            stream.queue.append(record)
            return 0
    return _record(*args)


@shortcut("acl.rt.stream_wait_event")
def stream_wait_event(*args: Any) -> Any:
    """Wait for an event that was recorded."""
    try:
        stream_handle, handle = args
        event, stream = events[handle], streams[stream_handle]
    except _NOT_USUAL:
        pass
    else:
        context, record = stream.context, event.record
        if (
            type(handle) is type(stream_handle) is int
            and record is not None
            and local.context is context
            and context.is_alive
            and event.is_waitable
            and not event.is_recorded_again
            and not _armed
        ):
            _counts["acl.rt.stream_wait_event"] += 1
            stream.queue.append((run_wait, record))
            note_wait(stream, record.behind)
            event.waited = (stream, record)
            return 0
    return _wait(*args)


@shortcut("acl.rt.memcpy_async")
def memcpy_async(*args: Any) -> Any:
    """Queue a copy between the beginnings of two blocks, one of them or both on the device."""
    try:
        destination, maximum, source, count, kind, handle = args
        stream = streams[handle]
        if kind == 1:
            name, to, origin = "h2d", _device_blocks[destination], _host_blocks[source]
            device = to.device
        elif kind == 2:
            name, to, origin = "d2h", _host_blocks[destination], _device_blocks[source]
            device = origin.device
        else:
            name, to, origin = "d2d", _device_blocks[destination], _device_blocks[source]
            device = origin.device if origin.device is to.device else None
        fits = 0 < count <= maximum and count <= to.size and count <= origin.size and 0 < kind < 4
    except _NOT_USUAL:
        pass
    else:
        context = stream.context
        if (
            fits
            and type(destination) is type(maximum) is type(source) is type(count) is type(kind) is type(handle) is int
            and local.context is context
            and context.is_alive
            and device is not None
            and device is context.device
            and not _armed
            and not _device_faults
        ):
            _counts["acl.rt.memcpy_async"] += 1
            submitted = perf_counter() if device.is_virtual else 0.0
            stream.queue.append((run_copy, submitted, 0, name, count, to, 0, origin, 0))
            return 0
    return _copy(*args)


@shortcut("acl.mdl.execute_async")
def execute_async(*args: Any) -> Any:
    """Queue a run of a model with a plan that is still valid, behind its last execution."""
    try:
        model_id, in_handle, out_handle, handle = args
        model, stream = models[model_id], streams[handle]
        plan = model.plans[in_handle, out_handle]
    except _NOT_USUAL:
        pass
    else:
        context, use, executions = stream.context, plan.use, model.executions
        last = executions.last
        if (
            type(model_id) is type(in_handle) is type(out_handle) is type(handle) is int
            and model.context is local.context is context
            and context.is_alive
            and (model.manner == "execute_async" or model.info.mode == "shape")
            and (executions.known >= last or stream.behind.get(executions, 0) >= last)
            and plan.epoch == device_memory.epoch
            and plan.fed_version == plan.fed.version
            and plan.version == plan.dataset.version
            and not use.rivals
            and not _armed
            and not _device_faults
        ):
            _counts["acl.mdl.execute_async"] += 1
            executions.submitted = executions.last = use.last = number = executions.submitted + 1
            executions.last_queue = use.last_queue = stream
            stream.behind = {**stream.behind, executions: number}
            submitted = perf_counter() if stream.device.is_virtual else 0.0
            stream.queue.append((run_execute, submitted, 0, model, plan, number))
            return 0
    return _execute(*args)


@shortcut("acl.rt.synchronize_stream")
def synchronize_stream(*args: Any) -> Any:
    """Wait for a stream of a device in real time."""
    try:
        (handle,) = args
        stream = streams[handle]
    except _NOT_USUAL:
        pass
    else:
        context = local.context
        if (
            type(handle) is int
            and context is not None
            and context.is_alive
            and not stream.device.is_virtual
            and not _armed  # nor is the device dead, which arms all calls
        ):
            _counts["acl.rt.synchronize_stream"] += 1
            behind = stream.behind
            run(stream, None, FOREVER)
            note_finished(stream, behind)
            return 0 if stream.failure is None and not _dead else take_failure(stream)
    return _synchronize(*args)


@shortcut("acl.rt.event_elapsed_time")
def event_elapsed_time(*args: Any) -> Any:
    """Return the milliseconds between two records that are reached."""
    try:
        start_handle, end_handle = args
        start, end = events[start_handle], events[end_handle]
    except _NOT_USUAL:
        pass
    else:
        first, last = start.record, end.record
        if (
            type(start_handle) is type(end_handle) is int
            and first is not None
            and last is not None
            and first.is_done
            and last.is_done
            and start.has_time
            and end.has_time
            and last.time >= first.time
            and not _armed
        ):
            _counts["acl.rt.event_elapsed_time"] += 1
            return (last.time - first.time) * 1e3, 0
    return _elapsed(*args)
