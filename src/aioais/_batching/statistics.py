"""What a BatchingSession has done, in figures."""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

import numpy as np

__all__ = ["BatchUse", "BatchingStatistics", "Counters", "WaitingTime"]

_KEPT: Final = 4096


class BatchUse(NamedTuple):
    """The batches of one size."""

    batches: int
    """How many were submitted."""
    rows: int
    """Rows of callers in them; the others were padding."""
    mean_ms: float
    """Milliseconds of one, as learned from the newest; 0.0 before the first is complete."""


class WaitingTime(NamedTuple):
    """Milliseconds that the newest 4096 calls waited from their start until their first rows were submitted."""

    p50: float
    p90: float
    p99: float
    max: float


class BatchingStatistics(NamedTuple):
    """The state of a ``BatchingSession`` at one moment; an immutable record."""

    waiting: int
    """Rows that wait for a batch."""
    waiting_outside: int
    """Calls that wait for room in the queue."""
    in_flight: int
    """Batches that are submitted and not complete."""
    done: int
    """Calls that got a result."""
    failed: int
    """Calls that got the error of a batch."""
    cancelled: int
    """Calls whose caller stopped waiting."""
    expired: int
    """Calls that raised ``DeadlineExceededError``."""
    refused: int
    """Calls that raised ``QueueFullError``."""
    rerun: int
    """Calls that ran again alone because the batch that they were in failed."""
    moved: int
    """Calls that ran again because their device failed."""
    batches: dict[int, BatchUse]
    """Batches by size, in ascending order."""
    waiting_ms: WaitingTime
    """How long calls waited."""

    @property
    def fill(self) -> float:
        """Rows of callers per row that the model ran; 0.0 before the first batch."""
        ran = sum(size * use.batches for size, use in self.batches.items())
        return sum(use.rows for use in self.batches.values()) / ran if ran else 0.0

    @property
    def mean_batch(self) -> float:
        """Rows of callers per batch; 0.0 before the first batch."""
        count = sum(use.batches for use in self.batches.values())
        return sum(use.rows for use in self.batches.values()) / count if count else 0.0

    def __repr__(self) -> str:
        sizes = ", ".join(f"{size}: {use.batches}" for size, use in self.batches.items())
        return (
            f"<BatchingStatistics: done {self.done}, failed {self.failed}, cancelled {self.cancelled}; "
            f"batches {{{sizes}}}, fill {self.fill:.2f}; waiting {self.waiting} rows, "
            f"p50 {self.waiting_ms.p50:.3f} ms, p99 {self.waiting_ms.p99:.3f} ms>"
        )


class Counters:
    """Collects the figures; on the loop's thread."""

    def __init__(self) -> None:
        self.done = self.failed = self.cancelled = self.expired = self.refused = self.rerun = self.moved = 0
        self._sizes: dict[int, list[int]] = {}
        self._waits: deque[float] = deque(maxlen=_KEPT)

    def add_batch(self, size: int, rows: int) -> None:
        """Count a batch."""
        use = self._sizes.get(size)
        if use is None:
            use = self._sizes[size] = [0, 0]
        use[0] += 1
        use[1] += rows

    def add_wait(self, seconds: float) -> None:
        """Note how long a call waited."""
        self._waits.append(seconds)

    def snapshot(
        self, waiting: int, waiting_outside: int, in_flight: int, times: dict[int, float]
    ) -> BatchingStatistics:
        """Return the record of this moment; ``times`` has the milliseconds of each size."""
        waits = np.fromiter(self._waits, np.float64) * 1e3
        spread = np.percentile(waits, (50, 90, 99, 100)) if len(waits) else np.zeros(4)
        return BatchingStatistics(
            waiting,
            waiting_outside,
            in_flight,
            self.done,
            self.failed,
            self.cancelled,
            self.expired,
            self.refused,
            self.rerun,
            self.moved,
            {
                size: BatchUse(batches, rows, times.get(size, 0.0))
                for size, (batches, rows) in sorted(self._sizes.items())
            },
            WaitingTime(*map(float, spread)),
        )
