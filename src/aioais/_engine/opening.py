"""Opening a session's pipeline: platform, device, model; undone in reverse where it fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat

from .._acl.library import find_library
from .._acl.model import LoadedModel
from .._bridge.delivery import Delivery
from .._device.device import acquire_device
from .._feeds.planner import Planner
from ..errors import AclMemoryError, ArgumentError, ModelError
from .options import Options
from .pipeline import Pipeline

__all__ = ["open_pipeline"]


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
