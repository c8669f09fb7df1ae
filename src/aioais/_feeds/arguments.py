"""The arguments of a request beside its feeds: mode and sizes of outputs, checked against the model."""

from __future__ import annotations

import difflib
from typing import Any, Final

import numpy as np

from .._acl.model import ModelInfo
from ..errors import ArgumentError, ModelError
from ..types import DEFAULT_OUTPUT_BYTES

__all__ = ["check_mode", "check_sizes", "check_types", "legal_gears"]

_MODES: Final = {
    "static": "static",
    "dymbatch": "batch",
    "dynbatch": "batch",
    "dymhw": "hw",
    "dynhw": "hw",
    "dymdims": "dims",
    "dyndims": "dims",
    "dymshape": "shape",
    "dynshape": "shape",
    "auto": "auto",
}
_MOST_BYTES: Final = 1 << 48
"""Bytes of an output, from which ``custom_sizes`` is refused: ACL takes 64 bits, and wraps around."""


def check_mode(info: ModelInfo, mode: object) -> str:
    """Return what a mode means for a model: the kind of its shapes, or ``"static"`` for the largest gear.

    Raises
    ------
    ArgumentError
        There is no such mode, or the model has other shapes.
    """
    kind = _MODES.get(mode) if isinstance(mode, str) else None
    mine, right = info.kind, info.mode
    if kind is None:
        fitting = [name for name, what in _MODES.items() if what in (mine, "auto") or _runs_largest(info, what)]
        near = difflib.get_close_matches(mode.casefold(), fitting, 1) if isinstance(mode, str) else []
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ArgumentError(f"mode={mode!r}: expected {' or '.join(map(repr, fitting))} for {info.path!r}{meant}")
    if kind in (mine, "auto"):
        return mine
    if _runs_largest(info, kind):
        return kind
    what = "static" if mine == "static" else f"{right} ({legal_gears(info)})"
    raise ArgumentError(
        f"mode={mode!r} does not fit {info.path!r}, whose shapes are {what}; use mode={right!r} or 'auto'"
    )


def _runs_largest(info: ModelInfo, kind: str) -> bool:
    return kind == "static" and info.gears is not None


def check_sizes(info: ModelInfo, custom_sizes: Any) -> tuple[int, ...]:
    """Return the bytes to preallocate for each output.

    Raises
    ------
    ArgumentError
        They are no sizes, or too few or too many.
    """
    count = len(info.outputs)
    if custom_sizes is None:
        return (DEFAULT_OUTPUT_BYTES,) * count
    if _is_size(custom_sizes):
        return (int(custom_sizes),) * count
    if isinstance(custom_sizes, (tuple, list)) and all(map(_is_size, custom_sizes)):
        if info.kind == "shape" and len(custom_sizes) != count:
            raise ArgumentError(
                f"custom_sizes: got {len(custom_sizes)} entries; expected one for each of {count} outputs "
                f"({', '.join(t.name for t in info.outputs)}), in bytes, or one int for all"
            )
        return tuple(map(int, custom_sizes))
    raise ArgumentError(
        f"custom_sizes={custom_sizes!r}: expected a positive int of at most 2**48, or a list of them with one per "
        "output, in bytes; leave it out to have buffers grow as needed"
    )


def _is_size(value: Any) -> bool:
    is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return is_int and 0 < int(value) <= _MOST_BYTES


def check_types(info: ModelInfo) -> None:
    """Refuse a model whose arrays need a package that is not installed.

    Raises
    ------
    ModelError
        They do; it names the package.
    """
    for tensor in (*info.inputs, *info.outputs):
        if tensor.dtype is None:
            try:
                tensor.datatype.numpy  # noqa: B018 - it imports the package
            except ImportError as exc:
                raise ModelError(f"{info.path!r}: {tensor.name!r}: {exc}") from exc
            except TypeError:
                pass  # nothing has this type


def legal_gears(info: ModelInfo) -> str:
    """Write the gears of a model."""
    gears = info.gears
    if gears is None:
        return "any legal shape"
    if gears.kind == "batch":
        return "batch sizes " + ", ".join(str(gear[0]) for gear in gears.values)
    if gears.kind == "hw":
        return "image sizes (H, W) " + ", ".join(str(gear) for gear in gears.values)
    rows = [" x ".join(str(list(shape)) for shape in row) for row in gears.shapes]
    return "gears " + "; ".join(rows)
