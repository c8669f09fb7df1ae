"""Models of dynamic shape: outputs whose bytes are known only when they have been computed."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Final

from .._acl.model import TensorInfo
from .._acl.release import run_all
from .._buffers.slot import KEPT_BYTES, Slot
from .._feeds.plan import OutputPlan, Plan, output_plans
from ..errors import AclError, AclMemoryError, AclUsageError, DeviceHangError, ModelError
from .execute import Executions
from .request import Request

__all__ = ["DynamicShapes"]

_log = logging.getLogger("aioais")

_Shapes = tuple[tuple[int, ...], ...]

_GE_FAILURE: Final = 500002
_CANNOT_ALLOCATE: Final = 100000
_REFUSES_EMPTY: Final = frozenset({_CANNOT_ALLOCATE, 107000, 200001})
"""What a release may answer that does not allocate outputs itself: bad parameter or unsupported."""
_AMPLE: Final = 4
"""An output of dynamic dims is rarely larger than this many times the elements of the largest input."""
_LARGEST_GUESS: Final = 1 << 30
_MOST_GROWTHS: Final = 12
"""Runs tried when ACL does not say how large an output is; the sizes grow fourfold each time."""
_MOST_SHAPES: Final = 4096


class DynamicShapes:
    """Runs a model of dynamic shape, with outputs as large as they turn out to be.

    CANN's runtime takes an output buffer as it is. It compares the sizes only after the kernels have run and have
    written past the end of the buffer (published source, ``AllocMemoryIfNeed`` in
    ``runtime/v2/kernel/outputs/model_outputs.cc``, the check in ``memory_copy.cc``). So a buffer is used where

    * the caller passed ``custom_sizes``, and no output has been larger,
    * these very shapes of inputs were run before, and outputs never differed for the same shapes, or
    * it is several times larger than such an output is likely to be.

    For all others ACL allocates, as a synchronous run does for outputs without a buffer (pyACL reference, outputs of
    unknown size); the slot owns that memory afterwards. A release that refuses this, and a session with
    ``hang_timeout``, as a synchronous run cannot be bounded, have buffers that grow after a failure.

    Shapes that were run before need no wait in between: their outputs are expected to be as before, all calls of
    the request are queued at once, and the expectation is checked when they are complete.

    Parameters
    ----------
    may_run_synchronously
        No wait has to be bounded.
    """

    def __init__(self, executions: Executions, loop: int, may_run_synchronously: bool) -> None:
        self._library = executions.library
        self._model = executions.model
        self._executions = executions
        self._loop = loop
        self._can_allocate = may_run_synchronously
        self._learned = [0] * len(self._model.info.outputs)
        """The most bytes of each output so far."""
        self._met: dict[_Shapes, tuple[OutputPlan, ...]] = {}
        """The outputs for shapes of inputs that were run."""
        self._varies = False
        """The outputs depend on more than the shapes of inputs."""
        self._has_told = False

    def expected(self, plan: Plan) -> tuple[OutputPlan, ...] | None:
        """Return the outputs that a request will have, where they are known ahead."""
        assert plan.dynamic_shapes is not None
        return None if self._varies else self._met.get(plan.dynamic_shapes)

    def prepare(self, request: Request, slot: Slot, outputs: tuple[OutputPlan, ...]) -> None:
        """Make a slot ready for a request whose outputs are expected to be these; nothing is queued."""
        shapes = request.plan.dynamic_shapes
        assert shapes is not None
        spare = self._spare(request)
        for item in outputs:
            slot.output_block(item.position, max(item.nbytes, spare[item.position], 1))
        slot.describe(shapes)
        request.outputs = outputs
        request.is_unproven = True

    def proves(self, request: Request, slot: Slot) -> bool:
        """Whether the outputs of a request that is complete are as expected; if not, it knows the real ones.

        Raises
        ------
        ModelError, AclError
            ACL does not say what the outputs are.
        """
        shapes = self._read_shapes(slot)
        assert request.outputs is not None
        if shapes == [item.shape for item in request.outputs]:
            return True
        self._varies = True
        request.outputs = output_plans(self._model.info, shapes)
        return False

    def holds(self, request: Request, slot: Slot) -> bool:
        """Whether the buffers of a slot were large enough for the outputs that a request had."""
        return all(item.nbytes <= _capacity(slot, item.position) for item in request.outputs or ())

    def may_be_larger(self, error: BaseException) -> bool:
        """Whether a failure can mean that an output is larger than expected; then the request must run again."""
        if isinstance(error, AclError) and _may_be_too_small(error):
            self._varies = True
            return True
        return False

    def run(self, request: Request, slot: Slot) -> None:
        """Run once and wait; the request knows its outputs then."""
        self._executions.wait_for_copies(slot)
        refusal = None
        outputs: tuple[OutputPlan, ...] | None = None
        if self._can_allocate and not self._is_ample(request, slot):
            refusal = self._let_acl_allocate(slot)
            if refusal is None and self._loop == 1:
                outputs = self._read_outputs(slot)
            elif refusal is not None and not _may_be_too_small(refusal):
                raise refusal
        if outputs is None:
            outputs = self._run_in_buffers(request, slot, refusal)
            if refusal is not None and refusal.code in _REFUSES_EMPTY:
                self._can_allocate = False
        for k, block in enumerate(slot.outputs):
            if block is None:  # an output without bytes
                slot.output_block(k, 1)
        request.outputs = outputs
        request.is_unproven = False
        self._learn(request, slot, outputs)

    def _is_ample(self, request: Request, slot: Slot) -> bool:
        """Whether the buffers for a request are large enough, as far as is known."""
        plan, shapes = request.plan, slot.shapes
        assert shapes is not None
        if plan.has_sizes and all(map(int.__le__, self._learned, plan.sizes)):
            return True
        if shapes in self._met and not self._varies:
            return True
        return all(map(operator.le, self._ample(shapes), self._spare(request)))

    def _ample(self, shapes: _Shapes) -> list[float]:
        """Return for each output a number of bytes that it is unlikely to exceed."""
        elements = max(1, *(math.prod(shape) for shape in shapes))
        return [_ample_bytes(tensor, elements) for tensor in self._model.info.outputs]

    def _spare(self, request: Request) -> list[int]:
        """Return the least bytes of the buffers: what the caller chose, or else a little for outputs that vary."""
        sizes = request.plan.sizes
        if not request.to_host and not request.plan.has_sizes:
            return [0] * len(sizes)  # a tensor keeps its whole buffer
        return [max(size, min(learned, KEPT_BYTES)) for size, learned in zip(sizes, self._learned, strict=True)]

    def _guess(self, request: Request, shapes: _Shapes) -> list[int]:
        """Return the bytes of the buffers for a run whose outputs may turn out larger."""
        met = None if self._varies else self._met.get(shapes)
        likely = [item.nbytes for item in met] if met else map(int, map(min, self._learned, self._ample(shapes)))
        return list(map(max, self._spare(request), likely))

    def _run_in_buffers(self, request: Request, slot: Slot, refusal: AclError | None) -> tuple[OutputPlan, ...]:
        """Run with the slot's own buffers, again and again while an output is larger."""
        info = self._model.info
        assert slot.shapes is not None
        for k, nbytes in enumerate(self._guess(request, slot.shapes)):
            slot.output_block(k, max(nbytes, 1))
        for growth in range(_MOST_GROWTHS + 1):
            error = self._attempt(slot)
            if error is None:
                outputs = self._read_outputs(slot)
                small = [item for item in outputs if item.nbytes > _capacity(slot, item.position)]
                if not small:
                    return outputs
                for item in small:
                    slot.output_block(item.position, item.nbytes)
            elif growth == _MOST_GROWTHS or not _may_be_too_small(error):
                raise error
            else:
                if self._can_allocate and growth == 0 and refusal is None:
                    refusal = self._let_acl_allocate(slot)
                    if refusal is None and self._loop == 1:
                        return self._read_outputs(slot)
                    if refusal is None:
                        continue  # all executions of the request, now that there is room
                # The reason is not the empty buffers, so it was not the size of the buffers before either.
                answer = _CANNOT_ALLOCATE if refusal is None else refusal.code
                if answer not in _REFUSES_EMPTY or not self._grow_blindly(slot):
                    raise error
        raise ModelError(
            f"{info.path!r}: each of {_MOST_GROWTHS + 1} runs gave outputs larger than the buffers made for those of "
            "the run before, so no result could be read; give custom_sizes that are as large as the outputs can be"
        )

    def _learn(self, request: Request, slot: Slot, outputs: tuple[OutputPlan, ...]) -> None:
        sizes = tuple(item.nbytes for item in outputs)
        shapes = slot.shapes
        assert shapes is not None
        if self._met.setdefault(shapes, outputs) != outputs:
            self._varies = True
        if len(self._met) > _MOST_SHAPES:
            self._met.clear()
        self._learned = list(map(max, self._learned, sizes))
        if not self._has_told and any(map(int.__gt__, sizes, request.plan.sizes)):
            self._has_told = True
            _log.warning(
                "%s: outputs of %s bytes were larger than custom_sizes=%s, so ACL allocated them or the model was run "
                "again; give custom_sizes to save that",
                self._model.info.path,
                list(sizes),
                list(request.plan.sizes),
            )

    def _attempt(self, slot: Slot) -> AclError | None:
        """Run once and wait; returns the error instead of raising it."""
        slow, stream, marks = self._library.slow, self._executions.stream or slot.stream, slot.marks
        stream.record(marks.ready)
        for count, mark in zip(slot.executions_per_mark, marks.executions, strict=True):
            for _ in range(count):
                code = slow.execute_async(self._model.id, slot.in_data.handle, slot.out_data.handle, stream.handle)
                if code:
                    error = self._library.error("acl.mdl.execute_async", code)
                    try:
                        stream.synchronize()
                    except DeviceHangError as exc:
                        return exc  # the buffers must not be touched
                    except AclError:
                        pass  # the first failure is the one to raise
                    return error
            stream.record(mark)
        try:
            stream.synchronize()
        except AclError as exc:
            return exc
        return None

    def _let_acl_allocate(self, slot: Slot) -> AclError | None:
        """Run with outputs that ACL allocates itself, which only a synchronous run can; returns the error, if any.

        The memory is the caller's afterwards and becomes the slot's (pyACL reference, outputs of
        unknown size).
        """
        outputs = slot.out_data
        for k in range(len(slot.outputs)):
            outputs.bind(k, 0, 0)
        stream, marks = slot.stream, slot.marks
        stream.record(marks.ready)
        stream.synchronize()
        code = self._library.slow.execute(self._model.id, slot.in_data.handle, outputs.handle)
        error = self._library.error("acl.mdl.execute", code) if code else None
        _take_allocated(slot)  # at once: whatever fails next, nothing else knows of this memory
        for mark in marks.executions:
            stream.record(mark)
        stream.synchronize()
        return error

    def _grow_blindly(self, slot: Slot) -> bool:
        """Make every output buffer four times larger; ``False`` if they are as large as can be."""
        has_grown = False
        for k, tensor in enumerate(self._model.info.outputs):
            have = _capacity(slot, k)
            want = min(4 * have, tensor.size) if tensor.size else 4 * have
            if have < want <= _LARGEST_GUESS:
                try:
                    slot.output_block(k, want)
                except AclMemoryError:
                    return False
                has_grown = True
        return has_grown

    def _read_outputs(self, slot: Slot) -> tuple[OutputPlan, ...]:
        return output_plans(self._model.info, self._read_shapes(slot))

    def _read_shapes(self, slot: Slot) -> list[tuple[int, ...]]:
        shapes = []
        for k, tensor in enumerate(self._model.info.outputs):
            shape = slot.out_data.shape(k)
            if shape is None and all(dim >= 0 for dim in tensor.shape):
                shape = tensor.shape
            if shape is None:
                raise ModelError(
                    f"{self._model.info.path!r}: ACL gave no shape for output {tensor.name!r} after the run, so its "
                    "bytes cannot be read; the model needs outputs of known rank"
                )
            shapes.append(shape)
        return shapes


def _ample_bytes(tensor: TensorInfo, elements: int) -> float:
    """Return a number of bytes that an output is unlikely to exceed, where the largest input has so many elements."""
    if tensor.dtype is None or tensor.shape == (-2,):
        return math.inf
    fixed = math.prod(dim for dim in tensor.shape if dim >= 0) * tensor.dtype.itemsize
    return fixed if all(dim >= 0 for dim in tensor.shape) else _AMPLE * elements * fixed


def _take_allocated(slot: Slot) -> None:
    """Own the outputs that ACL allocated; those that it did not get their buffers back."""
    steps: list[Callable[[], None]] = []
    for k, block in enumerate(slot.outputs):
        address, nbytes = slot.out_data.allocated(k)
        if address:
            slot.outputs[k] = slot.device.memory.adopt(address, nbytes)
            if block is not None:
                steps.append(block.close)
        elif block is not None:
            steps.append(partial(slot.out_data.bind, k, block.address, block.nbytes))
    run_all(steps)


def _capacity(slot: Slot, k: int) -> int:
    block = slot.outputs[k]
    return block.nbytes if block is not None else 0


def _may_be_too_small(error: AclError) -> bool:
    """Whether a failed run can mean an output buffer that is too small.

    ACL has no code of its own for that: the model engine's parameter errors and its general
    failure (500002) are what releases answer.
    """
    return isinstance(error, AclUsageError) or error.code == _GE_FAILURE
