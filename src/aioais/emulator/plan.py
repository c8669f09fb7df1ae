"""Plans: everything about an execution that is decided when it is submitted.

Sizes, gears, shapes and addresses are taken at submission; the data are read and written when the
plan runs. A plan is reused for as long as neither dataset nor device memory changed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from aioais._acl.codes import AclCode
from aioais.emulator import memory
from aioais.emulator._state import report, state
from aioais.emulator.context import Context
from aioais.emulator.dataset import DataBuffer, Dataset
from aioais.emulator.errors import DeviceError, EmulatorError
from aioais.emulator.gears import decode
from aioais.emulator.memory import Block, devices
from aioais.emulator.memory_use import Range, Use
from aioais.emulator.model import Model, TensorSpec
from aioais.emulator.ort import Binding, Bound
from aioais.emulator.tensor_desc import TensorDesc
from aioais.emulator.transfer import move

if TYPE_CHECKING:
    from aioais.emulator.dump import Probe

__all__ = ["Plan", "make_plan"]

_TOLERANCE = 64
"""Bytes that a static buffer may be too small by."""

_KEPT = 64
"""Bindings and plans kept per model."""


class Slot(NamedTuple):
    """The memory of one input or output, as it was at submission."""

    block: Block | None
    pointer: int
    size: int
    """Bytes that the data buffer claims."""
    buffer: DataBuffer


class Plan:
    """One way to run a model.

    Parameters
    ----------
    model : Model
        The model.
    inputs, outputs : list of Slot
        Memory; the hidden input last.
    shapes : list of shape, optional
        Shapes of the real inputs, ``None`` when only the device knows the gear.
    gear : int, optional
        The gear chosen, for gear models.
    dataset : Dataset
        The output dataset, which gets tensor descriptions of dynamic runs.
    stamp : tuple
        What must not have changed for the plan to be good again.
    """

    __slots__ = (
        "binding", "blocks", "dataset", "gear", "inputs", "model", "outputs", "scratch", "shapes", "stamp", "use",
    )  # fmt: skip

    def __init__(
        self,
        model: Model,
        inputs: list[Slot],
        outputs: list[Slot],
        shapes: tuple[tuple[int, ...], ...] | None,
        gear: int | None,
        dataset: Dataset,
        stamp: tuple[int, int, int],
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.outputs = outputs
        self.shapes = shapes
        self.gear = gear
        self.dataset = dataset
        self.stamp = stamp
        self.blocks = [slot.block for slot in (*inputs, *outputs) if slot.block is not None]
        self.use = Use(
            model.handle,
            [
                Range(slot.block, slot.pointer, slot.pointer + slot.size, is_output)
                for is_output, slots in ((False, inputs), (True, outputs))
                for slot in slots
                if slot.block is not None and slot.size
            ],
        )
        self.scratch = False
        self.binding: Binding | None = None
        if shapes is not None and model.info.mode != "shape":
            self._bind(shapes, gear or 0)

    def _bind(self, shapes: tuple[tuple[int, ...], ...], gear: int) -> None:
        """Bind inputs and outputs in place; outputs that overlap anything get memory of their own."""
        model, info = self.model, self.model.info
        into = [
            Bound(t.name, t.element, shape, slot.pointer, math.prod(shape) * t.itemsize)
            for t, shape, slot in zip(info.inputs, shapes, self.inputs, strict=False)
        ]
        out = [
            Bound(t.name, t.element, shape, slot.pointer, math.prod(shape) * t.itemsize)
            for t, shape, slot in zip(info.outputs, info.output_shapes[gear], self.outputs, strict=True)
        ]
        for bound, slot in zip((*into, *out), (*self.inputs[: len(into)], *self.outputs), strict=True):
            _check_room(bound.name, bound.nbytes, slot, _TOLERANCE if info.mode == "static" else 0)
        self.scratch = _overlap(into, out)
        if self.scratch:
            out = [bound._replace(pointer=0) for bound in out]
        key = (tuple(into), tuple(out))
        binding = model.bindings.get(key)
        if binding is None:
            binding = Binding(model.engine, into, out)
            model.bindings[key] = binding
            if len(model.bindings) > _KEPT:
                model.bindings.popitem(last=False)
        self.binding = binding

    def run(self, allocate: Context | None = None, stream: int = 0) -> None:
        """Compute, in this thread.

        Parameters
        ----------
        allocate : Context, optional
            Where output memory is allocated for empty data buffers (synchronous calls only).
        stream : int
            Number of the stream, for dumps.

        Raises
        ------
        DeviceError
            The model failed.
        EmulatorError
            The model runs in another thread at this moment.
        """
        model = self.model
        for block in self.blocks:
            if not block.alive:
                text = f"device memory {block.address:#x} was freed before the model ran"
                raise DeviceError(AclCode.RT_MODEL_EXECUTE, text)
        if not model.guard.acquire(False):
            raise EmulatorError(f"model {model.handle} runs in two threads at once: it has one set of work memory")
        try:
            if model.info.gears:
                self._check_gear()
            if model.probe is not None:
                self._dump(model.probe, stream)
            if model.info.mode == "shape":
                self._run_dynamic(allocate)
            else:
                self._run_fixed()
        finally:
            model.guard.release()

    def _run_fixed(self) -> None:
        binding = self.binding
        assert binding is not None
        binding.run()
        if self.scratch:
            specs = self.model.info.outputs
            for (shape, source), slot, spec in zip(binding.results(), self.outputs, specs, strict=True):
                move(slot.pointer, source, math.prod(shape) * spec.itemsize)

    def _check_gear(self) -> None:
        """Compare the hidden input's content, which the device goes by, with the gear of the submission."""
        info = self.model.info
        slot = self.inputs[info.hidden]
        values = decode(slot.pointer, slot.size, len(info.gear_dims[0]))
        if self.gear is None:
            if values not in info.gear_dims:
                text = f"no gear was ever set on the dataset, and its hidden input holds {list(values)}"
                raise DeviceError(AclCode.RT_MODEL_EXECUTE, text)
            gear = info.gear_dims.index(values)
            self.shapes = info.input_shapes[gear]
            self._bind(self.shapes, gear)
        elif values != info.gear_dims[self.gear]:
            text = (
                f"the hidden input holds {list(values)}, the gear at submission was "
                f"{list(info.gear_dims[self.gear])}: it was overwritten while the model was queued"
            )
            raise DeviceError(AclCode.RT_MODEL_EXECUTE, text)

    def _fed(self) -> list[Bound]:
        """Give the memory of the real inputs."""
        assert self.shapes is not None
        return [
            Bound(spec.name, spec.element, shape, slot.pointer or _nothing(), math.prod(shape) * spec.itemsize)
            for spec, shape, slot in zip(self.model.info.inputs, self.shapes, self.inputs, strict=False)
        ]

    def _dump(self, probe: Probe, stream: int) -> None:
        model = self.model
        try:
            probe.run(self._fed(), model.device.index, model.handle, stream)
        except OSError as exc:
            raise DeviceError(AclCode.RT_FILE_WRITE, f"the dump cannot be written: {exc.strerror or exc}") from exc
        except Exception as exc:  # the classes of its errors are made at run time
            raise DeviceError(AclCode.RT_MODEL_EXECUTE, f"the model failed while it was dumped: {exc}") from exc

    def _run_dynamic(self, allocate: Context | None) -> None:
        info = self.model.info
        into = self._fed()
        out = [Bound(spec.name, spec.element, (), 0, 0) for spec in info.outputs]
        try:
            binding = Binding(self.model.engine, into, out)
        except Exception as exc:  # the classes of its errors are made at run time
            raise DeviceError(AclCode.RT_MODEL_EXECUTE, f"the model failed: {exc}") from exc
        binding.run()
        results = binding.results()
        for spec, slot, (shape, _) in zip(info.outputs, self.outputs, results, strict=True):
            needed = math.prod(shape) * spec.itemsize
            room = slot.size if slot.pointer else 0
            if room < needed and not (allocate is not None and slot.pointer == slot.size == 0):
                text = f"output {spec.name!r} needs {needed} bytes, its data buffer has memory for {room}"
                raise DeviceError(AclCode.GE_FAILURE, text)
        for index, (spec, slot, (shape, source)) in enumerate(zip(info.outputs, self.outputs, results, strict=True)):
            needed = math.prod(shape) * spec.itemsize
            pointer = slot.pointer
            if pointer == 0 and needed and allocate is not None:
                block = memory.allocate(needed, allocate.device)
                if block is None:
                    raise DeviceError(AclCode.GE_MEMORY_ALLOCATION, f"no {needed} bytes for output {spec.name!r}")
                slot.buffer.point(block.address, needed)
                pointer = block.pointer
            if needed:
                move(pointer, source, needed)
            if self.dataset.handle in state.datasets:
                self.dataset.describe(index, TensorDesc(spec.dtype, shape, spec.format, owned=True))


_EMPTY = Block(64, None)


def _nothing() -> int:
    """Give an address for tensors without elements."""
    return _EMPTY.pointer


def _overlap(inputs: list[Bound], outputs: list[Bound]) -> bool:
    """Tell whether an output shares memory with an input or another output."""
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


def _check_room(name: str, needed: int, slot: Slot, tolerance: int) -> None:
    if slot.block is None:
        return
    room = slot.block.pointer + slot.block.size - slot.pointer
    if needed > room + tolerance:
        raise EmulatorError(
            f"{name!r} needs {needed} bytes, its device memory has only {room}: real hardware would corrupt memory"
        )


def _slot(buffer: DataBuffer, spec: TensorSpec, context: Context, role: str) -> Slot | int:
    if not buffer.alive:
        raise EmulatorError(f"the data buffer of {role} {spec.name!r} was destroyed")
    if buffer.address == 0:
        return Slot(None, 0, buffer.size, buffer)
    block = devices.find(buffer.address)
    if block is None:
        past = devices.explain(buffer.address)
        if past is not None or memory.is_device_address(buffer.address):
            raise EmulatorError(f"the data buffer of {role} {spec.name!r} points to {past or 'no live device memory'}")
        text = f"the data buffer of {role} {spec.name!r} points to host memory ({buffer.address:#x})"
        return report(AclCode.GE_FAILURE, text)
    if block.device is not context.device:
        raise EmulatorError(f"the data buffer of {role} {spec.name!r} is memory of another device")
    offset = buffer.address - block.address
    if offset + buffer.size > block.size + memory.SLACK:
        raise EmulatorError(
            f"the data buffer of {role} {spec.name!r} claims {buffer.size} bytes, "
            f"its device memory has {block.size - offset}"
        )
    return Slot(block, block.pointer + offset, buffer.size, buffer)


def _slots(
    dataset: Dataset, specs: tuple[TensorSpec, ...], context: Context, role: str, dynamic: bool, allocate: bool
) -> list[Slot] | int:
    """Resolve the memory of a dataset; a code when it does not fit the model."""
    have, want = len(dataset.buffers), len(specs)
    if dynamic and have < want:
        return report(AclCode.INVALID_PARAM, f"the dataset has {have} {role}s, the model {want}")
    if not dynamic and have != want:
        text = f"the dataset has {have} {role}s, the model {want} (hidden ones included)"
        return report(AclCode.GE_PARAM_INVALID, text)
    slots = []
    for buffer, spec in zip(dataset.buffers, specs, strict=False):
        slot = _slot(buffer, spec, context, role)
        if isinstance(slot, int):
            return slot
        if slot.pointer == 0 and spec.size and role == "input":
            return report(AclCode.INVALID_PARAM, f"input {spec.name!r} has no memory")
        if slot.pointer == 0 and not dynamic and spec.size:
            if not (allocate and slot.size == 0):
                return report(AclCode.GE_FAILURE, f"output {spec.name!r} has no memory, {spec.size} bytes are needed")
            block = memory.allocate(spec.size, context.device)
            if block is None:
                return AclCode.GE_MEMORY_ALLOCATION
            buffer.point(block.address, spec.size)
            slot = Slot(block, block.pointer, spec.size, buffer)
        if slot.pointer == 0 and not dynamic:
            slot = slot._replace(pointer=_nothing())
        slots.append(slot)
    return slots


def _shapes_of(model: Model, dataset: Dataset) -> tuple[tuple[int, ...], ...] | int:
    """Give the shapes of a dynamic run, from the dataset's tensor descriptions."""
    shapes = []
    for index, spec in enumerate(model.info.inputs):
        desc = dataset.descs.get(index)
        shape = spec.dims if desc is None else desc.dims
        if any(dim < 0 for dim in shape):
            text = f"input {spec.name!r} has no shape: set_dataset_tensor_desc comes first"
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


def make_plan(model: Model, inputs: Dataset, outputs: Dataset, context: Context, allocate: bool) -> Plan | int:
    """Check an execution as the graph engine does and decide how to run it.

    Parameters
    ----------
    model : Model
        The model.
    inputs, outputs : Dataset
        Its datasets.
    context : Context
        The current context.
    allocate : bool
        Whether empty output buffers get memory (synchronous calls).

    Returns
    -------
    Plan or int
        The plan, or the code with which the call fails.
    """
    info = model.info
    dynamic = info.mode == "shape"
    into = _slots(inputs, info.inputs, context, "input", dynamic, allocate=False)
    if isinstance(into, int):
        return into
    out = _slots(outputs, info.outputs, context, "output", dynamic, allocate)
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
            raise EmulatorError(f"{text}: a dataset that served another model needs a gear of this one first")
        gear = None if inputs.gear is None else info.gears.index(inputs.gear)
        shapes = None if gear is None else info.input_shapes[gear]
        hidden, needed = into[info.hidden], info.inputs[info.hidden].size
        if hidden.size < needed:
            text = f"the hidden input has {hidden.size} bytes, {needed} are needed"
            return report(AclCode.GE_DYNAMIC_INPUT_LENGTH_INVALID, text)
    else:
        shapes = info.input_shapes[0]
        for spec, slot in zip((*info.inputs, *info.outputs), (*into, *out), strict=True):
            if slot.size + _TOLERANCE < spec.size:
                text = f"{spec.name!r} needs {spec.size} bytes, its data buffer has {slot.size}"
                return report(AclCode.GE_FAILURE, text)
    stamp = (inputs.version, outputs.version, devices.epoch)
    plan = Plan(model, into, out, shapes, gear, outputs, stamp)
    old = [model.plans.pop((inputs.handle, outputs.handle), None)]
    if len(model.plans) >= _KEPT:
        old += model.plans.values()
        model.plans.clear()
    for retired in old:
        if retired is not None:
            retired.use.is_retired = True
    if shapes is not None:
        model.plans[inputs.handle, outputs.handle] = plan
    else:
        plan.use.is_retired = True
    return plan
