"""Small requests that go to the device together: one set of device buffers, one stream, one wait."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from time import perf_counter, thread_time
from typing import Final

from ..errors import AclError
from .cells import Cell
from .clock import SessionClock
from .device import Device
from .execute import Executor
from .prepared import Cells, Prepared
from .request import Request
from .slot import Slot

__all__ = ["Bursts", "most_joined"]

_log = logging.getLogger("aioais")

_MOST: Final = 16
"""Requests of a burst."""
_BUSY_S: Final = 0.0004
"""Processor time up to which a burst may grow; at twice that it shrinks. The loop waits for the GIL meanwhile."""


def most_joined(depth: int, loop: int) -> int:
    """Give the most requests of a burst; parameters as in ``InferSession``."""
    return _MOST if depth > 1 and loop == 1 else 1


class Bursts:
    """Fills, submits and collects bursts; everything on the execute thread.

    Where the device needs less time for a request than a thread needs to wake, the host is what limits them all.
    What it does once a wait it should do for many requests, then. Bursts begin with ``depth`` requests, and grow
    while they are full, others wait, the device goes on being that fast, and the loop has its turn soon enough.

    Parameters
    ----------
    device
        The opened device.
    prepared, executor, clock
        Of the session.
    depth, loop
        As in ``InferSession``.
    fail
        Notes the failure of a request.

    Attributes
    ----------
    most
        Most requests of a burst; less once there were no events or no memory for more.
    room
        Requests that the next one may have.
    """

    def __init__(
        self,
        device: Device,
        prepared: Prepared,
        executor: Executor,
        clock: SessionClock,
        depth: int,
        loop: int,
        fail: Callable[[Request, BaseException], None],
    ) -> None:
        self._device = device
        self._prepared = prepared
        self._executor = executor
        self._clock = clock
        self._fail = fail
        self.most = most_joined(depth, loop)
        self._first = self.room = min(depth, self.most)
        self._may_grow = False  # it was full, and others wait
        self._started = 0.0  # in processor time of the thread; 0 for one alone, of which nothing is learnt

    def takes(self, request: Request) -> bool:
        """Whether a request may be in a burst, as far as is known."""
        return self.most > 0 and self._clock.is_brief and self._prepared.takes(request)

    def cells(self, request: Request, slot: Slot) -> Cells | None:
        """Find the cells of a burst that begins with a request, and set its gear; ``None`` if it must go alone.

        Raises
        ------
        AclError
            As :meth:`Prepared.cells`.
        """
        cells = self._prepared.cells(request, slot)
        while cells is not None and self.most:
            try:
                cells.reserve(self.most)
                cells.joined(0)
            except AclError as exc:
                self._lower(min(1, self.most - 1), exc)
            else:
                return cells
        return None

    def fill(self, cells: Cells, first: Request, waiting: deque[Request]) -> tuple[list[Request], list[Request]]:
        """Take as many of the requests that wait as go with the first, and stage their feeds.

        Returns
        -------
        tuple
            The burst, empty if the first has ended; and those that have ended, failed or given up.
        """
        burst: list[Request] = []
        ended: list[Request] = []
        now = perf_counter()
        self._started = thread_time() if waiting else 0.0
        self._stage(first, cells.joined(0), now, burst, ended)
        del first  # the traceback of an error holds this frame, and the request the error
        most = self._allowed(cells) if burst else 0
        plan, takes = cells.plan, self._prepared.takes
        while waiting and len(burst) < most and waiting[0].plan is plan and takes(waiting[0]):
            try:
                cell = cells.joined(len(burst))
            except Exception as exc:  # noqa: BLE001 - the burst goes without
                self._lower(len(burst), exc)
                break
            self._stage(waiting.popleft(), cell, now, burst, ended)
        self._may_grow = len(burst) == self.room and bool(waiting)
        return burst, ended

    def submit(self, burst: list[Request], waiting: deque[Request]) -> None:
        """Queue all work of a burst; what comes behind a failure goes back to where it waited."""
        for k, request in enumerate(burst):
            assert request.cell is not None
            request.is_joined = True
            self._executor.count(request)
            try:
                self._prepared.queue(request.cell.rest)
            except BaseException as exc:  # noqa: BLE001 - carried on to where it is waited for
                self._fail(request, exc)
                for other in reversed(burst[k + 1 :]):
                    other.cell = None
                    other.started_at = 0.0
                    waiting.appendleft(other)
                del burst[k + 1 :]
                return
            request.feeds = None

    def collect(self, burst: list[Request]) -> None:
        """Make the results of a burst that is complete on the device, and read its times."""
        slot = burst[0].slot
        assert slot is not None
        rows: list[list[float]] = []
        queued: list[float] = []
        has_failed = False
        for request in burst:
            if request.error is None:
                try:
                    rows.append(self._prepared.collect(request))
                    queued.append(request.queued_ms)
                except BaseException as exc:  # noqa: BLE001 - the caller gets it
                    self._fail(request, exc)
            if request.error is not None:
                slot.gear = slot.shapes = None  # what is set on the device is not known any more
                has_failed = True
            request.cell = None
        if rows:
            self._clock.add_rows(rows, queued, len(slot.info.inputs), len(slot.info.outputs))
        if self._started or has_failed:
            self._adapt(has_failed, thread_time() - self._started)

    def _adapt(self, has_failed: bool, busy: float) -> None:
        """Say how many the next burst may have."""
        if has_failed:
            self.room = self._first
        elif busy > 2 * _BUSY_S:
            self.room = max(self._first, self.room // 2)
        elif self._may_grow and busy < _BUSY_S:
            self.room = min(2 * self.room, self.most)

    def _lower(self, most: int, error: Exception) -> None:
        self.most = self._first = self.room = most
        _log.warning("device %d: at most %d small requests together from now on: %s", self._device.id, most, str(error))

    def _allowed(self, cells: Cells) -> int:
        """Give the most requests that may go together now."""
        if not self._clock.is_light:
            self.room = self._first
            return 1
        return min(self.room, cells.most)

    def _stage(self, request: Request, cell: Cell, now: float, burst: list[Request], ended: list[Request]) -> None:
        request.cell = cell
        request.started_at = now
        try:
            is_staged = not request.is_abandoned and self._prepared.stage(request)
        except BaseException as exc:  # noqa: BLE001 - the caller gets it
            self._fail(request, exc)
            is_staged = False
        if is_staged:
            burst.append(request)
        else:
            request.cell = None
            request.was_cancelled = request.error is None
            ended.append(request)
