"""An ONNX model under ATC's options: the planned shapes of its inputs, and the changes to the graph."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..emulator.metadata import METADATA_KEY, InputMetadata, ModelMetadata
from ..errors import ConvertError, ModelError
from .options import FORMATS, Bounds, InputShape, Options, show_shape

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

__all__ = [
    "Dims",
    "apply_inputs",
    "apply_outputs",
    "count_bytes",
    "element_bits",
    "graph_inputs",
    "plan_inputs",
    "read_dims",
    "write_dims",
]

Dims = tuple["int | str | None", ...]
"""Dims of a graph value: a size, the name of a symbol, or None if unknown."""

_ND = FORMATS["ND"]
_UNLIMITED: Bounds = (1, -1)


def graph_inputs(model: ModelProto) -> dict[str, ValueInfoProto]:
    """Return the inputs that a caller feeds, in graph order.

    Older exporters list weights among the graph inputs; ATC and ONNX Runtime treat these as constants.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    return {value.name: value for value in model.graph.input if value.name not in weights}


def read_dims(value: ValueInfoProto) -> Dims | None:
    """Return the dims of a graph value; None if their number is unknown."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    # Some exporters write a negative size for an unknown dim.
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param or None
        for dim in tensor.shape.dim
    )


def write_dims(value: ValueInfoProto, dims: Sequence[int | str | None]) -> None:
    """Replace the dims of a graph value."""
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    # A scalar has the field without dims, an unknown shape lacks the field.
    shape.SetInParent()
    for dim in dims:
        entry = shape.dim.add()
        if isinstance(dim, int):
            entry.dim_value = dim
        elif dim is not None:
            entry.dim_param = dim


def element_bits(value: ValueInfoProto) -> int:
    """Return the bits of one element of an input or output.

    Raises
    ------
    ModelError
        It is not a tensor of numbers. A device has no other values.
    """
    from onnx import TensorProto

    code = value.type.tensor_type.elem_type if value.type.HasField("tensor_type") else TensorProto.UNDEFINED
    if code in (TensorProto.UNDEFINED, TensorProto.STRING) or code not in TensorProto.DataType.values():
        kind = "strings" if code == TensorProto.STRING else value.type.WhichOneof("value") or "no type"
        if code not in TensorProto.DataType.values():
            kind = f"elements of a type {code} that onnx does not know"
        raise ModelError(
            f"got {value.name!r} with {kind}; expected a tensor of numbers, as a device takes no other: "
            "remove that part of the model and run it on the host"
        )
    return _bits(TensorProto.DataType.Name(code))


def plan_inputs(model: ModelProto, options: Options) -> ModelMetadata:
    """Fit the options to the model.

    Returns
    -------
    ModelMetadata
        With everything but the outputs.

    Raises
    ------
    ConvertError
        The options name an input that the model does not have, or a shape that it cannot have.
    ModelError
        An input of the model is not a tensor of numbers, or the model lists an output twice.
    """
    values = graph_inputs(model)
    names = [value.name for value in model.graph.output]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ModelError(f"the model lists output {twice!r} more than once; expected each once: export it again")
    for value in (*values.values(), *model.graph.output):
        element_bits(value)
    if options.input_format is not None and options.input_format not in FORMATS:
        raise ConvertError(
            f"got input_format={options.input_format!r}; expected one of {', '.join(FORMATS)} for the CPU device: "
            "leave it out for tensors of five dims"
        )
    shapes = [_fitted(entry, values) for entry in options.inputs]
    named = {entry.name for entry in shapes}
    shapes += [InputShape(name, _own_bounds(value, bool(named))) for name, value in values.items() if name not in named]
    mode = options.mode
    if mode == "static" and any(-1 in entry.shape for entry in shapes):
        mode = "shape"
    inputs = tuple(
        InputMetadata(
            entry.name,
            entry.shape,
            entry.bounds if mode == "shape" else None,
            # Only four dims have a layout; for any other number ATC uses ND.
            FORMATS[options.input_format or "NCHW"] if len(entry.shape) == 4 else _ND,
        )
        for entry in shapes
    )
    gears = options.gears
    if mode == "dims":
        gears = tuple(tuple(_filled([d for i in inputs for d in i.shape], gear)) for gear in gears)
    return ModelMetadata(mode, inputs, (), gears)


def apply_inputs(model: ModelProto, plan: ModelMetadata) -> bool:
    """Write the planned shapes into the graph inputs, and remove shapes that no longer follow from them.

    Parameters
    ----------
    model
        Changed in place.
    plan
        The result of :func:`plan_inputs`.

    Returns
    -------
    bool
        Whether a fixed dim of the model is open now. Only a run shows whether the graph allows that.
    """
    values = graph_inputs(model)
    old = {name: read_dims(value) for name, value in values.items()}
    new = _named_dims(plan, old)
    if new == old:
        return False
    for name, dims in new.items():
        write_dims(values[name], dims)
    for value in model.graph.output:
        # The rank stays: ONNX requires it, and the options change sizes only.
        declared = read_dims(value)
        if declared is not None:
            write_dims(value, [None] * len(declared))
    for graph in _graphs(model.graph):
        for value in graph.value_info:
            # The type stays: custom operators have no other source for it.
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
    return any(
        isinstance(before, int) and not isinstance(after, int)
        for name, dims in new.items()
        for before, after in zip(old[name] or (), dims, strict=False)
    )


def apply_outputs(model: ModelProto, metadata: ModelMetadata, symbolic: dict[str, Dims | None]) -> None:
    """Write the output shapes and the gear table into the model.

    Parameters
    ----------
    model
        Changed in place.
    metadata
        Complete, with outputs.
    symbolic
        The dims that follow from the symbolic input dims, by output name.
    """
    shapes = {entry.name: entry.shapes for entry in metadata.outputs}
    for value in model.graph.output:
        known = symbolic.get(value.name)
        if len({len(shape) for shape in shapes[value.name]}) > 1:
            # A Squeeze without axes removes the batch dim at batch 1.
            value.type.tensor_type.ClearField("shape")
            continue
        if shapes[value.name]:
            columns = [set(column) for column in zip(*shapes[value.name], strict=True)]
            fixed = [column.pop() if len(column) == 1 else None for column in columns]
            names = known if known is not None and len(known) == len(fixed) else [None] * len(fixed)
            dims = [
                size if size is not None else name if isinstance(name, str) else f"{value.name}_dim{place}"
                for place, (size, name) in enumerate(zip(fixed, names, strict=True))
            ]
        elif known is not None:
            dims = [dim if dim is not None else f"{value.name}_dim{place}" for place, dim in enumerate(known)]
        else:
            continue
        write_dims(value, dims)
    others = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    for key, text in (*others, (METADATA_KEY, metadata.dump())):
        model.metadata_props.add(key=key, value=text)


def _fitted(entry: InputShape, values: dict[str, ValueInfoProto]) -> InputShape:
    """Check a shape of the options against that of the model."""
    if entry.name not in values:
        raise ConvertError(
            f"got input {entry.name!r} in input_shape; expected inputs of the model ({', '.join(values) or 'none'}): "
            "use the names of the model"
        )
    own = read_dims(values[entry.name])
    if own is None:
        return entry
    if len(own) != len(entry.shape):
        raise ConvertError(
            f"got {len(entry.shape)} dims for {entry.name} in input_shape ({show_shape(entry.shape)}); expected "
            f"{len(own)}, as in the model ({_show_dims(own)}): give that many"
        )
    for place, (given, dim) in enumerate(zip(entry.shape, own, strict=True)):
        if given != -1 and isinstance(dim, int) and given != dim:
            raise ConvertError(
                f"got {given} as dim {place} of {entry.name} in input_shape ({show_shape(entry.shape)}); expected "
                f"{dim}, which the model has fixed there ({_show_dims(own)}): give {dim}, or export the model with "
                "that dim dynamic"
            )
    return entry


def _own_bounds(value: ValueInfoProto, must_be_fixed: bool) -> tuple[Bounds, ...]:
    """Return the bounds of an input that the options do not name."""
    dims = read_dims(value)
    if dims is None or (must_be_fixed and not all(isinstance(dim, int) for dim in dims)):
        raise ConvertError(
            f"input_shape does not name {value.name!r}, which is {_show_dims(dims)} in the model; expected every "
            f"input that is not fixed in the model: add its shape, such as "
            f'"{value.name}:{",".join(str(d) if isinstance(d, int) else "1" for d in dims or (1,))}"'
        )
    return tuple((dim, dim) if isinstance(dim, int) else _UNLIMITED for dim in dims)


def _named_dims(plan: ModelMetadata, old: dict[str, Dims | None]) -> dict[str, Dims]:
    """Return the dims of all inputs, with symbols where the plan has -1.

    A symbol of the model stays if all dims that have it take the same value at each gear. Otherwise (one T of the
    model, two values in ``dynamic_dims``) each of these dims gets a symbol of its own, as ONNX Runtime expects dims
    with the same symbol to have the same size.
    """
    values: dict[tuple[str, int], Any] = {}
    for entry in plan.inputs:
        for place in range(len(entry.shape)):
            values[entry.name, place] = entry.range[place] if entry.range else None
    if plan.mode != "shape":
        tables = [plan.input_shapes(gear) for gear in range(max(1, len(plan.gears)))]
        for index, entry in enumerate(plan.inputs):
            for place in range(len(entry.shape)):
                values[entry.name, place] = tuple(table[index][place] for table in tables)
    uses: dict[str, set[Any]] = {}
    for name, dims in old.items():
        for place, dim in enumerate(dims or ()):
            if isinstance(dim, str):
                uses.setdefault(dim, set()).add(values[name, place])

    def symbol(name: str, place: int, hole: int) -> str:
        dims = old[name]
        own = dims[place] if dims else None
        if isinstance(own, str) and len(uses[own]) == 1:
            return own
        new = {"batch": "batch", "hw": ("height", "width")[hole % 2]}.get(plan.mode, f"{name}_dim{place}")
        while new in uses:
            new += "_"
        return new

    named: dict[str, Dims] = {}
    for entry in plan.inputs:
        holes = [place for place, dim in enumerate(entry.shape) if dim == -1]
        named[entry.name] = tuple(
            symbol(entry.name, place, holes.index(place)) if dim == -1 else dim for place, dim in enumerate(entry.shape)
        )
    return {name: named[name] for name in old}


def _filled(shape: Sequence[int], values: Sequence[int]) -> Iterator[int]:
    rest = iter(values)
    return (next(rest) if dim == -1 else dim for dim in shape)


def _graphs(graph: Any) -> Iterator[Any]:
    """Yield the graph and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _show_dims(dims: Dims | None) -> str:
    if dims is None:
        return "of unknown rank"
    return ",".join("?" if dim is None else str(dim) for dim in dims) or "(scalar)"


def _bits(element: str) -> int:
    """Return the bits of a type by its ONNX name: the tables of the onnx package differ between releases."""
    special = {"FLOAT": 32, "DOUBLE": 64, "BOOL": 8, "FLOAT4E2M1": 4}
    if element in special:
        return special[element]
    digits = re.search(r"\d+", element)
    return int(digits[0]) if digits else 8


def count_bytes(bits: int, shape: Sequence[int]) -> int:
    """Return the bytes of a tensor; elements below 8 bits are packed."""
    return (math.prod(shape) * bits + 7) // 8
