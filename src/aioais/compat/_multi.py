"""``MultiDeviceSession`` of ais_bench, in one process: the library's own, with blocking calls."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

import numpy as np

from ..errors import AioaisError
from ..multi_device import MultiDeviceSession as AioMultiDeviceSession
from ..types import DEFAULT_OUTPUT_BYTES
from ._errors import as_runtime_error
from ._loop import Hold, LoopThread, before_exit, hold, is_in_library
from ._models import find_model
from ._summary import LaneTimes
from ._tensor import as_feeds

__all__ = ["MultiDeviceSession"]

_T = TypeVar("_T")

_PATIENCE_S: Final = 5.0


class MultiDeviceSession:
    """A model on many devices, as ais_bench's ``MultiDeviceSession``: calls block, from any thread.

    Nothing is forked, and nothing is loaded by the constructor. The first call that needs a device loads the model
    there; later calls find it warm. All feeds of a call run at once, and results have the order of the feeds. If one
    fails, its error is raised.

    Parameters
    ----------
    model_path, acl_json_path, debug, loop
        As for :class:`InferSession`.
    """

    def __init__(self, model_path: str, acl_json_path: str | None = None, debug: bool = False, loop: int = 1) -> None:
        self.model_path = model_path
        self.acl_json_path = acl_json_path
        self.debug = debug
        self.loop = loop
        self._aio = self._make()

    @property
    def summary(self) -> LaneTimes:
        """``{device_id: [ms, ...]}`` of the last call, end to end for each of its feeds, with the load where it loaded.

        In ais_bench's code this is an attribute, in its guide a method: both work.
        """
        return LaneTimes(self._aio.summary())

    def infer(
        self, device_feeds: Any = None, mode: str = "static", custom_sizes: Any = DEFAULT_OUTPUT_BYTES, **names: Any
    ) -> dict[int, list[list[np.ndarray]]]:
        """Run one request for each feeds.

        Parameters
        ----------
        device_feeds
            ``{device_id: [feeds1, feeds2, ...]}``; also by the name ``devices_feeds``.
        mode, custom_sizes
            As in :meth:`InferSession.infer`.

        Returns
        -------
        dict of list of list of numpy.ndarray
            ``{device_id: [outputs1, outputs2, ...]}``, in the order of the feeds.

        Raises
        ------
        RuntimeError
            A request failed; device and lane are in the notes.
        """
        feeds = _by_device(_one_of(device_feeds, "devices_feeds", names), as_feeds)
        return self._run(lambda aio: aio.infer(feeds, mode, custom_sizes))  # type: ignore[arg-type]

    def infer_pipeline(
        self,
        device_feeds_list: Any = None,
        mode: str = "static",
        custom_sizes: Any = DEFAULT_OUTPUT_BYTES,
        **names: Any,
    ) -> dict[int, list[list[list[np.ndarray]]]]:
        """Run a pipeline for each list of feeds.

        Parameters
        ----------
        device_feeds_list
            ``{device_id: [feeds_list1, feeds_list2, ...]}``; also by the name ``devices_feeds_list``.
        mode, custom_sizes
            As in :meth:`InferSession.infer`.

        Returns
        -------
        dict
            ``{device_id: [outputs_list1, ...]}``, each what :meth:`InferSession.infer_pipeline` returns.

        Raises
        ------
        RuntimeError
            As in :meth:`infer`.
        """
        given = _one_of(device_feeds_list, "devices_feeds_list", names)
        feeds = _by_device(given, lambda items: [as_feeds(item) for item in items])

        async def collect(aio: _Aio) -> dict[int, list[list[list[np.ndarray]]]]:
            return await aio.infer_pipeline(feeds, mode, custom_sizes)  # type: ignore[arg-type]

        return self._run(collect)

    def infer_iteration(
        self,
        device_feeds: Any = None,
        in_out_list: Sequence[int] | None = None,
        iteration_times: int = 1,
        mode: str = "static",
        custom_sizes: Any = None,
        mem_copy: bool = True,
        **names: Any,
    ) -> dict[int, list[list[np.ndarray]]]:
        """Run an iteration for each feeds.

        Parameters
        ----------
        device_feeds
            ``{device_id: [feeds1, feeds2, ...]}``; also by the name ``devices_feeds``.
        in_out_list, iteration_times, mode, custom_sizes, mem_copy
            As in :meth:`InferSession.infer_iteration`.

        Returns
        -------
        dict of list of list of numpy.ndarray
            The outputs of the last step for each feeds, in their order.

        Raises
        ------
        RuntimeError
            As in :meth:`infer`.
        """
        feeds = _by_device(_one_of(device_feeds, "devices_feeds", names), as_feeds)
        pairs = None if in_out_list is None or not len(in_out_list) else [max(-1, int(k)) for k in in_out_list]
        return self._run(
            lambda aio: aio.infer_iteration(feeds, pairs, iteration_times, mode, custom_sizes, mem_copy)  # type: ignore[arg-type]
        )

    def free_resource(self) -> None:
        """Free what the session holds on all devices; a later call loads the model again. ais_bench has no such call.

        Without it everything is freed when the session is collected, or at the end of the program.
        """
        aio, self._aio = self._aio, self._make()
        holding, aio.holding = aio.holding, None
        if holding is None:
            return
        runner = holding.runner
        if is_in_library():  # in a finaliser, which must not wait here
            aio.close_soon(holding)
            return
        try:
            if not runner.is_over:
                runner.run_coroutine(aio.aclose)
        finally:
            holding.drop()
            runner.join()

    def _make(self) -> _Aio:
        try:
            path, platform = find_model(self.model_path)
            return _Aio(path, self.acl_json_path, self.debug, self.loop, platform=platform, check="bytes")
        except AioaisError as exc:
            raise as_runtime_error(exc) from exc.__cause__

    def _run(self, make: Callable[[_Aio], Coroutine[Any, Any, _T]]) -> _T:
        aio = self._aio
        holding = aio.holding
        if holding is None:
            holding = hold()
            if aio.holding is None:  # or else another thread was first, and this one is dropped
                aio.holding = holding

        async def work() -> _T:
            _live.add(aio)
            return await make(aio)

        return holding.runner.run_coroutine(work)

    def __repr__(self) -> str:
        return repr(self._aio)


class _Aio(AioMultiDeviceSession):
    """The library's own class, closed without a warning when it is dropped: ais_bench has no call to close it.

    Attributes
    ----------
    holding
        The loop thread, held since the first call.
    """

    holding: Hold | None = None

    def close_soon(self, holding: Hold) -> None:
        """Have all devices freed and do not wait; in any thread, and in finalisers."""
        pool = self._pool

        def closed(task: asyncio.Task[None]) -> None:
            _closing.discard(task)
            if not task.cancelled():
                task.exception()  # seen; all else was freed
            holding.drop_here()

        def close() -> None:
            if holding.is_dropped:  # the collector dropped it first: the loop may end any moment
                pool.abandon()
                return
            task = asyncio.ensure_future(self.aclose())
            _closing.add(task)
            task.add_done_callback(closed)

        if not holding.runner.post(close):
            pool.abandon()

    def __del__(self) -> None:
        holding, self.holding = self.holding, None
        if holding is not None:
            self.close_soon(holding)


_live: weakref.WeakSet[_Aio] = weakref.WeakSet()
"""Sessions that have a hold on the loop thread; read and changed there."""
_closing: set[asyncio.Task[None]] = set()
"""The ends of those that were dropped; read and changed there."""


def _close_all(runner: LoopThread) -> None:
    """Close what is open when the program ends: ais_bench has no call that a program could have made."""

    async def close() -> None:
        for aio in list(_live):
            with contextlib.suppress(Exception):
                await asyncio.wait_for(aio.aclose(), _PATIENCE_S)
        if _closing:
            await asyncio.wait(_closing, timeout=_PATIENCE_S)

    with contextlib.suppress(Exception):
        runner.run_coroutine(close)


before_exit(_close_all)


def _one_of(first: Any, other: str, names: dict[str, Any]) -> Any:
    """Return the one of two arguments that was passed."""
    given = [value for value in (first, names.pop(other, None)) if value is not None]
    if names:
        raise TypeError(f"got unexpected arguments {sorted(names)}; expected {other}")
    if len(given) != 1:
        raise TypeError(f"got {len(given)} of {other} and its other name; expected one")
    return given[0]


def _by_device(given: Any, change: Callable[[Any], Any]) -> Any:
    """Change each lane of a mapping of devices; what is no such mapping is returned for the library to refuse."""
    if not hasattr(given, "items"):
        return given
    return {device_id: [change(lane) for lane in lanes] for device_id, lanes in given.items()}
