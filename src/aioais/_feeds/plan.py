"""Plan: what a request of one mode with these types and shapes does; made once, then found again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from .._acl.model import ModelInfo, nbytes_of

__all__ = ["SMALL", "InputPlan", "OutputPlan", "Plan", "output_plans"]

_serials = itertools.count(1)

SMALL: Final = 64 << 10
"""Requests whose feeds together have at most this size may share a slot. Outputs up to it are copied out of the slot;
larger ones lease their pinned block: a copy of this size costs less than the bookkeeping of a lease, and a small
result that the caller keeps for long does not hold pinned memory."""


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
    """Return what each output of a model is, given its real shape."""
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
    unfed
        Absolute indices of the optional inputs that keep their default.
    has_tensors
        Some feeds are device tensors.
    is_large
        Its host feeds are over 2 MiB: copying them takes longer than waking a thread.
    is_plain
        It has few bytes from host arrays, feeds no optional input, and the shapes of its outputs follow from the plan.
        If it is small as well, such requests may share a slot.
    is_small
        It is plain, and each of its outputs has few bytes, as far as that is known.
    """

    __slots__ = (
        "dynamic_shapes",
        "gear",
        "has_sizes",
        "has_tensors",
        "inputs",
        "is_large",
        "is_plain",
        "is_small",
        "outputs",
        "serial",
        "sizes",
        "unfed",
    )

    def __init__(
        self,
        inputs: tuple[InputPlan, ...],
        gear: tuple[int, ...] | None,
        outputs: tuple[OutputPlan, ...] | None,
        dynamic_shapes: tuple[tuple[int, ...], ...] | None,
        sizes: tuple[int, ...],
        has_sizes: bool,
        unfed: tuple[int, ...] = (),
        has_optional: bool = False,
    ) -> None:
        self.serial: int = next(_serials)
        self.inputs: tuple[InputPlan, ...] = inputs
        self.gear: tuple[int, ...] | None = gear
        self.outputs: tuple[OutputPlan, ...] | None = outputs
        self.dynamic_shapes: tuple[tuple[int, ...], ...] | None = dynamic_shapes
        self.sizes: tuple[int, ...] = sizes
        self.has_sizes: bool = has_sizes
        self.unfed: tuple[int, ...] = unfed
        self.has_tensors: bool = any(item.is_device for item in inputs)
        nbytes = sum(item.nbytes for item in inputs if not item.is_device)
        self.is_large: bool = nbytes > _LARGE
        is_special = self.has_tensors or has_optional
        self.is_plain: bool = nbytes <= SMALL and dynamic_shapes is None and not is_special
        self.is_small: bool = False
        if outputs is not None:
            self.know(outputs)

    def know(self, outputs: tuple[OutputPlan, ...]) -> None:
        """Keep what the outputs are, once that is known."""
        self.outputs = outputs
        self.is_small = self.is_plain and all(item.nbytes <= SMALL for item in outputs)


_LARGE = 2 << 20
"""Copying so many bytes takes about 0.2 ms, several times as long as a thread needs to wake."""
