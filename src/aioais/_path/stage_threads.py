"""The threads of a session's stages: started all or none, each in the device's context."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue

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

    Raises
    ------
    AclError
        A thread could not enter the device's context; then none has taken a step.
    """

    def __init__(self, device: Device, steps: Mapping[str, Callable[[], bool]]) -> None:
        self._device = device
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
            raise failures[0]

    def join(self) -> None:
        """Wait until all have ended; they do when their steps say so."""
        for thread in self._threads:
            thread.join()

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
        except BaseException:
            _log.exception("stage thread %s died; please report this", threading.current_thread().name)
            raise
