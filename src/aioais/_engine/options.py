"""Options: the arguments of a session, checked before anything is opened."""

from __future__ import annotations

import operator
import os
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .._acl.library import Platform
from ..errors import ArgumentError, DeviceError, ModelError
from ..types import Check, Depth

__all__ = ["Given", "Options", "check_options", "check_path", "check_prefetch"]

_MOST_SECONDS: Final = 2_147_483.0
"""ACL takes a timeout as milliseconds of 32 bits."""


@dataclass(frozen=True)
class Given:
    """Arguments of a session, as the caller passed them."""

    device_id: Any
    model_path: Any
    acl_json_path: Any
    debug: Any
    loop: Any
    platform: Any
    depth: Any
    check: Any
    hang_timeout: Any


@dataclass(frozen=True)
class Options:
    """Arguments of a session, checked."""

    device_id: int
    model_path: str
    acl_json_path: str | None
    debug: bool
    loop: int
    platform: Platform
    depth: Depth
    check: Check
    hang_timeout: float | None


def check_options(given: Given) -> Options:
    """Check what needs neither files nor devices.

    Raises
    ------
    DeviceError
        ``device_id`` cannot be one.
    ArgumentError
        Another argument is out of its range.
    """
    device_id, loop, depth = given.device_id, given.loop, given.depth
    if not _is_int(device_id) or device_id < 0:
        raise DeviceError(f"device_id={device_id!r}: expected an int from 0; aioais.devices() lists what there is")
    path = check_path("model_path", given.model_path)
    config = None if given.acl_json_path is None else check_path("acl_json_path", given.acl_json_path)
    if not _is_int(loop) or loop < 1:
        raise ArgumentError(f"loop={loop!r}: expected an int of at least 1")
    is_automatic = isinstance(depth, str) and depth == "auto"
    if not is_automatic and (not _is_int(depth) or int(depth) < 1):
        raise ArgumentError(f"depth={depth!r}: expected 'auto' or an int of at least 1")
    if given.check not in ("strict", "bytes"):
        raise ArgumentError(f"check={given.check!r}: expected 'strict' (types and shapes) or 'bytes' (byte count only)")
    return Options(
        int(device_id),
        path,
        config,
        bool(given.debug),
        int(loop),
        _platform(given.platform, path),
        "auto" if is_automatic else int(depth),
        given.check,
        _seconds(given.hang_timeout),
    )


def check_prefetch(value: Any) -> int | None:
    """Return how many items are read ahead; ``None`` for as many as ``depth``.

    Raises
    ------
    ArgumentError
        It is no int from 0.
    """
    if value is not None and (not _is_int(value) or value < 0):
        raise ArgumentError(f"prefetch={value!r}: expected an int from 0, or None for as many items as depth")
    return None if value is None else int(value)


def check_path(name: str, value: Any) -> str:
    """Return a path argument as a string.

    Raises
    ------
    ArgumentError
        It is no path.
    """
    try:
        path = os.fspath(value)
    except TypeError:
        path = None
    if not isinstance(path, str) or not path or "\0" in path:
        raise ArgumentError(f"{name}={value!r}: expected a path as str or os.PathLike")
    return path


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
    raise ArgumentError(f"platform={platform!r}: expected 'ascend', 'cpu', or None to go by the file's name")


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not 0 < value <= _MOST_SECONDS:
        raise ArgumentError(
            f"hang_timeout={value!r}: expected seconds, from above 0 to {_MOST_SECONDS:g}, or None for no limit"
        )
    return float(value)


def _is_int(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False  # arrays have the method too
    return True
