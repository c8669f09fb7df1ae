"""Step 2: the gear, where it changes, and the execution."""

from __future__ import annotations

import copy
from typing import NamedTuple

from .._acl.library import Library
from .._acl.model import LoadedModel
from .._acl.stream import Call, Stream
from ..errors import AclError
from .dynamic import DynamicRuns
from .plan import output_plans
from .request import Request
from .slot import Slot

__all__ = ["Executor", "Failure", "failure_of"]


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
        self._gear: tuple[int, ...] | None = None
        # Many may fill the queue of the stream: then the call waits, and pyACL's own would do so with the GIL.
        self._submit = library.acl.mdl.execute_async if loop == 1 else library.slow.execute_async
        self.stream = Stream(library, hang_timeout)
        self._dynamic = DynamicRuns(library, model, self.stream, loop, may_run_synchronously=hang_timeout is None)
        self.submitted = 0
        self.failure: Failure | None = None

    def submit(self, request: Request, slot: Slot) -> None:
        """Queue the executions of a request behind its copies.

        A dynamic-shape model is also waited for: only then are the shapes of its outputs known.
        """
        self.prepare(request, slot)
        self.count(request)
        self.wait_inputs(request, slot)
        self.launch(request, slot)

    def prepare(self, request: Request, slot: Slot) -> None:
        """Set the gear where it is another, and find out the output shapes; nothing is queued."""
        if request.is_dynamic:
            return  # the run itself tells
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
            self.stream.follow(slot.stream, request.last_copy, slot.h2d_done)

    def launch(self, request: Request, slot: Slot) -> None:
        """Queue the executions; with dynamic shape, wait for them and learn the shapes of the outputs."""
        if request.is_dynamic:
            self._dynamic.run(request, slot)
            return
        stream, marks = self.stream, slot.execute_marks
        if not request.is_joined:
            stream.record(marks[0])
        for count, mark in zip(slot.executions, marks[1:], strict=True):
            for _ in range(count):
                code = self._submit(self._model.id, slot.in_data.handle, slot.out_data.handle, stream.handle)
                if code:
                    raise self._library.error("acl.mdl.execute_async", code)
            stream.record(mark)

    def launch_call(self, slot: Slot) -> Call:
        """Give what queues one execution with the buffers of a slot, to be called again and again."""
        arguments = self._model.id, slot.in_data.handle, slot.out_data.handle, self.stream.handle
        return self._submit, arguments, "acl.mdl.execute_async"

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


def failure_of(request: Request, failure: Failure | None) -> BaseException | None:
    """Give a request its own copy of a failure that may be its."""
    if failure is None or request.submission > failure.last:
        return None
    return copy.copy(failure.error) if isinstance(failure.error, AclError) else failure.error
