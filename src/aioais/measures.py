"""What a session reports: execution times, counters, times of single requests, traces."""

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

    Measurements can still be read after the session is closed.
    """

    _core: SessionCore

    def summary(self) -> InferSummary:
        """Return the milliseconds of each execution so far, in order; ``loop`` entries per request."""
        return self._core.known().times.executions()

    def reset_summaryinfo(self) -> None:
        """Empty what :meth:`summary` returns."""
        self._core.known().times.forget_executions()

    def statistics(self) -> SessionStatistics:
        """Return counters, stage times and memory at this moment; looks at each request under way."""
        return self._core.known().statistics()

    def record(self, limit: int = DEFAULT_RECORDS) -> Recording:
        """Collect the times of each request that is submitted and ends inside a ``with`` block.

        ::

            with session.record() as timings:
                await session.infer([x])
            print(timings[0].execute_ms, timings[0].delivery_ms)

        A record is available when the await of its request returns. Any number of recordings and traces may be open
        at once; each has all requests. A recorded request costs one more short wait on the device.

        Parameters
        ----------
        limit
            Most requests kept, about 1 KiB each; the oldest are dropped and counted.

        Returns
        -------
        Recording
            A context manager that is also a sequence of :class:`RequestTiming`, in the order in which the requests
            ended. It can be read after the block and after the session.

        Raises
        ------
        ArgumentError
            ``limit`` is not an int of at least 1.
        ClosedError, WrongLoopError, ForkError
            The session cannot be used here.
        """
        return Recording(self._core.opened(), limit)

    def trace(self, path: str | os.PathLike[str], limit: int = DEFAULT_RECORDS, *, overwrite: bool = False) -> Trace:
        """Write the requests of a block to a file for https://ui.perfetto.dev or ``chrome://tracing``.

        ::

            async with session.trace("out.json"):
                async for outputs in session.infer_pipeline(batches):
                    ...

        The trace has one track for each of the H2D, execute and D2H engines, tracks for the waits in the queue and
        for the deliveries, and arrows along each request. ``async with`` writes the file in a thread. ``with`` writes
        it in the calling thread, which blocks an event loop there for about 0.1 ms per request.

        Parameters
        ----------
        path
            The file, which must not exist unless ``overwrite`` is true. Its permissions follow the umask.
        limit
            Most requests kept, about 1 KiB each; the oldest are dropped, and the file says how many.
        overwrite
            Replace the file, if there is one, when the trace is complete: if writing fails, the old one stays.

        Returns
        -------
        Trace
            A context manager for ``async with`` and ``with``; its value is the :class:`Recording`.

        Raises
        ------
        ArgumentError
            ``limit`` is not an int of at least 1, or ``path`` is not a path.
        ClosedError, WrongLoopError, ForkError
            The session cannot be used here.
        OSError
            On entry: ``FileExistsError``, ``FileNotFoundError`` (no such folder), ``PermissionError`` …; on exit: the
            file could not be written and was removed. If the block raised too, its error is raised and the failed
            write is logged.

        Notes
        -----
        If it is cancelled on entry, the file is removed. If it is cancelled on exit, the wait ends at once and the
        file is still written.
        """
        pipeline = self._core.opened()
        device = pipeline.device
        title = f"{os.path.basename(pipeline.info.path)} on {device.library.platform} device {device.id}"
        return Trace(check_path("path", path), Recording(pipeline, limit), title, overwrite)
