"""Choosing the gear of a model before it runs.

A gear is remembered in two places, the loaded model (``get_cur_output_dims``) and the dataset
(``execute``), and written to the device buffer of the hidden input. Facts: pyACL reference and the
open graph engine source for the codes.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from .._cann.codes import AclCode
from .._cann.constants import DYNAMIC_INPUT_NAME
from ._args import entry
from ._state import report
from .context import current
from .dataset import find as find_dataset
from .model import find as find_model
from .transfer import device_place

__all__ = ["decode"]


def decode(pointer: int, size: int, length: int) -> tuple[int, ...]:
    """Read the values in the hidden input's device buffer.

    Parameters
    ----------
    pointer
        Real address of the buffer.
    size
        Bytes of the data buffer: values take 8 bytes each if they fit, else 4.
    length
        Number of values.
    """
    if size >= 8 * length:
        return struct.unpack(f"<{length}q", ctypes.string_at(pointer, 8 * length))
    return struct.unpack(f"<{length}i", ctypes.string_at(pointer, 4 * length))


def _set(call: str, mode: str, model_id: int, dataset_handle: int, index: int, values: tuple[int, ...]) -> int:
    """Validate a gear, remember it on model and dataset, write it to the device."""
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    dataset = find_dataset(dataset_handle)
    if dataset is None:
        return report(AclCode.INVALID_PARAM, f"{call}: dataset 0")
    if mode != "dims" and 0 in values:
        return report(AclCode.INVALID_PARAM, f"{call}: a value of 0")
    if index >= len(dataset.buffers):
        return report(AclCode.INVALID_PARAM, f"{call}: index {index} of {len(dataset.buffers)} buffers")
    model = find_model(model_id)
    if model is None:
        return AclCode.GE_EXEC_MODEL_ID_INVALID
    info = model.info
    if info.mode != mode:
        return report(AclCode.GE_DYNAMIC_BATCH_SIZE_INVALID, f"{call}: the model has no such gears ({info.mode})")
    if index != info.hidden:
        text = f"{call}: index {index} is not the index of {DYNAMIC_INPUT_NAME} ({info.hidden})"
        return report(AclCode.INVALID_PARAM, text)
    if mode == "dims":
        if len(values) != len(info.pattern):
            text = f"{call}: {len(values)} dims, the model has {len(info.pattern)} in all"
            return report(AclCode.GE_DYNAMIC_INPUT_LENGTH_INVALID, text)
        if any(dim not in (-1, value) for dim, value in zip(info.pattern, values, strict=True)):
            text = f"{call}: {list(values)} differs from {list(info.pattern)} in a fixed dim"
            return report(AclCode.GE_DYNAMIC_INPUT_LENGTH_INVALID, text)
    if values not in info.gears:
        text = f"{call}: {list(values)} is not a gear; expected one of {_listed(info.gears)}"
        return report(AclCode.GE_DYNAMIC_BATCH_SIZE_INVALID, text)
    buffer = dataset.buffers[index]
    if not buffer.is_alive or buffer.address == 0:
        return report(AclCode.INVALID_PARAM, f"{call}: {DYNAMIC_INPUT_NAME} has no device buffer")
    gear = info.gears.index(values)
    carried = info.gear_dims[gear]
    if buffer.size < 4 * len(carried):
        text = f"{call}: the buffer of {DYNAMIC_INPUT_NAME} has {buffer.size} bytes, {4 * len(carried)} are needed"
        return report(AclCode.GE_DYNAMIC_INPUT_LENGTH_INVALID, text)
    packed = struct.pack(f"<{len(carried)}{'q' if buffer.size >= 8 * len(carried) else 'i'}", *carried)
    place = device_place(buffer.address, len(packed), call, context)
    if place is None:
        return AclCode.GE_DYNAMIC_INPUT_ADDR_INVALID
    model.gear = gear
    dataset.gear = values
    dataset.version += 1
    ctypes.memmove(place.pointer, packed, len(packed))
    return 0


def _listed(gears: tuple[tuple[int, ...], ...]) -> str:
    return ", ".join(str(gear[0] if len(gear) == 1 else list(gear)) for gear in gears)


@entry("acl.mdl.set_dynamic_batch_size", "IkkK", hot=True)
def set_dynamic_batch_size(model_id: int, dataset: int, index: int, batch: int) -> int:
    """Choose the batch of the next executions."""
    return _set("set_dynamic_batch_size", "batch", model_id, dataset, index, (batch,))


@entry("acl.mdl.set_dynamic_hw_size", "IkkKK", hot=True)
def set_dynamic_hw_size(model_id: int, dataset: int, index: int, height: int, width: int) -> int:
    """Choose the image size of the next executions."""
    return _set("set_dynamic_hw_size", "hw", model_id, dataset, index, (height, width))


@entry("acl.mdl.set_input_dynamic_dims", "IkkO", hot=True)
def set_input_dynamic_dims(model_id: int, dataset: int, index: int, dims: Any) -> int:
    """Choose the dims of the next executions: an entry of ``get_input_dynamic_dims``."""
    return _set("set_input_dynamic_dims", "dims", model_id, dataset, index, _parse_dims(dims))


def _parse_dims(dims: Any) -> tuple[int, ...]:
    """Read a dims dictionary with the C extension's own errors."""
    text = "acl.mdl.set_input_dynamic_dims args parse failed"
    if not isinstance(dims, dict):
        raise TypeError(text)
    if "name" in dims and not isinstance(dims["name"], str):
        raise RuntimeError("name of dims is not a str")
    count = dims.get("dimCount")
    if not isinstance(count, int) or count < 0:
        raise ValueError("PyLong_AsLongLong failed")
    values = dims.get("dims")
    if not isinstance(values, list) or len(values) < count or not all(isinstance(v, int) for v in values):
        raise TypeError(text)
    return tuple(int(value) for value in values[:count])
