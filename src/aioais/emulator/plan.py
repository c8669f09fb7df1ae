"""Plans: everything about an execution that is known at submission.

Sizes, gears, shapes and addresses are taken at submission; the data are read and written when the
plan runs. A plan is reused as long as neither dataset nor device memory changes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .._cann.codes import AclCode
from .context import Context
from .dataset import Dataset, datasets
from .errors import DeviceError, EmulatorError
from .gears import decode
from .memory import Block, device_memory
from .memory import allocate as allocate_block
from .memory_use import Range, Use
from .model import Model
from .model_info import TensorSpec
from .ort import Binding, Bound
from .regions import TOLERANCE, Region, check_room, nothing, overlap
from .tensor_desc import TensorDesc
from .transfer import move
from .work_memory import trim_heap

if TYPE_CHECKING:
    from .dump import Probe

__all__ = ["KEPT", "Plan"]

KEPT = 64
"""Bindings and plans kept per model."""


class Plan:
    """One way to run a model.

    Parameters
    ----------
    model
        The model.
    inputs, outputs
        Memory; the hidden input last.
    optional
        The inputs with a default that are fed, and their memory.
    shapes
        Shapes of the real inputs, ``None`` when only the device knows the gear.
    gear
        Index of the gear, for gear models.
    datasets
        The input dataset, and the output dataset, which gets tensor descriptions of dynamic runs.
    """

    __slots__ = (
        "binding",
        "blocks",
        "dataset",
        "epoch",
        "expected",
        "fed",
        "fed_version",
        "gear",
        "has_scratch",
        "inputs",
        "into",
        "is_plain",
        "model",
        "optional",
        "outputs",
        "shapes",
        "use",
        "varies",
        "version",
    )  # fmt: skip

    dataset: Dataset
    epoch: int
    fed: Dataset
    fed_version: int
    version: int

    def __init__(
        self,
        model: Model,
        inputs: list[Region],
        outputs: list[Region],
        optional: list[tuple[TensorSpec, Region]],
        shapes: tuple[tuple[int, ...], ...] | None,
        gear: int | None,
        datasets: tuple[Dataset, Dataset],
    ) -> None:
        self.model: Model = model
        self.inputs: list[Region] = inputs
        self.outputs: list[Region] = outputs
        self.optional: list[tuple[TensorSpec, Region]] = optional
        self.shapes = shapes
        self.gear: int | None = gear
        self.fed, self.dataset = datasets
        self.fed_version, self.version, self.epoch = self.fed.version, self.dataset.version, device_memory.epoch
        read = [*inputs, *(region for _, region in optional)]
        self.blocks: list[Block] = [region.block for region in (*read, *outputs) if region.block is not None]
        self.use: Use = Use(
            model.executions,
            [
                Range(region.block, region.pointer, region.pointer + region.size, is_output)
                for is_output, regions in ((False, read), (True, outputs))
                for region in regions
                if region.block is not None and region.size
            ],
        )
        self.has_scratch: bool = False
        self.binding: Binding | None = None
        self.into: list[Bound] = self._fed() if shapes is not None and model.info.mode == "shape" else []
        """Dynamic runs: the memory of the inputs."""
        self.expected: list[tuple[int, ...]] = []
        """Dynamic runs: the shapes that the binding has for outputs, those of the run before."""
        self.varies: bool = False
        """Dynamic runs: with other data the outputs had other shapes."""
        if shapes is not None and model.info.mode != "shape":
            self._bind(shapes, gear or 0)
        self.is_plain: bool = (
            bool(self.binding) and not self.has_scratch and not model.info.gears and model.probe is None
        )
        """Nothing to do at execution but to run the binding."""

    @property
    def rows(self) -> int:
        """The first dim of the first input; 0 if it has none."""
        return self.shapes[0][0] if self.shapes and self.shapes[0] else 0

    def is_valid(self) -> bool:
        """Return whether neither datasets nor device memory have changed since it was made."""
        return (
            self.fed_version == self.fed.version
            and self.version == self.dataset.version
            and self.epoch == device_memory.epoch
        )

    def _bind(self, shapes: tuple[tuple[int, ...], ...], gear: int) -> None:
        """Bind inputs and outputs in place; outputs that overlap other memory get memory of their own."""
        model, info = self.model, self.model.info
        into = [
            Bound(t.name, t.element, shape, region.pointer, math.prod(shape) * t.itemsize)
            for t, shape, region in zip(info.inputs, shapes, self.inputs, strict=False)
        ]
        memory = [*self.inputs[: len(into)], *(region for _, region in self.optional), *self.outputs]
        into += self._fed_optional()
        out = [
            Bound(t.name, t.element, shape, region.pointer, math.prod(shape) * t.itemsize)
            for t, shape, region in zip(info.outputs, info.output_shapes[gear], self.outputs, strict=True)
        ]
        for bound, region in zip((*into, *out), memory, strict=True):
            check_room(bound.name, bound.nbytes, region, TOLERANCE if info.mode == "static" else 0)
        self.has_scratch = overlap(into, out)
        if self.has_scratch:
            out = [bound._replace(pointer=0) for bound in out]
        key = (tuple(into), tuple(out))
        binding = model.bindings.get(key)
        if binding is None:
            binding = Binding(model.engine, into, out)
            model.bindings[key] = binding
            if len(model.bindings) > KEPT:
                model.bindings.popitem(last=False)
        self.binding = binding

    def run(self, allocate: Context | None = None, stream: int = 0) -> None:
        """Compute, in this thread.

        Parameters
        ----------
        allocate
            Where output memory is allocated for empty data buffers (synchronous calls only).
        stream
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
            if block.view is None:
                text = f"device memory {block.address:#x} was freed before the model ran"
                raise DeviceError(AclCode.RT_MODEL_EXECUTE, text)
        if not model.guard.acquire(False):
            raise EmulatorError(f"model {model.handle} runs in two threads at once: it has one set of work memory")
        try:
            if self.is_plain:
                self.binding.run()  # type: ignore[union-attr]
                return
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
        if self.has_scratch:
            specs = self.model.info.outputs
            for (shape, source), region, spec in zip(binding.results(), self.outputs, specs, strict=True):
                move(region.pointer, source, math.prod(shape) * spec.itemsize)

    def _check_gear(self) -> None:
        """Compare the hidden input's content, which the device goes by, with the gear of the submission."""
        info = self.model.info
        region = self.inputs[info.hidden]
        values = decode(region.pointer, region.size, len(info.gear_dims[0]))
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
        """Return the memory of the real inputs."""
        assert self.shapes is not None
        return [
            Bound(spec.name, spec.element, shape, region.pointer or nothing(), math.prod(shape) * spec.itemsize)
            for spec, shape, region in zip(self.model.info.inputs, self.shapes, self.inputs, strict=False)
        ] + self._fed_optional()

    def _fed_optional(self) -> list[Bound]:
        return [Bound(spec.name, spec.element, spec.dims, region.pointer, spec.size) for spec, region in self.optional]

    def _dump(self, probe: Probe, stream: int) -> None:
        model = self.model
        try:
            probe.run(self._fed(), model.device.index, model.handle, stream)
        except OSError as exc:
            raise DeviceError(AclCode.RT_FILE_WRITE, f"the dump cannot be written: {exc.strerror or exc}") from exc
        except Exception as exc:  # the classes of its errors are made at run time
            raise DeviceError(AclCode.RT_MODEL_EXECUTE, f"the model failed while it was dumped: {exc}") from exc

    def _run_dynamic(self, allocate: Context | None) -> None:
        gives_back = self.model.engine.work_memory.changes_size(sum(bound.nbytes for bound in self.into))
        if self.binding is None or not self._run_as_before(self.binding, gives_back):
            self._run_anew(allocate, gives_back)
        if gives_back:
            trim_heap()

    def _run_anew(self, allocate: Context | None, gives_back: bool) -> None:
        """Run with outputs in memory of ONNX Runtime, whatever their shapes are."""
        nowhere = [Bound(spec.name, spec.element, (), 0, 0) for spec in self.model.info.outputs]
        try:
            binding = Binding(self.model.engine, self.into, nowhere)
        except Exception as exc:  # the classes of its errors are made at run time
            raise DeviceError(AclCode.RT_MODEL_EXECUTE, f"the model failed: {exc}") from exc
        binding.run(gives_back)
        results = binding.results()
        self._store(results, allocate)
        if not self.varies:
            self._expect([shape for shape, _ in results])

    def _expect(self, shapes: list[tuple[int, ...]]) -> None:
        """Let the next run write to the memory of the outputs at once, if they have these shapes again."""
        out = [
            Bound(spec.name, spec.element, shape, region.pointer, math.prod(shape) * spec.itemsize)
            for spec, shape, region in zip(self.model.info.outputs, shapes, self.outputs, strict=True)
        ]
        if all(bound.pointer and bound.nbytes for bound in out) and not overlap(self.into, out):
            self.expected = shapes
            self.binding = Binding(self.model.engine, self.into, out)

    def _run_as_before(self, binding: Binding, gives_back: bool) -> bool:
        """Run with outputs of the shapes of the run before; ``False`` if that fails, as it does for other shapes."""
        try:
            binding.run(gives_back)
        except DeviceError as exc:
            if exc.code == AclCode.RT_STREAM_ABORT:
                raise
            self.varies, self.binding = True, None
            return False
        for index, shape in enumerate(self.expected):
            self._describe(index, shape)
        return True

    def _describe(self, index: int, shape: tuple[int, ...]) -> None:
        if self.dataset.handle in datasets:
            spec = self.model.info.outputs[index]
            self.dataset.describe(index, TensorDesc(spec.dtype, shape, spec.format, owned=True))

    def _store(self, results: list[tuple[tuple[int, ...], int]], allocate: Context | None) -> None:
        """Move outputs whose shapes are known now to their memory, and describe them."""
        info = self.model.info
        for spec, region, (shape, _) in zip(info.outputs, self.outputs, results, strict=True):
            needed = math.prod(shape) * spec.itemsize
            room = region.size if region.pointer else 0
            if room < needed and not (allocate is not None and region.pointer == region.size == 0):
                text = f"output {spec.name!r} needs {needed} bytes, its data buffer has memory for {room}"
                raise DeviceError(AclCode.GE_FAILURE, text)
        for index, (spec, region, (shape, source)) in enumerate(zip(info.outputs, self.outputs, results, strict=True)):
            needed = math.prod(shape) * spec.itemsize
            pointer = region.pointer
            if pointer == 0 and needed and allocate is not None:
                block = allocate_block(needed, allocate.device)
                if block is None:
                    raise DeviceError(AclCode.GE_MEMORY_ALLOCATION, f"no {needed} bytes for output {spec.name!r}")
                region.buffer.point(block.address, needed)
                pointer = block.pointer
            if needed:
                move(pointer, source, needed)
            self._describe(index, shape)
