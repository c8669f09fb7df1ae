"""The memory that an execution reads and writes, resolved and checked when it is submitted."""

from __future__ import annotations

from typing import NamedTuple

from .._cann.codes import AclCode
from ._state import report
from .context import Context
from .dataset import DataBuffer, Dataset
from .errors import EmulatorError
from .memory import SLACK, Block, device_memory, is_device_address
from .memory import allocate as allocate_block
from .model_info import ModelInfo, TensorSpec
from .ort import Bound

__all__ = ["TOLERANCE", "Region", "check_room", "nothing", "overlap", "resolve", "resolve_optional"]

TOLERANCE = 64
"""Bytes that a static buffer may be too small by."""


class Region(NamedTuple):
    """The memory of one input or output, as it was at submission."""

    block: Block | None
    pointer: int
    size: int
    """Bytes that the data buffer claims."""
    buffer: DataBuffer


_EMPTY = Block(64, None)


def nothing() -> int:
    """Return an address for tensors without elements."""
    return _EMPTY.pointer


def overlap(inputs: list[Bound], outputs: list[Bound]) -> bool:
    """Return whether an output shares memory with an input or another output."""
    ends = sorted(
        (bound.pointer, bound.pointer + bound.nbytes, role)
        for role, group in ((0, inputs), (1, outputs))
        for bound in group
        if bound.nbytes
    )
    end, written = 0, 0
    for start, stop, role in ends:
        if start < end and (role or written):
            return True
        if stop > end:
            end, written = stop, role
    return False


def check_room(name: str, needed: int, region: Region, tolerance: int) -> None:
    """Refuse memory that ends before the tensor does, however large its data buffer claims to be.

    Raises
    ------
    EmulatorError
        It does.
    """
    if region.block is None:
        return
    room = region.block.pointer + region.block.size - region.pointer
    if needed > room + tolerance:
        raise EmulatorError(
            f"{name!r} needs {needed} bytes, its device memory has only {room}: real hardware would corrupt memory"
        )


def _region(buffer: DataBuffer, spec: TensorSpec, context: Context, role: str) -> Region | int:
    if not buffer.is_alive:
        raise EmulatorError(f"the data buffer of {role} {spec.name!r} was destroyed")
    if buffer.address == 0:
        return Region(None, 0, buffer.size, buffer)
    block = device_memory.find(buffer.address)
    if block is None:
        past = device_memory.explain(buffer.address)
        if past is not None or is_device_address(buffer.address):
            raise EmulatorError(f"the data buffer of {role} {spec.name!r} points to {past or 'no live device memory'}")
        text = f"the data buffer of {role} {spec.name!r} points to host memory ({buffer.address:#x})"
        return report(AclCode.GE_FAILURE, text)
    if block.device is not context.device:
        raise EmulatorError(f"the data buffer of {role} {spec.name!r} is memory of another device")
    offset = buffer.address - block.address
    if offset + buffer.size > block.size + SLACK:
        raise EmulatorError(
            f"the data buffer of {role} {spec.name!r} claims {buffer.size} bytes, "
            f"its device memory has {block.size - offset}"
        )
    return Region(block, block.pointer + offset, buffer.size, buffer)


def resolve(
    dataset: Dataset,
    specs: tuple[TensorSpec, ...],
    context: Context,
    role: str,
    dynamic: bool,
    allocate: bool,
    spare: int = 0,
) -> list[Region] | int:
    """Resolve the memory of a dataset, which may have ``spare`` buffers more; a code when it does not fit the model."""
    have, want = len(dataset.buffers), len(specs)
    if dynamic and have < want:
        return report(AclCode.INVALID_PARAM, f"the dataset has {have} {role}s, the model {want}")
    if not dynamic and not want <= have <= want + spare:
        text = f"the dataset has {have} {role}s, the model {want} (hidden ones included)"
        return report(AclCode.GE_PARAM_INVALID, text)
    regions = []
    for buffer, spec in zip(dataset.buffers, specs, strict=False):
        region = _region(buffer, spec, context, role)
        if isinstance(region, int):
            return region
        if region.pointer == 0 and spec.size and role == "input":
            return report(AclCode.INVALID_PARAM, f"input {spec.name!r} has no memory")
        if region.pointer == 0 and not dynamic and spec.size:
            if not (allocate and region.size == 0):
                return report(AclCode.GE_FAILURE, f"output {spec.name!r} has no memory, {spec.size} bytes are needed")
            block = allocate_block(spec.size, context.device)
            if block is None:
                return AclCode.GE_MEMORY_ALLOCATION
            buffer.point(block.address, spec.size)
            region = Region(block, block.pointer, spec.size, buffer)
        if region.pointer == 0 and not dynamic:
            region = region._replace(pointer=nothing())
        regions.append(region)
    return regions


def resolve_optional(dataset: Dataset, info: ModelInfo, context: Context) -> list[tuple[TensorSpec, Region]] | int:
    """Resolve the memory of the inputs with a default that are fed; a code when it is too small."""
    fed = []
    for buffer, spec in zip(dataset.buffers[len(info.inputs) :], info.optional, strict=False):
        region = _region(buffer, spec, context, "input")
        if isinstance(region, int):
            return region
        if region.pointer and region.size < spec.size:
            text = f"input {spec.name!r} needs {spec.size} bytes, its data buffer has {region.size}"
            return report(AclCode.GE_FAILURE, text)
        if region.pointer:
            fed.append((spec, region))
    return fed
