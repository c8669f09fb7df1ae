"""Opening a session's pipeline: platform, device, model; undone in reverse where it fails."""

from __future__ import annotations

import asyncio
import contextlib
import operator
import os
import stat
from dataclasses import dataclass
from typing import Final

import numpy as np

from .._acl.library import Platform, find_library
from .._acl.model import LoadedModel
from .._bridge.delivery import Delivery
from ..errors import AclMemoryError, ArgumentError, DeviceError, ModelError
from ..types import Check
from .device import acquire_device
from .feeds import Planner
from .pipeline import Pipeline

__all__ = ["Options", "check_options", "check_path", "open_pipeline"]

_MOST_SECONDS: Final = 2_147_483.0
"""ACL takes a timeout as milliseconds of 32 bits."""


@dataclass(frozen=True)
class Options:
    """Arguments of a session, checked."""

    device_id: int
    model_path: str
    acl_json_path: str | None
    debug: bool
    loop: int
    platform: Platform
    depth: int
    check: Check
    hang_timeout: float | None


def check_options(
    device_id: object,
    model_path: object,
    acl_json_path: object,
    debug: object,
    loop: object,
    platform: object,
    depth: object,
    check: object,
    hang_timeout: object,
) -> Options:
    """Check what needs neither files nor devices.

    Raises
    ------
    DeviceError
        ``device_id`` cannot be one.
    ArgumentError
        Another argument is out of its range.
    """
    if not _is_int(device_id) or device_id < 0:  # type: ignore[operator]
        raise DeviceError(f"device_id={device_id!r}: wanted an int from 0; aioais.devices() lists what there is")
    path = check_path("model_path", model_path)
    config = None if acl_json_path is None else check_path("acl_json_path", acl_json_path)
    for name, value in (("loop", loop), ("depth", depth)):
        if not _is_int(value) or value < 1:  # type: ignore[operator]
            raise ArgumentError(f"{name}={value!r}: wanted an int of at least 1")
    if check not in ("strict", "bytes"):
        raise ArgumentError(f"check={check!r}: wanted 'strict' (types and shapes) or 'bytes' (byte count only)")
    return Options(
        int(device_id),  # type: ignore[call-overload]
        path,
        config,
        bool(debug),
        int(loop),  # type: ignore[call-overload]
        _platform(platform, path),
        int(depth),  # type: ignore[call-overload]
        check,
        _seconds(hang_timeout),
    )


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
            model = device.shortage.overcome(f"the memory of {path!r}", lambda: LoadedModel(library, path))
        undo.callback(model.close)
        planner = Planner(model.info, options.check, device)
        pipeline = Pipeline(
            device,
            model,
            planner,
            Delivery(loop),
            options.depth,
            options.loop,
            options.debug,
            options.hang_timeout,
        )
        undo.pop_all()
    return pipeline


def _platform(platform: object, path: str) -> Platform:
    if platform is None:
        suffix = os.path.splitext(path)[1].lower()
        if suffix == ".om":
            return "ascend"
        if suffix == ".onnx":
            return "cpu"
        raise ModelError(
            f"{path!r}: the platform follows from the file's name, which ends neither in .om (Ascend NPU) nor in .onnx "
            "(CPU device); rename it or give platform='ascend' or platform='cpu'"
        )
    if platform == "ascend":
        return "ascend"
    if platform == "cpu":
        return "cpu"
    raise ArgumentError(f"platform={platform!r}: wanted 'ascend', 'cpu', or None to go by the file's name")


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


def check_path(name: str, value: object) -> str:
    """Give a path argument as a string.

    Raises
    ------
    ArgumentError
        It is no path.
    """
    try:
        path = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        path = None
    if not isinstance(path, str) or not path or "\0" in path:
        raise ArgumentError(f"{name}={value!r}: wanted a path as str or os.PathLike")
    return path


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not 0 < value <= _MOST_SECONDS:  # type: ignore[operator]
        raise ArgumentError(
            f"hang_timeout={value!r}: wanted seconds, from above 0 to {_MOST_SECONDS:g}, or None to wait for ever"
        )
    return float(value)  # type: ignore[arg-type]


def _is_int(value: object) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False  # arrays have the method too
    return True
