"""MultiDeviceSession: the door to one model on every device of a machine."""

from __future__ import annotations

import os
import warnings
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np

from ._acl.library import Platform
from ._engine.core import SessionCore
from ._engine.options import Given, check_options, check_prefetch
from ._engine.request import Request
from ._misuse import AwaitedOnly, Results, check_loop_kind, instead
from ._multi.lanes import Lane, PipelineRun, make_lanes, run_lanes
from ._multi.pool import SessionPool
from ._multi.scheduler import stream_items
from ._sources.streaming import session_results
from .session import Feeds, Sizes
from .types import DEFAULT_OUTPUT_BYTES, Check, Depth, DeviceStatistics, Mode, StreamOutput

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MultiDeviceSession", "pool_of"]

_FeedsList = Iterable[Feeds] | AsyncIterable[Feeds]
_Outputs = list[np.ndarray]


class MultiDeviceSession(AwaitedOnly):
    """A model on many devices, behind one ``await``, in one process.

    The constructor only checks its arguments. Each device gets one :class:`InferSession`, opened by
    the first call that needs it (all devices at once) and kept warm until the end.

    Parameters
    ----------
    model_path, acl_json_path, debug, loop, platform, depth, check, hang_timeout
        As for :class:`InferSession`; ``depth`` is that of each device.

    Raises
    ------
    ArgumentError, ModelError
        An argument is out of its range, whatever the machine.

    Notes
    -----
    *Failures.* In ``infer``, ``infer_pipeline`` and ``infer_iteration`` the first lane that fails cancels the
    others, and its error is raised with ``device D, lane N`` in its notes; lanes that failed before they could be
    cancelled are named there too. No lane gets the error of another, other calls under way are not
    touched, and the sessions of the other devices stay warm. :func:`aioais.blame.blame` says whether the device is at
    fault: then its session is closed, a warning on the logger ``aioais`` names it, and the next call that needs the
    device opens it again. :meth:`stream` goes on without it.

    It belongs to the event loop that uses it first.

    Examples
    --------
    ::

        async with MultiDeviceSession("model.onnx") as session:
            results = await session.infer({0: [[a], [b]], 1: [[c]]})
            async for index, device_id, outputs in session.stream([x] for x in arrays): ...
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        acl_json_path: str | os.PathLike[str] | None = None,
        debug: bool = False,
        loop: int = 1,
        *,
        platform: Platform | None = None,
        depth: Depth = "auto",
        check: Check = "strict",
        hang_timeout: float | None = None,
    ) -> None:
        self._times: dict[int, list[float]] = {}
        self._pool = SessionPool(
            check_options(Given(0, model_path, acl_json_path, debug, loop, platform, depth, check, hang_timeout))
        )

    @property
    def model_path(self) -> str:
        """The model file."""
        return self._pool.options.model_path

    @property
    def loop(self) -> int:
        """Executions per request."""
        return self._pool.options.loop

    @property
    def closed(self) -> bool:
        """Whether the session was closed."""
        return self._pool.is_closed

    async def __aenter__(self) -> Self:
        check_loop_kind()
        self._pool.check()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def infer(
        self,
        devices_feeds: Mapping[int, Iterable[Feeds]] | None = None,
        mode: Mode = "static",
        custom_sizes: Sizes = DEFAULT_OUTPUT_BYTES,
        *,
        device_feeds: Mapping[int, Iterable[Feeds]] | None = None,
    ) -> dict[int, list[_Outputs]]:
        """Run one request in each lane, all lanes of all devices at once.

        Parameters
        ----------
        devices_feeds
            ``{device_id: [feeds1, feeds2, ...]}``; feeds as in :meth:`InferSession.infer`.
        mode, custom_sizes
            As in :meth:`InferSession.infer`.
        device_feeds
            Another name of ``devices_feeds``, that of ais_bench's code.

        Returns
        -------
        dict of list of list of numpy.ndarray
            The outputs of each lane, in the order of the feeds; owned by the caller, writable.

        Raises
        ------
        DeviceError
            A device does not exist; nothing has run.
        FeedError
            ``devices_feeds`` is no mapping of lists; nothing has run.
        ModelError, FeedError, ArgumentError, AclError
            The error of the first lane that failed; device and lane are in its notes.
        BrokenSessionError
            Another call found out that a device is broken.
        ClosedError, WrongLoopError, ForkError
            The session cannot be used here.

        Notes
        -----
        Cancelled: every lane is cancelled as in :meth:`InferSession.infer`; a session that is being
        opened still opens, for the next call.
        """
        given = _one_of("infer", devices_feeds=devices_feeds, device_feeds=device_feeds)
        by_device = self._prepare(given, "devices_feeds", "{0: [[x], [y]]}")

        async def work(session: SessionCore, lane: Lane) -> None:
            lane.result = await session.result(session.request(lane.feeds, mode, custom_sizes))

        return await self._run(by_device, work)

    def infer_pipeline(
        self,
        devices_feeds_list: Mapping[int, Iterable[_FeedsList]] | None = None,
        mode: Mode = "static",
        custom_sizes: Sizes = DEFAULT_OUTPUT_BYTES,
        *,
        device_feeds_list: Mapping[int, Iterable[_FeedsList]] | None = None,
    ) -> PipelineRun:
        """Run a pipeline in each lane, all lanes of all devices at once.

        Parameters
        ----------
        devices_feeds_list
            ``{device_id: [feeds_list1, feeds_list2, ...]}``, each as in :meth:`InferSession.infer_pipeline`.
        mode, custom_sizes
            As in :meth:`InferSession.infer`.
        device_feeds_list
            Another name of ``devices_feeds_list``, that of ais_bench's code.

        Returns
        -------
        PipelineRun
            To be awaited for ``{device_id: [outputs_list1, ...]}``, each a list of what a single session's pipeline
            yields; or, with ``async for``, a source of :class:`PipelineOutput` as they are ready, in order within
            each lane. Lanes stop while one result per lane waits for the consumer. Used once.

        Raises
        ------
        DeviceError, FeedError, ModelError, ArgumentError, AclError, BrokenSessionError, ClosedError, WrongLoopError
            As in :meth:`infer`, when it is awaited or iterated over; results before the failure come first.
        """
        given = _one_of("infer_pipeline", devices_feeds_list=devices_feeds_list, device_feeds_list=device_feeds_list)

        def prepare() -> dict[int, list[Lane]]:
            return self._prepare(given, "devices_feeds_list", "{0: [[[x], [y]]]}")

        def work(session: SessionCore, feeds_list: _FeedsList) -> AsyncGenerator[_Outputs, None]:
            return session_results(session, feeds_list, mode, custom_sizes, None)

        return PipelineRun(self._pool, prepare, work, self._report)

    async def infer_iteration(
        self,
        devices_feeds: Mapping[int, Iterable[Feeds]] | None = None,
        in_out_list: Sequence[int] | None = None,
        iteration_times: int = 1,
        mode: Mode = "static",
        custom_sizes: Sizes = DEFAULT_OUTPUT_BYTES,
        mem_copy: bool = True,
        *,
        device_feeds: Mapping[int, Iterable[Feeds]] | None = None,
    ) -> dict[int, list[_Outputs]]:
        """Run the model many times over its own outputs in each lane, all lanes of all devices at once.

        Parameters
        ----------
        devices_feeds
            ``{device_id: [feeds1, feeds2, ...]}``.
        in_out_list, iteration_times, mode, custom_sizes, mem_copy
            As in :meth:`InferSession.infer_iteration`.
        device_feeds
            Another name of ``devices_feeds``, that of ais_bench's code.

        Returns
        -------
        dict of list of list of numpy.ndarray
            The outputs of the last step of each lane, in the order of the feeds.

        Raises
        ------
        DeviceError, FeedError, ModelError, ArgumentError, AclError, BrokenSessionError, ClosedError, WrongLoopError
            As in :meth:`infer`.
        """
        given = _one_of("infer_iteration", devices_feeds=devices_feeds, device_feeds=device_feeds)
        by_device = self._prepare(given, "devices_feeds", "{0: [[x], [y]]}")

        async def work(session: SessionCore, lane: Lane) -> None:
            iteration = session.iteration(in_out_list, iteration_times, mem_copy)
            lane.result = await session.result(session.request(lane.feeds, mode, custom_sizes, iteration=iteration))

        return await self._run(by_device, work)

    def stream(
        self,
        feeds: _FeedsList,
        device_ids: Iterable[int] | Literal["all"] | None = None,
        mode: Mode = "static",
        custom_sizes: Sizes = DEFAULT_OUTPUT_BYTES,
        ordered: bool = True,
        *,
        prefetch: int | None = None,
    ) -> AsyncGenerator[StreamOutput, None]:
        """Spread one source of feeds over the devices; each item goes to the device with most room.

        A device gets its next item when it has finished one, so a slow or busy one gets fewer. Each device takes
        part as soon as it is open.

        Parameters
        ----------
        feeds
            Any iterable or async iterable, an endless one too, of what :meth:`InferSession.infer` takes as feeds
            (on the host: where an item will run is not known). A plain iterable is advanced on the event loop.
        device_ids
            Which devices; ``None`` or ``"all"`` for every visible one.
        mode, custom_sizes
            As in :meth:`InferSession.infer`.
        ordered
            Results in the order of the source, or as they are ready.
        prefetch
            Items that are read ahead for each device of those that have buffers; they hold their feeds and nothing
            else. Default: as many as its depth, and more as in :meth:`InferSession.infer_pipeline`; 0 reads nothing
            ahead.

        Yields
        ------
        StreamOutput
            ``(index, device_id, outputs)``; the outputs are owned by the caller.

        Raises
        ------
        DeviceError, ArgumentError
            A device does not exist, or comes twice; the message lists those that exist. Nothing has run.
        BrokenSessionError
            No device is left; the text has the cause of each. Where all failed to open for one reason that is none
            of theirs, such as a missing file, that error is raised instead.
        FeedError, ArgumentError, AclError, ClosedError, WrongLoopError, ForkError
            As in :meth:`infer`. An item that fails, or a source that raises, raises at its place (without order: an
            item when it has failed, a source after all its items) and ends the generator.

        Notes
        -----
        A device that cannot be opened, or is at fault for a failure, takes part no more: its items run again on the
        others, a warning on the logger ``aioais`` names it, and :meth:`statistics` shows it. Every result comes once.
        An item that fails on two devices with the same code is at fault itself. It raises, its index and both devices
        are in the notes, and no other device gets it. :mod:`aioais.blame` has the whole table.

        Items under way, ready, or with the consumer are at most as many as the depths of the devices together, with
        what is read ahead for each, and the source is read no further. In order, results that wait for an earlier one
        come on top, up to four times that number in all.

        Leaving early (``break``, an error, ``aclose``, cancelling, dropping the generator) gives up every request
        under way, as in :meth:`InferSession.infer_pipeline`.
        """
        ahead = check_prefetch(prefetch)

        def start(session: SessionCore, item: Feeds) -> Request | Awaitable[Request]:
            return session.request(item, mode, custom_sizes)

        results = stream_items(self._pool, feeds, device_ids, start, ordered, ahead)
        return Results(results, "session.stream(...)")

    def summary(self) -> dict[int, list[float]]:
        """Return ``{device_id: [ms, ...]}``: the milliseconds of each lane of the call that ended last.

        End to end, from the call to the lane's end, opening the device included where the call did that; for a lane
        that failed or was cancelled, until then. :meth:`stream` has no lanes and is not in it.
        """
        return {device_id: list(times) for device_id, times in self._times.items()}

    def statistics(self) -> dict[int, DeviceStatistics]:
        """Return counters of each device used so far, those that failed included."""
        return self._pool.statistics()

    async def aclose(self, cancel: bool = False) -> None:
        """Free all on every device; idempotent.

        Refuses new calls at once. Calls that are awaited finish. What goes at the pace of a consumer
        (:meth:`stream`, and :meth:`infer_pipeline` with ``async for``) gets no more from its source: what is under
        way is finished and can still be taken, then ``ClosedError`` is raised.

        Parameters
        ----------
        cancel
            Cut short all that is under way: it raises ``ClosedError``. What the devices work on is
            finished and dropped. May be given in a second call while the first one waits.

        Raises
        ------
        WrongLoopError
            Called from another loop than the session's.
        AclError
            ACL failed while freeing; everything else was freed.

        Notes
        -----
        Cancelled: the session still closes; call it again to wait for the end.
        """
        await self._pool.close(cancel)

    def _prepare(self, devices_feeds: object, name: str, example: str) -> dict[int, list[Lane]]:
        self._pool.check()
        return make_lanes(devices_feeds, name, example)

    async def _run(
        self, by_device: dict[int, list[Lane]], work: Callable[[SessionCore, Lane], Awaitable[None]]
    ) -> dict[int, list[_Outputs]]:
        try:
            await run_lanes(self._pool, by_device, work)
        finally:
            self._report(by_device)
        return {device_id: [lane.result for lane in lanes] for device_id, lanes in by_device.items()}

    def _report(self, by_device: dict[int, list[Lane]]) -> None:
        self._times = {device_id: [lane.ms for lane in lanes] for device_id, lanes in by_device.items()}

    def __del__(self) -> None:
        pool = getattr(self, "_pool", None)
        if pool is None or pool.is_closed:
            return
        left = pool.abandon()
        if left:
            warnings.warn(
                f"{pool!r} was never closed, with devices {left} open: use 'async with', or 'await session.aclose()'",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    if not TYPE_CHECKING:  # to a type checker, it would stand for any name

        def __getattr__(self, name: str) -> Any:
            raise instead(self, name)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse copying and pickling: two objects would own the models on the devices."""
        raise TypeError(
            f"{self!r} cannot be copied or pickled: it owns models on devices; pass model_path on, and open another "
            "session there"
        )

    def __repr__(self) -> str:
        return repr(self._pool)


def pool_of(session: MultiDeviceSession) -> SessionPool:
    """Return the sessions behind a ``MultiDeviceSession``; for the library's own use."""
    return session._pool


def _one_of(function: str, **given: object) -> object:
    """Return the one of two arguments that was passed."""
    values = [value for value in given.values() if value is not None]
    if len(values) != 1:
        raise TypeError(f"{function}() takes one of {' and '.join(given)}, got {len(values)} of them")
    return values[0]
