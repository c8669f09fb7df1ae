"""Runner: the batches of one device, and when the next one is to be submitted."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Final

from .._engine.core import SessionCore
from .batch import Batch
from .gear_times import GearTimes, Overhead
from .layout import Kind

__all__ = ["ArrivalRate", "Decision", "Runner"]

_BATCHES: Final = 2
"""One on the device and one that it begins when that is complete."""
_MOST_BATCHES: Final = 4
_AHEAD_S: Final = 0.005
"""Work that full batches may queue beyond these: threads of a busy machine are late by as much."""
_LEAD_S: Final = 0.002
"""A batch is staged so long before the one on the device is complete, where that takes longer than twice this."""
_TIMER_S: Final = 0.001
"""Timers of event loops are late by up to this."""
_STREAK: Final = 4
"""So many consecutive batches with rows that arrived while the device was busy mean that it is saturated."""
_GAIN: Final = 1.25
"""Rows that come while the waiting ones run, relative to these, from which waiting is worth it."""
_MOST_KINDS: Final = 256

Decision = tuple[int, float]
"""The size of the batch to run now, or 0; and when to look again if nothing happens before."""

RUN_NOTHING: Final = math.inf


class ArrivalRate:
    """Rows that come per second, with the newest counting most."""

    __slots__ = ("_at", "_rate")

    MEMORY_S: Final = 0.02

    def __init__(self) -> None:
        self._at = 0.0
        self._rate = 0.0

    def add(self, rows: int, now: float) -> None:
        """Count rows."""
        self._rate = self.at(now) + rows / self.MEMORY_S
        self._at = now

    def at(self, now: float) -> float:
        """Return the rate at a moment."""
        return self._rate * math.exp((self._at - now) / self.MEMORY_S)


class Runner:
    """A device with its batches.

    A request waits where that costs it nothing, while the device is busy: the batch after the one that runs is
    submitted when that is complete, shortly before where it takes long, or as soon as it is full. On a device that is
    free a batch runs at once, but where the device is saturated and more rows come while a batch runs than wait for
    it: then they get a moment, at most ``max_delay``, to come in time.

    Parameters
    ----------
    device_id, core
        The device and its session.

    Attributes
    ----------
    batches
        Those submitted, the oldest first.
    done
        Batches that succeeded.
    """

    def __init__(self, device_id: int, core: SessionCore) -> None:
        self.device_id = device_id
        self.core = core
        self.batches: list[Batch] = []
        self.done = 0
        self.overhead = Overhead()
        pipeline = core.pipeline
        assert pipeline is not None
        self._copies_back = 0 if pipeline.device.is_board else len(pipeline.info.outputs)
        self._times: dict[Hashable, GearTimes] = {}
        self._ended_at = -math.inf
        self._streak = 0
        self._hold: tuple[int, float] | None = None
        """What is waited for on a free device: rows, and until when."""
        self._penalty = self._skip = 0
        """A wait that brought no more rows makes the next ones rarer."""

    def check_fork(self) -> None:
        """Raise ``ForkError`` in a child of the process that opened the session."""
        if self.core.pipeline is not None:
            self.core.pipeline.device.process.check_fork()

    def times_of(self, kind: Kind) -> GearTimes:
        """Return what is known of the times of such rows."""
        times = self._times.get(kind.shapes)
        if times is None:
            if len(self._times) >= _MOST_KINDS:
                self._times.clear()
            times = self._times[kind.shapes] = GearTimes(kind.sizes, self.overhead)
        return times

    def all_times(self) -> list[GearTimes]:
        """Return the times of all kinds of rows."""
        return [*self._times.values()]

    def free_at(self) -> float:
        """Return when all that is submitted is expected to be complete."""
        end = -math.inf
        for k, batch in enumerate(self.batches):
            begin = max(batch.submitted_at, self._ended_at) if not k else end
            end = begin + self.times_of(batch.kind).seconds(batch.size)
        return end

    def begin(self, batch: Batch, now: float, oldest: float) -> None:
        """Note a batch that is submitted; ``oldest`` says when the first of its callers arrived."""
        batch.submitted_at = now
        has_waited = bool(self.batches) or oldest < self._ended_at
        self._streak = self._streak + 1 if has_waited else 0
        self.batches.append(batch)

    def end(self, batch: Batch, now: float, has_succeeded: bool) -> None:
        """Note a batch that is complete, and learn from its time."""
        if batch not in self.batches:
            return
        self.batches.remove(batch)
        if has_succeeded:
            self.done += 1
            spent = now - max(batch.submitted_at, self._ended_at)
            executed = batch.execute_s(self._copies_back)
            if executed == executed:
                self.overhead.add(spent - executed)
            self.times_of(batch.kind).learn(batch.size, executed if executed == executed else spent)
        self._ended_at = now

    def give_up(self, batch: Batch) -> None:
        """Forget a batch that does not run."""
        if batch in self.batches:
            self.batches.remove(batch)

    def decide(self, kind: Kind, rows: int, oldest: float, now: float, rate: ArrivalRate, max_delay: float) -> Decision:
        """Say which batch to run now of rows that wait.

        Parameters
        ----------
        kind, rows, oldest
            What the rows have in common, how many wait, and since when.
        now
            This moment.
        rate
            Of all rows that come.
        max_delay
            Most seconds to wait for more rows; 0 while the session is being closed.
        """
        count = len(self.batches)
        times = self.times_of(kind)
        if count >= _BATCHES and (
            count == _MOST_BATCHES or not times.is_known or self.free_at() - now > _AHEAD_S or rows < times.best
        ):
            return 0, RUN_NOTHING
        full = min(times.best, kind.most)
        if rows >= full:
            self._release(rows)
            return times.choose(rows), now
        if count:
            look_at = self._second_at(times, oldest, max_delay)
            return (times.choose(rows), now) if now >= look_at else (0, look_at)
        until = self._hold_until(times, kind, rows, full, oldest, now, rate.at(now), max_delay)
        if now < until:
            return 0, until
        self._release(rows)
        return times.choose(rows), now

    def _second_at(self, times: GearTimes, oldest: float, max_delay: float) -> float:
        """Return when to submit a batch that is not full behind the one on the device."""
        if not times.is_known:
            return oldest + max_delay
        end = self.free_at()
        first = self.batches[0]
        is_long = end - max(first.submitted_at, self._ended_at) > 2 * _LEAD_S
        return end - _LEAD_S if is_long else max(end, oldest) + max_delay

    def _hold_until(
        self,
        times: GearTimes,
        kind: Kind,
        rows: int,
        full: int,
        oldest: float,
        now: float,
        rate: float,
        max_delay: float,
    ) -> float:
        """Return until when a batch waits for more rows on a device that is free."""
        last = oldest + max_delay - _TIMER_S
        if self._hold is not None:
            target, until = self._hold
            return -math.inf if rows >= target else min(until, last)
        if self._streak < _STREAK or now >= last or not times.is_known:
            return -math.inf
        coming = rate * times.seconds(kind.padded(rows))
        if coming < _GAIN * rows:
            return -math.inf
        if self._skip:
            self._skip -= 1
            return -math.inf
        target = min(full, int(coming))
        until = min(last, now + 2 * (target - rows) / rate)
        self._hold = target, until
        return until

    def _release(self, rows: int) -> None:
        """Learn whether the wait for more rows was worth it."""
        if self._hold is not None:
            target, _ = self._hold
            self._hold = None
            if rows >= target:
                self._penalty = 0
            else:
                self._skip = self._penalty = min(64, 2 * self._penalty + 1)
