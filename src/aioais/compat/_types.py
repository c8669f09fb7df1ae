"""The plain types of aclruntime: data types, descriptions of tensors, options, places of memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any

import numpy as np

from ..types import DataType, TensorDesc

__all__ = ["dtype", "dtype_of", "make_desc", "memory_type", "session_options", "tensor_desc"]


class dtype(IntEnum):
    """Element type, with the values of ``aclDataType``; ``str()`` gives ``dtype.float32``, as in aclruntime."""

    undefined = -1
    float32 = 0
    float16 = 1
    int8 = 2
    int32 = 3
    uint8 = 4
    int16 = 6
    uint16 = 7
    uint32 = 8
    int64 = 9
    uint64 = 10
    double = 11
    bool = 12
    string = 13
    complex64 = 16
    complex128 = 17
    bfloat16 = 27
    int4 = 29
    uint1 = 30
    complex32 = 33
    hifloat8 = 34
    float8_e5m2 = 35
    float8_e4m3fn = 36
    float8_e8m0 = 37
    float6_e3m2 = 38
    float6_e2m3 = 39
    float4_e2m1 = 40
    float4_e1m2 = 41
    hifloat4 = 42

    double64 = 11
    float64 = 11

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype of one element; see :attr:`aioais.DataType.numpy`."""
        return DataType(int(self)).numpy

    def __str__(self) -> str:
        return f"dtype.{self.name}"

    def __format__(self, spec: str) -> str:
        # A spec such as "d" or "03x" asks for the number, any other for the name.
        return int.__format__(self, spec) if spec[-1:].isalpha() and spec[-1] != "s" else format(str(self), spec)


_BY_NUMPY = {
    np.dtype(kind.numpy): kind
    for kind in dtype
    if kind in range(dtype.bool + 1) or kind in (dtype.complex64, dtype.complex128)
}


def dtype_of(kind: np.dtype[Any]) -> dtype:
    """Return the element type of a NumPy dtype."""
    found = _BY_NUMPY.get(kind)
    if found is None:
        found = next((one for one in dtype if one.name == kind.name), dtype.undefined)
    return found


class memory_type(Enum):
    """Where the memory of a :class:`Tensor` is."""

    memory_host = 0
    memory_device = 1
    memory_dvpp = 2


@dataclass
class tensor_desc:
    """Description of an input or output of a model.

    ``realsize`` is the number of bytes of a feed for the gear or the shapes that were set last; ``size`` that of the
    largest.
    """

    name: str
    datatype: dtype
    format: int
    shape: list[int] = field(default_factory=list)
    size: int = 0
    realsize: int = 0


def make_desc(desc: TensorDesc, realsize: int | None = None) -> tensor_desc:
    """Return a description as aclruntime has it."""
    return tensor_desc(
        desc.name,
        dtype(int(desc.datatype)),
        int(desc.format),
        list(desc.shape),
        desc.size,
        desc.realsize if realsize is None else realsize,
    )


@dataclass
class session_options:
    """Options of an :class:`InferenceSession`.

    ``log_level`` 1 logs each request at DEBUG on the logger ``aioais``; other levels are those of that logger.
    """

    loop: int = 1
    log_level: int = 2
    acl_json_path: str = ""
