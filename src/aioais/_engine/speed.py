"""Speed: what a session has learned of how long its device needs for a request."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import Final

__all__ = ["REMEMBERED", "Speed"]

_LIMITS_MS: Final = [0.12, 0.16, 0.3, 0.6]
"""Up to the first a device is light, and up to the second it stays so: about the time that a thread needs to wake. Up
to the third it is brief, beyond the last slow."""
REMEMBERED: Final = 9
"""Newest requests whose median counts. A single request seems slow if its thread is preempted while it submits."""


class Speed:
    """The typical time of a request on the device: its copies and executions.

    Attributes
    ----------
    is_light
        The device needs less time for a request than a thread needs to wake: batches pay.
    is_brief
        It needs little more than that: more slots keep it busier.
    is_slow
        It needs so long that a thread is woken for a request that comes while the finish thread waits. Before enough
        requests were timed, a device counts as slow.
    """

    is_brief: bool
    is_light: bool

    def __init__(self) -> None:
        self.is_light = self.is_brief = False
        self.is_slow: bool = True
        self._ranks = deque([len(_LIMITS_MS)] * REMEMBERED, REMEMBERED)
        """Of each remembered time: how many of the limits it exceeds."""

    def learn(self, ms: Sequence[float]) -> None:
        """Take the milliseconds of the newest requests; what is unknown (NaN) counts as slow."""
        self._ranks.extend(bisect_left(_LIMITS_MS, one) if one == one else len(_LIMITS_MS) for one in ms)
        typical = sorted(self._ranks)[REMEMBERED // 2]
        self.is_light = typical < (2 if self.is_light else 1)
        self.is_brief = typical < 3
        self.is_slow = typical > 3
