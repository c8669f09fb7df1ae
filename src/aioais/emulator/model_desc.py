"""Model descriptions: names, dims, sizes, types and gears of inputs and outputs.

Facts: pyACL's C extension source for the shapes of the results, Huawei's model description pages.
"""

from __future__ import annotations

from typing import Any

from .._cann.codes import AclCode
from ._args import DIMS, NONE, SINGLE, VALUE, entry
from ._registry import handles, table
from ._state import report
from .errors import EmulatorError
from .model import Model, check_path, model_bytes, open_model
from .model import find as find_model
from .model_info import ModelInfo, TensorSpec
from .ort import LoadError

__all__ = ["ModelDesc", "count_optional_inputs"]

Dims = dict[str, Any]

_LONGEST_NAME = 127


class ModelDesc:
    """A model description; empty until it is filled."""

    __slots__ = ("handle", "info", "model")

    def __init__(self) -> None:
        self.info: ModelInfo | None = None
        self.model: Model | None = None
        self.handle: int = next(handles)
        descs[self.handle] = self


descs: dict[int, ModelDesc] = table("descs")


def find(handle: int) -> ModelDesc | None:
    """Return a description by handle; ``None`` for 0.

    Raises
    ------
    EmulatorError
        The handle is stale or was never valid.
    """
    desc = descs.get(handle)
    if desc is None:
        if handle:
            raise EmulatorError(f"{handle:#x} is not a model description: destroyed, or never created")
        report(AclCode.INVALID_PARAM, "model description 0")
    return desc


def _filled(handle: int) -> ModelInfo | None:
    desc = find(handle)
    if desc is None:
        return None
    if desc.info is None:
        report(AclCode.INVALID_PARAM, "the model description is empty: get_desc must come first")
    return desc.info


def _tensor(handle: int, index: int, role: str) -> TensorSpec | None:
    info = _filled(handle)
    if info is None:
        return None
    tensors = _tensors(info, role)
    if index >= len(tensors):
        report(AclCode.INVALID_PARAM, f"index {index}: the model has {len(tensors)} {role}")
        return None
    return tensors[index]


def _tensors(info: ModelInfo, plural: str) -> tuple[TensorSpec, ...]:
    return info.outputs if plural == "outputs" else (*info.inputs, *info.optional)


def count_optional_inputs(handle: int) -> int:
    """Count the inputs of a described model that have a default, in a range of indices behind all others.

    They are initializers of an ONNX file that are inputs as well. CANN makes constants of them, so pyACL has no such
    call, and ``get_num_inputs`` does not count them. A dataset may have a data buffer for each of them, behind the
    others; an address of 0, and no data buffer, stand for the default.
    """
    info = _filled(handle)
    return 0 if info is None else len(info.optional)


@entry("acl.mdl.create_desc", answer=SINGLE)
def create_desc() -> int:
    """Create an empty model description."""
    return ModelDesc().handle


@entry("acl.mdl.get_desc", "kI")
def get_desc(handle: int, model_id: int) -> int:
    """Fill a description from a loaded model."""
    desc = find(handle)
    if desc is None:
        return AclCode.INVALID_PARAM
    model = find_model(model_id)
    if model is None:
        return AclCode.GE_EXEC_MODEL_ID_INVALID
    desc.info, desc.model = model.info, model
    return 0


@entry("acl.mdl.get_desc_from_file", "ks")
def get_desc_from_file(handle: int, path: str) -> int:
    """Fill a description from a model file."""
    desc = find(handle)
    if desc is None:
        return AclCode.INVALID_PARAM
    return check_path(path) or _fill(desc, path)


@entry("acl.mdl.get_desc_from_mem", "kkk")
def get_desc_from_mem(handle: int, pointer: int, size: int) -> int:
    """Fill a description from a model in memory."""
    desc = find(handle)
    if desc is None:
        return AclCode.INVALID_PARAM
    content = model_bytes(pointer, size, "get_desc_from_mem")
    return content if isinstance(content, int) else _fill(desc, content)


def _fill(desc: ModelDesc, source: str | bytes) -> int:
    try:
        desc.info, desc.model = open_model(source)[0], None
    except LoadError as exc:
        return report(exc.code, exc.text)
    return 0


@entry("acl.mdl.destroy_desc", "k")
def destroy_desc(handle: int) -> int:
    """Destroy a model description."""
    if find(handle) is None:
        return AclCode.INVALID_PARAM
    del descs[handle]
    return 0


def _define(role: str, plural: str) -> None:
    """Define the accessors that inputs and outputs share."""

    @entry(f"acl.mdl.get_num_{plural}", "k", answer=SINGLE)
    def get_num(handle: int) -> int:
        """Count the tensors, hidden inputs included."""
        info = _filled(handle)
        return 0 if info is None else len(getattr(info, plural))

    @entry(f"acl.mdl.get_{role}_size_by_index", "kk", answer=SINGLE)
    def get_size_by_index(handle: int, index: int) -> int:
        """Return the bytes to allocate; 0 when unbounded."""
        tensor = _tensor(handle, index, plural)
        return 0 if tensor is None else tensor.size

    @entry(f"acl.mdl.get_{role}_name_by_index", "kk", answer=lambda code: "")
    def get_name_by_index(handle: int, index: int) -> str:
        """Return the name."""
        tensor = _tensor(handle, index, plural)
        return "" if tensor is None else tensor.name

    @entry(f"acl.mdl.get_{role}_format", "kk", answer=lambda code: -1)
    def get_format(handle: int, index: int) -> int:
        """Return the format."""
        tensor = _tensor(handle, index, plural)
        return -1 if tensor is None else tensor.format

    @entry(f"acl.mdl.get_{role}_data_type", "kk", answer=lambda code: -1)
    def get_data_type(handle: int, index: int) -> int:
        """Return the data type."""
        tensor = _tensor(handle, index, plural)
        return -1 if tensor is None else tensor.dtype

    @entry(f"acl.mdl.get_{role}_index_by_name", "ks", answer=VALUE)
    def get_index_by_name(handle: int, name: str) -> tuple[int, int]:
        """Return the index of a name; not found is a code, not an index."""
        info = _filled(handle)
        if info is not None:
            names = [tensor.name for tensor in _tensors(info, plural)]
            if name in names:
                return names.index(name), 0
            report(AclCode.INVALID_PARAM, f"there is no {role} {name!r}, there are {names}")
        return 0, AclCode.INVALID_PARAM

    @entry(f"acl.mdl.get_{role}_dims", "kk", answer=DIMS)
    def get_dims(handle: int, index: int) -> tuple[Dims, int]:
        """Return the dims: -1 where open; outputs of gear models have the largest gear's."""
        return _dims(handle, index, role, plural)


_define("input", "inputs")
_define("output", "outputs")


def _dims(handle: int, index: int, role: str, plural: str) -> tuple[Dims, int]:
    tensor = _tensor(handle, index, plural)
    if tensor is None:
        return {}, AclCode.INVALID_PARAM
    return _dims_dict(handle, tensor, index, role, tensor.dims), 0


def _dims_dict(handle: int, tensor: TensorSpec, index: int, role: str, dims: tuple[int, ...]) -> Dims:
    name = tensor.name
    if len(name.encode()) > _LONGEST_NAME:
        model = descs[handle].model
        name = f"acl_modelId_{model.handle if model else 0}_{role}_{index}"
    return {"name": name, "dimCount": len(dims), "dims": list(dims)}


@entry("acl.mdl.get_input_dims_v2", "kk", answer=DIMS)
def get_input_dims_v2(handle: int, index: int) -> tuple[Dims, int]:
    """Return the dims before static AIPP, which no model here has."""
    return _dims(handle, index, "input", "inputs")


@entry("acl.mdl.get_cur_output_dims", "kk", answer=DIMS)
def get_cur_output_dims(handle: int, index: int) -> tuple[Dims, int]:
    """Return the output dims at the gear last set on the loaded model."""
    tensor = _tensor(handle, index, "outputs")
    if tensor is None:
        return {}, AclCode.INVALID_PARAM
    desc = descs[handle]
    assert desc.info is not None
    if desc.info.mode == "shape":
        return {}, report(AclCode.API_NOT_SUPPORT, "get_cur_output_dims of a dynamic-shape model")
    gear = desc.model.gear if desc.model is not None else None
    dims = tensor.dims if gear is None else desc.info.output_shapes[gear][index]
    return _dims_dict(handle, tensor, index, "output", dims), 0


def _no_range(code: int) -> Any:
    return {"rangeCount": 0, "range": []}, code


@entry("acl.mdl.get_input_dims_range", "kk", answer=_no_range)
def get_input_dims_range(handle: int, index: int) -> tuple[Dims, int]:
    """Return the bounds of each dim; none for gear models."""
    tensor = _tensor(handle, index, "inputs")
    if tensor is None:
        empty: tuple[Dims, int] = _no_range(AclCode.INVALID_PARAM)
        return empty
    bounds = [list(pair) for pair in tensor.range or ()]
    return {"rangeCount": len(bounds), "range": bounds}, 0


@entry("acl.mdl.get_tensor_real_name", "ks", answer=lambda code: None)
def get_tensor_real_name(handle: int, name: str) -> str | None:
    """Return the full name of a tensor whose name replaces its dims."""
    info = _filled(handle)
    if info is None:
        return None
    for role, tensors in (("input", info.inputs), ("output", info.outputs)):
        for index, tensor in enumerate(tensors):
            if name in (tensor.name, _dims_dict(handle, tensor, index, role, ())["name"]):
                return tensor.name
    return None


@entry("acl.mdl.get_op_attr", "kss", answer=lambda code: None)
def get_op_attr(handle: int, operator: str, attribute: str) -> str | None:
    """Return an attribute of an operator; the emulator knows none."""
    _filled(handle)
    return None


@entry("acl.mdl.get_dynamic_batch", "k", answer=DIMS)
def get_dynamic_batch(handle: int) -> tuple[Dims, int]:
    """Return the batch gears."""
    info = _filled(handle)
    if info is None:
        return {}, AclCode.INVALID_PARAM
    gears = [gear[0] for gear in info.gears] if info.mode == "batch" else []
    return {"batchCount": len(gears), "batch": gears}, 0


@entry("acl.mdl.get_dynamic_hw", "kk", answer=DIMS)
def get_dynamic_hw(handle: int, index: int) -> tuple[Dims, int]:
    """Return the image size gears; the index is ignored."""
    info = _filled(handle)
    if info is None:
        return {}, AclCode.INVALID_PARAM
    gears = [list(gear) for gear in info.gears] if info.mode == "hw" else []
    return {"hwCount": len(gears), "hw": gears}, 0


_ANY = 2**64 - 1
"""An index of -1 as an unsigned number."""


@entry("acl.mdl.get_input_dynamic_gear_count", "kk", answer=VALUE)
def get_input_dynamic_gear_count(handle: int, index: int) -> tuple[int, int]:
    """Count the dims gears; the index must be -1."""
    info = _filled(handle)
    if info is None or index != _ANY:
        return 0, report(AclCode.INVALID_PARAM, "get_input_dynamic_gear_count needs a description and index -1")
    return len(info.gears) if info.mode == "dims" else 0, 0


@entry("acl.mdl.get_input_dynamic_dims", "kkk", answer=NONE)
def get_input_dynamic_dims(handle: int, index: int, count: int) -> tuple[list[Dims] | None, int]:
    """Return the dims gears: every dim of every input, in the order of the conversion."""
    if count > 4096:
        return None, report(AclCode.INVALID_PARAM, f"get_input_dynamic_dims of {count} gears: 4096 at most")
    info = _filled(handle)
    gears = info.gears if info is not None and info.mode == "dims" else ()
    if info is None or index != _ANY or count < len(gears):
        text = f"get_input_dynamic_dims needs a description, index -1 and a count of at least {len(gears)}"
        return None, report(AclCode.INVALID_PARAM, text)
    return [{"name": "", "dimCount": len(gear), "dims": list(gear)} for gear in gears], 0
