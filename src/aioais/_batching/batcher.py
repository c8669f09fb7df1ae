"""Batcher: takes callers in, submits batches of their rows, and returns to each the outputs of its own."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from .._bridge.offload import run_in_thread
from ..blame import Often, blame
from ..errors import AclError, DeadlineExceededError, QueueFullError
from .batch import Batch, BatchFuture, Piece, copy_all, takes_long
from .caller import Caller, State
from .layout import Kind, Layout
from .runner import ArrivalRate, Runner
from .statistics import BatchingStatistics, Counters
from .waiting import Group, Waiting

__all__ = ["Batcher", "Limits", "OnFull"]

_log = logging.getLogger("aioais")

_MOST_MOVES: Final = 3
"""Devices that may fail under one caller."""

OnFull = Literal["wait", "raise"]
"""What a call does when there is no room in the queue."""


class Limits(NamedTuple):
    """The arguments of a ``BatchingSession``, checked."""

    max_batch_size: int | None
    max_delay: float
    max_queue: int | None
    on_full: OnFull


class Batcher:
    """The callers and batches of a ``BatchingSession``. Everything is called on the thread of its event loop.

    ::

        caller ─▶ Waiting ─▶ Runner.decide ─▶ Batch ─▶ the session's engine ─▶ rows back to each caller

    Nothing polls: whatever changes (a caller, the end of a batch, a timer) has :meth:`pump` look once, at the end of
    that turn of the event loop, so that callers of one turn share a batch.

    Parameters
    ----------
    layout, limits
        Of the session.
    names
        Of the outputs.
    lose
        Called with a runner, an error of one of its batches and how often it was seen; takes the device out if it is
        at fault, and returns then whether its rows can run elsewhere, now or once a device is open again.
    """

    def __init__(
        self,
        layout: Layout,
        limits: Limits,
        names: Sequence[str],
        lose: Callable[[Runner, Exception, Often], bool],
    ) -> None:
        self.runners: list[Runner] = []
        self.counters = Counters()
        self.is_closing = False
        self._layout = layout
        self._limits = limits
        self._names = names
        self._lose = lose
        self._loop = asyncio.get_running_loop()
        self._waiting = Waiting(limits.max_queue)
        self._rate = ArrivalRate()
        self._callers: set[Caller] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._drained: asyncio.Future[None] | None = None
        self._is_pump_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    # ------------------------------------------------------------------------------------ callers
    def known(self, feeds: Any) -> tuple[int, Kind] | None:
        """Return rows and kind of feeds that are arrays like the last ones, else ``None``."""
        return self._layout.known(feeds)

    def enter(
        self, feeds: list[np.ndarray], priority: int, timeout: float | None, found: tuple[int, Kind] | None = None
    ) -> Caller:
        """Take a call in; ``found`` is what :meth:`known` returned.

        Raises
        ------
        FeedError
            The feeds do not fit the model.
        QueueFullError
            There is no room to wait, and the call is not to wait for it.
        """
        layout = self._layout
        rows, kind = found or layout.measure(feeds)
        waiting = self._waiting
        is_full = waiting.has_outside or not waiting.has_room(rows)
        if is_full and self._is_pump_due:
            self.pump()  # what has come in this turn of the loop may run at once
            is_full = waiting.has_outside or not waiting.has_room(rows)
        if is_full and self._limits.on_full == "raise":
            self.counters.refused += 1
            raise QueueFullError(
                f"got {rows} rows while {waiting.rows} wait; expected at most max_queue={self._limits.max_queue}: try "
                "again later, or use on_full='wait'"
            )
        caller = Caller(feeds, rows, kind, layout.content(feeds), priority)
        self._callers.add(caller)
        if timeout is not None:
            caller.deadline = self._loop.call_later(timeout, self._expire, caller, timeout)
        self._rate.add(rows, caller.entered_at)
        if is_full:
            waiting.wait_outside(caller)
        else:
            waiting.enter(caller)
        self._look_soon()
        return caller

    def leave(self, caller: Caller) -> None:
        """Take out a caller that stopped waiting; its batches go on without it."""
        if caller.state is State.ENDED:
            return
        self.counters.cancelled += 1
        self._take_out(caller)

    def _expire(self, caller: Caller, timeout: float) -> None:
        caller.deadline = None
        if caller.state is State.ENDED or caller.has_begun or caller.future.done():
            return
        self.counters.expired += 1
        self._take_out(caller)
        caller.future.set_exception(
            DeadlineExceededError(
                f"the request did not reach the device within timeout={timeout:g} seconds, and was not run: allow more "
                "time, or send fewer requests"
            )
        )

    def _take_out(self, caller: Caller) -> None:
        self._waiting.leave(caller)
        batches, caller.batches = caller.batches, []
        caller.leave()
        for batch in batches:
            batch.leave(caller)
        self._ended(caller)
        self._look_soon()

    def _ended(self, caller: Caller) -> None:
        self._callers.discard(caller)
        if not self._callers and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def fail_waiting(self, error: BaseException) -> None:
        """Fail every caller that waits: no device is left."""
        for caller in [*self._callers]:
            if not caller.batches:
                self._waiting.leave(caller)
                self._fail(caller, error)

    def _fail(self, caller: Caller, error: BaseException) -> None:
        self.counters.failed += 1
        caller.batches = []
        caller.fail(error)
        self._ended(caller)

    # ------------------------------------------------------------------------------------ batches
    def _look_soon(self) -> None:
        if not self._is_pump_due:
            self._is_pump_due = True
            self._loop.call_soon(self._pump_if_due)

    def _pump_if_due(self) -> None:
        if self._is_pump_due:
            self.pump()

    def _timer_rang(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self.pump()

    def look_at(self, moment: float) -> None:
        """Look again at a moment of ``perf_counter`` at the latest."""
        if self._timer is not None:
            if moment == self._timer_at:
                return
            self._timer.cancel()
            self._timer = None
        self._timer_at = moment
        if moment < math.inf:
            self._timer = self._loop.call_later(max(0.0, moment - perf_counter()), self._timer_rang)

    def pump(self) -> None:
        """Submit what is to run now."""
        self._is_pump_due = False
        self._waiting.let_in()
        self.look_at(self._submit_all() if self._waiting.rows and self.runners else math.inf)

    def _submit_all(self) -> float:
        """Submit batches until none is to run now; returns when to look again."""
        waiting, max_delay = self._waiting, 0.0 if self.is_closing else self._limits.max_delay
        look_at = math.inf
        set_aside: dict[Group, int] = {}
        expected: dict[Runner, float] = {}
        while waiting.rows and self.runners:
            now = perf_counter()
            found = next(((g, n) for g in waiting.in_order() if (n := g.rows - set_aside.get(g, 0)) > 0), None)
            if found is None:
                break
            group, rows = found
            runner, end = self._soonest(group, rows, now, expected)
            if runner not in expected:  # else rows that come before these wait for it
                size, moment = runner.decide(group.kind, rows, group.oldest(), now, self._rate, max_delay)
                if size:
                    self._submit(runner, group, size, now)
                    waiting.let_in()
                    continue
                look_at = min(look_at, moment)
            expected[runner] = end
            if len(expected) == len(self.runners):
                break
            times = runner.times_of(group.kind)
            set_aside[group] = set_aside.get(group, 0) + min(rows, times.best, group.kind.most)
        return look_at

    def _soonest(self, group: Group, rows: int, now: float, expected: dict[Runner, float]) -> tuple[Runner, float]:
        """Return the device that is expected to complete rows first, and when."""
        if len(self.runners) == 1:
            return self.runners[0], now
        best: Runner | None = None
        best_end, best_load = math.inf, 0
        first = group.first()
        others = self._others(first) if first is not None and first.failures else []
        for runner in others or self.runners:
            times = runner.times_of(group.kind)
            begin = expected.get(runner) or max(now, runner.free_at())
            end = begin + times.seconds(group.kind.padded(min(rows, times.best, group.kind.most)))
            load = len(runner.batches)
            if best is None or (end, load) < (best_end, best_load):
                best, best_end, best_load = runner, end, load
        assert best is not None
        return best, best_end

    def _submit(self, runner: Runner, group: Group, size: int, now: float) -> None:
        kind, oldest = group.kind, group.oldest()
        pieces: list[Piece] = []
        offset = 0
        for caller, first, count in self._waiting.take(group, min(size, kind.most)):
            if not first:
                self.counters.add_wait(now - caller.entered_at)
            pieces.append(Piece(caller, first, count, offset))
            offset += count
        batch = Batch(kind, pieces, kind.padded(offset), runner.give_up)
        for piece in pieces:
            piece.caller.batches.append(batch)
        future = BatchFuture(partial(self._complete, runner, batch), self._loop)
        runner.begin(batch, now, oldest)
        self.counters.add_batch(batch.size, batch.rows)
        try:
            request = batch.request = runner.core.submit_batch(batch.feeds(self._layout), future)
        except Exception as exc:  # noqa: BLE001 - its callers get it
            self._complete(runner, batch, None, exc)
            return
        if request.draft is not None:
            request.draft.riders = tuple([piece.caller.number for piece in pieces])

    def _complete(
        self, runner: Runner, batch: Batch, outputs: list[np.ndarray] | None, error: BaseException | None
    ) -> None:
        """Take the result of a batch; called where its future is set, so that nothing may be raised."""
        try:
            runner.end(batch, perf_counter(), error is None)
            if error is None and outputs is not None:
                error = batch.check(outputs, self._layout, self._names)
                if error is None:
                    copies = batch.destinations(outputs, self._layout)
                    if takes_long(copies):
                        self._start(self._copy_in_thread(batch, copies))
                    else:
                        copy_all(copies)
                        self._answer(batch)
            if error is not None:
                self._failed(runner, batch, error)
        except Exception as exc:  # noqa: BLE001 - the callers get it: they would wait for ever
            _log.exception("the results of a batch could not be delivered to its callers")
            for caller in batch.callers:
                self._fail(caller, exc)
        finally:
            if self._waiting.rows or self._waiting.has_outside:
                self._look_soon()

    def _answer(self, batch: Batch) -> None:
        """Set the results of the callers of a batch that have all their rows now."""
        for caller, _, count, _ in batch.pieces:
            if batch not in caller.batches:
                continue
            caller.batches.remove(batch)
            if caller.got(count):
                self.counters.done += 1
                if caller.failures:
                    self._acquit(caller)
                caller.succeed()
                self._ended(caller)

    async def _copy_in_thread(self, batch: Batch, copies: list[tuple[np.ndarray, np.ndarray]]) -> None:
        try:
            await run_in_thread("aioais-feeds", partial(copy_all, copies))
        except Exception as exc:  # noqa: BLE001 - its callers get it
            for caller in batch.callers:
                self._fail(caller, exc)
        else:
            self._answer(batch)

    def _start(self, coroutine: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------------------------ failures
    def _failed(self, runner: Runner, batch: Batch, error: BaseException) -> None:
        """Have each caller of a failed batch run on another device, alone, or fail, as the table says."""
        callers = list(dict.fromkeys(batch.callers))
        is_shared = len({piece.caller for piece in batch.pieces}) > 1
        is_again = (
            not is_shared
            and isinstance(error, AclError)
            and any(before.code == error.code for caller in callers for before in caller.failures.values())
        )
        often = Often.AGAIN if is_again else Often.ONCE
        verdict = blame(error, often=often)
        is_lost = isinstance(error, Exception) and self._lose(runner, error, often)
        for caller in callers:
            if verdict.runs_alone and is_shared:
                self.counters.rerun += 1
                self._run_again(caller, is_alone=True)
                continue
            if isinstance(error, AclError):
                caller.failures[runner] = error
            is_elsewhere = is_lost if verdict.takes_device_out or not verdict.runs_elsewhere else self._others(caller)
            if is_elsewhere and not is_again and caller.moves < _MOST_MOVES:
                caller.moves += 1
                self.counters.moved += 1
                self._run_again(caller, is_alone=bool(caller.failures))
            else:
                self._fail(caller, error)

    def _others(self, caller: Caller) -> list[Runner]:
        """Return the devices on which a caller did not fail."""
        return [runner for runner in self.runners if runner not in caller.failures]

    def _acquit(self, caller: Caller) -> None:
        """Take out the devices that are at fault, as a caller that failed on them ran on another one."""
        for runner in [runner for runner in self.runners if runner in caller.failures]:
            self._lose(runner, caller.failures[runner], Often.FINE_ELSEWHERE)

    def _run_again(self, caller: Caller, is_alone: bool) -> None:
        self._waiting.leave(caller)  # rows of it that wait come again with the others
        caller.is_alone = caller.is_alone or is_alone
        caller.restart()
        self._waiting.enter(caller)

    # ------------------------------------------------------------------------------------ the rest
    def statistics(self) -> BatchingStatistics:
        """Return the figures of this moment."""
        times: dict[int, list[float]] = {}
        for runner in self.runners:
            for known in runner.all_times():
                for size, ms in known.measured().items():
                    times.setdefault(size, []).append(ms)
        means = {size: sum(values) / len(values) for size, values in times.items()}
        outside = sum(caller.state is State.OUTSIDE for caller in self._callers)
        in_flight = sum(len(runner.batches) for runner in self.runners)
        return self.counters.snapshot(self._waiting.rows, outside, in_flight, means)

    async def close(self) -> None:
        """Run what waits without further delay, and return when every caller has its result."""
        self.is_closing = True
        if self._callers:
            self._look_soon()
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)
        self.look_at(math.inf)
