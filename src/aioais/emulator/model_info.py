"""Inputs, outputs and gears of a model, as its description reports them.

Facts: pyACL reference, Huawei's model pages and the open graph engine source (hidden input of gear
models; sizes and dims as descriptions report them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._cann.codes import AclCode
from .._cann.constants import DYNAMIC_INPUT_NAME, MAX_DIMS
from .metadata import METADATA_KEY, InputMetadata, ModelMetadata, OutputMetadata, parse
from .ort import UNKNOWN_RANK, LoadError, OrtModel, OrtTensor

__all__ = ["ModelInfo", "TensorSpec", "describe"]


@dataclass(frozen=True)
class TensorSpec:
    """What a model description says of one input or output."""

    name: str
    dtype: int
    element: int
    itemsize: int
    dims: tuple[int, ...]
    size: int
    format: int
    range: tuple[tuple[int, int], ...] | None
    """Bounds of each dim; ``None`` where gears decide."""


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model, whether loaded or not."""

    mode: str
    """``static``, ``batch``, ``hw``, ``dims`` or ``shape``."""
    inputs: tuple[TensorSpec, ...]
    """In index order, the hidden one last."""
    outputs: tuple[TensorSpec, ...]
    gears: tuple[tuple[int, ...], ...]
    gear_dims: tuple[tuple[int, ...], ...]
    """For each gear the values that the hidden input carries."""
    pattern: tuple[int, ...]
    """The dims of all inputs in the order of the conversion, -1 where a gear decides."""
    optional: tuple[TensorSpec, ...]
    """Inputs that have a default, behind all others. CANN makes constants of them, so no description counts them."""
    input_shapes: tuple[tuple[tuple[int, ...], ...], ...]
    """For each gear (one for a static model) the shape of every real input."""
    output_shapes: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def hidden(self) -> int:
        """Index of the hidden input, -1 for models without gears."""
        return len(self.inputs) - 1 if self.gears else -1


def _product(dims: Sequence[int]) -> int:
    return math.prod(dims)


def _ordered(entries: Sequence[Any], tensors: Sequence[OrtTensor], what: str) -> list[int]:
    """Return for each tensor of the graph the place of its entry in the metadata."""
    places = {entry.name: place for place, entry in enumerate(entries)}
    names = [tensor.name for tensor in tensors]
    if sorted(places) != sorted(names):
        text = f"the metadata describe the {what} {sorted(places)}, the graph has {sorted(names)}"
        raise LoadError(AclCode.GE_LOAD_MODEL, text)
    return [places[name] for name in names]


def _implied(engine: OrtModel) -> ModelMetadata:
    """Describe an ONNX file without metadata: static where every dim is fixed, else dynamic."""
    for tensor in engine.inputs:
        if tensor.shape == UNKNOWN_RANK:
            raise ValueError(
                f"input {tensor.name!r} is of unknown rank: give it a shape, such as "
                f'aioais convert --input_shape "{tensor.name}:-1,3"'
            )
    fixed = all(dim >= 0 for tensor in (*engine.inputs, *engine.outputs) for dim in tensor.shape)
    return ModelMetadata(
        mode="static" if fixed else "shape",
        inputs=tuple(
            InputMetadata(
                name=tensor.name,
                shape=tensor.shape,
                range=None if fixed else tuple((d, d) if d >= 0 else (1, -1) for d in tensor.shape),
                format=2,
            )
            for tensor in engine.inputs
        ),
        outputs=tuple(
            OutputMetadata(
                tensor.name, (tensor.shape,) if fixed else (), _product(tensor.shape) * tensor.itemsize if fixed else 0
            )
            for tensor in engine.outputs
        ),
    )


def describe(engine: OrtModel) -> ModelInfo:
    """Work out what the descriptions of a model say.

    Parameters
    ----------
    engine
        The loaded ONNX model, with or without metadata.

    Returns
    -------
    ModelInfo
        Sizes are those of the largest gear, or of the upper bounds, 0 without bounds.

    Raises
    ------
    LoadError
        The metadata do not fit the graph.
    """
    text = engine.metadata.get(METADATA_KEY)
    try:
        table = parse(text) if text else _implied(engine)
    except ValueError as exc:
        raise LoadError(AclCode.GE_LOAD_MODEL, str(exc)) from exc
    if any(len(tensor.shape) > MAX_DIMS for tensor in (*engine.inputs, *engine.outputs)):
        raise LoadError(AclCode.STORAGE_OVER_LIMIT, f"a tensor has more than {MAX_DIMS} dims")
    into = _ordered(table.inputs, engine.inputs, "inputs")
    out = _ordered(table.outputs, engine.outputs, "outputs")
    shapes = range(max(1, len(table.gears)))
    dynamic = table.mode == "shape"
    input_shapes = tuple(tuple(table.input_shapes(gear)[place] for place in into) for gear in shapes)
    output_shapes = () if dynamic else tuple(tuple(table.outputs[p].shapes[gear] for p in out) for gear in shapes)
    by_entry = [0] * len(into)
    for tensor, place in zip(engine.inputs, into, strict=True):
        by_entry[place] = tensor.itemsize
    largest = table.largest_gear(by_entry)

    inputs = []
    bounds: tuple[tuple[int, int], ...] | None
    for index, (tensor, place) in enumerate(zip(engine.inputs, into, strict=True)):
        item = table.inputs[place]
        if dynamic:
            bounds = item.range or tuple((d, d) for d in item.shape)
            size = 0 if any(high < 0 for _, high in bounds) else _product([high for _, high in bounds])
        else:
            bounds = None if table.gears else tuple((d, d) for d in item.shape)
            size = max(_product(row[index]) for row in input_shapes)
        spec = TensorSpec(
            tensor.name, tensor.dtype, tensor.element, tensor.itemsize, item.shape,
            size * tensor.itemsize, item.format, bounds,
        )  # fmt: skip
        inputs.append(spec)
    gear_dims: tuple[tuple[int, ...], ...] = table.gears
    pattern = tuple(dim for item in table.inputs for dim in item.shape)
    if table.gears:
        if table.mode == "dims":
            open_dims = [place for place, dim in enumerate(pattern) if dim < 0]
            gear_dims = tuple(tuple(gear[place] for place in open_dims) for gear in table.gears)
        length = len(gear_dims[0])
        inputs.append(TensorSpec(DYNAMIC_INPUT_NAME, 3, 6, 4, (length,), 4 * length, 2, None))
    outputs = []
    for index, (tensor, place) in enumerate(zip(engine.outputs, out, strict=True)):
        dims = tensor.shape if dynamic else output_shapes[largest][index]
        size = table.outputs[place].max_bytes if dynamic else max(
            _product(row[index]) * tensor.itemsize for row in output_shapes
        )  # fmt: skip
        outputs.append(TensorSpec(tensor.name, tensor.dtype, tensor.element, tensor.itemsize, dims, size, 2, None))
    optional = tuple(
        TensorSpec(
            tensor.name, tensor.dtype, tensor.element, tensor.itemsize, tensor.shape,
            _product(tensor.shape) * tensor.itemsize, 2, tuple((d, d) for d in tensor.shape),
        )
        for tensor in engine.optional
    )  # fmt: skip
    return ModelInfo(
        table.mode, tuple(inputs), tuple(outputs), table.gears, gear_dims, pattern, optional, input_shapes,
        output_shapes,
    )  # fmt: skip
