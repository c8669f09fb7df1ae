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
"""How a request chooses its shapes; ``dym`` and ``dyn`` are two spellings of the same."""

Depth = int | Literal["auto"]
"""How many sets of device buffers there may be."""

Check = Literal["strict", "bytes"]
"""How feeds are compared with the model."""

DEFAULT_OUTPUT_BYTES: Final = 100_000
"""Default of ``custom_sizes``, as in ais_bench."""


class DataType(IntEnum):
    """Element type of a tensor, with the values of ``aclDataType``.

    The values are those of the C header ``acl/acl_base_rt.h``. Lower-case names are the ones
    that ``aclruntime.dtype`` has in ais_bench.
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
            bfloat16 and the 8-bit floats are the types of the package ``ml_dtypes``.

        Raises
        ------
        TypeError
            The type has no NumPy counterpart (strings, packed sub-byte types).
        ImportError
            The type lives in ``ml_dtypes`` and that package is not installed.
        """
        name = _NUMPY.get(self)
        if name is not None:
            return np.dtype(name)
        name = _ML_DTYPES.get(self)
        if name is None:
            raise TypeError(f"data type {self.name} has no NumPy counterpart")
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


class Format(IntEnum):
    """Layout of a tensor, with the values of ``aclFormat`` (``acl/acl_base_rt.h``)."""

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
    """What a model says of one of its inputs or outputs.

    Field names and meaning are those of ``aclruntime.tensor_desc`` in ais_bench.
    """

    name: str
    """Name of the node."""
    datatype: DataType
    """Element type."""
    format: Format
    """Layout."""
    shape: list[int]
    """Dims; -1 where the model leaves them open. Outputs of gear models have the largest gear's."""
    size: int
    """Bytes of the largest buffer; 0 where the model sets no upper bound."""
    realsize: int
    """Bytes that a feed of the largest shape has: the same as ``size``.

    Mode data belong to a request here, so no call changes this value, unlike ais_bench.
    """


@dataclass(frozen=True)
class StageTime:
    """Times of one stage, in milliseconds, since the session was opened."""

    count: int
    """Requests measured."""
    total_ms: float
    """Sum."""
    max_ms: float
    """Longest."""

    @property
    def mean_ms(self) -> float:
        """Mean; 0.0 before the first request."""
        return self.total_ms / self.count if self.count else 0.0


class SessionStatistics(NamedTuple):
    """A session at one moment; an immutable record."""

    in_flight: int
    """Requests that own a set of buffers now."""
    queued: int
    """Requests that wait for one, on the host or, small ones, on the device's stream; without those that were
    cancelled meanwhile."""
    done: int
    """Requests completed."""
    failed: int
    """Requests that ended with an error."""
    cancelled: int
    """Requests that nobody waited for in the end."""
    stages: dict[str, StageTime]
    """Times by stage: ``queue`` (waiting for buffers), ``h2d``, ``execute``, ``d2h``.
    ``InferSession.record`` has those of single requests, with their delivery."""
    depth: int
    """Most requests past admission at once."""
    slots: int
    """Sets of buffers made so far."""
    device_bytes: int
    """Device memory that sessions and tensors on this device hold (weights and workspace excluded)."""
    pinned_bytes: int
    """Pinned host memory of the device, leased and idle. On boards whose host and device share their memory this
    is device memory: what slots, tensors and result arrays hold, and what waits for use."""
    pinned_leased: int
    """Pinned blocks that slots and result arrays hold."""
    pinned_idle: int
    """Pinned blocks that wait for use."""


class DeviceInfo(NamedTuple):
    """A device that a session can be opened on."""

    platform: str
    """``"ascend"`` or ``"cpu"``."""
    id: int
    """Device id."""
    name: str
    """Name of the chip."""
    total_memory: int
    """Bytes of memory; 0 where it cannot be told."""
    free_memory: int
    """Bytes free now; 0 where it cannot be told."""

    @property
    def memory(self) -> int:
        """The same as ``total_memory``."""
        return self.total_memory


class PipelineOutput(NamedTuple):
    """One result of ``MultiDeviceSession.infer_pipeline``."""

    device_id: int
    """Where it ran."""
    lane: int
    """Place of its feeds list in the device's list."""
    index: int  # type: ignore[assignment]  # the contract's name, though tuples have a method of it
    """Its place in that feeds list."""
    outputs: list[np.ndarray]
    """One array per model output; owned by the caller."""


class StreamOutput(NamedTuple):
    """One result of ``MultiDeviceSession.stream``."""

    index: int  # type: ignore[assignment]  # the contract's name, though tuples have a method of it
    """Its place in the source."""
    device_id: int
    """Where it ran."""
    outputs: list[np.ndarray]
    """One array per model output; owned by the caller."""


class DeviceStatistics(NamedTuple):
    """A device of a ``MultiDeviceSession`` at one moment; an immutable record."""

    device_id: int
    """The device."""
    is_open: bool
    """Whether a warm session is there."""
    opened: int
    """How often a session was opened, that is, the model loaded."""
    streamed: int
    """Results of streams that it computed."""
    rerun: int
    """Items of streams that failed with it and were run again on other devices."""
    failure: str | None
    """What it failed with last; ``None`` if it never did. It may be open again since."""
    session: SessionStatistics | None
    """What its session says; ``None`` where none is open."""
