"""Speed: what a session has learned of how long its device needs for a request."""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Final

__all__ = ["Speed"]

_LIGHT_MS: Final = 0.12
_STILL_LIGHT_MS: Final = 0.16
"""Up to the first a device is light, and up to the second it stays so: about the time that a thread needs to wake."""
_BRIEF_MS: Final = 0.3
_SLOW_MS: Final = 0.6
_REMEMBERED: Final = 9
"""Newest requests whose median counts. A single request seems slow if its thread is preempted while it submits."""


class Speed:
    """The typical time of a request on the device: its copies and executions.

    Attributes
    ----------
    newest
        Milliseconds of the newest requests; NaN where they are unknown.
    is_light
        The device needs less time for a request than a thread needs to wake: batches pay.
    is_brief
        It needs little more than that: more slots keep it busier, and the loop is woken for several results at once.
    is_slow
        It needs so long that a thread is woken for a request that comes while the finish thread waits. Before enough
        requests were timed, a device counts as slow.
    """

    def __init__(self) -> None:
        self.newest: deque[float] = deque([inf] * _REMEMBERED, _REMEMBERED)
        self.is_light: bool = False
        self.is_brief: bool = False
        self.is_slow: bool = True

    def learn(self) -> None:
        """Judge by the newest requests; one whose time is unknown counts as slow."""
        typical = sorted([ms if ms == ms else inf for ms in self.newest])[_REMEMBERED // 2]
        self.is_light = typical <= (_STILL_LIGHT_MS if self.is_light else _LIGHT_MS)
        self.is_brief = typical <= _BRIEF_MS
        self.is_slow = typical > _SLOW_MS
