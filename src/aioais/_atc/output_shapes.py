"""Output shapes of a model at each of its gears: ONNX shape inference, then a run on ONNX Runtime.

Inference does not notice a batch size that is fixed inside the graph (a Reshape to a constant shape). So where ONNX
Runtime is installed, every gear runs once, on zeros, and the shapes of that run are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..emulator.metadata import InputMetadata, ModelMetadata, OutputMetadata
from ..errors import AclNotFoundError, ModelError, install_hint
from .onnx_model import Dims, count_bytes, element_bits, graph_inputs, read_dims, write_dims
from .options import show_shape

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["check_result", "infer_dims", "with_outputs"]

Shapes = dict[str, tuple[int, ...]]
"""Shapes by name of input or output."""

_WEIGHT_BYTES = 1024  # a larger constant is a weight, whose values shape inference does not need
# ONNX Runtime's names of the types that NumPy has.
_SAME_NAME = "int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bool complex64 complex128"
_NUMPY = {name: name for name in _SAME_NAME.split()} | {"float": "float32", "double": "float64"}
_SILENT = 4  # ONNX Runtime's log level "fatal"


def infer_dims(model: ModelProto, inputs: Shapes | None = None) -> dict[str, Dims | None]:
    """Infer the dims of the outputs.

    Parameters
    ----------
    model
        Not changed.
    inputs
        Shapes of the inputs; those of the model if left out.

    Returns
    -------
    dict
        Dims by output name; None if their number does not follow.
    """
    from onnx import shape_inference

    skeleton = _without_weights(model)
    values = graph_inputs(skeleton)
    for name, shape in (inputs or {}).items():
        write_dims(values[name], shape)
    try:
        skeleton = shape_inference.infer_shapes(skeleton, strict_mode=False, data_prop=True)
    except Exception:  # noqa: BLE001 - this onnx does not know an operator or type: only a run shows the shapes
        return {value.name: None for value in model.graph.output}
    return {value.name: read_dims(value) for value in skeleton.graph.output}


def with_outputs(model: ModelProto, path: Path, source: Path, plan: ModelMetadata, relaxed: bool) -> ModelMetadata:
    """Add the outputs to the plan.

    Parameters
    ----------
    model
        With its inputs as planned.
    path
        The same model as a file.
    source
        The model without the planned shapes, as a file.
    plan
        Without outputs.
    relaxed
        Whether the plan opens dims that are fixed in the model.

    Returns
    -------
    ModelMetadata
        Of mode ``shape`` if the output sizes of a fixed model depend on the data.

    Raises
    ------
    ModelError
        ONNX Runtime refuses the model, a gear does not run, or the output sizes of a gear depend on the data.
    AclNotFoundError
        Inference does not find the shapes, and ONNX Runtime is not installed.
    """
    ort = _onnxruntime()
    runtime = _open(path, source, plan, ort) if ort else None
    if plan.mode == "shape":
        if relaxed and runtime:
            for corner in (_corner(plan, 0), _corner(plan, 1)):
                if corner is not None:
                    runtime.run(corner, "at the bounds of its shape range")
        return replace(plan, outputs=_dynamic_outputs(model, plan))

    table: list[Shapes] = []
    for gear in range(max(1, len(plan.gears))):
        inputs = dict(zip((entry.name for entry in plan.inputs), plan.input_shapes(gear), strict=True))
        where = f"at gear {show_shape(plan.gears[gear])}" if plan.gears else "with its fixed shapes"
        # One inference shows for all gears whether the sizes follow from the shapes.
        inferred = infer_dims(model, inputs) if gear == 0 or runtime is None else {}
        unknown = [name for name, dims in inferred.items() if not _is_known(dims)]
        if runtime is None:
            if unknown:
                raise AclNotFoundError(
                    f"the shape of output {unknown[0]!r} does not follow from the graph alone, and ONNX Runtime, which "
                    f"could run the model, is not installed: {install_hint('cpu')}"
                )
            table.append({name: tuple(d for d in dims or () if isinstance(d, int)) for name, dims in inferred.items()})
            continue
        table.append(runtime.run(inputs, where))
        if unknown and (name := runtime.depends_on_data(inputs)):
            if plan.mode == "static":
                dynamic = _as_dynamic(plan)
                return replace(dynamic, outputs=_dynamic_outputs(model, dynamic))
            raise ModelError(
                f"the size of output {name!r} depends on the data; expected outputs that follow from the gear alone: "
                "give ranges in input_shape (such as 1~8) instead of gears"
            )
    return replace(
        plan,
        outputs=tuple(
            OutputMetadata(
                value.name,
                tuple(shapes[value.name] for shapes in table),
                max(count_bytes(element_bits(value), shapes[value.name]) for shapes in table),
            )
            for value in model.graph.output
        ),
    )


def check_result(path: Path) -> None:
    """Check the finished file by the rules of the onnx package, unless ONNX Runtime is installed and has run it.

    Raises
    ------
    ModelError
        The model breaks a rule.
    """
    from onnx import checker

    if _onnxruntime():
        return
    try:
        checker.check_model(str(path))
    except checker.ValidationError as exc:
        raise ModelError(f"the model breaks a rule of ONNX: {_one_line(exc)}; export it again") from exc


def _dynamic_outputs(model: ModelProto, plan: ModelMetadata) -> tuple[OutputMetadata, ...]:
    """Return the outputs of a dynamic-shape model: the bytes at the upper bounds, 0 if unknown."""
    upper = _corner(plan, 1)
    inferred = infer_dims(model, upper) if upper is not None else {}
    outputs = []
    for value in model.graph.output:
        dims = inferred.get(value.name)
        sizes = [dim for dim in dims or () if isinstance(dim, int)]
        known = dims is not None and len(sizes) == len(dims)
        outputs.append(OutputMetadata(value.name, (), count_bytes(element_bits(value), sizes) if known else 0))
    return tuple(outputs)


def _corner(plan: ModelMetadata, which: int) -> Shapes | None:
    """Return the input shapes at the lower (0) or upper (1) bounds; None if one is unlimited."""
    pairs = {entry.name: entry.range or () for entry in plan.inputs}
    if any(high == -1 for bounds in pairs.values() for _, high in bounds):
        return None
    # A range may start at 0, but a run on empty tensors shows nothing.
    return {name: tuple(max(pair[which], 1) for pair in bounds) for name, bounds in pairs.items()}


def _as_dynamic(plan: ModelMetadata) -> ModelMetadata:
    inputs = (
        InputMetadata(entry.name, entry.shape, tuple((dim, dim) for dim in entry.shape), entry.format)
        for entry in plan.inputs
    )
    return ModelMetadata("shape", tuple(inputs), ())


def _is_known(dims: Dims | None) -> bool:
    return dims is not None and all(isinstance(dim, int) for dim in dims)


def _without_weights(model: ModelProto) -> ModelProto:
    """Copy the model for inference, with large weights as inputs: inference copies its argument several times."""
    from onnx import ModelProto, helper

    skeleton = ModelProto(ir_version=model.ir_version)
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    skeleton.graph.name = model.graph.name
    skeleton.graph.node.extend(model.graph.node)
    skeleton.graph.output.extend(model.graph.output)
    skeleton.graph.value_info.extend(model.graph.value_info)
    skeleton.graph.sparse_initializer.extend(model.graph.sparse_initializer)
    skeleton.graph.input.extend(graph_inputs(model).values())
    for tensor in model.graph.initializer:
        if tensor.data_location == tensor.DEFAULT and tensor.ByteSize() <= _WEIGHT_BYTES:
            skeleton.graph.initializer.append(tensor)
        else:
            weight = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            skeleton.graph.input.append(weight)
    return skeleton


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        return None
    return onnxruntime


def _open(path: Path, source: Path, plan: ModelMetadata, ort: Any) -> _Runtime:
    """Load the model into ONNX Runtime."""
    try:
        return _Runtime(_session(path, ort))
    except Exception as exc:  # its exception classes have no common base but Exception
        if _is_accepted(source, ort):
            shown = "; ".join(f"{entry.name}: {show_shape(entry.shape)}" for entry in plan.inputs)
            raise ModelError(
                f"ONNX Runtime, which computes for the CPU device, refuses the model with these shapes ({shown}): "
                f"{_one_line(exc)}; it accepts the model without them: give shapes that the graph can take, or open "
                f"{str(source)!r} itself, without conversion, and run it with mode='dymshape'"
            ) from exc
        raise ModelError(
            f"ONNX Runtime, which computes for the CPU device, refuses the model: {_one_line(exc)}; "
            "export it again, or update onnxruntime if the model has a newer opset"
        ) from exc


def _session(path: Path, ort: Any) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT  # it would write to stderr; its errors are raised as well
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)


def _is_accepted(path: Path, ort: Any) -> bool:
    """Return whether ONNX Runtime loads a model, some of whose inputs have open dims."""
    try:
        inputs = _session(path, ort).get_inputs()
    except Exception:  # noqa: BLE001 - no common base, as above
        return False
    return any(not isinstance(dim, int) for value in inputs for dim in value.shape or ())


@dataclass(frozen=True)
class _Runtime:
    """Runs the model to find the shapes of its outputs."""

    session: Any

    def run(self, inputs: Shapes, where: str) -> Shapes:
        """Run once on zeros, or on ones if zeros fail (an input may be a divisor or a shape).

        Raises
        ------
        ModelError
            Both fail.
        """
        try:
            return self._run(inputs, np.zeros)
        except Exception as exc:  # noqa: BLE001 - no common base, as above
            try:
                return self._run(inputs, np.ones)
            except Exception:  # noqa: BLE001
                shown = "; ".join(f"{name}: {show_shape(shape)}" for name, shape in inputs.items())
                raise ModelError(
                    f"the model does not run {where} ({shown}): {_one_line(exc)}; "
                    "the graph may have a size fixed inside (a Reshape to constants): "
                    "export it with that dim dynamic, or give shapes that it can take"
                ) from exc

    def depends_on_data(self, inputs: Shapes) -> str | None:
        """Return the name of an output whose shape differs between inputs of the same shapes; None if there is none."""
        seen: dict[str, set[tuple[int, ...]]] = {}
        for fill in (np.zeros, np.ones, _every_other):
            try:
                shapes = self._run(inputs, fill)
            except Exception:  # noqa: BLE001, S112 - values that the model cannot take show nothing
                continue
            for name, shape in shapes.items():
                seen.setdefault(name, set()).add(shape)
        return next((name for name, shapes in seen.items() if len(shapes) > 1), None)

    def _run(self, inputs: Shapes, fill: Callable[..., npt.NDArray[Any]]) -> Shapes:
        feeds = {value.name: _ort_value(inputs[value.name], value.type, fill) for value in self.session.get_inputs()}
        names = [value.name for value in self.session.get_outputs()]
        values = self.session.run_with_ort_values(names, feeds)
        return {name: tuple(value.shape()) for name, value in zip(names, values, strict=True)}


def _one_line(exc: Exception) -> str:
    """Return the message without the line breaks and padding of C++ code."""
    return " ".join(str(exc).split())


def _every_other(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return (np.arange(int(np.prod(shape))) % 2).astype(dtype).reshape(shape)


def _ort_value(shape: tuple[int, ...], kind: str, fill: Callable[..., npt.NDArray[Any]]) -> Any:
    """Return an input for ONNX Runtime, from its name of the type, such as ``tensor(float16)``."""
    import onnxruntime as ort
    from onnx import TensorProto

    element = kind.removeprefix("tensor(").removesuffix(")")
    if element in _NUMPY:
        return ort.OrtValue.ortvalue_from_numpy(fill(shape, _NUMPY[element]))
    # NumPy has no bfloat16 and no 8-bit floats: pass the bits with the name of the type.
    bits = fill(shape, "uint16" if element == "bfloat16" else "uint8")
    code = TensorProto.DataType.Value(element.upper())
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, code)
