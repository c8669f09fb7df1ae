"""How far ahead executions are queued on the device."""

from __future__ import annotations

from queue import SimpleQueue

from .clock import SessionClock

__all__ = ["Permits"]


class Permits:
    """Bounds the executions that are queued beyond those being waited for.

    Synchronising the execute stream waits for everything queued when the call starts. With half of the slots
    queued beyond, results come home in halves, and the device has work for long enough that Python need not hurry.
    Long executions leave time enough with one queued beyond, and each result comes home when it is there.

    Parameters
    ----------
    depth
        Slots of the session.
    clock
        Knows whether executions are long.
    """

    def __init__(self, depth: int, clock: SessionClock) -> None:
        self._clock = clock
        self._most = max(1, depth // 2)
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(self._most):
            self._free.put(None)
        self._held = 0  # kept back while executions are long; execute thread only

    def take(self) -> None:
        """Wait until one more execution may be queued; on the H2D thread."""
        self._free.get()

    def give_back(self) -> None:
        """Return a permit that was not used; on the H2D thread."""
        self._free.put(None)

    def give(self, count: int) -> None:
        """Return the permits of executions that are waited for from now on; on the execute thread."""
        held = self._most - 1 if self._clock.is_long else 0
        count += self._held
        self._held = min(held, count)
        for _ in range(count - self._held):
            self._free.put(None)

    def interrupt(self) -> None:
        """Let the H2D thread go on, to see that the session is broken."""
        self._free.put(None)
