"""The threads of a session: all of them start, or none does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from time import monotonic

__all__ = ["EngineThreads"]

_log = logging.getLogger("aioais")


class EngineThreads:
    """One thread for each step; it repeats the step until that returns ``False``.

    A step keeps no reference to a request while it waits for the next one.

    Parameters
    ----------
    enter
        Called once in each thread before its first step. If it raises in one thread, the constructor raises
        that error and no thread takes a step.
    steps
        The step of each thread, by the name of the thread.
    on_death
        Called in a thread whose step raised, with the error. Steps are expected to raise nothing.
    """

    def __init__(
        self,
        enter: Callable[[], None],
        steps: Mapping[str, Callable[[], bool]],
        on_death: Callable[[BaseException], object],
    ) -> None:
        self._enter = enter
        self._on_death = on_death
        self._entered: SimpleQueue[BaseException | None] = SimpleQueue()
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, args=(step,), name=name, daemon=True) for name, step in steps.items()
        ]
        started = 0
        failures: list[BaseException] = []
        try:
            for thread in self._threads:
                thread.start()
                started += 1
        except RuntimeError as exc:  # the system has no thread left
            failures.append(exc)
        for _ in range(started):
            failure = self._entered.get()
            if failure is not None:
                failures.append(failure)
        for _ in range(started):
            self._go.put(not failures)
        if failures:
            del self._threads[started:]
            self.join()
            raise failures.pop(0)  # out of the list: its traceback holds this frame

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all threads have ended; return ``False`` if one has not within ``timeout`` seconds."""
        deadline = None if timeout is None else monotonic() + timeout
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self, step: Callable[[], bool]) -> None:
        try:
            self._enter()
        except BaseException as exc:  # noqa: BLE001 - opening the session raises it
            self._entered.put(exc)
        else:
            self._entered.put(None)
        if not self._go.get():
            return
        try:
            while step():
                pass
        except BaseException as exc:  # noqa: BLE001 - a bug: the session must end
            _log.exception("thread %s of a session died; please report this", threading.current_thread().name)
            self._on_death(exc)
