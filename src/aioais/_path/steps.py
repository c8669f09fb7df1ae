"""What is done with one request at each step; which thread does it when is the pipeline's."""

from __future__ import annotations

import logging
from time import perf_counter

from .._acl.stream import Stream
from .breakage import Breakage
from .clock import SessionClock
from .d2h import submit_d2h
from .device import Device
from .execute import Executor, failure_of
from .h2d import submit_h2d
from .iteration import IterationRequest
from .outputs import collect_arrays, collect_tensors
from .prepared import Prepared
from .recorder import Recorder
from .request import Request
from .slot import Slot

__all__ = ["Steps"]

_log = logging.getLogger("aioais")


class Steps:
    """Queues, awaits and collects single requests.

    No step raises: what fails is noted in the request, which goes on to the thread that can wait for what is
    queued already.

    Parameters
    ----------
    device, executor, clock, recorder, breakage, prepared
        Of the session.
    debug, hang_timeout
        As in ``InferSession``.
    """

    def __init__(
        self,
        device: Device,
        executor: Executor,
        clock: SessionClock,
        recorder: Recorder,
        breakage: Breakage,
        prepared: Prepared,
        debug: bool,
        hang_timeout: float | None,
    ) -> None:
        self._device = device
        self._executor = executor
        self._clock = clock
        self._recorder = recorder
        self._breakage = breakage
        self._prepared = prepared
        self._debug = debug
        self._hang_timeout = hang_timeout

    def fail(self, request: Request, error: BaseException) -> None:
        """Note the first failure of a request, and break the session where it cannot go on."""
        request.error = request.error or error
        self._breakage.judge(error)

    def start(self, request: Request, *, may_prepare: bool) -> bool:
        """Queue the copies of a request; ``False`` if it ends here.

        Parameters
        ----------
        request
            With its slot, unless there was none for it.
        may_prepare
            The calling thread is the one that submits its execution.
        """
        slot = request.slot
        if slot is None or request.is_abandoned or request.feeds is None:
            request.was_cancelled = request.error is None  # its coroutine may have been closed, not cancelled
            return False
        request.started_at = perf_counter()
        if self._debug:
            _log.debug("request %d: H2D on device %d", request.number, self._device.id)
        try:
            is_prepared = may_prepare and self._prepared.can_stage and self._prepared.takes(request)
            cells = self._prepared.cells(request, slot) if is_prepared else None
            if cells is None:
                submit_h2d(request, slot, self._copy_stream(request, slot))
                return True
            request.cell = cells.staged()
            if self._prepared.stage(request):
                request.feeds = None
                self._prepared.queue(request.cell.copies)
        except BaseException as exc:  # noqa: BLE001 - carried on to the thread that can wait
            self.fail(request, exc)
        return True

    def execute(self, request: Request) -> bool:
        """Submit a request, or one step of it; ``True`` if other steps follow."""
        if request.error is not None or request.was_cancelled or self._breakage.cause is not None:
            return False
        if request.is_abandoned:
            request.was_cancelled = True
            return False
        slot = request.slot
        assert slot is not None
        if self._debug:
            _log.debug("request %d: execute on device %d", request.number, self._device.id)
        try:
            if request.cell is not None:
                self._executor.count(request)
                self._prepared.queue(request.cell.rest)
                return False
            if isinstance(request, IterationRequest):
                return request.step(self._executor, slot, self._clock)
            self._executor.submit(request, slot)
        except BaseException as exc:  # noqa: BLE001 - carried on to the thread that can wait
            self.fail(request, exc)
        return False

    def start_back(self, request: Request) -> None:
        """Queue the copies of the outputs behind the execution, unless they are queued with it."""
        if request.error is not None or request.was_cancelled or request.cell is not None:
            return
        slot = request.slot
        assert slot is not None
        try:
            submit_d2h(request, slot, self._copy_stream(request, slot), self._executor.stream)
        except BaseException as exc:  # noqa: BLE001 - carried on to the thread that can wait
            self.fail(request, exc)

    def await_executions(self, requests: list[Request]) -> bool:
        """Wait for executions, and tell each request that may have failed; ``False`` once broken."""
        failure = self._executor.failure
        # Runs of dynamic shape were waited for, unless that failed; joined requests have their copies here too.
        if any(r.is_joined or (r.is_submitted and (not r.is_dynamic or r.error is not None)) for r in requests):
            failure = self._executor.synchronize()
            if failure is not None:
                self._breakage.judge(failure.error)
        if failure is not None:
            for request in requests:
                if request.error is None and (request.is_joined or request.is_submitted):
                    request.error = failure_of(request, failure)
        return self._breakage.cause is None

    def bring_home(self, requests: list[Request]) -> None:
        """Wait for copies back, and collect the results."""
        for request in requests:
            slot = request.slot
            assert slot is not None
            try:
                # In any case: only then nothing on the device uses the slot any more.
                if not request.is_joined:
                    slot.stream.synchronize()
                if request.error is None and not request.was_cancelled:
                    self._collect(request, slot)
            except BaseException as exc:  # noqa: BLE001 - the caller gets it
                self.fail(request, exc)
            request.cell = None
            if request.error is not None:
                slot.gear = slot.shapes = None  # what is set on the device is not known any more
            if request.draft is not None:
                self._recorder.measure(request, slot)
            if self._debug:
                _log.debug("request %d: %s", request.number, "failed" if request.error else "complete")

    def _collect(self, request: Request, slot: Slot) -> None:
        if request.cell is not None:
            row = self._prepared.collect(request)
            self._clock.add_rows([row], [request.queued_ms], len(slot.info.inputs), len(slot.info.outputs))
            return
        if request.to_host:
            request.result = collect_arrays(request, self._device, slot)
        else:
            request.result = collect_tensors(request, self._device, slot, self._hang_timeout)
        self._clock.add(request, slot)

    def _copy_stream(self, request: Request, slot: Slot) -> Stream:
        """Joined requests have all their work on the execute stream."""
        return self._executor.stream if request.is_joined else slot.stream
