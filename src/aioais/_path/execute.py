"""Step 2: the gear, where it changes, and the execution."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from .._acl.library import Library
from .._acl.model import LoadedModel
from .._acl.release import run_all
from .._acl.stream import Stream
from ..errors import AclError, AclMemoryError, AclUsageError, DeviceHangError, ModelError
from .plan import OutputPlan, output_plans
from .request import Request
from .slot import Slot

__all__ = ["Executor", "Failure", "failure_of"]

_log = logging.getLogger("aioais")

_GE_FAILURE: Final = 500002
_CANNOT_ALLOCATE: Final = 100000
_REFUSES_EMPTY: Final = frozenset({_CANNOT_ALLOCATE, 107000, 200001})
"""What a release may answer that does not allocate outputs itself: bad parameter or unsupported."""
_LARGEST_GUESS: Final = 1 << 30
_MOST_GROWTHS: Final = 12
"""Runs tried when ACL does not say how large an output is; the sizes grow fourfold each time."""


class Failure(NamedTuple):
    """What a synchronise of the execute stream reported."""

    last: int
    """Number of the newest submission that it may be about."""
    error: BaseException


class Executor:
    """Queues executions of one model on its one stream.

    A model has one table of arguments and one gear, so all submissions come from one thread at a
    time and go to one stream (pyACL reference, thread rules of models).

    Parameters
    ----------
    library
        The ACL in use.
    model
        The loaded model.
    loop
        Executions per request.
    hang_timeout
        Of its stream. With one, nothing is run synchronously, as that could not be bounded.

    Attributes
    ----------
    stream
        The execute stream. It is synchronised through the executor: ACL tells a failure once, to whoever
        comes first, and it may be about the work of others.
    submitted
        Submissions so far: requests, and steps of iterations, of which an execution was queued or is
        about to be.
    failure
        The newest failure that :meth:`synchronize` met, ``None`` before the first.
    """

    def __init__(self, library: Library, model: LoadedModel, loop: int, hang_timeout: float | None) -> None:
        self._library = library
        self._model = model
        self._loop = loop
        self._gear: tuple[int, ...] | None = None
        self._learned = [0] * len(model.info.outputs)
        self._has_told = False
        self._submit = library.acl.mdl.execute_async
        self._may_run_synchronously = hang_timeout is None
        self.stream = Stream(library, hang_timeout)
        self.submitted = 0
        self.failure: Failure | None = None

    def submit(self, request: Request, slot: Slot) -> None:
        """Queue the executions of a request behind its copies.

        A dynamic-shape model is also waited for: only then are the shapes of its outputs known, and
        buffers that turn out too small are grown and the model is run again.
        """
        self.prepare(request, slot)
        self.count(request)
        self.wait_inputs(request, slot)
        self.launch(request, slot)

    def prepare(self, request: Request, slot: Slot) -> None:
        """Make outputs of dynamic shape large enough, or choose the gear; nothing is queued."""
        if not request.is_dynamic:
            self.set_gear(request, slot)
            return
        for k, tensor in enumerate(self._model.info.outputs):
            size = max(request.plan.sizes[k], self._learned[k])
            slot.output_block(k, min(size, tensor.size) if tensor.size else size)

    def set_gear(self, request: Request, slot: Slot) -> None:
        """Set the gear where it is another, and find out the output shapes."""
        plan = request.plan
        if plan.gear is not None and (plan.gear != self._gear or plan.gear != slot.gear):
            # ACL keeps a gear in the loaded model and in the dataset: both must be this one.
            self._gear = slot.gear = None
            self._model.set_gear(slot.in_data.handle, plan.gear)
            self._gear = slot.gear = plan.gear
        if plan.outputs is None:
            plan.outputs = output_plans(self._model.info, self._model.output_shapes())
        request.outputs = plan.outputs

    def count(self, request: Request) -> None:
        """Give a request its number before anything of it is queued."""
        self.submitted += 1
        request.submission = self.submitted
        request.is_submitted = True

    def wait_inputs(self, request: Request, slot: Slot) -> None:
        """Have the execute stream wait for the copies, unless they are on it themselves."""
        if not request.is_joined and request.last_copy is not slot.h2d_marks[0]:
            assert request.last_copy is not None
            if slot.h2d_done is None:
                self.stream.wait(request.last_copy)
            else:
                self.stream.follow(slot.stream, slot.h2d_done)

    def have_wait(self, stream: Stream, slot: Slot) -> None:
        """Have another stream wait for the executions of a slot's request."""
        if slot.execute_done is None:
            stream.wait(slot.execute_marks[-1])
        else:
            stream.follow(self.stream, slot.execute_done)

    def launch(self, request: Request, slot: Slot) -> None:
        """Queue the executions; with dynamic shape, wait for them and learn the shapes of the outputs."""
        if request.is_dynamic:
            self._run_dynamic(request, slot)
            return
        stream, marks = self.stream, slot.execute_marks
        if not request.is_joined:
            stream.record(marks[0])
        for k in range(self._loop):
            code = self._submit(self._model.id, slot.in_data.handle, slot.out_data.handle, stream.handle)
            if code:
                raise self._library.error("acl.mdl.execute_async", code)
            stream.record(marks[k + 1])

    def synchronize(self) -> Failure | None:
        """Wait for all that is queued; gives the newest failure, whoever it was told to.

        ACL does not say which submission failed. It may be one that was queued during the wait, so whatever is
        queued by then must not pass for good.
        """
        try:
            self.stream.synchronize()
        except BaseException as exc:  # noqa: BLE001 - each request concerned gets it
            # Kept until the next one: without the frames, which hold requests.
            self.failure = Failure(self.submitted, exc.with_traceback(None))
        return self.failure

    def close(self) -> None:
        """Destroy the stream; idempotent."""
        self.stream.close()

    def _run_dynamic(self, request: Request, slot: Slot) -> None:
        info = self._model.info
        outputs: tuple[OutputPlan, ...] = ()
        growth = 0
        for growth in range(_MOST_GROWTHS + 1):
            error = self._attempt(slot)
            if error is None:
                outputs = self._read_outputs(slot)
                small = [item for item in outputs if item.nbytes > _capacity(slot, item.position)]
                if not small:
                    break
                if growth == _MOST_GROWTHS:
                    raise ModelError(
                        f"{info.path!r}: each of {growth + 1} runs gave outputs larger than the buffers made for those "
                        f"of the run before ({', '.join(info.outputs[item.position].name for item in small)}), so no "
                        "result could be read; give custom_sizes that are as large as the outputs can be"
                    )
                for item in small:
                    slot.output_block(item.position, item.nbytes)
            elif growth == _MOST_GROWTHS or not _may_be_too_small(error):
                raise error
            else:
                may_ask = growth == 0 and self._may_run_synchronously
                answer = self._let_acl_allocate(slot) if may_ask else _CANNOT_ALLOCATE
                if answer == 0 and self._loop == 1:
                    outputs = self._read_outputs(slot)
                    growth = 1
                    break
                if answer == 0:
                    continue  # all executions of the request, now that there is room
                # Refused for another reason than the empty buffers: it was not their size before either.
                if answer not in _REFUSES_EMPTY or not self._grow_blindly(slot):
                    raise error
        request.outputs = outputs
        for item in outputs:
            self._learned[item.position] = max(self._learned[item.position], item.nbytes)
        if growth and not self._has_told:
            self._has_told = True
            _log.warning(
                "%s: outputs were larger than custom_sizes=%s, so buffers were grown to %s bytes and the model was run "
                "again; give custom_sizes to save the second run",
                info.path,
                list(request.plan.sizes),
                [_capacity(slot, k) for k in range(len(info.outputs))],
            )

    def _attempt(self, slot: Slot) -> AclError | None:
        """Run once and wait; gives the error instead of raising it."""
        slow, stream, marks = self._library.slow, self.stream, slot.execute_marks
        stream.record(marks[0])
        for k in range(self._loop):
            code = slow.execute_async(self._model.id, slot.in_data.handle, slot.out_data.handle, stream.handle)
            if code:
                error = self._library.error("acl.mdl.execute_async", code)
                try:
                    stream.synchronize()
                except DeviceHangError as exc:
                    return exc  # the buffers must not be touched
                except AclError:
                    pass  # the first failure is the one to tell
                return error
            stream.record(marks[k + 1])
        # An output that is too small concerns nobody else, so the failure is not noted.
        try:
            stream.synchronize()
        except AclError as exc:
            return exc
        return None

    def _let_acl_allocate(self, slot: Slot) -> int:
        """Run once more with outputs that ACL allocates itself, which only a synchronous run can; gives the code.

        The memory is the caller's afterwards and becomes the slot's (pyACL reference, outputs of
        unknown size).
        """
        outputs = slot.out_data
        for k in range(len(slot.outputs)):
            outputs.bind(k, 0, 0)
        stream, marks = self.stream, slot.execute_marks
        stream.record(marks[0])
        code = self._library.slow.execute(self._model.id, slot.in_data.handle, outputs.handle)
        if code:
            self._library.acl.get_recent_err_msg()  # the first failure is the one to tell
        _take_allocated(slot)  # at once: whatever fails next, nobody else knows of this memory
        for mark in marks[1:]:
            stream.record(mark)
        stream.synchronize()
        return code

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
        return output_plans(self._model.info, shapes)


def failure_of(request: Request, failure: Failure | None) -> BaseException | None:
    """Give a request its own copy of a failure that may be its."""
    if failure is None or request.submission > failure.last:
        return None
    return copy.copy(failure.error) if isinstance(failure.error, AclError) else failure.error


def _take_allocated(slot: Slot) -> None:
    """Own the outputs that ACL allocated; those that it did not get their buffers back."""
    steps: list[Callable[[], None]] = []
    for k, block in enumerate(slot.outputs):
        address, nbytes = slot.out_data.allocated(k)
        assert block is not None
        if address:
            slot.outputs[k] = slot.device.memory.adopt(address, nbytes)
            steps.append(block.close)
        else:
            steps.append(partial(slot.out_data.bind, k, block.address, block.nbytes))
    run_all(steps)


def _capacity(slot: Slot, k: int) -> int:
    block = slot.outputs[k]
    return block.nbytes if block is not None else 0


def _may_be_too_small(error: AclError) -> bool:
    """Whether a failed dynamic-shape run can mean an output buffer that is too small.

    ACL has no code of its own for that: the model engine's parameter errors and its general
    failure (500002) are what releases answer.
    """
    return isinstance(error, AclUsageError) or error.code == _GE_FAILURE
