"""From the opening of a session's pipeline to the end of everything: all sessions of the process, the devices, ACL."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import stat
import threading
import time
import warnings
from collections.abc import Callable
from typing import Final

from .._acl.library import find_library
from .._acl.model import LoadedModel
from .._acl.process import live_processes
from .._bridge.delivery import Delivery
from .._bridge.offload import wait_given_up
from .._device.device import Device, acquire_device, live_devices
from .._feeds.planner import Planner
from ..errors import AclMemoryError, ArgumentError, ModelError
from ..tensor import live_tensors
from .failure import free_what_was_left
from .options import Options
from .pipeline import Pipeline, live_pipelines

__all__ = ["finalize_all", "open_pipeline"]

_log = logging.getLogger("aioais")

_PATIENCE_S: Final = 10.0
"""How long to wait for clean-up that should take no time, and at exit for requests: a hung device must not block the
process."""


def open_pipeline(options: Options, loop: asyncio.AbstractEventLoop) -> Pipeline:
    """Open a session's pipeline; blocks, in any thread.

    Raises
    ------
    ModelError, DeviceError, ArgumentError, AclNotFoundError, AclError, ForkError
        See ``InferSession``.
    """
    _check_file(options)
    library = find_library(options.platform)
    if options.hang_timeout is not None and not library.has_stream_timeout:
        raise ArgumentError(
            f"hang_timeout={options.hang_timeout:g}: this release of ACL cannot bound a wait (it has no "
            "acl.rt.synchronize_stream_with_timeout); leave hang_timeout out, or use a newer CANN"
        )
    device = acquire_device(library, options.device_id, options.acl_json_path)
    with contextlib.ExitStack() as undo:
        undo.callback(device.release_session)
        device.enter()
        path = os.path.abspath(options.model_path)
        try:
            model = LoadedModel(library, path)
        except AclMemoryError:
            model = device.idle_memory.overcome(f"the memory of {path!r}", lambda: LoadedModel(library, path))
        undo.callback(model.close)
        planner = Planner(model.info, options.check, device)
        pipeline = Pipeline(device, model, planner, Delivery(loop), options)
        undo.pop_all()
    return pipeline


def _check_file(options: Options) -> None:
    path = options.model_path
    try:
        status = os.stat(path)
    except OSError as exc:
        raise ModelError(f"{path!r} cannot be read: {exc.strerror}; give the path of a model file") from exc
    if stat.S_ISDIR(status.st_mode):
        raise ModelError(f"{path!r} is a folder; give the path of a model file")
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path!r} is a device, a pipe or a socket; give the path of a model file")
    if not status.st_size:
        raise ModelError(f"{path!r} is empty (0 bytes); convert or copy the model again")
    if options.platform == "cpu" and path.lower().endswith(".om"):
        raise ModelError(
            f"{path!r} is compiled for an Ascend NPU and cannot run on the CPU device; give the .onnx file it was made "
            "from, or platform='ascend'"
        )


def finalize_all() -> None:
    """Close every session and tensor, then finalise ACL; blocks."""
    failure: BaseException | None = None
    for process in live_processes():
        process.check_fork()
    wait_given_up(_PATIENCE_S)  # a cancelled open may be about to start ACL
    pipelines = live_pipelines()
    for pipeline in pipelines:
        pipeline.close()
    for pipeline in pipelines:
        error = pipeline.closed.exception()
        failure = failure or error
        pipeline.join()
    free_what_was_left()
    closed_tensors = _close_tensors()
    ending = _end_acl(lambda: time.monotonic() + _PATIENCE_S)
    failure = failure or ending
    if failure is not None:
        raise failure
    if closed_tensors:  # last, as a warning may be made an error
        warnings.warn(
            f"{closed_tensors} device tensors were open when ACL was finalised and are closed now: close them before",
            ResourceWarning,
            stacklevel=2,
        )


def _end_acl(deadline: Callable[[], float]) -> BaseException | None:
    """End all devices, each until its deadline, then ACL; returns the first failure."""
    failure: BaseException | None = None
    for process in live_processes():
        process.is_finalize_requested = True
    for device in live_devices():
        _drain_device(device, deadline())
    for process in live_processes():
        if not any(device.process is process for device in live_devices()):
            with contextlib.suppress(Exception):  # taken below; the other platform must still be ended
                process.finalize()
        failure = failure or process.take_failure()
    return failure


def _close_tensors() -> int:
    tensors = [tensor for tensor in list(live_tensors) if not tensor.closed]
    for tensor in tensors:
        tensor.close()
    return len(tensors)


def _drain_device(device: Device, deadline: float) -> None:
    """Wait until a device has done what was posted to it, and has ended if nothing needs it any more."""
    thread, is_through = device.worker.thread, threading.Event()

    def reap() -> None:
        try:
            device.transfers.reap(max(0.0, deadline - time.monotonic()))
        finally:
            device.post(is_through.set)  # behind what that has posted

    device.post(reap)
    while not is_through.wait(0.01) and thread.is_alive() and time.monotonic() < deadline:
        pass
    if not device.is_used:
        thread.join(max(0.0, deadline - time.monotonic()))


def _at_exit() -> None:
    """Close what the program left open, while threads still run; never raises, never hangs."""
    if any(process.is_forked for process in live_processes()):
        return  # all of it belongs to the parent
    pipelines = live_pipelines()
    if not pipelines and not live_devices() and not any(p.is_initialised for p in live_processes()):
        return
    _warn_of_open([pipeline for pipeline in pipelines if not pipeline.failure.closing.is_set()])
    _warn_of_tensors(len([tensor for tensor in list(live_tensors) if not tensor.closed]))
    deadline = time.monotonic() + _PATIENCE_S
    for pipeline in pipelines:
        pipeline.close()
    try:
        for pipeline in pipelines:
            pipeline.closed.exception(max(0.0, deadline - time.monotonic()))
        failure = _end_acl(lambda: min(deadline, time.monotonic() + 1.0))
    except BaseException as exc:  # noqa: BLE001 - the process ends anyway
        failure = exc
    if failure is not None:
        _log.warning("ACL was not shut down cleanly at exit: %r", failure)


def _warn_of_open(pipelines: list[Pipeline]) -> None:
    if not pipelines:
        return
    names = ", ".join(f"{pipeline.info.path!r} on device {pipeline.device.id}" for pipeline in pipelines)
    _warn(
        f"sessions that were never closed when the process ended: {len(pipelines)} ({names}); use 'async with', or "
        "'await session.aclose()'"
    )


def _warn_of_tensors(count: int) -> None:
    if count:
        _warn(
            f"device tensors that were open when the process ended: {count}; close them, or drop all references to "
            "them, before"
        )


def _warn(text: str) -> None:
    try:
        warnings.warn(text, ResourceWarning, stacklevel=2)
    except ResourceWarning as exc:  # made an error: no caller is left to catch it
        _log.warning("%s", exc)


atexit.register(_at_exit)
