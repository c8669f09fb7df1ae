"""Loaded models: what they want and give, loading and unloading.

Facts: pyACL reference, Huawei's model pages and the open graph engine source (codes of load
failures; hidden input of gear models; sizes and dims as descriptions report them).
"""

from __future__ import annotations

import ctypes
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from aioais._acl.codes import AclCode
from aioais._acl.constants import DYNAMIC_INPUT_NAME, MAX_DIMS, RunMode
from aioais.emulator import faults, memory
from aioais.emulator._args import VALUE, entry
from aioais.emulator._state import report, state
from aioais.emulator.context import Context, current
from aioais.emulator.errors import EmulatorError
from aioais.emulator.metadata import METADATA_KEY, InputMetadata, ModelMetadata, OutputMetadata, parse
from aioais.emulator.ordering import Ordered
from aioais.emulator.ort import UNKNOWN_RANK, LoadError, OrtModel, OrtTensor
from aioais.emulator.timeline import pause

if TYPE_CHECKING:
    from aioais.emulator.device import Device
    from aioais.emulator.dump import Probe

__all__ = ["Model", "ModelInfo", "TensorSpec", "describe", "find", "load", "open_model", "unload"]


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
    input_shapes: tuple[tuple[tuple[int, ...], ...], ...]
    """For each gear (one for a static model) the shape of every real input."""
    output_shapes: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def hidden(self) -> int:
        """Index of the hidden input, -1 for models without gears."""
        return len(self.inputs) - 1 if self.gears else -1


class Model:
    """A loaded model.

    Parameters
    ----------
    info : ModelInfo
        What it wants and gives.
    engine : OrtModel
        What computes it.
    context : Context
        Where it was loaded.
    name : str
        What traces and dumps call it.
    probe : Probe, optional
        What dumps its layers.
    """

    __slots__ = (
        "bindings",
        "context",
        "device",
        "engine",
        "finished",
        "gear",
        "guard",
        "handle",
        "info",
        "last",
        "manner",
        "name",
        "own",
        "plans",
        "probe",
        "submitted",
    )

    def __init__(
        self, info: ModelInfo, engine: OrtModel, context: Context, name: str = "", probe: Probe | None = None
    ) -> None:
        self.info = info
        self.name = name
        self.probe = probe
        self.engine = engine
        self.context = context
        self.device = context.device
        self.manner: str | None = None
        """``execute`` or ``execute_async``: the first call decides for static models."""
        self.gear: int | None = None
        """The gear last set on this model, which ``get_cur_output_dims`` reports."""
        self.last: tuple[Ordered, int] | None = None
        """The last execution: its stream, and when it was submitted."""
        self.own = Ordered()
        """Stands for the stream inside AscendCL that synchronous executions run on."""
        self.submitted = 0
        self.finished = 0
        self.guard = Lock()
        """Held while the model computes: it has one set of work memory."""
        self.plans: dict[Any, Any] = {}
        self.bindings: OrderedDict[Any, Any] = OrderedDict()
        self.handle = next(state.model_ids)
        state.models[self.handle] = self


def _product(dims: Sequence[int]) -> int:
    return math.prod(dims)


def _ordered(entries: Sequence[Any], tensors: Sequence[OrtTensor], what: str) -> list[int]:
    """Give for each tensor of the graph the place of its entry in the metadata."""
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
    engine : OrtModel
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
    return ModelInfo(
        table.mode, tuple(inputs), tuple(outputs), table.gears, gear_dims, pattern, input_shapes, output_shapes
    )  # fmt: skip


def open_model(source: str | bytes) -> tuple[ModelInfo, OrtModel]:
    """Load and describe a model.

    Raises
    ------
    LoadError
        See there.
    """
    engine = OrtModel(source, state.settings.threads, state.settings.spin)
    return describe(engine), engine


def find(handle: int) -> Model | None:
    """Give a loaded model by id; ``None`` and a message (145003) when there is none."""
    model = state.models.get(handle)
    if model is None:
        report(AclCode.GE_EXEC_MODEL_ID_INVALID, f"there is no loaded model {handle}")
    return model


def check_path(path: str) -> int:
    """Check that a path names a file; 145002 otherwise."""
    if not os.path.isfile(path):
        return report(AclCode.GE_EXEC_MODEL_PATH_INVALID, f"there is no model file {path!r}")
    return 0


def model_bytes(pointer: int, size: int, call: str) -> bytes | int:
    """Read a model from memory, or give the code of the failure."""
    if pointer == 0:
        return report(AclCode.GE_EXEC_MODEL_ADDR_INVALID, f"{call}: null address")
    if size == 0:
        return report(AclCode.INVALID_PARAM, f"{call}: size of 0")
    if size >= 2**31:
        text = f"{call}: {size} bytes; an ONNX file has less than 2 GiB, the weights of larger models lie beside it"
        return report(AclCode.GE_EXEC_MODEL_DATA_SIZE_INVALID, text)
    if state.settings.run_mode == RunMode.HOST and memory.is_device_address(pointer):
        raise EmulatorError(f"{call}: {pointer:#x} is device memory, on this host a model is read from host memory")
    return ctypes.string_at(pointer, size)


def load(source: str | bytes) -> tuple[int, int]:
    """Load a model in the current context; gives its id and the return code."""
    if not state.initialised:
        return 0, report(AclCode.GE_EXEC_NOT_INIT, "loading a model before acl.init")
    context = current()
    if context is None:
        return 0, AclCode.RT_CONTEXT_NULL
    if isinstance(source, str) and (code := check_path(source)):
        return 0, code
    if state.gates:
        faults.pass_gates("load", context.device.index)
    pause(state.settings.load_ms * 1e-3, state.settings.gil != "release")
    try:
        info, engine = open_model(source)
        name = os.path.splitext(os.path.basename(source))[0] if isinstance(source, str) else engine.title
        probe = None
        if state.dump is not None:
            fed = [tensor.name for tensor in engine.inputs]
            probe = state.dump.probe(source, name, engine.title, fed, state.settings.threads)
    except LoadError as exc:
        return 0, report(exc.code, exc.text)
    return Model(info, engine, context, name, probe).handle, 0


@entry("acl.mdl.load_from_file", "s", answer=VALUE)
def load_from_file(path: str) -> tuple[int, int]:
    """Load a model file."""
    return load(path)


def _check_own_memory(call: str, *pairs: tuple[int, int]) -> int:
    for address, size in pairs:
        if address == 0 and size == 0:
            continue
        block = memory.devices.find(address)
        if block is None or address + size > block.address + block.size:
            text = f"{call}: {address:#x} with {size} bytes is not live device memory"
            return report(AclCode.GE_DEVICE_MEMORY_OPERATE_FAILED, text)
    return 0


@entry("acl.mdl.load_from_file_with_mem", "skkkk", answer=VALUE)
def load_from_file_with_mem(path: str, work: int, work_size: int, weight: int, weight_size: int) -> tuple[int, int]:
    """Load a model file with the caller's own device memory, which is checked and then not needed."""
    code = _check_own_memory("load_from_file_with_mem", (work, work_size), (weight, weight_size))
    return (0, code) if code else load(path)


@entry("acl.mdl.load_from_mem", "kk", answer=VALUE)
def load_from_mem(pointer: int, size: int) -> tuple[int, int]:
    """Load a model from memory."""
    content = model_bytes(pointer, size, "load_from_mem")
    return (0, content) if isinstance(content, int) else load(content)


@entry("acl.mdl.load_from_mem_with_mem", "kkkkkk", answer=VALUE)
def load_from_mem_with_mem(
    pointer: int, size: int, work: int, work_size: int, weight: int, weight_size: int
) -> tuple[int, int]:
    """Load a model from memory with the caller's own device memory."""
    code = _check_own_memory("load_from_mem_with_mem", (work, work_size), (weight, weight_size))
    return (0, code) if code else load_from_mem(pointer, size)


def _query(source: str | bytes, weight: int) -> tuple[int, int, int]:
    try:
        info, _ = open_model(source)
    except LoadError as exc:
        return 0, 0, report(exc.code, exc.text)
    work = 0 if info.mode == "shape" else sum(t.size for t in (*info.inputs, *info.outputs))
    return work, weight, 0


@entry("acl.mdl.query_size", "s", answer=lambda code: (0, 0, code))
def query_size(path: str) -> tuple[int, int, int]:
    """Give the work and weight memory of a model file."""
    code = check_path(path)
    return (0, 0, code) if code else _query(path, os.path.getsize(path))


@entry("acl.mdl.query_size_from_mem", "kk", answer=lambda code: (0, 0, code))
def query_size_from_mem(pointer: int, size: int) -> tuple[int, int, int]:
    """Give the work and weight memory of a model in memory."""
    content = model_bytes(pointer, size, "query_size_from_mem")
    return (0, 0, content) if isinstance(content, int) else _query(content, size)


def unload(handle: int) -> int:
    """Unload a model that has no queued work."""
    model = find(handle)
    if model is None:
        return AclCode.GE_EXEC_MODEL_ID_INVALID
    if model.submitted != model.finished or model.guard.locked():
        return report(AclCode.RT_MODEL_RUNNING, f"model {handle} has queued work: synchronise before unloading")
    del state.models[handle]
    for plan in model.plans.values():
        plan.use.is_retired = True
    model.plans.clear()
    model.bindings.clear()
    return 0


def drop_all(device: Device) -> int:
    """Take the models of a device away; count them."""
    gone = [handle for handle, model in list(state.models.items()) if model.device is device]
    for handle in gone:
        del state.models[handle]
    return len(gone)
