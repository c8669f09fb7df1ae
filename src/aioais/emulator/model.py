"""Loaded models: loading, unloading, sizes.

Facts: pyACL reference, Huawei's model pages and the open graph engine source (codes of load
failures).
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Any

from .._cann.codes import AclCode
from .._cann.constants import RunMode
from . import faults
from ._args import VALUE, entry
from ._observers import observers
from ._registry import table
from ._state import report, state
from .context import Context, current
from .device import Device
from .errors import EmulatorError
from .lent import check_host
from .memory import device_memory, is_device_address
from .model_info import ModelInfo, describe
from .ordering import Executions
from .ort import LoadError, OrtModel
from .timeline import pause

if TYPE_CHECKING:
    from .dump import Probe

__all__ = ["Model", "find", "load", "models", "open_model", "unload"]


class Model:
    """A loaded model.

    Parameters
    ----------
    info
        Its inputs, outputs and gears.
    engine
        What computes it.
    context
        Where it was loaded.
    name
        What traces and dumps call it.
    probe
        What dumps its layers.
    """

    __slots__ = (
        "bindings",
        "bound_plans",
        "context",
        "device",
        "engine",
        "executions",
        "finished",
        "gear",
        "guard",
        "handle",
        "info",
        "manner",
        "name",
        "plans",
        "probe",
    )

    def __init__(
        self, info: ModelInfo, engine: OrtModel, context: Context, name: str = "", probe: Probe | None = None
    ) -> None:
        self.info: ModelInfo = info
        self.name: str = name
        self.probe: Probe | None = probe
        self.engine: OrtModel = engine
        self.context: Context = context
        self.device: Device = context.device
        self.manner: str | None = None
        """``execute`` or ``execute_async``: the first call decides for static models."""
        self.gear: int | None = None
        """The gear last set on this model, which ``get_cur_output_dims`` reports."""
        self.finished: int = 0
        self.guard: Lock = Lock()
        """Held while the model computes: it has one set of work memory."""
        self.plans: dict[Any, Any] = {}
        """The newest plan for each pair of datasets."""
        self.bound_plans: dict[Any, Any] = {}
        """Plans for each pair of datasets and the memory in them."""
        self.bindings: OrderedDict[Any, Any] = OrderedDict()
        self.handle: int = next(model_ids)
        self.executions: Executions = Executions(self.handle)
        models[self.handle] = self


models: dict[int, Model] = table("models")
model_ids: itertools.count[int] = itertools.count(1)


def open_model(source: str | bytes) -> tuple[ModelInfo, OrtModel]:
    """Load and describe a model.

    Raises
    ------
    LoadError
        As for :class:`~aioais.emulator.ort.OrtModel`.
    """
    engine = OrtModel(source, state.settings.threads, state.settings.spin)
    return describe(engine), engine


def find(handle: int) -> Model | None:
    """Return a loaded model by id; ``None`` and a message (145003) when there is none."""
    model = models.get(handle)
    if model is None:
        report(AclCode.GE_EXEC_MODEL_ID_INVALID, f"there is no loaded model {handle}")
    return model


def check_path(path: str) -> int:
    """Check that a path names a file; 145002 otherwise."""
    if not os.path.isfile(path):
        return report(AclCode.GE_EXEC_MODEL_PATH_INVALID, f"there is no model file {path!r}")
    return 0


def model_bytes(pointer: int, size: int, call: str) -> bytes | int:
    """Read a model from memory, or return the code of the failure."""
    if pointer == 0:
        return report(AclCode.GE_EXEC_MODEL_ADDR_INVALID, f"{call}: null address")
    if size == 0:
        return report(AclCode.INVALID_PARAM, f"{call}: size of 0")
    if size >= 2**31:
        text = f"{call}: {size} bytes; an ONNX file has less than 2 GiB, larger models keep their weights beside it"
        return report(AclCode.GE_EXEC_MODEL_DATA_SIZE_INVALID, text)
    if state.settings.run_mode == RunMode.HOST and is_device_address(pointer):
        raise EmulatorError(f"{call}: {pointer:#x} is device memory, on this host a model is read from host memory")
    if not is_device_address(pointer):
        check_host(call, pointer, size)
    return ctypes.string_at(pointer, size)


def load(source: str | bytes) -> tuple[int, int]:
    """Load a model in the current context; returns its id and the return code."""
    if not state.is_initialised:
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
        if observers.dump is not None:
            fed = [tensor.name for tensor in engine.inputs]
            probe = observers.dump.probe(source, name, engine.title, fed, state.settings.threads)
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
        block = device_memory.find(address)
        if block is None or address + size > block.address + block.size:
            text = f"{call}: {address:#x} with {size} bytes is not live device memory"
            return report(AclCode.GE_DEVICE_MEMORY_OPERATE_FAILED, text)
    return 0


@entry("acl.mdl.load_from_file_with_mem", "skkkk", answer=VALUE)
def load_from_file_with_mem(path: str, work: int, work_size: int, weight: int, weight_size: int) -> tuple[int, int]:
    """Load a model file with the caller's own device memory, which is checked and then not used."""
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
    """Return the work and weight memory of a model file."""
    code = check_path(path)
    return (0, 0, code) if code else _query(path, os.path.getsize(path))


@entry("acl.mdl.query_size_from_mem", "kk", answer=lambda code: (0, 0, code))
def query_size_from_mem(pointer: int, size: int) -> tuple[int, int, int]:
    """Return the work and weight memory of a model in memory."""
    content = model_bytes(pointer, size, "query_size_from_mem")
    return (0, 0, content) if isinstance(content, int) else _query(content, size)


def unload(handle: int) -> int:
    """Unload a model that has no queued work."""
    model = find(handle)
    if model is None:
        return AclCode.GE_EXEC_MODEL_ID_INVALID
    if model.executions.submitted != model.finished or model.guard.locked():
        return report(AclCode.RT_MODEL_RUNNING, f"model {handle} has queued work: synchronise before unloading")
    del models[handle]
    for plan in (*model.plans.values(), *model.bound_plans.values()):
        plan.use.is_retired = True
    model.plans.clear()
    model.bound_plans.clear()
    model.bindings.clear()
    return 0


def drop_all(device: Device) -> int:
    """Remove the models of a device; return how many."""
    gone = [handle for handle, model in list(models.items()) if model.device is device]
    for handle in gone:
        del models[handle]
    return len(gone)
