"""Event loops in threads of their own, watched: who stops making progress is shown with all stacks, and fails."""

from __future__ import annotations

import asyncio
import faulthandler
import io
import tempfile
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

STALL_S = 60.0
"""A hang is no progress for so long; a step takes milliseconds, on a busy machine maybe a second."""
LOOK_S = 0.5


class LoopThread:
    """A thread with an event loop that runs one coroutine.

    Parameters
    ----------
    factory
        Makes the loop.
    main
        What to run.
    """

    def __init__(
        self, factory: Callable[[], asyncio.AbstractEventLoop], main: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        self.error: BaseException | None = None
        self._factory = factory
        self._main = main
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="storm", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait for the end; ``False`` if it has not come in time."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def tasks(self) -> str:
        """Show where its tasks wait."""
        text = io.StringIO()
        loop = self._loop
        for task in [] if loop is None else asyncio.all_tasks(loop):
            task.print_stack(limit=8, file=text)
        return text.getvalue()

    def _run(self) -> None:
        loop = self._loop = self._factory()
        try:
            loop.run_until_complete(self._main())
            loop.run_until_complete(loop.shutdown_asyncgens())
        except BaseException as exc:  # noqa: BLE001 - the test's thread raises it
            self.error = exc
        finally:
            loop.close()


def watch(threads: list[LoopThread], progress: Callable[[], int]) -> None:
    """Wait for all threads, raise the first error, and fail where nothing goes on any more.

    Parameters
    ----------
    threads
        Their errors are raised as soon as one has ended with one.
    progress
        Grows as long as all is well.
    """
    left = list(threads)
    last, idle = progress(), 0.0
    while left:
        if left[0].wait(LOOK_S):
            left.pop(0)
        for thread in threads:
            if thread.error is not None:
                raise thread.error
        now = progress()
        idle = idle + LOOK_S if now == last else 0.0
        last = now
        if idle >= STALL_S:
            pytest.fail(f"no progress for {STALL_S:g} s after {last} steps\n{_stacks(threads)}", False)


def _stacks(threads: list[LoopThread]) -> str:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        shown = file.read()
    return shown + "".join(thread.tasks() for thread in threads)
