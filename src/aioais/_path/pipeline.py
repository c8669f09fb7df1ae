"""The stages joined: queues, stage threads and slots of one session. Only this file knows the order."""

from __future__ import annotations

from collections import deque
from queue import Empty, SimpleQueue

from .._acl.model import LoadedModel
from .._bridge.delivery import Delivery
from ..timing import Recording
from . import live
from .admission import Admission
from .breakage import Breakage
from .bursts import Bursts, most_joined
from .clock import SessionClock
from .device import Device
from .draft import Draft
from .entrance import Entrance
from .execute import Executor
from .feeds import Planner
from .holdings import Holdings
from .permits import Permits
from .places import Places
from .prepared import Prepared
from .recorder import Recorder
from .request import Request
from .slot import Slot, executions_per_mark
from .slot_pool import SlotPool
from .stage_threads import StageThreads
from .steps import Steps

__all__ = ["Pipeline"]


class Pipeline:
    """The way of a session's requests over three stage threads.

    ::

        submit ─▶ H2D thread ─────────────▶ execute thread ────────▶ D2H thread ────────▶ delivery
                  slot, staging, copies,    waits for executions     waits for the copies
                  execution, copies back    and learns of failures   back, slot returned

    The H2D thread queues all work of a request at once, chained by events, so the device needs no thread of the host
    between the steps. The other two wait; where the device needs little time for a request the execute thread waits
    for its copies back too, as that takes less than the hop to the D2H thread (``SessionClock.is_brief``). Runs of
    dynamic shape and the steps of iterations are submitted by the execute thread instead, as each must be waited for
    before it goes on; while it has such work it submits for all (``_handed_over``).

    *Errors.* ACL reports a failed task to whoever synchronises its stream, never to whoever waits for an event
    (published runtime source: ``Event::Synchronize`` does not read the stream's error). So results are released only
    after the execute stream was synchronised, which waits for all that is queued: :class:`Permits` bounds that.

    *The express.* A lonely request has nothing to overlap with, and neither have requests whose work on the device is
    shorter than a hop from thread to thread. The execute thread does all steps of those itself, and joins brief ones on
    the execute stream, many at a time where many wait (:class:`Bursts`); copies back of longer ones must not hold up
    whoever comes next, so theirs have their own stream. A model takes submissions from one thread at a time, so where
    both kinds meet, one waits until the other is through.

    Parameters
    ----------
    device, model
        Of the session; the model and one session reference of the device are owned.
    planner, delivery, depth, loop, debug, hang_timeout
        Of the session, the way back to its loop, and as in ``InferSession``.
    """

    def __init__(
        self,
        device: Device,
        model: LoadedModel,
        planner: Planner,
        delivery: Delivery,
        depth: int,
        loop: int,
        debug: bool,
        hang_timeout: float | None,
    ) -> None:
        self.device = device
        self.info = model.info
        self.hang_timeout = hang_timeout
        executions = executions_per_mark(loop)
        self.clock = SessionClock(executions)
        self.recordings: tuple[Recording, ...] = ()  # changed and read on the loop's thread
        self._recorder = Recorder(device.library)
        self._delivery = delivery
        self._executor = Executor(device.library, model, loop, hang_timeout)
        self.slots = SlotPool(device, model.info, depth, loop, hang_timeout)
        self._h2d_inbox: SimpleQueue[Request | None] = SimpleQueue()
        self._execute_inbox: SimpleQueue[Request | None] = SimpleQueue()
        self._d2h_inbox: SimpleQueue[Request | None] = SimpleQueue()
        self._permits = Permits(depth, self.clock)
        self._waiting: deque[Request] = deque()  # express requests without a slot; execute thread only
        self._complete: list[Request] = []  # express requests to be delivered; execute thread only
        self.admission = Admission(
            self.clock, self._execute_inbox.put, self._h2d_inbox.put, lambda: self._h2d_inbox.put(None)
        )
        self._handed_over = 0  # requests that the execute thread has to submit; H2D thread only
        self._taken_over = 0  # those that it has submitted; execute thread only
        self._sent_home = self._came_home = 0  # by way of the D2H thread; counted by the execute and the D2H thread
        counts = len(model.info.inputs), len(executions), len(model.info.outputs)
        places = Places(device, depth, most_joined(depth, loop), counts)
        self.breakage = Breakage(
            Holdings(device, model, self._executor, self.slots, places, self._recorder),
            self.admission,
            delivery,
            self._interrupt,
            lambda seconds: self._threads.join(seconds),
            self._end_of_session,
            hang_timeout,
        )
        self.closed = self.breakage.closed
        self.entrance = Entrance(planner, self.submit, delivery.loop)
        prepared = Prepared(device, self._executor, places, is_wanted=not debug)
        self._steps = Steps(
            device, self._executor, self.clock, self._recorder, self.breakage, prepared, debug, hang_timeout
        )
        self.bursts = Bursts(device, prepared, self._executor, self.clock, depth, loop, self._steps.fail)
        try:
            self._threads = StageThreads(
                device,
                {"h2d": self._h2d_step, "exec": self._execute_step, "d2h": self._d2h_step},
                self.breakage.strike,
            )
        except BaseException:
            self.slots.close()
            self._executor.close()
            raise
        live.begin(self)

    def submit(self, request: Request) -> None:
        """Take a request; never blocks."""
        if self.recordings:
            shapes = tuple(item.shape for item in request.plan.inputs)
            request.draft = Draft(self.recordings, self.info.mode, shapes)
        self.admission.enter(request)

    def close(self) -> None:
        """Refuse new requests, finish those submitted, then free all; idempotent, never blocks.

        ``closed`` is done when everything is freed. In a forked child there is nothing to free: what
        the session holds is its parent's, and so are its threads.
        """
        if self.device.process.is_forked:
            self.breakage.disown()
            return
        self.breakage.close()
        self.admission.close()

    def join(self) -> None:
        """Wait for the threads once ``closed`` is done: microseconds, as their last step is."""
        if self.breakage.cause is None:
            self._threads.join()

    def _end_of_session(self) -> None:
        live.end(self)
        self.clock.settle()

    def _interrupt(self) -> None:
        """Have every thread look up from its queue, to see that the session is broken."""
        self.slots.interrupt()
        self._permits.interrupt()
        for inbox in (self._h2d_inbox, self._execute_inbox, self._d2h_inbox):
            inbox.put(None)

    # ------------------------------------------------------------------ H2D thread
    def _h2d_step(self) -> bool:
        request = self._h2d_inbox.get()
        if request is None or self.breakage.cause is not None:
            self._execute_inbox.put(None)
            return False
        if not request.is_abandoned:
            try:
                request.slot = self.slots.take() or self.slots.wait()
            except BaseException as exc:  # noqa: BLE001 - the caller gets it
                self._steps.fail(request, exc)
        # What the execute thread has to submit comes first, and one thread submits at a time.
        is_ours = not (request.is_dynamic or request.is_iteration or self._handed_over != self._taken_over)
        if not self._steps.start(request, may_prepare=is_ours):
            self._end([request])
        elif not is_ours:
            request.is_handed_over = True
            self._handed_over += 1
            self._execute_inbox.put(request)
        else:
            self._permits.take()
            self._steps.execute(request)
            if request.is_submitted:
                self._steps.start_back(request)
            else:
                self._permits.give_back()
            self._execute_inbox.put(request)
        del request  # an error's traceback holds this frame, and the request the error
        return True

    # -------------------------------------------------------------- execute thread
    def _execute_step(self) -> bool:
        submitted, handed_over, has_ended = self._collect()
        try:
            if self.breakage.cause is not None:
                return False
            express = self._submit_express(self._waiting)
        finally:
            self._delivery.post(self._complete)  # the loop takes these while the device works on those
            self._delivery.give_way()
        if express:
            if not self._steps.await_executions(express):
                return False
            self._delivery.give_way()
            if express[0].is_joined and express[0].cell is not None:
                self.bursts.collect(express)
            else:
                self._steps.bring_home(express)
            self._finish(express)
            self._complete = express
            if not self._waiting and self._execute_inbox.empty():
                self._delivery.post(self._complete)
        if submitted:
            self._permits.give(sum(request.is_submitted for request in submitted))
            is_whole = self._steps.await_executions(submitted)
            # First come, first served: not while others are on their way by the D2H thread.
            if is_whole and self.clock.is_brief and self._sent_home == self._came_home:
                self._steps.bring_home(submitted)
                self._end(submitted)
            while submitted:
                self._send_home(submitted.pop(0))
        while handed_over:
            self._take_over(handed_over.popleft())
        if has_ended:
            self._d2h_inbox.put(None)
        return not has_ended

    def _collect(self) -> tuple[list[Request], deque[Request], bool]:
        """Empty the inbox: what is submitted already, what this thread has to submit, and whether that was the end."""
        inbox, waiting = self._execute_inbox, self._waiting
        submitted: list[Request] = []
        handed_over: deque[Request] = deque()
        try:
            item = inbox.get(block=not waiting)
            while item is not None:
                (waiting if item.is_express else handed_over if item.is_handed_over else submitted).append(item)
                if inbox.empty():  # cheaper than an exception
                    return submitted, handed_over, False
                item = inbox.get_nowait()
        except Empty:
            return submitted, handed_over, False
        return submitted, handed_over, True

    def _take_over(self, request: Request) -> None:
        """Submit what only this thread may, and wait for it."""
        if self._steps.execute(request):
            self._execute_inbox.put(request)  # behind those that have come meanwhile
            return
        self._steps.start_back(request)
        self._taken_over += 1
        if self.breakage.cause is None:
            self._steps.await_executions([request])
            self._send_home(request)
        del request  # as in _h2d_step

    def _send_home(self, request: Request) -> None:
        self._sent_home += 1
        self._d2h_inbox.put(request)

    def _submit_express(self, waiting: deque[Request]) -> list[Request]:
        """Do all steps of the express requests for which there are slots; gives those that are to be waited for."""
        express: list[Request] = []
        request: Request | None = None
        is_brief = self.clock.is_brief
        while waiting:
            # Staged ones are not under way now, so only this thread returns slots: it must not wait for one.
            request = waiting[0]
            joins_burst = self.bursts.takes(request)
            if express and joins_burst:
                break
            if not request.is_abandoned:
                try:
                    request.slot = self.slots.take()
                except BaseException as exc:  # noqa: BLE001 - the caller gets it
                    self._steps.fail(request, exc)
                else:
                    if request.slot is None:
                        break
            waiting.popleft()
            if joins_burst and request.slot is not None:
                burst = self._submit_burst(request, request.slot, waiting)
                if burst is not None:
                    request = None
                    return burst
            request.is_joined = is_brief
            has_started = self._steps.start(request, may_prepare=not is_brief)
            if has_started:
                self._steps.execute(request)
                self._steps.start_back(request)
                express.append(request)
            self.admission.express_submitted(1)
            if not has_started:
                self._end([request])
            elif request.is_dynamic:
                break  # the next one's run would be told what became of this one's copies back
        request = None  # as in _h2d_step
        return express

    def _submit_burst(self, first: Request, slot: Slot, waiting: deque[Request]) -> list[Request] | None:
        """Submit a request, and those behind it that go with it; ``None`` if it must go alone."""
        burst: list[Request] = []
        ended = [first]
        try:
            cells = self.bursts.cells(first, slot)
            if cells is None:
                return None
            burst, ended = self.bursts.fill(cells, first, waiting)
        except BaseException as exc:  # noqa: BLE001 - the caller gets it
            self._steps.fail(first, exc)
        if burst:
            self.bursts.submit(burst, waiting)
        self.admission.express_submitted(len(burst) + len(ended))
        if ended:
            self._end(ended)
        del first  # as in _h2d_step
        return burst

    # ------------------------------------------------------------------ D2H thread
    def _d2h_step(self) -> bool:
        request = self._d2h_inbox.get()
        if self.breakage.cause is not None:
            return False
        if request is None:
            self.breakage.end()
            return False
        batch = [request]
        del request  # a result that its caller drops must not live on in this frame
        self._steps.bring_home(batch)
        self._end(batch)
        self._came_home += 1
        return True

    def _end(self, requests: list[Request]) -> None:
        """Return the slots and deliver; the list is empty afterwards."""
        self._finish(requests)
        self._delivery.post(requests)

    def _finish(self, requests: list[Request]) -> None:
        """Count the requests and return their slots; in this order, so that never more than ``depth`` have one."""
        if self.breakage.cause is not None:
            return  # the device may still use what they hold
        self.admission.leave(requests)
        for request in requests:
            slot, request.slot = request.slot, None
            request.feeds = None
            request.blocks.clear()
            if slot is not None:
                self.slots.give(slot)
