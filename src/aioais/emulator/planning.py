"""Planning: an execution is checked as the graph engine does, and a plan is made, or an earlier one is found."""

from __future__ import annotations

import math
from typing import Any

from .._cann.codes import AclCode
from ._state import report
from .context import Context
from .dataset import Dataset
from .errors import EmulatorError
from .memory import device_memory
from .model import Model
from .plan import KEPT, Plan
from .regions import TOLERANCE, resolve, resolve_optional

__all__ = ["find_plan", "make_plan"]


def _shapes_of(model: Model, dataset: Dataset) -> tuple[tuple[int, ...], ...] | int:
    """Return the shapes of a dynamic run, from the dataset's tensor descriptions."""
    shapes = []
    for index, spec in enumerate(model.info.inputs):
        desc = dataset.descs.get(index)
        shape = spec.dims if desc is None else desc.dims
        if any(dim < 0 for dim in shape):
            text = f"input {spec.name!r} has no shape: set_dataset_tensor_desc must come first"
            return report(AclCode.INVALID_PARAM, text)
        bounds = spec.range or ()
        fits = len(shape) == len(spec.dims) and all(
            (high < 0 and low <= 1) or (low <= dim and (high < 0 or dim <= high))  # a -1 admits empty tensors
            for dim, (low, high) in zip(shape, bounds, strict=True)
        )
        if not fits:
            text = f"input {spec.name!r} has shape {list(shape)}, the model takes {[list(b) for b in bounds]}"
            return report(AclCode.INVALID_PARAM, text)
        needed, buffer = math.prod(shape) * spec.itemsize, dataset.buffers[index]
        if needed and buffer.address == 0:
            return report(AclCode.INVALID_PARAM, f"input {spec.name!r} needs {needed} bytes, it has no memory")
        if buffer.size < needed:
            text = f"input {spec.name!r} needs {needed} bytes, its data buffer has {buffer.size}"
            return report(AclCode.GE_FAILURE, text)
        shapes.append(shape)
    return tuple(shapes)


def _memory(inputs: Dataset, outputs: Dataset) -> tuple[Any, ...]:
    """Return everything but device memory that a plan of fixed shapes was made for."""
    places = [(buffer.address, buffer.size, buffer.is_alive) for buffer in (*inputs.buffers, *outputs.buffers)]
    return inputs.handle, outputs.handle, inputs.gear, *places


def find_plan(model: Model, inputs: Dataset, outputs: Dataset) -> Plan | None:
    """Return an earlier plan for the same datasets, if they hold what they held then and no memory was freed since."""
    pair = inputs.handle, outputs.handle
    plan: Plan | None = model.plans.get(pair)
    if plan is None or plan.is_valid():
        return plan
    found: Plan | None = model.bound_plans.get(_memory(inputs, outputs)) if model.info.mode != "shape" else None
    if found is None or found.epoch != device_memory.epoch:
        return None
    found.fed_version, found.version = inputs.version, outputs.version
    model.plans[pair] = found
    return found


def make_plan(model: Model, inputs: Dataset, outputs: Dataset, context: Context, allocate: bool) -> Plan | int:
    """Check an execution as the graph engine does and decide how to run it.

    Parameters
    ----------
    model
        The model.
    inputs, outputs
        Its datasets.
    context
        The current context.
    allocate
        Whether empty output buffers get memory (synchronous calls).

    Returns
    -------
    Plan or int
        The plan, or the code with which the call fails.
    """
    info = model.info
    dynamic = info.mode == "shape"
    into = resolve(inputs, info.inputs, context, "input", dynamic, allocate=False, spare=len(info.optional))
    if isinstance(into, int):
        return into
    optional = resolve_optional(inputs, info, context)
    if isinstance(optional, int):
        return optional
    out = resolve(outputs, info.outputs, context, "output", dynamic, allocate)
    if isinstance(out, int):
        return out
    shapes: tuple[tuple[int, ...], ...] | None
    gear: int | None = None
    if dynamic:
        found = _shapes_of(model, inputs)
        if isinstance(found, int):
            return found
        shapes = found
    elif info.gears:
        if inputs.gear is not None and inputs.gear not in info.gears:
            text = f"the input dataset carries gear {list(inputs.gear)}, which model {model.handle} does not have"
            raise EmulatorError(f"{text}: set a gear of this model first")
        gear = None if inputs.gear is None else info.gears.index(inputs.gear)
        shapes = None if gear is None else info.input_shapes[gear]
        hidden, needed = into[info.hidden], info.inputs[info.hidden].size
        if hidden.size < needed:
            text = f"the hidden input has {hidden.size} bytes, {needed} are needed"
            return report(AclCode.GE_DYNAMIC_INPUT_LENGTH_INVALID, text)
    else:
        shapes = info.input_shapes[0]
        for spec, region in zip((*info.inputs, *info.outputs), (*into, *out), strict=True):
            if region.size + TOLERANCE < spec.size:
                text = f"{spec.name!r} needs {spec.size} bytes, its data buffer has {region.size}"
                return report(AclCode.GE_FAILURE, text)
    plan = Plan(model, into, out, optional, shapes, gear, (inputs, outputs))
    pair = inputs.handle, outputs.handle
    old = [model.plans.pop(pair, None)]
    if len(model.plans) >= KEPT:
        old += model.plans.values()
        model.plans.clear()
    if len(model.bound_plans) >= KEPT or any(found.epoch != plan.epoch for found in model.bound_plans.values()):
        old += model.bound_plans.values()
        model.bound_plans.clear()
    kept = [*model.bound_plans.values()]
    for retired in old:
        if retired is not None and retired not in kept:
            retired.use.is_retired = True
    if shapes is None:
        plan.use.is_retired = True
        return plan
    model.plans[pair] = plan
    if not dynamic:
        model.bound_plans[_memory(inputs, outputs)] = plan
    return plan
