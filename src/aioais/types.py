"""Data types, formats and tensor descriptions: the nouns of the public interface."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

import numpy as np

__all__ = [
    "DEFAULT_OUTPUT_BYTES",
    "Check",
    "DataType",
    "DeviceInfo",
    "DeviceStatistics",
    "Format",
    "Mode",
    "PipelineOutput",
    "SessionStatistics",
    "StageTime",
    "StreamOutput",
    "TensorDesc",
]


Mode = Literal["static", "dymbatch", "dymhw", "dymdims", "dymshape", "dynbatch", "dynhw", "dyndims", "dynshape", "auto"]
"""How a request selects its shapes; ``dym…`` and ``dyn…`` are two spellings of the same mode."""

Depth = int | Literal["auto"]
"""How many sets of device buffers there may be."""

Check = Literal["strict", "bytes"]
"""How feeds are checked against the model."""

DEFAULT_OUTPUT_BYTES: Final = 100_000
"""Default of ``custom_sizes``, as in ais_bench."""

_NUMBER_TYPES: Final = frozenset("bcdoxXneEfFgG%")
"""Last letters of the format specifications of numbers."""


class _NamedInt(IntEnum):
    """An int that prints as its name, on every Python."""

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        # A spec such as "d" or "03x" asks for the number, any other for the name.
        return int.__format__(self, spec) if spec[-1:] in _NUMBER_TYPES else format(self.name, spec)


class DataType(_NamedInt):
    """Element type of a tensor, with the values of ``aclDataType``.

    The values are those of the C header ``acl/acl_base_rt.h``, the names those of ``aclruntime.dtype`` in ais_bench.
    ``str()`` and f-strings give the name.
    """

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
    double64 = 11
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

    float64 = 11
    double = 11

    @cached_property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype of one element.

        Returns
        -------
        numpy.dtype
            For bfloat16 and the 8-bit floats: a type of the package ``ml_dtypes``.

        Raises
        ------
        TypeError
            NumPy has no such type (strings, packed types below a byte).
        ImportError
            The type needs ``ml_dtypes``, which is not installed.
        """
        name = _NUMPY.get(self)
        if name is not None:
            return np.dtype(name)
        name = _ML_DTYPES.get(self)
        if name is None:
            raise TypeError(f"NumPy has no counterpart of the data type {self.name}")
        try:
            import ml_dtypes
        except ImportError as exc:
            raise ImportError(f"arrays of {self.name} need the package ml_dtypes: pip install ml_dtypes") from exc
        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return dtype


_NUMPY = {
    DataType.float32: "float32",
    DataType.float16: "float16",
    DataType.int8: "int8",
    DataType.int32: "int32",
    DataType.uint8: "uint8",
    DataType.int16: "int16",
    DataType.uint16: "uint16",
    DataType.uint32: "uint32",
    DataType.int64: "int64",
    DataType.uint64: "uint64",
    DataType.double64: "float64",
    DataType.bool: "bool",
    DataType.complex64: "complex64",
    DataType.complex128: "complex128",
}
_ML_DTYPES = {
    DataType.bfloat16: "bfloat16",
    DataType.float8_e5m2: "float8_e5m2",
    DataType.float8_e4m3fn: "float8_e4m3fn",
    DataType.float8_e8m0: "float8_e8m0fnu",
}


class Format(_NamedInt):
    """Layout of a tensor, with the values of ``aclFormat`` (``acl/acl_base_rt.h``).

    ``str()`` and f-strings give the name.
    """

    UNDEFINED = -1
    NCHW = 0
    NHWC = 1
    ND = 2
    NC1HWC0 = 3
    FRACTAL_Z = 4
    NC1HWC0_C04 = 12
    HWCN = 16
    NDHWC = 27
    FRACTAL_NZ = 29
    NCDHW = 30
    NDC1HWC0 = 32
    FRACTAL_Z_3D = 33
    NC = 35
    NCL = 47
    FRACTAL_NZ_C0_16 = 50
    FRACTAL_NZ_C0_32 = 51
    FRACTAL_NZ_C0_2 = 52
    FRACTAL_NZ_C0_4 = 53
    FRACTAL_NZ_C0_8 = 54


class TensorDesc(NamedTuple):
    """Description of an input or output of a model.

    Names and meaning of the fields are those of ``aclruntime.tensor_desc`` in ais_bench.
    """

    name: str
    """Name of the node."""
    datatype: DataType
    """Element type."""
    format: Format
    """Layout."""
    shape: list[int]
    """Dims; -1 for an open one. Outputs of a gear model have the shape of the largest gear."""
    size: int
    """Bytes of the largest buffer; 0 if the model sets no upper bound."""
    realsize: int
    """Bytes of a feed of the largest shape, the same as ``size``.

    In ais_bench setting a mode changes this value. Here the mode belongs to each request, so the value never changes.
    """


@dataclass(frozen=True)
class StageTime:
    """Times of one stage since the session was opened."""

    count: int
    """Number of requests measured."""
    total_ms: float
    """Sum in milliseconds."""
    max_ms: float
    """Longest time in milliseconds."""

    @property
    def mean_ms(self) -> float:
        """Mean in milliseconds; 0.0 before the first request."""
        return self.total_ms / self.count if self.count else 0.0

    def __repr__(self) -> str:
        return f"<{self.count} times, mean {self.mean_ms:.3f} ms, max {self.max_ms:.3f} ms>"


class SessionStatistics(NamedTuple):
    """The state of a session at one moment; an immutable record."""

    in_flight: int
    """Requests that own a set of device buffers."""
    queued: int
    """Requests that wait for a set of buffers, on the host or, if they are small, on the device's stream. Cancelled
    ones are not counted."""
    done: int
    """Requests completed."""
    failed: int
    """Requests that ended with an error."""
    cancelled: int
    """Requests whose caller stopped waiting."""
    stages: dict[str, StageTime]
    """Times by stage, which are ``queue`` (waiting for buffers), ``h2d``, ``execute``, ``d2h``.
    ``InferSession.record`` returns those of single requests, with their delivery."""
    depth: int
    """Most sets of device buffers, each for one request at a time."""
    slots: int
    """Sets of device buffers that exist."""
    device_bytes: int
    """Device memory of sessions and tensors on this device, and idle blocks, in bytes, without weights and
    workspace."""
    pinned_bytes: int
    """Pinned host memory of the device, leased and idle, in bytes. On boards whose host and device share their memory
    this is device memory: that of slots, tensors and result arrays, and idle blocks."""
    pinned_leased: int
    """Pinned blocks that slots and result arrays hold."""
    pinned_idle: int
    """Pinned blocks that are not in use."""

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {getattr(self, name)}" for name in ("in_flight", "queued", "done", "failed"))
        means = ", ".join(f"{name} {stage.mean_ms:.3f}" for name, stage in self.stages.items())
        return (
            f"<SessionStatistics: {counts}, cancelled {self.cancelled}; mean ms: {means}; depth {self.depth}, "
            f"slots {self.slots}; {self.device_bytes} device bytes, {self.pinned_bytes} pinned bytes>"
        )


class DeviceInfo(NamedTuple):
    """A device that a session can be opened on."""

    platform: str
    """``"ascend"`` or ``"cpu"``."""
    id: int
    """Device id."""
    name: str
    """Name of the chip."""
    total_memory: int
    """Bytes of memory; 0 if the device does not report it."""
    free_memory: int
    """Bytes free now; 0 if the device does not report it."""

    @property
    def memory(self) -> int:
        """The same as ``total_memory``."""
        return self.total_memory


class PipelineOutput(NamedTuple):
    """One result of ``MultiDeviceSession.infer_pipeline``."""

    device_id: int
    """Device that computed it."""
    lane: int
    """Index of its feeds list in the device's list."""
    index: int  # type: ignore[assignment]  # the contract's name, though tuples have a method of it
    """Its index in that feeds list."""
    outputs: list[np.ndarray]
    """One array per model output; owned by the caller."""


class StreamOutput(NamedTuple):
    """One result of ``MultiDeviceSession.stream``."""

    index: int  # type: ignore[assignment]  # the contract's name, though tuples have a method of it
    """Its index in the source."""
    device_id: int
    """Device that computed it."""
    outputs: list[np.ndarray]
    """One array per model output; owned by the caller."""


class DeviceStatistics(NamedTuple):
    """The state of a device of a ``MultiDeviceSession`` at one moment; an immutable record."""

    device_id: int
    """The device."""
    is_open: bool
    """Whether its session is open."""
    opened: int
    """How often a session was opened, which loads the model."""
    streamed: int
    """Results of streams that it computed."""
    rerun: int
    """Items of streams that failed on it and ran again on other devices."""
    failure: str | None
    """Its last failure; ``None`` if there was none. It may be open again."""
    session: SessionStatistics | None
    """Statistics of its session; ``None`` if none is open."""
