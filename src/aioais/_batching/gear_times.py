"""GearTimes: how long a device needs for a batch of each size, and what follows for the next one."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import Final

__all__ = ["GearTimes", "Overhead"]

_REMEMBERED: Final = 9
_OVERHEADS: Final = 32
_TRUSTED: Final = 2
"""Executions of a size from which its time is measured and no guess."""
_TRIAL: Final = 8
"""Where work queues up, every so many batches one runs in a size that is not measured yet."""
_SAME: Final = 0.03
"""Relative change of a time that is ignored."""
_TIE: Final = 1e-9
_FIXED: Final = 0.5
"""Share of the time that is taken not to depend on the rows, while only one size is known."""


class Overhead:
    """Seconds that a batch takes beside its execution: what the host and the copies add and do not overlap.

    Seen as the time between two ends, without the execution. A late event loop makes some of these long and the ones
    behind short, even negative, so the mean of the newest counts, without the longest.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._samples: deque[float] = deque(maxlen=_OVERHEADS)

    def add(self, seconds: float) -> None:
        """Note what a batch took beside its execution."""
        samples = self._samples
        samples.append(seconds)
        kept = sorted(samples)[: len(samples) - len(samples) // 8]
        self.seconds = max(0.0, sum(kept) / len(kept))


class GearTimes:
    """Learns the seconds of a batch from executions, for one kind of rows on one device.

    The time of a size is the lower quartile of its newest executions on the device, with the overhead of any batch.
    Sizes that never ran are estimated from those that did.

    Parameters
    ----------
    sizes
        Batch sizes, in ascending order.
    overhead
        Of the batches of the device.
    """

    def __init__(self, sizes: Sequence[int], overhead: Overhead) -> None:
        self.sizes = tuple(sizes)
        self._overhead = overhead
        self._planned = 0.0
        self._samples: list[deque[float]] = [deque(maxlen=_REMEMBERED) for _ in sizes]
        self._estimates: list[float] | None = None
        self._costs = [0.0]
        self._choices: dict[int, int] = {}
        self._best = len(sizes) - 1
        self._until_trial = _TRIAL

    @property
    def is_known(self) -> bool:
        """Whether anything has run."""
        return self._estimates is not None

    @property
    def best(self) -> int:
        """The size with the most rows per second; the largest one until something is known."""
        return self.sizes[self._best]

    def learn(self, size: int, seconds: float) -> None:
        """Note an execution."""
        k = self._index(size)
        if size != self.sizes[k]:  # a model that takes any number of rows
            if 4 * size < 3 * self.sizes[k] and self._samples[k]:
                return
            seconds *= 0.5 + 0.5 * self.sizes[k] / size
        samples, estimates, overhead = self._samples[k], self._estimates, self._overhead.seconds
        samples.append(seconds)
        if estimates is not None and len(samples) > _TRUSTED:
            now, before = _typical(samples) + overhead, estimates[k]
            if abs(now - before) < _SAME * now and abs(overhead - self._planned) < _SAME * before:
                return
        self._costs = [0.0]
        self._choices.clear()
        self._planned = overhead
        self._estimates = estimates = [seconds + overhead for seconds in self._estimate()]
        rates = [size / max(seconds, 1e-9) for size, seconds in zip(self.sizes, estimates, strict=True)]
        self._best = max(range(len(rates)), key=lambda i: (rates[i] if self._samples[i] else 0.99 * rates[i], i))

    def seconds(self, size: int) -> float:
        """Return the expected time of a batch; 0.0 while nothing is known."""
        return self._estimates[self._index(size)] if self._estimates is not None else 0.0

    def measured(self) -> dict[int, float]:
        """Return the milliseconds of each size that has run."""
        return {
            size: round(_typical(samples) * 1e3, 6)
            for size, samples in zip(self.sizes, self._samples, strict=True)
            if samples
        }

    def choose(self, rows: int) -> int:
        """Return the size to run now where so many rows wait and the device is free for them.

        Where enough rows wait for the size with the most rows per second, that one. With fewer, the size that brings
        all of them to an end first: one batch that is padded, or several that are not.
        """
        if rows >= self.best:
            return self._trial(rows) or self.best
        if not self.is_known:
            return next(size for size in self.sizes if size >= rows)
        found = self._choices.get(rows)
        if found is None:
            found = self._choices[rows] = self._cheapest(rows)
        return found

    def _cheapest(self, rows: int) -> int:
        costs = self._costs_of(rows)
        best, found = float("inf"), self.sizes[-1]
        for size in self.sizes:
            cost = self.seconds(size) + costs[max(0, rows - size)]
            if size <= self.best and (cost < best - _TIE or (size <= rows and cost < best + _TIE)):
                best, found = cost, size  # of those that cost the same, what serves the most rows first
            if size >= rows:
                break
        return found

    def _trial(self, rows: int) -> int | None:
        """Return a size that is not measured yet, now and then."""
        self._until_trial -= 1
        if self._until_trial > 0:
            return None
        self._until_trial = _TRIAL
        for size, samples in zip(reversed(self.sizes), reversed(self._samples), strict=True):
            if len(samples) < _TRUSTED and size <= rows:
                return size
        return None

    def _costs_of(self, rows: int) -> list[float]:
        """Return the seconds to bring 0, 1, 2 … rows to an end, one batch after the other."""
        costs = self._costs
        times = [(size, self.seconds(size)) for size in self.sizes if size <= self.best]
        for count in range(len(costs), rows + 1):
            costs.append(min([seconds + costs[max(0, count - size)] for size, seconds in times]))
        return costs

    def _index(self, size: int) -> int:
        return min(bisect_left(self.sizes, size), len(self.sizes) - 1)

    def _estimate(self) -> list[float]:
        known = [(size, _typical(s)) for size, s in zip(self.sizes, self._samples, strict=True) if s]
        if len(known) == 1:
            only, seconds = known[0]
            return [seconds * (_FIXED + (1 - _FIXED) * size / only) for size in self.sizes]
        found = []
        for size, samples in zip(self.sizes, self._samples, strict=True):
            if samples:
                found.append(_typical(samples))
                continue
            above = next((k for k, (other, _) in enumerate(known) if other > size), len(known) - 1)
            (low, low_s), (high, high_s) = known[max(0, above - 1)], known[max(1, above)]
            slope = max(0.0, (high_s - low_s) / (high - low))
            found.append(max(low_s + slope * (size - low), 0.2 * low_s))
        return found


def _typical(samples: Sequence[float]) -> float:
    """Return the lower quartile: what disturbs an execution makes it longer, never shorter."""
    return sorted(samples)[(len(samples) - 1) // 4]
