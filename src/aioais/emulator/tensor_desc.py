"""Tensor descriptions: data type, dims and format of one tensor, as plain objects.

Facts: pyACL's C extension source for argument errors and values, ``acl_base_rt.h`` for data types.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from .._cann.codes import AclCode
from .._cann.constants import MAX_DIMS
from ._args import NONE, SINGLE, VALUE, entry
from ._registry import handles, table
from ._state import report
from .errors import EmulatorError

__all__ = ["ITEMSIZES", "TensorDesc", "find", "tensor_descs"]

ITEMSIZES = {
    **dict.fromkeys((2, 4, 12, 29, 30, 34, 35, 36, 37), 1),
    **dict.fromkeys((1, 6, 7, 27), 2),
    **dict.fromkeys((0, 3, 8, 33), 4),
    **dict.fromkeys((9, 10, 11, 16), 8),
    17: 16,
    **dict.fromkeys((38, 39, 40, 41), 8),  # the default branch of the C source
}
"""Bytes of one element by ``aclDataType``; 0 for strings and unknown types."""


class TensorDesc:
    """A tensor description.

    Parameters
    ----------
    dtype
        ``aclDataType``.
    dims
        Shape.
    fmt
        ``aclFormat``.
    owned
        Owned by a dataset, which destroys it.
    """

    __slots__ = ("address", "dims", "dtype", "extras", "fmt", "handle", "is_owned", "name")

    def __init__(self, dtype: int, dims: tuple[int, ...], fmt: int, owned: bool = False) -> None:
        self.dtype: int = dtype
        self.dims: tuple[int, ...] = dims
        self.fmt: int = fmt
        self.is_owned: bool = owned
        self.name: str = ""
        self.address: int = 0
        self.extras: dict[str, Any] = {}
        self.handle: int = next(handles)
        tensor_descs[self.handle] = self


tensor_descs: dict[int, TensorDesc] = table("tensor_descs", counts=lambda desc: not desc.is_owned)


def find(handle: int) -> TensorDesc | None:
    """Return a tensor description by handle; ``None`` for 0.

    Raises
    ------
    EmulatorError
        The handle is stale or was never valid.
    """
    desc = tensor_descs.get(handle)
    if desc is None and handle != 0:
        raise EmulatorError(
            f"{handle:#x} is not a tensor description: destroyed, replaced by a later run, or never created"
        )
    return desc


def _null(call: str) -> int:
    return report(AclCode.INVALID_PARAM, f"{call}: tensor description 0")


def _int64s(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise TypeError("argument 2 is not list")
    if not all(isinstance(value, int) for value in values):
        raise TypeError("invalid data type")
    if any(not -(2**63) <= value < 2**63 for value in values):
        raise ValueError("PyLong_AsLongLong failed")
    return tuple(int(value) for value in values)


@entry("acl.create_tensor_desc", "iOi", answer=SINGLE)
def create_tensor_desc(dtype: int, dims: Any, fmt: int) -> int:
    """Make a tensor description; ``dims`` is a list of real ints."""
    shape = _int64s(dims)
    if len(shape) > MAX_DIMS:
        report(AclCode.INVALID_PARAM, f"create_tensor_desc with {len(shape)} dims: at most {MAX_DIMS}")
        return 0
    return TensorDesc(dtype, shape, fmt).handle


@entry("acl.destroy_tensor_desc", "k", answer=lambda code: None)
def destroy_tensor_desc(handle: int) -> None:
    """Destroy a tensor description; those of a dataset belong to it."""
    desc = find(handle)
    if desc is None:
        return
    if desc.is_owned:
        raise EmulatorError(f"tensor description {handle:#x} belongs to a dataset, which destroys it")
    del tensor_descs[handle]


@entry("acl.get_tensor_desc_num_dims", "k", answer=SINGLE, hot=True)
def get_tensor_desc_num_dims(handle: int) -> int:
    """Return the number of dims."""
    desc = find(handle)
    if desc is None:
        return 0
    return 0xFFFFFFFFFFFFFFFE if desc.dims == (-2,) else len(desc.dims)


@entry("acl.get_tensor_desc_dim_v2", "kk", answer=VALUE, hot=True)
def get_tensor_desc_dim_v2(handle: int, index: int) -> tuple[int, int]:
    """Return one dim."""
    desc = find(handle)
    if desc is None:
        return 0, _null("get_tensor_desc_dim_v2")
    if index >= len(desc.dims):
        return 0, report(AclCode.INVALID_PARAM, f"dim {index} of a tensor with {len(desc.dims)} dims")
    return desc.dims[index], 0


@entry("acl.get_tensor_desc_dim", "kk", answer=SINGLE)
def get_tensor_desc_dim(handle: int, index: int) -> int:
    """Return one dim, without an error channel."""
    desc = find(handle)
    return desc.dims[index] if desc is not None and index < len(desc.dims) else -1


@entry("acl.get_tensor_desc_type", "k", answer=lambda code: -1)
def get_tensor_desc_type(handle: int) -> int:
    """Return the data type."""
    desc = find(handle)
    return -1 if desc is None else desc.dtype


@entry("acl.get_tensor_desc_format", "k", answer=lambda code: -1)
def get_tensor_desc_format(handle: int) -> int:
    """Return the format."""
    desc = find(handle)
    return -1 if desc is None else desc.fmt


def _count(desc: TensorDesc) -> int:
    return 0 if any(dim < 0 for dim in desc.dims) else math.prod(desc.dims)


@entry("acl.get_tensor_desc_element_count", "k", answer=SINGLE)
def get_tensor_desc_element_count(handle: int) -> int:
    """Return the number of elements."""
    desc = find(handle)
    return 0 if desc is None else _count(desc)


@entry("acl.get_tensor_desc_size", "k", answer=SINGLE)
def get_tensor_desc_size(handle: int) -> int:
    """Return the number of bytes."""
    desc = find(handle)
    return 0 if desc is None else _count(desc) * ITEMSIZES.get(desc.dtype, 0)


@entry("acl.get_tensor_desc_name", "k", answer=lambda code: "")
def get_tensor_desc_name(handle: int) -> str:
    """Return the name."""
    desc = find(handle)
    return "" if desc is None else desc.name


@entry("acl.get_tensor_desc_address", "k", answer=SINGLE)
def get_tensor_desc_address(handle: int) -> int:
    """Return the address of the data."""
    desc = find(handle)
    return 0 if desc is None else desc.address


@entry("acl.get_tensor_desc_dim_range", "kkk", answer=NONE)
def get_tensor_desc_dim_range(handle: int, index: int, count: int) -> tuple[list[int] | None, int]:
    """Return the bounds of one dim."""
    desc = find(handle)
    if desc is None:
        return None, _null("get_tensor_desc_dim_range")
    if index >= len(desc.dims) or count < 2:
        return None, report(AclCode.INVALID_PARAM, f"dim {index} of a tensor with {len(desc.dims)} dims")
    ranges: list[list[int]] = desc.extras.get("shape_range", [[dim, dim] for dim in desc.dims])
    return list(ranges[index]), 0


@entry("acl.set_tensor_desc_name", "ks", answer=lambda code: None)
def set_tensor_desc_name(handle: int, name: str) -> None:
    """Set the name."""
    desc = find(handle)
    if desc is not None:
        desc.name = name


@entry("acl.set_tensor_shape", "kO")
def set_tensor_shape(handle: int, dims: Any) -> int:
    """Set the dims."""
    shape = _int64s(dims)
    desc = find(handle)
    if desc is None:
        return _null("set_tensor_shape")
    desc.dims = shape
    return 0


@entry("acl.set_tensor_format", "ki")
def set_tensor_format(handle: int, fmt: int) -> int:
    """Set the storage format."""
    desc = find(handle)
    if desc is None:
        return _null("set_tensor_format")
    desc.fmt = fmt
    return 0


def _remember(name: str, formats: str) -> None:
    """Define one of the setters that only single operators read."""

    @entry(f"acl.set_tensor_{name}", formats)
    def setter(handle: int, *values: Any) -> int:
        """Note a property that only single operators read."""
        desc = find(handle)
        if desc is None:
            return _null(f"set_tensor_{name}")
        desc.extras[name] = values[0] if len(values) == 1 else values
        return 0


for _name, _formats in (
    ("origin_shape", "kO"),
    ("origin_format", "ki"),
    ("const", "kkk"),
    ("place_ment", "ki"),
    ("shape_range", "kO"),
    ("value_range", "kO"),
    ("dynamic_input", "ks"),
):
    _remember(_name, _formats)


@entry("acl.data_type_size", "i", answer=SINGLE)
def data_type_size(dtype: int) -> int:
    """Return the bytes of one element."""
    return ITEMSIZES.get(dtype, 0)


@entry("acl.float16_to_float", "H", answer=lambda code: 0.0)
def float16_to_float(bits: int) -> float:
    """Convert half precision bits; infinities and NaN become numbers, as in the C source."""
    exponent, fraction = bits >> 10 & 0x1F, bits & 0x3FF
    sign = -1.0 if bits & 0x8000 else 1.0
    if exponent == 0x1F:
        return sign * 65536.0 * (1 + fraction / 1024)
    return float(struct.unpack("<e", bits.to_bytes(2, "little"))[0])


@entry("acl.float_to_float16", "f", answer=SINGLE)
def float_to_float16(value: float) -> int:
    """Convert to half precision bits; numbers too large become the largest one."""
    if math.isnan(value) or abs(value) > 65504:
        return 0xFBFF if math.copysign(1.0, value) < 0 else 0x7BFF
    return int.from_bytes(struct.pack("<e", value), "little")
