"""Conversion of an ONNX file to one with gears: read, change, write, check."""

from __future__ import annotations

from pathlib import Path

from .onnx_file import import_onnx, load_model, staged
from .onnx_model import apply_inputs, apply_outputs, plan_inputs
from .options import Options
from .output_shapes import check_result, infer_dims, with_outputs

__all__ = ["convert_onnx"]


def convert_onnx(source: Path, target: Path, options: Options) -> None:
    """Write the model with the shapes of the options; the output is complete or absent."""
    import_onnx()
    model = load_model(source)
    plan = plan_inputs(model, options)
    relaxed = apply_inputs(model, plan)
    with staged(target) as draft:
        draft.adopt_data(model, source.parent)
        draft.write(model)
        metadata = with_outputs(model, draft.path, source, plan, relaxed)
        apply_outputs(model, metadata, infer_dims(model))
        draft.write(model)
        check_result(draft.path)
