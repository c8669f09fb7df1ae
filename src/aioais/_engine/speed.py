"""Speed: what a session has learned of how long its device needs for a request."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

__all__ = ["Speed"]

_LIGHT_MS: Final = 0.12
_HEAVY_MS: Final = 0.16
"""About the time that a thread needs to wake. Two limits, so that a device near one does not switch back and forth."""
_BRIEF_MS: Final = 0.3
_SLOW_MS: Final = 0.6
_REMEMBERED: Final = 9
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
        self._times = deque([1.0] * _REMEMBERED, _REMEMBERED)

    def learn(self, times: Iterable[float]) -> None:
        """Take the milliseconds of the newest requests; what is unknown (NaN) counts as slow."""
        self._times.extend([math.inf if math.isnan(ms) else ms for ms in times])
        typical = sorted(self._times)[_REMEMBERED // 2]
        self.is_light = typical < (_HEAVY_MS if self.is_light else _LIGHT_MS)
        self.is_brief = typical < _BRIEF_MS
        self.is_slow = typical > _SLOW_MS
