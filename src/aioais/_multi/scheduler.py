"""One source over many devices: which device runs which item, and the order of the results."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from .._engine.core import SessionCore
from .._engine.request import Request
from .._sources.source import open_source
from .._sources.streaming import LONG
from ..blame import Often, Seen, blame
from ..errors import AclError, ClosedError, add_note
from ..types import StreamOutput
from .failures import no_device_left, root
from .items import Item, Member, device_for
from .pool import SessionPool

__all__ = ["Scheduler", "stream_items"]

REORDERING = 4
"""In input order, at most this many times the room of all devices is under way or waits for its turn: while a
slow device works on one item the others go on, but not for ever."""

Start = Callable[[SessionCore, Any], "Request | Awaitable[Request]"]


async def stream_items(
    pool: SessionPool,
    source: Iterable[Any] | AsyncIterable[Any],
    device_ids: object,
    start: Start,
    ordered: bool,
    prefetch: int | None,
) -> AsyncGenerator[StreamOutput, None]:
    """Yield the results of a source of feeds, spread over devices; see ``MultiDeviceSession.stream``."""
    pool.check()
    scheduler = Scheduler(pool, start, ordered, prefetch)
    feeder = open_source(source, scheduler, "feeds")
    del source
    with pool.call(scheduler.cut_short, False):
        async with feeder:
            try:
                scheduler.open(await pool.resolve(device_ids))
                while True:
                    scheduler.look()
                    await scheduler.rerun()
                    while (pending := feeder.fill()) is not None:
                        await pending
                    if scheduler.is_ready:
                        yield scheduler.take()
                        scheduler.taken()
                    elif scheduler.is_empty and (scheduler.has_failed or not feeder.has_more):
                        scheduler.raise_last()
                        return
                    else:
                        await scheduler.wait()
            finally:
                scheduler.give_up()  # before any await: that may be cancelled too


class Scheduler:
    """The sink of a stream's source: each item goes to the device with most room.

    Room is what a device's ``depth`` and ``prefetch`` leave free. A device gets its next item when it has finished one,
    so a slow or busy one gets fewer, and none idles while there are items.

    *Memory.* Items under way, ready, or with the consumer are at most as many as the devices
    have room for together. In input order, results that wait for an earlier one come on top, up to
    ``REORDERING`` times that number in all.

    *Failures.* The table of :mod:`aioais.blame` says whether an error is the item's, which raises at its place, or the
    device's, which takes part no more. An item that failed on a device where it had begun runs again on another one,
    alone there, the oldest first: if it fails with the same code once more it is at fault itself.

    Parameters
    ----------
    pool
        The sessions.
    start
        Checks an item's feeds and submits them to a session.
    ordered
        Return results in the order of the source.
    prefetch
        As in ``InferSession.infer_pipeline``, for each device.
    """

    def __init__(self, pool: SessionPool, start: Start, ordered: bool, prefetch: int | None) -> None:
        self.has_news = False
        self._prefetch = prefetch
        self._pool = pool
        self._start = start
        self._is_ordered = ordered
        self._devices: list[Member] = []
        self._opening: set[int] = set()
        self._causes: dict[int, BaseException] = {}
        """Of the devices that failed."""
        self._next_index = 0
        self._under_way: set[Item] = set()
        self._again: list[Item] = []
        """To be run again; they count as under way."""
        self._window: deque[Item] = deque()
        """In order: all items, the oldest first; else those that are done."""
        self._prefix = 0
        """In order: how many of the oldest are done, which only wait for the consumer."""
        self._held = 0
        """1 while the consumer has a result."""
        self._last: BaseException | None = None
        """Raised once all items before it are done."""
        self._waiter: asyncio.Future[None] | None = None
        self._no_device: BaseException | None = None
        self._is_over = False

    # ------------------------------------------------------------------------- devices
    def open(self, device_ids: list[int]) -> None:
        """Have sessions opened, all at once; each takes part as soon as it is open."""
        self._opening.update(device_ids)
        for device_id in device_ids:
            task = asyncio.ensure_future(self._pool.session(device_id, is_awaited=False))
            if task.done():  # an eager task, where the session is warm
                self._opened(device_id, task)
            else:
                task.add_done_callback(partial(self._opened, device_id))

    def _opened(self, device_id: int, task: asyncio.Task[SessionCore]) -> None:
        self._opening.discard(device_id)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if self._is_over:
            return
        if error is None:
            session = task.result()
            self._devices.append(Member(device_id, session, self._prefetch, self._pool.state(device_id)))
        else:
            if not self._pool.is_closed:
                self._pool.retire(device_id, None, error)
            self._causes[device_id] = error
            self._fail_without_devices()
        self.wake()

    def _lose(self, device: Member, error: Exception) -> None:
        """Take a device out; idempotent."""
        if device not in self._devices:
            return
        self._devices.remove(device)
        self._causes[device.id] = error
        self._pool.retire(device.id, device.session, error)
        self._fail_without_devices()

    def _fail_without_devices(self) -> None:
        """Where no device is left, have the items that need one fail at their places."""
        if self._devices or self._opening:
            return
        self._no_device = self._no_device or no_device_left(self._causes)
        again, self._again = self._again, []
        for item in again:
            self._done(item, None, self._no_device)

    # ---------------------------------------------------------------------- the source
    def has_room(self) -> bool:
        """Whether to take one more item; raises where none can be run any more."""
        if self._last is not None:
            return False
        if self._no_device is not None:
            raise self._no_device
        if self._pool.is_closed:
            self._pool.check()
        if self._again:
            return False
        waiting = self._prefix if self._is_ordered else len(self._window)
        most = sum(device.most for device in self._devices)
        if len(self._under_way) + waiting + self._held >= most:
            return False
        if self._is_ordered and len(self._window) + self._held >= REORDERING * most:
            return False
        return any(device.room > 0 for device in self._devices)

    def submit(self, feeds: Any) -> Awaitable[None] | None:
        """Submit an item to the device with most room."""
        item = Item(self._next_index, feeds)
        self._next_index += 1
        if self._is_ordered:
            self._window.append(item)
        self._under_way.add(item)
        device = device_for(item, self._devices)
        if device is not None:
            return self._run(item, device)
        self._again.append(item)
        self._fail_without_devices()
        return None

    def fail(self, error: BaseException) -> None:
        """Have an error raised once all items before it are done."""
        self._last = self._last or error

    def _run(self, item: Item, device: Member) -> Awaitable[None] | None:
        """Submit an item; one that does not fit fails at its place, and nothing follows it."""
        device.in_flight += 1
        device.is_on_trial = bool(item.failures)
        item.device_id = device.id
        try:
            request = self._start(device.session, item.feeds)
        except Exception as exc:  # noqa: BLE001 - raised at its place
            self._refused(item, device, exc)
            return None
        if isinstance(request, Request):
            self._submitted(item, device, request)
            return None
        return self._await(item, device, request)

    async def _await(self, item: Item, device: Member, pending: Awaitable[Request]) -> None:
        try:
            request = await pending
        except Exception as exc:  # noqa: BLE001 - raised at its place
            self._refused(item, device, exc)
        else:
            self._submitted(item, device, request)

    def _submitted(self, item: Item, device: Member, request: Request) -> None:
        if self._is_over:  # given up while its feeds were converted
            request.give_up()
            return
        item.request = request
        request.future.add_done_callback(partial(self._finished, item, device))

    def _refused(self, item: Item, device: Member, error: Exception) -> None:
        device.in_flight -= 1
        device.is_on_trial = False
        explained = self._pool.explain(device.id, device.session, error)
        if blame(explained, Seen.SUBMIT).takes_device_out:  # it broke since, or another call found it broken
            self._lose(device, root(explained))
            self._run_again(item, device)
            return
        self._done(item, None, error)
        self._last = self._last or error  # no item after it is taken

    async def rerun(self) -> None:
        """Run items again as far as there is room, the oldest first."""
        for item in sorted(self._again, key=lambda item: item.index):
            if item not in self._again:  # no device is left since
                return
            device = device_for(item, self._devices)
            if device is not None:
                self._again.remove(item)
                pending = self._run(item, device)
                if pending is not None:
                    await pending
            elif not self._opening and all(device.id in item.failures for device in self._devices):
                self._again.remove(item)
                self._done(item, None, [*item.failures.values()][-1])

    # --------------------------------------------------------------------- the results
    def _finished(self, item: Item, device: Member, future: asyncio.Future[Any]) -> None:
        """Take the result of a request; called by its future."""
        item.request = None
        device.in_flight -= 1
        device.is_on_trial = False
        error: BaseException | None
        if future.cancelled():
            error = None if self._is_over else ClosedError(f"{self._pool!r} gave the request up")
        else:
            error = future.exception()
        if self._is_over:
            return
        if error is None:
            device.state.streamed += 1
            self._done(item, future.result(), None)
            for other in [other for other in self._devices if other.id in item.failures]:
                failure = item.failures[other.id]
                if blame(failure, often=Often.FINE_ELSEWHERE).takes_device_out:
                    self._lose(other, failure)
        else:
            self._failed(item, device, error)
        self.wake()

    def _failed(self, item: Item, device: Member, error: BaseException) -> None:
        """Have an item run elsewhere or fail, and take its device out, as the table says."""
        is_again = isinstance(error, AclError) and any(e.code == error.code for e in item.failures.values())
        verdict = blame(error, often=Often.AGAIN if is_again else Often.ONCE)
        if isinstance(error, AclError):
            item.failures[device.id] = error
        if verdict.takes_device_out:
            assert isinstance(error, Exception)
            self._lose(device, root(error))
        if verdict.runs_elsewhere:
            self._run_again(item, device)
        elif verdict.takes_device_out and self._no_device is not None:
            add_note(self._no_device, f"item {item.index} of the source failed on {item.where} with the same code")
            self._done(item, None, self._no_device)
        else:
            self._done(item, None, error)

    def _run_again(self, item: Item, device: Member) -> None:
        device.state.rerun += 1
        self._again.append(item)
        self._fail_without_devices()
        self.wake()  # the other devices may be idle: nothing else would have the item run

    def _done(self, item: Item, outputs: list[np.ndarray] | None, error: BaseException | None) -> None:
        item.outputs, item.error = outputs, error
        item.feeds = None
        item.is_done = True
        self._under_way.discard(item)
        window = self._window
        if not self._is_ordered:
            window.append(item)
            return
        while self._prefix < len(window) and window[self._prefix].is_done:
            self._prefix += 1

    @property
    def is_ready(self) -> bool:
        """Whether there is a result for the consumer."""
        return bool(self._prefix if self._is_ordered else self._window)

    @property
    def has_failed(self) -> bool:
        """Whether an error ended the source."""
        return self._last is not None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is under way and nothing waits."""
        return not self._under_way and not self._window

    def take(self) -> StreamOutput:
        """Return the next result to the consumer, or raise its error."""
        item = self._window.popleft()
        if self._is_ordered:
            self._prefix -= 1
        if item.error is not None:
            if item.error is not self._no_device:
                add_note(item.error, f"item {item.index} of the source, {item.where}")
            try:
                raise item.error
            finally:
                item.error = None  # it would hold this frame, and the frame the item
                item.failures.clear()
        assert item.outputs is not None
        self._held = 1
        return StreamOutput(item.index, item.device_id, item.outputs)

    def taken(self) -> None:
        """Note that the consumer is done with a result."""
        self._held = 0

    def raise_last(self) -> None:
        """Raise what ended the source, if it was an error."""
        if self._last is not None:
            try:
                raise self._last
            finally:
                self._last = None

    # --------------------------------------------------------------------- wake and end
    def look(self) -> None:
        """Notice whether the consumer, which wants the next result, has to wait for a device."""
        self.has_news = False
        is_wide = self._next_index >= LONG and not self.is_ready
        for device in self._devices:
            device.is_wide = is_wide

    def wake(self) -> None:
        """Wake the consumer's task."""
        self.has_news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Wait until woken."""
        if not self.has_news:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def cut_short(self) -> None:
        """End the stream from outside: its next step raises ``ClosedError``."""
        self.give_up()
        self._last = ClosedError(f"{self._pool!r} was closed while this ran, by aclose(cancel=True)")
        self.wake()

    def give_up(self) -> None:
        """Abandon what is under way; idempotent."""
        self._is_over = True
        for item in self._under_way:
            if item.request is not None:
                item.request.give_up()
        self._under_way.clear()
        self._again.clear()
        self._window.clear()
        self._prefix = 0
        self._causes.clear()  # an error would hold frames of this stream, and these the error
        self._no_device = None
