"""What a session tells about itself: execution times, counters, times of single requests, traces."""

from __future__ import annotations

import os

from ._engine.core import SessionCore
from ._engine.options import check_path
from .summary import InferSummary
from .timing import DEFAULT_RECORDS, Recording
from .trace import Trace
from .types import SessionStatistics

__all__ = ["Measures"]


class Measures:
    """The part of ``InferSession`` that only reads. Every method is plain and costs the loop microseconds.

    What was measured can still be read when the session is closed.
    """

    _core: SessionCore

    def summary(self) -> InferSummary:
        """Give the milliseconds of each execution so far, in order; ``loop`` entries per request."""
        return self._core.known().times.executions()

    def reset_summaryinfo(self) -> None:
        """Empty what :meth:`summary` gives."""
        self._core.known().times.forget_executions()

    def statistics(self) -> SessionStatistics:
        """Give counters, stage times and memory at this moment; looks at each request under way."""
        return self._core.known().statistics()

    def record(self, limit: int = DEFAULT_RECORDS) -> Recording:
        """Collect the times of each request that is submitted, and ends, inside a ``with`` block.

        ::

            with session.record() as timings:
                await session.infer([x])
            print(timings[0].execute_ms, timings[0].delivery_ms)

        A record is there when the await of its request returns. Any number of recordings and traces may be
        open at once, and each has all. A recorded request costs one more short wait on the device; without
        a recording nothing is measured that was not measured before.

        Parameters
        ----------
        limit
            Most requests kept, about 1 KiB each; the oldest are dropped and counted.

        Returns
        -------
        Recording
            A context manager, and the sequence of :class:`RequestTiming` that it gives, in the order in which
            the requests ended. It stays readable after the block and after the session.

        Raises
        ------
        ArgumentError
            ``limit`` is no int from 1.
        ClosedError, WrongLoopError, ForkError
            The session cannot be used here.
        """
        return Recording(self._core.opened(), limit)

    def trace(self, path: str | os.PathLike[str], limit: int = DEFAULT_RECORDS) -> Trace:
        """Write what happens inside a block to a file for https://ui.perfetto.dev or ``chrome://tracing``.

        ::

            async with session.trace("out.json"):
                async for outputs in session.infer_pipeline(batches):
                    ...

        One track each for the H2D, execute and D2H engine, the waits in the queue and the deliveries beside
        them, and arrows along each request. ``async with`` makes and writes the file in a thread. Plain ``with``
        does it in the calling one, which holds up an event loop there for some 0.1 ms per request at the end.

        Parameters
        ----------
        path
            The file, which must not exist yet: nothing is overwritten. Its permissions follow the umask.
        limit
            Most requests kept, about 1 KiB each; the oldest are dropped, and the file says how many.

        Returns
        -------
        Trace
            A context manager for ``async with`` and ``with``; gives the :class:`Recording`.

        Raises
        ------
        ArgumentError
            ``limit`` is no int from 1, or ``path`` no path.
        ClosedError, WrongLoopError, ForkError
            The session cannot be used here.
        OSError
            On entering: ``FileExistsError``, ``FileNotFoundError`` (no such folder), ``PermissionError`` …; on
            leaving: the file could not be written and was removed. If the block raised too, that goes on, and
            the failed write is in the log.

        Notes
        -----
        Cancelled while entering: the file is removed again. Cancelled while leaving: the wait ends at once,
        the file is written all the same.
        """
        pipeline = self._core.opened()
        device = pipeline.device
        title = f"{os.path.basename(pipeline.info.path)} on {device.library.platform} device {device.id}"
        return Trace(check_path("path", path), Recording(pipeline, limit), title)
