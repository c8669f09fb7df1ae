"""What a request of one kind will do: decided once per mode, types and shapes, then reused."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .._acl.model import ModelInfo, nbytes_of

__all__ = ["InputPlan", "OutputPlan", "Plan", "output_plans"]

_serials = itertools.count(1)


class InputPlan(NamedTuple):
    """How one feed reaches its input."""

    position: int
    model_index: int
    """Absolute index in the model."""
    nbytes: int
    shape: tuple[int, ...]
    """The feed's own shape; the staging area takes it over."""
    dtype: np.dtype[Any]
    """The feed's own type."""
    is_device: bool
    """The feed is a device tensor: bound in place, not copied."""


class OutputPlan(NamedTuple):
    """What one output of this plan is."""

    position: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def output_plans(info: ModelInfo, shapes: Sequence[tuple[int, ...]]) -> tuple[OutputPlan, ...]:
    """Say what each output of a model is, given its real shape."""
    plans = []
    for k, (tensor, shape) in enumerate(zip(info.outputs, shapes, strict=True)):
        dtype = tensor.dtype if tensor.dtype is not None else tensor.datatype.numpy
        plans.append(OutputPlan(k, nbytes_of(shape, dtype), tuple(shape), dtype))
    return tuple(plans)


class Plan:
    """The fixed part of a request.

    Attributes
    ----------
    serial
        A number that no other plan of the process has.
    inputs
        One entry a feed.
    gear
        The gear to set, ``None`` for models without gears.
    outputs
        ``None`` until the shapes of this gear are known; never known ahead for dynamic shape.
    dynamic_shapes
        Shapes to describe to a dynamic-shape model, else ``None``.
    sizes
        Dynamic shape: bytes to preallocate for each output.
    has_sizes
        The caller chose them.
    has_tensors
        Some feeds are device tensors.
    is_small
        Few bytes go in, so that one thread may as well do all steps.
    is_plain
        The ACL calls are the same each time, as far as is known, and few bytes are copied.
    """

    __slots__ = (
        "dynamic_shapes",
        "gear",
        "has_sizes",
        "has_tensors",
        "inputs",
        "is_plain",
        "is_small",
        "outputs",
        "serial",
        "sizes",
    )

    def __init__(
        self,
        inputs: tuple[InputPlan, ...],
        gear: tuple[int, ...] | None,
        outputs: tuple[OutputPlan, ...] | None,
        dynamic_shapes: tuple[tuple[int, ...], ...] | None,
        sizes: tuple[int, ...],
        has_sizes: bool,
    ) -> None:
        self.serial = next(_serials)
        self.inputs = inputs
        self.gear = gear
        self.outputs = outputs
        self.dynamic_shapes = dynamic_shapes
        self.sizes = sizes
        self.has_sizes = has_sizes
        self.is_small = sum(item.nbytes for item in inputs if not item.is_device) <= _SMALL
        self.has_tensors = any(item.is_device for item in inputs)
        self.is_plain = self.is_small and dynamic_shapes is None and not self.has_tensors


_SMALL = 256 << 10
"""Copying this much takes a few microseconds, less than a hop from thread to thread."""
