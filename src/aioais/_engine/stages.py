"""Stages: what is done with a batch: queue its calls, wait for them, finish its requests. None of them raises."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from itertools import chain, repeat
from operator import attrgetter, methodcaller, setitem
from time import perf_counter
from typing import Any, Final

from numpy import ndarray

from .._buffers.commands import CommandList
from .._buffers.results import make_arrays, make_tensors
from .._buffers.slot import Slot
from .._cann.constants import MemcpyKind
from .._device.device import Device
from .._feeds.plan import OutputPlan, Plan
from ..errors import AclError
from .command_cache import WHOLE, CommandCache, Ends
from .dynamic_shape import DynamicShapes
from .event_times import Recorder
from .execute import Executions, RefusedError
from .failure import Failure
from .iteration import IterationRequest
from .options import Options
from .request import Batch, Request
from .times import Times

__all__ = ["Stages", "copy_feeds"]

_log = logging.getLogger("aioais")

_D2D: Final = int(MemcpyKind.DEVICE_TO_DEVICE)
# What is done for each request of a batch costs least without a frame of Python.
_copied = methodcaller("copy")
_error_of, _feeds_of, _keeps_row, _queued_at = map(attrgetter, ("error", "feeds", "keeps_row", "queued_at"))
_ARRAYS: Final = {ndarray}


class Stages:
    """The steps of a batch on the device, for the threads of one session.

    What fails is noted in the request. Its batch still goes to the finish thread, which waits for what is
    queued already.
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
            Those that were not submitted as another of the batch failed; they are no longer in the batch.
        """
        requests = batch.requests
        batch.is_on_one_stream = self._executions.stream is not None
        if self._debug:
            for request in requests:
                _log.debug("request %d: submitted to device %d", request.number, self._device.id)
        is_shared = len(requests) > 1
        try:
            commands = self._stage_all(batch) if is_shared else self._stage(batch, requests[0])
            if commands is not None:
                batch.commands = commands
                batch.number = self._executions.submit(batch.slot, commands)
        except RefusedError as refused:
            return self._refused(batch, refused)
        except BaseException as exc:  # noqa: BLE001 - the caller of the request gets it
            self._fail_submission(requests[0], exc)
            left, requests[1:] = requests[1:], []
            return left
        return []

    def _stage_all(self, batch: Batch) -> CommandList | None:
        """Copy the feeds of requests that share a slot; returns the commands of those that are to be submitted."""
        requests, slot = batch.requests, batch.slot
        plan = requests[0].plan
        now = perf_counter()
        if plan.gear is not None:
            # The slot's own as well: it has the hidden input that they share.
            self._executions.prepare(plan, [slot.in_data, *slot.batch.in_datas(len(requests))])
        queued = [request for request in requests if not request.future.cancelled()]
        staging = slot.batch.areas(plan).staging
        try:
            copy_feeds([*chain.from_iterable(staging[: len(queued)])], [*chain.from_iterable(map(_feeds_of, queued))])
        except BaseException:  # noqa: BLE001 - of one of them; its caller gets it
            queued = self._stage_each(queued, staging)
        if not queued:
            return None
        for request in queued:
            request.state = "sharing"
        queued[0].state, queued[0].started_at = "started", now
        batch.queued = queued
        return self._cache.batch(plan, slot, len(queued))

    def _stage_each(self, requests: list[Request], staging: list[list[Any]]) -> list[Request]:
        """Copy the feeds of requests one by one; returns those whose feeds can be read."""
        queued: list[Request] = []
        for request in requests:
            feeds = request.feeds
            if feeds is None:
                continue  # its caller stopped waiting just now
            try:
                copy_feeds(staging[len(queued)], feeds)
            except BaseException as exc:  # noqa: BLE001 - the caller of the request gets it
                self.fail(request, exc)
            else:
                queued.append(request)
        return queued

    def _stage(self, batch: Batch, request: Request) -> CommandList | None:
        """Copy the feeds of a request that starts; returns its commands, or those of its next step.

        ``None`` if nothing is left to submit: its caller stopped waiting, or it has run already.
        """
        slot, plan, executions = batch.slot, request.plan, self._executions
        if None in slot.outputs:  # device tensors have them
            slot.complete()
        feeds, request.feeds = request.feeds, None
        if request.is_abandoned:
            return None
        if request.state == "waiting":
            request.state, request.started_at = "started", perf_counter()
        is_dynamic, ends = plan.dynamic_shapes is not None, WHOLE
        if not is_dynamic:
            if plan.gear is not None or plan.outputs is None:
                executions.prepare(plan, [slot.in_data])  # also between two steps: another may have set its gear
            request.outputs = plan.outputs
        if isinstance(request, IterationRequest):
            ends = request.is_first, request.is_last
            for item in request.feed_back(slot):
                if item.nbytes:
                    slot.stream.copy(*item, _D2D)
        batch.queued = [request]
        if is_dynamic:
            is_known = not request.is_iteration and not request.must_wait
            expected = self._dynamic.expected(plan) if is_known else None
            if expected is None:
                self._run(batch, request, feeds, ends)
                return None
            self._dynamic.prepare(request, slot, expected)
        return self._step(request, slot, feeds, ends)

    def _step(self, request: Request, slot: Slot, feeds: list[Any] | None, ends: Ends) -> CommandList:
        """Return the commands of a request or a step, and copy the feeds of one that starts, if large past the GIL."""
        commands = self._cache.step(request, slot, feeds, ends)
        if feeds is not None:
            copy_feeds(commands.staging[0], feeds)
            request.copies_in = commands.copies[0]
        return commands

    def _refused(self, batch: Batch, refused: RefusedError) -> list[Request]:
        """Fail the request whose submission was refused; returns as :meth:`queue`."""
        commands, queued = batch.commands, batch.queued
        assert commands is not None
        owner = commands.owners[refused.position]
        failed, left = queued[owner], [*queued[:owner], *queued[owner + 1 :]]
        batch.queued, batch.commands = [], None
        batch.requests = [request for request in batch.requests if request not in left]
        self._fail_submission(failed, refused.error)
        if refused.failure is not None:
            self._fail_all(batch, refused.failure)
        return left

    def _fail_submission(self, failed: Request, error: BaseException) -> None:
        self.fail(failed, error)
        failed.feeds = None

    def _run(self, batch: Batch, request: Request, feeds: list[Any] | None, ends: Ends) -> None:
        """Run a model of dynamic shape and wait for it, then queue the copies of its outputs."""
        slot, shapes = batch.slot, request.plan.dynamic_shapes
        is_first, is_last = ends
        commands = batch.commands if request.must_wait else None
        if commands is None:
            if is_first and shapes is not None:
                slot.describe(shapes)
            commands = self._step(request, slot, feeds, (is_first, False))
            self._executions.queue(commands.calls[: commands.head])
        self._dynamic.run(request, slot)
        batch.number = self._executions.count()
        batch.commands = commands
        if is_last:
            self._copy_back(batch, request, commands)

    def _copy_back(self, batch: Batch, request: Request, commands: CommandList) -> None:
        """Queue the copies of outputs that are known now, behind a run that is complete."""
        slot, executions = batch.slot, len(batch.slot.executions_per_mark)
        back = self._cache.step(request, slot, None, (False, True))
        copies = commands.copies[0], back.copies[1]
        spans = commands.spans[: copies[0] + executions] + back.spans[executions:]
        batch.commands = commands._replace(spans=spans, landing=back.landing, copies=copies, is_small=back.is_small)
        self._executions.queue(back.calls[back.back :])

    # ------------------------------------------------------------------------------------ wait
    def wait(self, batch: Batch) -> bool:
        """Wait until a batch is complete on the device; ``False`` once the session is broken."""
        error = self._executions.wait(batch.slot, batch.number, batch.is_on_one_stream)
        if error is not None:
            self._fail_all(batch, error)
        return self._failure.cause is None

    def _fail_all(self, batch: Batch, error: BaseException) -> None:
        """Fail the requests of a batch, which ACL does not tell apart, but for those that have failed already."""
        verdict = self._failure.judge(error)
        if verdict.runs_alone and len(batch.queued) > 1:
            batch.part()
            _log.warning(
                "device %d: %d small requests failed together and run again, each alone: %s",
                self._device.id,
                len(batch.again),
                str(error),
            )
        is_alone = len(batch.requests) == 1
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
        if batch.queued and batch.commands is not None and batch.queued[0].error is None:
            try:
                self._complete(batch.queued, batch.commands, slot)
            except BaseException as exc:  # noqa: BLE001 - the callers of the requests get it
                self._fail_all(batch, exc)
        if first.number:  # recorded, or all are logged
            for request in requests:
                self._tell(request, slot, batch.commands if request in batch.queued else None)
        first.blocks.clear()  # those that share a slot have none
        if batch.again or any(map(_error_of, requests)):
            self._mend(slot)
        return True

    def _complete(self, requests: list[Request], commands: CommandList, slot: Slot) -> None:
        """Read the times of requests, and make their results."""
        times = commands.rows(slot.stream.read_times(commands.spans))
        if commands.is_small:
            for request, landing in zip(requests, commands.landing, strict=True):
                request.result = [*map(_copied, landing)]
        elif not requests[0].is_abandoned:
            self._make_result(requests[0], commands.landing[0], slot)
        if any(map(_keeps_row, requests)):
            width = len(times) // len(requests)
            for k, request in enumerate(requests):
                request.row, request.copies_in = times[width * k : width * (k + 1)], commands.copies[0]
        first = requests[0]
        self._times.add(times, first.started_at, [*map(_queued_at, requests)], commands.copies, first.earlier)

    def _goes_on(self, batch: Batch, request: Request) -> bool:
        """Whether another step follows, or the same again with its outputs asked for."""
        try:
            if request.is_unproven and not request.is_abandoned and self._must_run_again(batch, request):
                request.error, request.must_wait, request.is_unproven = None, True, False
                return True
            if isinstance(request, IterationRequest) and not request.is_last:
                if request.error is not None or batch.commands is None:  # it failed, or was given up before this step
                    return False
                copies = batch.commands.copies
                row = batch.slot.stream.read_times(batch.commands.spans)
                self._times.add(row, 0.0, [], copies, None)
                batch.queued, batch.commands = [], None
                request.next_step(sum(row[: copies[0]]), sum(row[copies[0] :]))
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
        assert batch.commands is not None
        self._copy_back(batch, request, batch.commands)
        slot.stream.synchronize()
        return False

    def _make_result(self, request: Request, landing: list[Any], slot: Slot) -> None:
        outputs = request.outputs
        assert outputs is not None
        if not request.to_host:
            request.result = make_tensors(outputs, self._device, slot, self._hang_timeout)
        else:
            request.result = make_arrays(outputs, landing, self._device, slot)

    def _tell(self, request: Request, slot: Slot, commands: CommandList | None) -> None:
        """Record or log the end of a request, where that is asked for."""
        draft = request.draft
        if draft is not None:
            draft.finished_at = perf_counter()
            if request.error is None and commands is not None:
                copies = request.copies_in, commands.copies[1]
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
        request.error = request.error or error
        self._failure.judge(error)


def copy_feeds(staging: Sequence[Any], feeds: Sequence[Any]) -> None:
    """Copy host feeds to where the device reads them; device tensors have no area there."""
    if {*map(type, feeds)} == _ARRAYS:
        any(map(setitem, staging, repeat(...), feeds))  # without a step of Python for each
        return
    for area, feed in zip(staging, feeds, strict=True):
        if type(feed) is ndarray:
            area[...] = feed
        elif area is not None:  # rows of several callers
            feed.copy_to(area)
