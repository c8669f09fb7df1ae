"""Which file a program's model path stands for, and where it runs."""

from __future__ import annotations

import logging
import os
from typing import Any, Final

from .._acl.library import Platform
from ..errors import ArgumentError, ModelError

__all__ = ["VARIABLE", "find_model", "set_platform"]

_log = logging.getLogger("aioais")

VARIABLE: Final = "AIOAIS_COMPAT_PLATFORM"
"""Environment variable that says where all models run, where ``install`` does not."""

_platform: Platform | None = None
_told: set[str] = set()


def set_platform(platform: Any) -> None:
    """Say where all models that are opened from now on run; ``None`` for what the environment or the file says.

    Raises
    ------
    ArgumentError
        There is no such platform.
    """
    global _platform
    _platform = _checked(platform, "platform")


def find_model(model_path: Any) -> tuple[Any, Platform | None]:
    """Return the file to load, and the platform if it does not follow from the file's name.

    Only where the CPU device was asked for, a path that ends in ``.om`` stands for the ``.onnx`` file beside it.

    Raises
    ------
    ArgumentError
        The environment variable names no platform.
    ModelError
        There is no ``.onnx`` file beside it.
    """
    platform = _platform or _checked(os.environ.get(VARIABLE) or None, VARIABLE)
    if platform != "cpu":
        return model_path, platform
    try:
        path = os.fspath(model_path)
    except TypeError:
        return model_path, platform  # the session says what is wrong with it
    stem, suffix = os.path.splitext(path)
    if not isinstance(stem, str) or suffix != ".om":
        return model_path, platform
    twin = f"{stem}.onnx"
    if not os.path.exists(twin):
        raise ModelError(
            f"got {path!r} with platform='cpu'; expected {twin!r} beside it, which the CPU device runs instead; make "
            f"it from the model's ONNX file with the options that atc had: aioais convert MODEL.onnx {twin} ..."
        )
    if path not in _told:
        _told.add(path)
        _log.info("%s: the CPU device runs %s instead", path, twin)
    return twin, platform


def _checked(platform: Any, name: str) -> Platform | None:
    if platform is None or platform == "ascend" or platform == "cpu":
        return platform  # type: ignore[no-any-return]
    raise ArgumentError(
        f"got {name}={platform!r}; expected 'ascend' or 'cpu'; leave it out to go by the names of the model files"
    )
