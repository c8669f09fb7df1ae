"""Stages: what is done with a batch: queue its calls, wait for them, finish its requests. None of them raises."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Final

import numpy as np

from .._acl.constants import MemcpyKind
from .._acl.stream import read_times
from .._buffers.commands import CommandList
from .._buffers.slot import Slot
from .._device.device import Device
from .._feeds.plan import OutputPlan, Plan
from ..errors import AclError, AioaisError
from .batch import Batch
from .command_cache import CommandCache
from .dynamic_shape import DynamicShapes
from .event_times import Recorder
from .execute import Executions
from .failure import Failure
from .iteration import IterationRequest
from .options import Options
from .request import Request, State
from .results import make_arrays, make_tensors
from .times import Times

__all__ = ["Stages"]

_log = logging.getLogger("aioais")

_D2D: Final = int(MemcpyKind.DEVICE_TO_DEVICE)


class Stages:
    """The steps of a batch on the device, for the threads of one session.

    What fails is noted in the request. Its batch still goes to the finish thread, which waits for what is
    queued already.

    Parameters
    ----------
    device, executions, times, recorder, failure
        Of the session.
    options
        The checked arguments of the session.
    """

    def __init__(
        self,
        device: Device,
        executions: Executions,
        times: Times,
        recorder: Recorder,
        failure: Failure,
        options: Options,
    ) -> None:
        self._device = device
        self._executions = executions
        self._dynamic = DynamicShapes(executions, options.loop, may_run_synchronously=options.hang_timeout is None)
        self._times = times
        self._recorder = recorder
        self._failure = failure
        self._cache = CommandCache(executions, device.is_board)
        self._debug = options.debug
        self._hang_timeout = options.hang_timeout

    def expected_outputs(self, plan: Plan) -> tuple[OutputPlan, ...] | None:
        """Return the outputs of requests of a plan, where they are known ahead."""
        return plan.outputs if plan.dynamic_shapes is None else self._dynamic.expected(plan)

    # ----------------------------------------------------------------------------------- queue
    def queue(self, batch: Batch) -> list[Request]:
        """Queue all calls of a batch, or of its next step; in the thread that may submit.

        Returns
        -------
        list of Request
            Those behind a request that failed: they are not queued, and no longer in the batch.
        """
        batch.is_on_one_stream = self._executions.shared_stream is not None
        requests = batch.requests
        for k, request in enumerate(requests):
            if k and batch.queued:
                return self._queue_behind(batch, k)
            try:
                self._queue(batch, request)
            except BaseException as exc:  # noqa: BLE001 - the caller of the request gets it
                self.fail(request, exc)
                left = requests[k + 1 :]
                del requests[k + 1 :]
                return left
        return []

    def _queue_behind(self, batch: Batch, first: int) -> list[Request]:
        """Queue the requests of a batch behind one that is queued: as :meth:`_queue`, with less work for each."""
        executions, slot, requests = self._executions, batch.slot, batch.requests
        library, queued = self._device.library, batch.queued
        now = perf_counter()
        k = first
        try:
            lists = self._cache.behind(requests[0].plan, slot, len(requests))
            batch.number = executions.count()
            for k in range(first, len(requests)):
                request = requests[k]
                feeds, request.feeds = request.feeds, None
                request.started_at = now
                request.outputs = request.plan.outputs
                if feeds is None or request.future.cancelled():
                    request.was_cancelled = True
                    continue
                commands = lists[len(queued) - 1]
                _copy_feeds(commands.staging, feeds)
                queued.append((request, commands))
                for function, arguments, name in commands.head:
                    code = function(*arguments)
                    if code:
                        raise library.error(name, code)
            executions.lead(slot, queued[-1][1].marks.executions[-1], batch.number)
        except BaseException as exc:  # noqa: BLE001 - the caller of the request gets it
            self.fail(requests[k], exc)
            left = requests[k + 1 :]
            del requests[k + 1 :]
            try:
                failure = executions.break_chain(slot)
                if failure is not None:
                    self._fail_all(batch, failure)
            except BaseException as broken:  # noqa: BLE001 - the device hangs
                self.fail(requests[k], broken)
            return left
        return []

    def _queue(self, batch: Batch, request: Request) -> None:
        slot = batch.slot
        if self._debug:
            _log.debug("request %d: submitted to device %d", request.number, self._device.id)
        feeds = self._begin(request)
        if request.was_cancelled:
            return
        if isinstance(request, IterationRequest):
            self._queue_step(batch, request, feeds)
            return
        if request.plan.dynamic_shapes is not None:
            expected = None if request.must_wait else self._dynamic.expected(request.plan)
            if expected is None:
                self._run(batch, request, feeds, is_last=True)
                return
            self._dynamic.prepare(request, slot, expected)
        else:
            self._executions.prepare(request, slot)
        self._submit(batch, request, self._cache.step(request, slot, feeds), feeds)

    def _queue_step(self, batch: Batch, request: IterationRequest, feeds: list[Any] | None) -> None:
        slot, is_dynamic = batch.slot, request.plan.dynamic_shapes is not None
        if not is_dynamic:
            self._executions.prepare(request, slot)  # each time: another request may have set its gear in between
        for item in request.feed_back(slot):
            if item.nbytes:
                slot.stream.copy(*item, _D2D)
        if is_dynamic:
            self._run(batch, request, feeds, request.is_last)
            return
        commands = self._cache.step(request, slot, feeds, (request.is_first, request.is_last))
        self._submit(batch, request, commands, feeds)

    def _submit(self, batch: Batch, request: Request, commands: CommandList, feeds: list[Any] | None) -> None:
        self._stage(batch, request, commands, feeds)
        batch.number = self._executions.submit(batch.slot, commands)

    def _run(self, batch: Batch, request: Request, feeds: list[Any] | None, is_last: bool) -> None:
        """Run a model of dynamic shape and wait for it, then queue the copies of its outputs."""
        slot = batch.slot
        commands = batch.queued[0][1] if request.must_wait else None
        if commands is None:
            is_first = not isinstance(request, IterationRequest) or request.is_first
            shapes = request.plan.dynamic_shapes
            if is_first and shapes is not None:
                slot.describe(shapes)
            commands = self._cache.step(request, slot, feeds, (is_first, False))
            self._stage(batch, request, commands, feeds)
        self._dynamic.run(request, slot)
        batch.number = self._executions.count()
        batch.queued = [(request, commands)]
        if is_last:
            self._copy_back(batch, request, commands)

    def _copy_back(self, batch: Batch, request: Request, commands: CommandList) -> None:
        """Queue the copies of outputs that are known now, behind a run that is complete."""
        slot, executions = batch.slot, len(batch.slot.executions_per_mark)
        back = self._cache.step(request, slot, None, (False, True))
        spans = commands.spans[: commands.copies_in + executions] + back.spans[executions:]
        commands = commands._replace(
            spans=spans, landing=back.landing, copies_back=back.copies_back, is_small=back.is_small
        )
        batch.queued = [(request, commands)]
        self._executions.queue(back.back)

    def _begin(self, request: Request) -> list[Any] | None:
        """Take the feeds of a request that starts; ``None`` for one that has started before."""
        if request.is_abandoned:
            request.was_cancelled = True
            return None
        if request.started_at:
            return None
        request.started_at = perf_counter()
        if request.state is State.WAITING:
            request.state = State.STARTED
        feeds, request.feeds = request.feeds, None
        request.was_cancelled = feeds is None  # its coroutine was closed, which cancels no future
        return feeds

    def _stage(self, batch: Batch, request: Request, commands: CommandList, feeds: list[Any] | None) -> None:
        """Copy host feeds to staging, and queue their copies to the device.

        The copy releases the GIL where it is large.
        """
        if feeds is not None:
            _copy_feeds(commands.staging, feeds)
            request.copies_in = commands.copies_in
        self._executions.queue(commands.head)
        batch.queued.append((request, commands))

    # ------------------------------------------------------------------------------------ wait
    def wait(self, batch: Batch) -> bool:
        """Wait until a batch is complete on the device; ``False`` once the session is broken."""
        error = self._executions.wait(batch.slot, batch.number, batch.is_on_one_stream)
        if error is not None:
            self._fail_all(batch, error)
        return self._failure.cause is None

    def _fail_all(self, batch: Batch, error: BaseException) -> None:
        """Fail the requests of a batch, which ACL does not tell apart, but for those that have failed already."""
        drop_frames(error)
        verdict = self._failure.judge(error)
        is_alone = len(batch.requests) == 1
        if verdict.runs_alone and len(batch.queued) > 1:
            batch.part()
        for request in batch.requests:
            if request.error is None:
                request.error = copy.copy(error) if isinstance(error, AclError) and not is_alone else error

    # ---------------------------------------------------------------------------------- finish
    def finish(self, batch: Batch) -> bool:
        """Make the results of a batch that is complete, and book its times.

        Returns
        -------
        bool
            ``False`` if its request goes on: another step follows, or the same again.
        """
        slot, requests = batch.slot, batch.requests
        if not requests:  # all run again, each alone
            self._mend(slot)
            return True
        first = requests[0]
        if (first.is_unproven or first.is_iteration) and self._goes_on(batch, first):
            return False
        rows: list[list[float]] = []
        queued: list[float] = []
        commands: CommandList | None = None
        has_failed = bool(batch.again)
        library = self._device.library
        for request, commands in batch.queued:
            if request.error is None:
                try:
                    request.row = row = read_times(library, commands.spans)
                    if request.future.cancelled():
                        pass
                    elif commands.is_small:
                        request.result = [area.copy() for area in commands.landing]
                    else:
                        self._make_result(request, commands, slot)
                except BaseException as exc:  # noqa: BLE001 - the caller of the request gets it
                    self.fail(request, exc)
                else:
                    rows.append(row)
                    queued.append((request.started_at - request.queued_at) * 1e3)
        if rows and commands is not None:
            self._book_all(first, rows, queued, commands)
        for request in requests:
            if request.error is not None:
                has_failed = True
            if request.draft is not None or self._debug:
                self._tell(request, slot, commands)
            if request.blocks:
                request.blocks.clear()
            request.state = State.ENDED
        if has_failed:
            self._mend(slot)
        return True

    def _goes_on(self, batch: Batch, request: Request) -> bool:
        """Whether another step follows, or the same again with its outputs asked for."""
        try:
            if request.is_unproven and not request.was_cancelled and self._must_run_again(batch, request):
                request.error, request.must_wait, request.is_unproven = None, True, False
                return True
            if isinstance(request, IterationRequest) and not request.is_last:
                if request.error is not None or request.was_cancelled:
                    return False
                _, commands = batch.queued.pop()
                row = read_times(self._device.library, commands.spans)
                self._book(self._times.add_step, row, commands.copies_in)
                request.earlier_h2d += sum(row[: commands.copies_in])
                request.earlier_execute += sum(row[commands.copies_in :])
                request.next_step()
                return True
        except BaseException as exc:  # noqa: BLE001 - the caller of the request gets it
            self.fail(request, exc)
        return False

    def _must_run_again(self, batch: Batch, request: Request) -> bool:
        """Whether the outputs of a request were not as expected and cannot be read from where they are."""
        dynamic, slot = self._dynamic, batch.slot
        if request.error is not None:
            return dynamic.may_be_larger(request.error)
        if dynamic.proves(request, slot):
            return False
        request.blocks.clear()
        if not dynamic.holds(request, slot):
            return True
        # The copies back were those of other shapes: they are made once more.
        self._copy_back(batch, request, batch.queued[0][1])
        slot.stream.synchronize()
        return False

    def _make_result(self, request: Request, commands: CommandList, slot: Slot) -> None:
        outputs = request.outputs
        assert outputs is not None
        if not request.to_host:
            request.result = make_tensors(outputs, self._device, slot, self._hang_timeout)
        else:
            request.result = make_arrays(outputs, commands.landing, self._device, slot)

    def _book_all(self, first: Request, rows: list[list[float]], queued: list[float], commands: CommandList) -> None:
        if isinstance(first, IterationRequest) and not first.is_first:
            earlier = first.earlier_h2d, first.earlier_execute
            self._book(self._times.add_last_step, rows[0], queued[0], *earlier)
        else:
            self._book(self._times.add, rows, queued, commands.copies_in, commands.copies_back)

    def _book(self, add: Callable[..., None], *times: Any) -> None:
        try:
            add(*times)
        except Exception:  # noqa: BLE001 - times are lost; no request fails because of that
            _log.exception("times of requests could not be booked")

    def _tell(self, request: Request, slot: Slot, commands: CommandList | None) -> None:
        """Record or log the end of a request, where that is asked for."""
        draft = request.draft
        if draft is not None:
            draft.finished_at = perf_counter()
            if request.error is None and not request.was_cancelled and commands is not None:
                copies = request.copies_in, commands.copies_back
                self._recorder.measure(draft, request.number, slot.marks, slot.stream, copies)
        if self._debug:
            _log.debug("request %d: %s", request.number, "failed" if request.error else "complete")

    def _mend(self, slot: Slot) -> None:
        try:
            slot.mend()
        except BaseException as exc:  # noqa: BLE001 - the next request with this slot meets it
            _log.debug("after a failed request: %s", str(exc))

    def fail(self, request: Request, error: BaseException) -> None:
        """Note the first failure of a request, and break the session where it cannot go on."""
        drop_frames(error)
        request.error = request.error or error
        self._failure.judge(error)


def _copy_feeds(staging: Sequence[Any], feeds: Sequence[Any]) -> None:
    """Copy host feeds to where the device reads them; device tensors have no area there."""
    for area, feed in zip(staging, feeds, strict=True):
        if area is None:
            continue
        if type(feed) is np.ndarray:
            np.copyto(area, feed)
        else:  # rows of several callers
            feed.copy_to(area)


def drop_frames(error: BaseException) -> None:
    """Drop the traceback of a library error; its text says which call failed.

    Frames of the engine, also those that called the ones in the traceback, hold batches, and these feeds and buffers,
    for as long as the caller keeps the error.
    """
    cause: BaseException | None = error
    while isinstance(cause, AioaisError):
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
