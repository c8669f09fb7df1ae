"""The threads of a session's stages: started all or none, each in the device's context."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from time import monotonic

from .device import Device

__all__ = ["StageThreads"]

_log = logging.getLogger("aioais")


class StageThreads:
    """One thread for each step, which it repeats until it gives ``False``.

    A step keeps no reference to a request while it waits for the next.

    Parameters
    ----------
    device
        The opened device.
    steps
        By the name of its thread; called in it.
    on_death
        Given what a step raised that should raise nothing; called in the dying thread.

    Raises
    ------
    AclError
        A thread could not enter the device's context; then none has taken a step.
    """

    def __init__(
        self, device: Device, steps: Mapping[str, Callable[[], bool]], on_death: Callable[[BaseException], None]
    ) -> None:
        self._device = device
        self._on_death = on_death
        self._entered: SimpleQueue[BaseException | None] = SimpleQueue()
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, args=(step,), name=f"aioais-{name}-{device.id}", daemon=True)
            for name, step in steps.items()
        ]
        for thread in self._threads:
            thread.start()
        failures = [failure for failure in [self._entered.get() for _ in self._threads] if failure is not None]
        for _ in self._threads:
            self._go.put(not failures)
        if failures:
            self.join()
            raise failures.pop(0)  # out of the list: its traceback holds this frame

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all have ended, as they do when their steps say so; ``False`` if they have not in time."""
        deadline = None if timeout is None else monotonic() + timeout
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self, step: Callable[[], bool]) -> None:
        try:
            self._device.enter()
        except BaseException as exc:  # noqa: BLE001 - opening the session raises it
            self._entered.put(exc)
        else:
            self._entered.put(None)
        if not self._go.get():
            return
        try:
            while step():
                pass
        except BaseException as exc:  # noqa: BLE001 - a bug: whoever waits for this thread must be told
            _log.exception("stage thread %s died; please report this", threading.current_thread().name)
            self._on_death(exc)
