"""Pipeline: the parts of one session joined, and its two threads."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from functools import partial
from typing import Final

from .._acl.model import LoadedModel, ModelInfo
from .._acl.process import AclProcess
from .._bridge.delivery import Delivery
from .._bridge.threads import EngineThreads
from .._buffers.batch_buffers import MOST_BATCHED
from .._buffers.slot import Slot, executions_per_mark
from .._buffers.slot_pool import FIRST_DEPTH, SlotPool
from .._device.device import Device
from .._feeds.plan import SMALL, Plan
from .._feeds.planner import Planner
from ..blame import Seen
from ..timing import Recording
from ..types import SessionStatistics
from .admission import Admission
from .event_times import Draft, Recorder
from .execute import Executions
from .failure import Failure, Holdings
from .options import Options
from .request import Batch, Request, fill
from .routing import Router
from .stages import Stages
from .times import Times

__all__ = ["Pipeline", "live_pipelines"]

_MOST_HELD: Final = 2
"""With so many results ready the loop is woken at once. With more the device waits for the loop."""
_MOST_SHARING: Final = 2 * MOST_BATCHED
"""With so many requests of one source under way, a device that is so fast never waits for the loop."""
_live: set[Pipeline] = set()
"""The pipelines that have not ended."""
_live_lock = threading.Lock()  # guards the set


class Pipeline:
    """The path of a session's requests.

    ::

        loop ─▶ line ─▶ a free slot ─▶ all calls of the request ─▶ wait for the slot's stream ─▶ result ─▶ loop
                        └──── the submit thread, or the finish thread ────┘└──── the finish thread ────┘

    The copies and executions themselves are scheduled on the device: each request has its calls on the stream of its
    slot, chained to the execution before (:class:`Executions`). So the device has its next work queued
    while the host waits for the oldest, in a call that releases the GIL. :class:`Router` says which thread submits.

    Parameters
    ----------
    device, model
        Of the session; the model and one session reference of the device are owned.
    """

    def __init__(
        self, device: Device, model: LoadedModel, planner: Planner, delivery: Delivery, options: Options
    ) -> None:
        self.device = device
        self.process: AclProcess = device.process
        self.info: ModelInfo = model.info
        self.planner = planner
        self.hang_timeout: float | None = options.hang_timeout
        self.recordings: tuple[Recording, ...] = ()  # changed and read on the loop's thread
        self.loop: asyncio.AbstractEventLoop = delivery.loop
        self._delivery = delivery
        self._is_debugged = options.debug
        self._is_sharing = False  # the newest requests share a slot
        self._may_share = options.loop == 1 and options.depth != 1 and not device.is_board
        self.times: Times = Times(executions_per_mark(options.loop))
        make_slot = partial(Slot, device, model.info, options.loop, options.hang_timeout)
        executions = Executions(device.library, model, options.loop, options.hang_timeout)
        self.slots: SlotPool = SlotPool(
            device, make_slot, model.info, options.depth, lambda: bool(self._router.line), executions.is_complete
        )
        self._router = Router(self.times.speed, delivery.loop, self.slots)
        recorder = Recorder(device.library)
        self.admission: Admission = Admission(self._drained)
        self.failure: Failure = Failure(
            Holdings(device, executions, self.slots, recorder),
            self.admission,
            delivery,
            self._interrupt,
            lambda seconds: self._threads.join(seconds),
            options.hang_timeout,
        )
        self.closed: Future[None] = self.failure.closed
        self._stages = Stages(device, executions, self.times, recorder, self.failure, options)
        try:
            self._threads = EngineThreads(
                device.enter,
                {f"aioais-submit-{device.id}": self._submit_step, f"aioais-finish-{device.id}": self._finish_step},
                lambda error: self.failure.judge(error, Seen.THREAD),
            )
        except BaseException:
            self.slots.close()
            executions.close()
            raise
        with _live_lock:
            _live.add(self)
        self.closed.add_done_callback(self._ended)

    # --------------------------------------------------------------------------------- the loop
    def submit(self, request: Request) -> None:
        """Take a request; never blocks."""
        if self.recordings or self._is_debugged:
            request.count()
            if self.recordings:
                shapes = tuple(item.shape for item in request.plan.inputs)
                request.draft, request.is_alone = Draft(self.recordings, self.info.mode, shapes), True
        self.admission.enter(request)
        self._router.enter(request)

    def window(self, prefetch: int | None, is_wide: bool) -> int:
        """Return how many requests of one source there may be at once: under way, or with the consumer.

        Parameters
        ----------
        prefetch
            As in ``InferSession.infer_pipeline``.
        is_wide
            There may be more by default, where small ones share slots.
        """
        depth = self.slots.depth
        if prefetch is not None:
            return depth + prefetch
        if is_wide and self._is_sharing and self.times.speed.is_brief:
            return max(2 * depth, _MOST_SHARING)
        return 2 * depth

    def statistics(self) -> SessionStatistics:
        """Return counters, stage times and memory at this moment; in any thread."""
        pinned, admission = self.device.pinned, self.admission
        in_flight, queued = admission.under_way()  # first: what has ended since is counted below
        return SessionStatistics(
            in_flight=in_flight,
            queued=queued,
            done=admission.done,
            failed=admission.failed,
            cancelled=admission.cancelled,
            stages=self.times.stages(),
            depth=self.slots.depth,
            slots=self.slots.made,
            device_bytes=self.device.nbytes,
            pinned_bytes=pinned.nbytes,
            pinned_leased=pinned.leased,
            pinned_idle=pinned.idle,
        )

    def close(self) -> None:
        """Refuse new requests, finish those submitted, then free all; idempotent, never blocks.

        ``closed`` is done when everything is freed. In a forked child there is nothing to free: what
        the session holds is its parent's, and so are its threads.
        """
        if self.device.process.is_forked:
            self.failure.disown()
            return
        self.failure.closing.set()
        self.admission.close()

    def join(self) -> None:
        """Wait for the threads once ``closed`` is done: microseconds, as their last step is."""
        if self.failure.cause is None:
            self._threads.join()

    def _ended(self, _: Future[None]) -> None:
        self.times.end()
        with _live_lock:
            _live.discard(self)

    def _drained(self) -> None:
        self._router.is_over = True
        self._router.wake_all()

    def _interrupt(self) -> None:
        self.slots.interrupt()
        self._router.wake_all()

    # ------------------------------------------------------------------------------ the threads
    def _submit_step(self) -> bool:
        self._router.wait_for_bell()
        if self._router.is_over or self.failure.cause is not None:
            return False
        self._submit_all()
        return True

    def _finish_step(self) -> bool:
        router = self._router
        if self.failure.cause is not None:
            return False
        if not router.submitted:
            self._submit_all(is_finish_thread=True)
        if not router.submitted:
            if router.is_over:
                self.failure.end()
                return False
            router.sleep()
            return True
        batch = router.submitted.popleft()
        router.is_waiting = True  # before the check: the submit thread is woken for what comes later
        if router.has_work():
            self._submit_all(is_finish_thread=True, has_batch=True)
            if router.has_work():
                router.wake_submit()
        is_whole = self._stages.wait(batch)
        router.is_waiting = False
        if not is_whole:
            return False
        if self._stages.finish(batch):
            self.admission.leave(batch.requests)  # before another request has the slot
            if batch.again:
                with router.submitting:  # the thread that has it takes from the line
                    self._put_back(batch.again)
            self._free(batch)
            self._submit_all(is_finish_thread=True, has_batch=True)  # before the loop is woken, which takes the GIL
            self._delivery.ready.extend(batch.requests)
        else:
            router.going_on.append(batch)
        if not self._has_more_at_once():
            self._delivery.send()
        return True

    def _submit_all(self, is_finish_thread: bool = False, has_batch: bool = False) -> None:
        """Submit what can be submitted; the finish thread skips it while the submit thread submits.

        Parameters
        ----------
        is_finish_thread
            Called in the finish thread.
        has_batch
            It has a batch to wait for, or to deliver.
        """
        router = self._router
        while router.has_work():
            if not router.submitting.acquire(blocking=not is_finish_thread):
                return  # the thread that has it looks again after it has released it
            try:
                if is_finish_thread and (has_batch or router.submitted) and not self._is_quick():
                    return  # the other thread is woken for it before this one waits
                batch = self._next()
                if batch is not None:
                    behind = self._stages.queue(batch)
                    if behind:
                        self._put_back(behind)
                    router.was_submitted(batch)
                    del batch  # an error's traceback holds this frame, and the batch the error
                elif self.failure.cause is not None:
                    return
            finally:
                router.submitting.release()

    def _has_more_at_once(self) -> bool:
        """Whether the next batch is complete as well: then the loop is woken once for the results of both.

        Only on a fast device, where a wake-up costs as much as an execution, and while requests wait in the line.
        """
        router = self._router
        if not (self.times.speed.is_brief and router.line and router.submitted):
            return False
        # A session that breaks from here on wakes the loop, for what is kept too; one that broke before has done so.
        if self.failure.cause is not None or len(self._delivery.ready) >= _MOST_HELD:
            return False
        return router.submitted[0].slot.stream.is_complete()

    def _is_quick(self) -> bool:
        """Whether what comes next can be submitted without holding up results that are due."""
        router = self._router
        if router.going_on:
            return router.going_on[0].requests[0].plan.dynamic_shapes is None
        if not router.line:
            return True
        plan = router.line[0].plan
        if plan.is_small:
            return bool(self.slots.free)
        outputs = self._stages.expected_outputs(plan)
        if plan.is_large or not self.slots.free or (outputs is None and plan.dynamic_shapes is not None):
            return False
        return self.device.is_board or all(
            item.nbytes <= SMALL or self.device.pinned.has_idle(item.nbytes) for item in outputs or ()
        )

    def _next(self) -> Batch | None:
        """Take what is submitted next: the next step of a batch that has its slot, or the oldest of the line."""
        router = self._router
        if self.failure.cause is not None:
            return None
        if router.going_on:
            return router.going_on.popleft()
        line = router.line
        while line:
            request = line[0]
            if request.future.cancelled():
                line.popleft()
                self._end([request])
                continue
            try:
                slot = self.slots.take()
            except BaseException as exc:  # noqa: BLE001 - the caller of the request gets it
                line.popleft()
                self._stages.fail(request, exc)
                self._end([request])
                continue
            if slot is None:
                return None
            batch = Batch(slot, line.popleft())
            waiting, speed = len(line), self.times.speed
            # Requests that share a slot come back together: only where the device is fast, and several more wait.
            if self._may_share and speed.is_brief and waiting >= min(self.slots.depth, FIRST_DEPTH):
                fill(batch, line, speed.partners(waiting))
                self._is_sharing = len(batch.requests) > 1
            return batch
        return None

    def _put_back(self, requests: list[Request]) -> None:
        """Return requests to the front of the line: one of their batch failed."""
        for request in reversed(requests):
            request.state, request.started_at = "waiting", 0.0
            self._router.line.appendleft(request)

    def _shares(self, plan: Plan, slot: Slot) -> bool:
        return self._may_share and plan.is_plain and slot.batch.suits(plan)

    def _free(self, batch: Batch) -> None:
        """Return the slot of a batch that has ended, and let the depth grow where that helps."""
        slots = self.slots
        if slots.is_automatic and self.times.speed.is_brief and not (slots.free or slots.may_make):
            oldest = self._router.oldest()
            if oldest is not None and not self._shares(oldest.plan, batch.slot):  # those share slots instead
                slots.grow()
        slots.give(batch.slot)

    def _end(self, requests: list[Request]) -> None:
        """Count requests as ended, and have the loop set their futures."""
        self.admission.leave(requests)
        self._delivery.post(requests)


def live_pipelines() -> list[Pipeline]:
    """List the pipelines that have not ended."""
    with _live_lock:
        return [pipeline for pipeline in _live if not pipeline.closed.done()]
