"""A loaded model: its inputs, its outputs and its gears."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from .._cann.constants import AIPP_INPUT_NAME, DYNAMIC_INPUT_NAME
from ..blame import Seen, blame
from ..errors import AclError, AclMemoryError, ModelError
from ..types import DataType, Format, Mode, TensorDesc
from .gears import Gears, read_gears
from .library import Library

__all__ = ["LoadedModel", "ModelInfo", "TensorInfo", "nbytes_of"]

ModelKind = Literal["static", "batch", "hw", "dims", "shape"]

_MODES: Final[dict[ModelKind, Mode]] = {
    "static": "static",
    "batch": "dymbatch",
    "hw": "dymhw",
    "dims": "dymdims",
    "shape": "dymshape",
}


@dataclass(frozen=True)
class TensorInfo:
    """One input or output, at its absolute index in the model."""

    index: int
    name: str
    datatype: DataType
    format: Format
    shape: tuple[int, ...]
    size: int
    dtype: np.dtype[Any] | None
    """The NumPy type; ``None`` where NumPy has none."""
    ranges: tuple[tuple[int, int], ...] | None = None
    """Lowest and highest value of each dim of a dynamic-shape input, -1 for no upper bound; ``None`` if unknown."""

    @property
    def desc(self) -> TensorDesc:
        """The public description."""
        return TensorDesc(self.name, self.datatype, self.format, list(self.shape), self.size, self.size)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Return whether a shape fits this one, whose dims may be open; ``[-2]`` stands for an unknown rank."""
        if self.shape == (-2,):
            return True
        if len(shape) != len(self.shape):
            return False
        for k, (dim, expected) in enumerate(zip(shape, self.shape, strict=True)):
            if expected >= 0:
                if dim != expected:
                    return False
            elif self.ranges is not None and k < len(self.ranges):
                low, high = self.ranges[k]
                if high < 0 and low <= 1:
                    continue  # no bounds: ACL reports 1 as the lower one, but an empty tensor is legal too
                if dim < low or 0 <= high < dim:
                    return False
        return True


@dataclass(frozen=True)
class ModelInfo:
    """Everything that a request needs to know about a model."""

    path: str
    kind: ModelKind
    inputs: tuple[TensorInfo, ...]
    """Those that each request feeds."""
    optional: tuple[TensorInfo, ...]
    """Those with a default, whose dims are fixed; behind all others in the model. Only the CPU device has them."""
    outputs: tuple[TensorInfo, ...]
    gears: Gears | None
    gear_index: int
    """Absolute index of the hidden gear input; -1 if the model has none."""
    hidden: tuple[tuple[int, int], ...]
    """``(absolute index, bytes)`` of every hidden input."""
    input_count: int
    """Number of inputs, the hidden and the optional ones included."""

    @property
    def all_inputs(self) -> tuple[TensorInfo, ...]:
        """Those that a request can feed: the optional ones last."""
        return (*self.inputs, *self.optional)

    @property
    def has_dynamic_aipp(self) -> bool:
        """Whether hidden inputs hold parameters of image preprocessing."""
        return any(index != self.gear_index for index, _ in self.hidden)

    @property
    def mode(self) -> Mode:
        """The mode in which all shapes of the model can run; ``auto`` selects it."""
        return _MODES[self.kind]


class LoadedModel:
    """A model in the memory of a device.

    Load, execute and unload must happen in one context (otherwise ACL returns 107004). Call every method in a thread
    in which that context is current.

    Parameters
    ----------
    library
        The ACL in use.
    path
        The model file.

    Raises
    ------
    ModelError
        ACL refuses the file; the cause is ACL's own error.
    AclMemoryError
        The device is out of memory.
    AclInternalError
        The device failed (507xxx); the file is not to blame.
    """

    def __init__(self, library: Library, path: str) -> None:
        self.path = path
        self._library = library
        self._desc = 0
        model_id, code = library.slow.load_from_file(path)
        if code:
            error = library.error("acl.mdl.load_from_file", code)
            try:
                if isinstance(error, AclMemoryError) or blame(error, Seen.OPEN).takes_device_out:
                    raise error
                raise ModelError(_load_text(library, path, error)) from error
            finally:
                del error  # its traceback holds this frame
        self._id: int | None = model_id
        try:
            self._desc = library.handle("acl.mdl.create_desc", library.acl.mdl.create_desc())
            library.check("acl.mdl.get_desc", library.acl.mdl.get_desc(self._desc, model_id))
            self.info: ModelInfo = self._read(path)
        except BaseException:
            self.close()
            raise

    @property
    def id(self) -> int:
        """ACL's id of the loaded model."""
        if self._id is None:
            raise RuntimeError("the model is unloaded")
        return self._id

    def set_gear(self, dataset: int, gear: tuple[int, ...]) -> None:
        """Set the gear for the next execution with ``dataset``."""
        slow, info = self._library.slow, self.info
        if info.kind == "batch":
            call = "acl.mdl.set_dynamic_batch_size"
            code = slow.set_dynamic_batch_size(self.id, dataset, info.gear_index, gear[0])
        elif info.kind == "hw":
            call = "acl.mdl.set_dynamic_hw_size"
            code = slow.set_dynamic_hw_size(self.id, dataset, info.gear_index, gear[0], gear[1])
        else:
            call = "acl.mdl.set_input_dynamic_dims"
            dims = {"name": "", "dimCount": len(gear), "dims": list(gear)}
            code = slow.set_input_dynamic_dims(self.id, dataset, info.gear_index, dims)
        self._library.check(call, code)

    def output_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the output shapes at the gear that was set last, or those of a static model."""
        mdl = self._library.acl.mdl
        shapes = []
        for output in self.info.outputs:
            dims, code = mdl.get_cur_output_dims(self._desc, output.index)
            self._library.check("acl.mdl.get_cur_output_dims", code)
            shapes.append(tuple(dims["dims"]))
        return tuple(shapes)

    def close(self) -> None:
        """Unload the model; idempotent. No queued work may still use it."""
        library = self._library
        model_id, self._id = self._id, None
        desc, self._desc = self._desc, 0
        try:
            if model_id is not None:
                library.check("acl.mdl.unload", library.slow.unload(model_id))
        finally:
            if desc:
                library.check("acl.mdl.destroy_desc", library.acl.mdl.destroy_desc(desc))

    def _read(self, path: str) -> ModelInfo:
        mdl, desc = self._library.acl.mdl, self._desc
        inputs: list[TensorInfo] = []
        hidden: list[tuple[int, int]] = []
        gear_index = -1
        count = mdl.get_num_inputs(desc)
        for index in range(count):
            name = mdl.get_input_name_by_index(desc, index)
            size = mdl.get_input_size_by_index(desc, index)
            if name == DYNAMIC_INPUT_NAME:
                gear_index = index
                hidden.append((index, size))
            elif name.startswith(AIPP_INPUT_NAME):
                hidden.append((index, size))
            else:
                inputs.append(self._input(index, name, size))
        more = self._library.count_optional_inputs
        indices = range(count, count + (more(desc) if more is not None else 0))
        optional = tuple(
            self._input(k, mdl.get_input_name_by_index(desc, k), mdl.get_input_size_by_index(desc, k)) for k in indices
        )
        outputs = tuple(self._output(index) for index in range(mdl.get_num_outputs(desc)))
        gears = None
        if gear_index >= 0:
            counts = [t.size // t.dtype.itemsize if t.size and t.dtype is not None else None for t in inputs]
            gears = read_gears(self._library, desc, [tensor.shape for tensor in inputs], counts)
        kind: ModelKind
        if gears is not None:
            kind = gears.kind
        else:
            # With static AIPP no dim is negative, so -1 (or -2, unknown rank) means a dynamic-shape model.
            open_dims = any(dim < 0 for tensor in (*inputs, *outputs) for dim in tensor.shape)
            kind = "shape" if open_dims else "static"
        return ModelInfo(
            path, kind, tuple(inputs), optional, outputs, gears, gear_index, tuple(hidden), count + len(optional)
        )

    def _input(self, index: int, name: str, size: int) -> TensorInfo:
        library, mdl, desc = self._library, self._library.acl.mdl, self._desc
        if library.has_dims_v2:
            dims, code = mdl.get_input_dims_v2(desc, index)
            library.check("acl.mdl.get_input_dims_v2", code)
        else:
            dims, code = mdl.get_input_dims(desc, index)
            library.check("acl.mdl.get_input_dims", code)
        shape = tuple(dims["dims"])
        ranges = self._ranges(index) if any(dim < 0 for dim in shape) else None
        kind = _data_type(mdl.get_input_data_type(desc, index))
        fmt = _format(mdl.get_input_format(desc, index))
        return TensorInfo(index, name, kind, fmt, shape, size, _dtype(kind), ranges)

    def _output(self, index: int) -> TensorInfo:
        mdl, desc = self._library.acl.mdl, self._desc
        dims, code = mdl.get_output_dims(desc, index)
        self._library.check("acl.mdl.get_output_dims", code)
        kind = _data_type(mdl.get_output_data_type(desc, index))
        return TensorInfo(
            index,
            mdl.get_output_name_by_index(desc, index),
            kind,
            _format(mdl.get_output_format(desc, index)),
            tuple(dims["dims"]),
            mdl.get_output_size_by_index(desc, index),
            _dtype(kind),
        )

    def _ranges(self, index: int) -> tuple[tuple[int, int], ...] | None:
        """Return the legal ranges of an input; CANN releases before 8.0 cannot report them."""
        if not self._library.has_dims_range:
            return None
        answer, code = self._library.acl.mdl.get_input_dims_range(self._desc, index)
        if code or not answer["rangeCount"]:
            if code:
                self._library.acl.get_recent_err_msg()
            return None
        return tuple((low, high) for low, high in answer["range"])


def nbytes_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return the number of bytes of a packed tensor."""
    return math.prod(shape) * dtype.itemsize


def _dtype(kind: DataType) -> np.dtype[Any] | None:
    try:
        return kind.numpy
    except (TypeError, ImportError):
        return None


def _data_type(value: int) -> DataType:
    """Return the data type; ``undefined`` for a value that this library does not know."""
    try:
        return DataType(value)
    except ValueError:
        return DataType.undefined


def _format(value: int) -> Format:
    """Return the format; ``UNDEFINED`` for a value that this library does not know."""
    try:
        return Format(value)
    except ValueError:
        return Format.UNDEFINED


def _load_text(library: Library, path: str, error: AclError) -> str:
    expected = (
        "an ONNX file that ONNX Runtime can run"
        if library.platform == "cpu"
        else "a .om file that atc built for this device (its --soc_version)"
    )
    return f"{path!r} cannot be loaded on platform {library.platform!r}: {error}; expected {expected}"
