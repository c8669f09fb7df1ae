"""Router: the line of requests, which thread submits the next one, and which thread must be woken for it."""

from __future__ import annotations

import asyncio
from collections import deque
from queue import SimpleQueue
from threading import Lock
from typing import Final

from .._buffers.slot_pool import SlotPool
from .request import Batch, Request
from .times import Speed

__all__ = ["Router"]

_LOOK_AGAIN_S: Final = 0.001


class Router:
    """The state that the event loop and the two threads of a session share.

    The finish thread waits for the device. When a batch is complete it has a free slot, and submits the next request
    itself. The submit thread submits while the finish thread waits and a slot is free, so that a request need not wait
    for the end of an execution; and what would delay results that are ready, such as a copy of many bytes.

    Attributes
    ----------
    line
        Requests that wait for a slot, the oldest first. The loop appends; the thread that holds ``submitting`` takes.
    going_on
        Batches that have their slot and a next step to submit.
    submitted
        Batches on the device, the oldest first.
    submitting
        Held by the thread that submits: a model takes submissions from one thread at a time.
    is_over
        Nothing is under way, and nothing will come.
    is_waiting
        The finish thread waits for the device, or is about to.
    """

    def __init__(self, speed: Speed, loop: asyncio.AbstractEventLoop, slots: SlotPool) -> None:
        self.line: deque[Request] = deque()
        self.going_on: deque[Batch] = deque()
        self.submitted: deque[Batch] = deque()
        self.submitting = Lock()
        self.is_over = False
        self._speed = speed
        self._loop = loop
        self._slots = slots
        self._is_asleep = False
        self.is_waiting = False
        self._will_look_again = False
        self._finish_bell: SimpleQueue[None] = SimpleQueue()
        self._submit_bell: SimpleQueue[None] = SimpleQueue()

    # ---------------------------------------------------------------------- on the loop's thread
    def enter(self, request: Request) -> None:
        """Append a request to the line, and wake the thread that is to submit it; never blocks."""
        self.line.append(request)
        if self._is_asleep:
            self._is_asleep = False
            self._finish_bell.put(None)
        elif self.is_waiting and not self._will_look_again and self.has_work():
            if self._speed.is_slow:
                self.wake_submit()
            else:
                # The finish thread is free sooner than another thread wakes, unless the device is slow this time.
                self._will_look_again = True
                self._loop.call_later(_LOOK_AGAIN_S, self._look_again)

    def _look_again(self) -> None:
        self._will_look_again = False
        if self.is_waiting and self.has_work():
            self.wake_submit()

    # ---------------------------------------------------------------------- on the finish thread
    def sleep(self) -> None:
        """Wait for something to do: a request in the line, or a batch on the device."""
        self._is_asleep = True  # set before the check: what comes from now on wakes this thread
        has_work = self.submitted or self.going_on or self.line
        # While the submit thread submits, it takes the line too, and wakes this thread when it has submitted.
        if not self.is_over and (not has_work or (not self.submitted and self.submitting.locked())):
            self._finish_bell.get()
        self._is_asleep = False

    # ---------------------------------------------------------------------- on either thread
    def has_work(self) -> bool:
        """Whether something could be submitted now."""
        slots = self._slots
        return bool(self.going_on or (self.line and (slots.free or slots.may_make)))

    def oldest(self) -> Request | None:
        """Return the first of the line, which the other thread may take at any time."""
        try:
            return self.line[0]
        except IndexError:
            return None

    def was_submitted(self, batch: Batch) -> None:
        """Hand a batch over to the finish thread."""
        self.submitted.append(batch)
        if self._is_asleep:
            self._is_asleep = False
            self._finish_bell.put(None)

    def wake_submit(self) -> None:
        """Wake the submit thread."""
        self._submit_bell.put(None)

    def wait_for_bell(self) -> None:
        """Wait until there is something to submit; on the submit thread."""
        self._submit_bell.get()

    def wake_all(self) -> None:
        """Make both threads look at what has changed."""
        self._finish_bell.put(None)
        self._submit_bell.put(None)
