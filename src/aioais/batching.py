"""BatchingSession: many small awaits, run as full batches."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ._batching.batcher import Batcher, Limits, OnFull
from ._batching.caller import Caller
from ._batching.fleet import Fleet
from ._batching.layout import BatchAxes, Layout
from ._batching.statistics import BatchingStatistics
from ._bridge.offload import run_in_thread
from ._feeds.planner import Planner
from .errors import ArgumentError, ClosedError, WrongLoopError
from .multi_device import MultiDeviceSession, pool_of
from .session import Feeds, InferSession, core_of

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BatchAxes", "BatchingSession"]


class BatchingSession:
    """Runs the rows of concurrent calls together, in the batch size that is fastest.

    An async context manager in front of a session, which it does not own: leaving it waits for its calls and leaves
    the session open. The constructor only checks its arguments.

    Parameters
    ----------
    session
        An open :class:`InferSession`, or a :class:`MultiDeviceSession`, whose devices are all opened on entry. Its
        model has gears for the batch (``dymbatch``, or ``dymdims`` with an open first dim), takes any batch
        (``dymshape``), or has a fixed batch, to which rows are padded. Other calls of the session may go on.
    max_batch_size
        Most rows of a batch; by default the largest that the model takes, or 32 if it has no limit.
    max_delay
        Most seconds that a request waits for more rows while the device is free. It waits only where that is faster: a
        request that finds an idle device runs at once. While the device is busy, requests gather for the batch after,
        which is submitted when the device is about to be free, or when it is full.
    max_queue
        Most rows that may wait for a batch; ``None`` for no limit. A request with more rows than that is let in while
        no others wait.
    on_full
        What a request does when there is no room: ``"wait"`` for it, in the order of priorities, or ``"raise"``
        :class:`QueueFullError`.
    batch_axes
        Which dim counts the rows, for all inputs and outputs (an int) or by name, ``None`` for a tensor without rows.
        What is not stated is found from the model: the dim that gears or ``-1`` leave open, else the first. Requests
        share a batch only if their inputs without rows are equal (larger ones than 4 KiB: the same array). An output
        without rows is returned to each caller as it is.

    Raises
    ------
    ArgumentError
        An argument is out of its range.

    Notes
    -----
    *Which batch.* The time of each batch size is learned from executions. On a free device the waiting rows run in
    the size, or the sizes, that bring all of them to an end first; where work queues up, in the size with the most
    rows per second. A request may be spread over several batches, and may have more rows than the largest one.

    *Failures.* If a batch fails in a way that the data of one caller can have caused, each caller of it runs once
    more, alone, and only the one at fault gets the error. Out of memory, a device that hangs or is lost, and a closed
    session concern all callers of the batch. Under a :class:`MultiDeviceSession` the rows of a device that fails run
    on the others, and it is opened again; a caller that fails on two devices with the same code gets the error.
    :mod:`aioais.blame` has the table.

    Under a :class:`MultiDeviceSession` each device has its own batches, and rows go to the device that is expected
    to complete them first.

    It belongs to the event loop that enters it. Nothing polls; there are no threads but for results of more than
    256 KiB, which are copied to their callers in one.

    Examples
    --------
    ::

        async with InferSession(0, "model.onnx") as session, BatchingSession(session) as batching:
            results = await asyncio.gather(*(batching.infer([row[None]]) for row in rows))
    """

    def __init__(
        self,
        session: InferSession | MultiDeviceSession,
        *,
        max_batch_size: int | None = None,
        max_delay: float = 0.002,
        max_queue: int | None = None,
        on_full: OnFull = "wait",
        batch_axes: BatchAxes = None,
    ) -> None:
        if not isinstance(session, (InferSession, MultiDeviceSession)):
            raise ArgumentError(
                f"got session of type {type(session).__name__}; expected an InferSession or a MultiDeviceSession"
            )
        self._session = session
        self._limits = Limits(
            _check_count("max_batch_size", max_batch_size),
            _check_seconds("max_delay", max_delay, may_be_zero=True),
            _check_count("max_queue", max_queue),
            on_full,
        )
        if on_full not in ("wait", "raise"):
            raise ArgumentError(f"got on_full={on_full!r}; expected 'wait' or 'raise'")
        self._batch_axes = _check_axes(batch_axes)
        self._fleet: Fleet | None = None
        self._batcher: Batcher | None = None
        self._planner: Planner | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    @property
    def session(self) -> InferSession | MultiDeviceSession:
        """The session that runs the batches."""
        return self._session

    @property
    def closed(self) -> bool:
        """Whether it takes no requests any more."""
        return self._is_closed

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise ClosedError(f"{self!r} was entered before: make another one, it costs nothing")
        self._loop = asyncio.get_running_loop()
        session = self._session
        try:
            multi = pool_of(session) if isinstance(session, MultiDeviceSession) else None
            fleet = Fleet(None if isinstance(session, MultiDeviceSession) else core_of(session), multi)
            runners = await fleet.open()
            pipeline = runners[0].core.opened()
            layout = Layout(pipeline.info, self._batch_axes, self._limits.max_batch_size)
        except BaseException:
            self._loop = None
            raise
        self._planner = pipeline.planner
        names = [tensor.name for tensor in pipeline.info.outputs]
        self._batcher = Batcher(layout, self._limits, names, fleet.lose)
        self._batcher.runners.extend(runners)
        fleet.use(self._batcher)
        self._fleet = fleet
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def infer(self, feeds: Feeds, *, priority: int = 0, timeout: float | None = None) -> list[np.ndarray]:
        """Run some rows, together with those of other callers.

        Parameters
        ----------
        feeds
            As in :meth:`InferSession.infer`, on the host, with one row or more each, the same number in every input
            that has rows. They must not change until the call returns.
        priority
            Requests with smaller numbers run first, equal ones in the order of arrival. A steady load of small
            numbers keeps larger ones waiting.
        timeout
            Seconds until a request of which no row has reached the device raises ``DeadlineExceededError``. Once it
            has begun it is finished; put ``asyncio.timeout`` around the call to bound the whole.

        Returns
        -------
        list of numpy.ndarray
            The outputs of these rows in model order, owned by the caller, writable.

        Raises
        ------
        FeedError
            The feeds do not fit the model; no other caller is touched.
        ArgumentError
            ``priority`` is not an int, or ``timeout`` not a positive number.
        QueueFullError
            There is no room to wait (``on_full="raise"``); nothing has run.
        DeadlineExceededError
            It has not reached the device in time, and was not run.
        ModelError
            The outputs do not have the rows that they should; see ``batch_axes``.
        AclError, BrokenSessionError
            Its batch failed, and so did the run without the other callers where that could help.
        ClosedError, WrongLoopError, ForkError
            The session cannot be used here.

        Notes
        -----
        Cancelled: the caller leaves at once and no other caller notices. Rows that are not copied to the device yet
        do not run (those of a batch that is put together already are replaced by zeros); later, only their results
        are dropped. A batch whose callers have all left before it begins is not run.
        """
        batcher, planner = self._batcher, self._planner
        if (
            batcher is None
            or planner is None
            or self._is_closed
            or self._loop is not asyncio.get_running_loop()
            or type(priority) is not int
            or timeout is not None
        ):
            batcher, planner = self._opened()
            if isinstance(priority, bool) or not isinstance(priority, int):
                raise ArgumentError(f"got priority={priority!r}; expected an int, smaller ones first")
            if timeout is not None:
                timeout = _check_seconds("timeout", timeout, may_be_zero=False)
        found = batcher.known(feeds)
        if found is not None:
            arrays: list[Any] = [*feeds]
        elif planner.needs_thread(feeds):
            arrays = await run_in_thread("aioais-feeds", lambda: planner.arrays(feeds))
            if self._is_closed:
                self._opened()
        else:
            arrays = planner.arrays(feeds)
        caller = batcher.enter(arrays, priority, timeout, found)
        if not batcher.runners and self._fleet is not None:
            self._fleet.revive()
        return await self._result(batcher, caller)

    async def _result(self, batcher: Batcher, caller: Caller) -> list[np.ndarray]:
        try:
            return await caller.future
        finally:
            batcher.leave(caller)  # unless it has its result: cancelled, or its coroutine is closed
            del caller  # an error's traceback holds this frame, and the caller the error

    def statistics(self) -> BatchingStatistics:
        """Return batches by size, their fill, and how long requests waited; also after the end.

        Raises
        ------
        ClosedError
            It was never entered.
        """
        if self._batcher is None:
            self._opened()
        assert self._batcher is not None
        return self._batcher.statistics()

    async def aclose(self) -> None:
        """Refuse new requests, and wait for those that were accepted; idempotent.

        Requests that wait run without further delay. The session stays open. Requests that wait for room in the queue
        are accepted ones.

        Raises
        ------
        WrongLoopError
            Called from another loop than the one that entered it.

        Notes
        -----
        Cancelled: requests go on and are refused from now on; call it again to wait for the end.
        """
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise self._wrong_loop()
        self._is_closed = True
        if self._batcher is not None and self._fleet is not None:
            await self._batcher.close()
            self._fleet.close()

    def _opened(self) -> tuple[Batcher, Planner]:
        """Return what takes requests, or raise why there is nothing."""
        if self._is_closed:
            raise ClosedError(f"{self!r} is closed: make another one")
        if self._batcher is None or self._planner is None:
            raise ClosedError(f"{self!r} is not open: use 'async with BatchingSession(session) as batching'")
        if self._loop is not asyncio.get_running_loop():
            for runner in self._batcher.runners:
                runner.check_fork()
            raise self._wrong_loop()
        return self._batcher, self._planner

    def _wrong_loop(self) -> WrongLoopError:
        return WrongLoopError(
            f"{self!r} was entered on another event loop; make one per loop, with a session of its own"
        )

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open" if self._batcher is not None else "not open"
        return f"<BatchingSession of {self._session!r}, {state}>"


def _check_count(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ArgumentError(f"got {name}={value!r}; expected an int of at least 1, or None")
    return int(value)


def _check_seconds(name: str, value: object, may_be_zero: bool) -> float:
    is_number = isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)
    seconds = float(value) if is_number else math.nan  # type: ignore[arg-type]
    if not (seconds > 0 or (may_be_zero and seconds == 0)) or seconds == math.inf:
        what = "a number of seconds, 0 or more" if may_be_zero else "a positive number of seconds, or None"
        raise ArgumentError(f"got {name}={value!r}; expected {what}")
    return seconds


def _check_axes(axes: object) -> BatchAxes:
    def is_axis(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    if axes is None or is_axis(axes):
        return axes  # type: ignore[return-value]
    if isinstance(axes, Mapping) and all(isinstance(k, str) and (v is None or is_axis(v)) for k, v in axes.items()):
        return dict(axes)
    raise ArgumentError(
        f"got batch_axes={axes!r}; expected None, an int, or a mapping of input and output names to ints or None"
    )
