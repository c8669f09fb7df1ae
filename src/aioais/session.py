"""InferSession: the door to one model on one device."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from ._acl.library import Platform
from ._bridge.offload import run_in_thread, wait_future
from ._path.iteration import Iteration
from ._path.lifecycle import finalize_all
from ._path.opening import check_options, open_pipeline
from ._path.pipeline import Pipeline
from ._path.request import Request
from ._path.streaming import stream_results
from ._path.upload import upload
from .errors import ClosedError, WrongLoopError
from .measures import Measures
from .tensor import Tensor
from .types import DEFAULT_OUTPUT_BYTES, Check, Mode, TensorDesc

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Feeds", "InferSession", "Sizes"]

Feeds = Sequence[Any] | Mapping[str, Any]
"""One feed per model input, in model order or by name."""

Sizes = int | Sequence[int] | None
"""Bytes that are preallocated for the outputs of a model of dynamic shape: for each, or one for all."""


class InferSession(Measures):
    """A model on a device, behind ``await``.

    The constructor only checks its arguments. ``async with``, ``await`` or ``async with await`` open the session: they
    start the device, make a context and load the model in a thread of their own, while the event loop goes on.

    Parameters
    ----------
    device_id
        Which device, from 0; :func:`aioais.devices` lists them.
    model_path
        A ``.om`` file for an Ascend NPU or an ``.onnx`` file for the CPU device.
    acl_json_path
        ACL's configuration for profiling and dump, for all sessions while ACL is initialised. After :meth:`finalize`
        the CPU device takes another; CANN keeps the first for the life of the process.
    debug
        Log every stage of every request at DEBUG on the logger ``aioais``.
    loop
        Executions per request, at least 1. More than 64 are timed in 64 groups, as a device has few events: those of
        a group have the same entry in :meth:`summary`.
    platform
        ``"ascend"`` or ``"cpu"`` instead of what the file's name says.
    depth
        How many requests may be past admission at once. Each owns one set of device buffers. Where more wait and the
        device needs less than 0.12 ms for one, up to 16 small ones wait for one set on the device's stream, one behind
        the other, unless ``depth`` is 1 or ``loop`` more than 1.
    check
        ``"strict"`` compares number, type and shape of feeds with the model, ``"bytes"`` only their
        bytes, as ais_bench does.
    hang_timeout
        Most seconds to wait for the device at one time, ``None`` for ever. One wait covers the requests
        that are queued on the device together and, on a shared device, what others have queued before: be
        generous. It bounds executions and copies, those of :meth:`to_device` and of ``to_host`` of the tensors
        that this session makes included; not opening (the device's start, the load), allocating, nor the turn
        that such a copy waits behind those of other sessions, as ACL bounds none of these. Needs a release of
        ACL that has ``acl.rt.synchronize_stream_with_timeout``.

    Raises
    ------
    DeviceError, ArgumentError, ModelError
        An argument is out of its range, whatever the machine.

    Notes
    -----
    Opening raises ``ModelError`` (the file is missing, damaged or for another device),
    ``AclNotFoundError`` (CANN or ONNX Runtime is missing), ``DeviceError`` (no such device),
    ``AclMemoryError`` or another ``AclError``; a partial open is undone. Cancelled while opening:
    the wait ends at once, and what the thread still opens is closed again.

    A session breaks when the device does not finish within ``hang_timeout``, when ACL reports it lost, or
    when a thread of the session dies. Requests that the device had begun raise ``DeviceHangError`` or the
    ``AclError``, all others and every later one ``BrokenSessionError`` with the cause. No other session is
    touched. Their buffers are used by nobody else, and are freed by :meth:`aclose` if the device is through
    with them by then.

    Examples
    --------
    ::

        async with InferSession(0, "model.onnx") as session:
            outputs = await session.infer([array])
    """

    def __init__(
        self,
        device_id: int,
        model_path: str | os.PathLike[str],
        acl_json_path: str | os.PathLike[str] | None = None,
        debug: bool = False,
        loop: int = 1,
        *,
        platform: Platform | None = None,
        depth: int = 4,
        check: Check = "strict",
        hang_timeout: float | None = None,
    ) -> None:
        self._pipeline: Pipeline | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False
        self._may_enter = False  # opened by await, so that async with may take it over, once
        self._options = check_options(
            device_id, model_path, acl_json_path, debug, loop, platform, depth, check, hang_timeout
        )

    @property
    def device_id(self) -> int:
        """The device."""
        return self._options.device_id

    @property
    def model_path(self) -> str:
        """The model file."""
        return self._options.model_path

    @property
    def loop(self) -> int:
        """Executions per request."""
        return self._options.loop

    @property
    def closed(self) -> bool:
        """Whether the session was closed, or ended by :meth:`finalize`."""
        return self._is_closed or (self._pipeline is not None and self._pipeline.closed.done())

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open(may_enter=True).__await__()

    async def __aenter__(self) -> Self:
        if not self._may_enter:
            return await self._open()
        self._opened()
        self._may_enter = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _open(self, may_enter: bool = False) -> Self:
        if self.closed:
            raise ClosedError(f"{self!r} is closed: open a new session")
        if self._loop is not None:
            raise ClosedError(f"{self!r} is open already, or being opened: open each session once")
        loop = self._loop = asyncio.get_running_loop()
        options = self._options
        try:
            self._pipeline = await run_in_thread(
                f"aioais-open-{options.device_id}", lambda: open_pipeline(options, loop), Pipeline.close, uses_acl=True
            )
        except BaseException:
            self._loop = None
            raise
        if self._is_closed:  # aclose() came while it was being opened
            await self.aclose()
            raise ClosedError(f"{self!r} was closed while it was being opened: open a new session")
        self._may_enter = may_enter
        return self

    def get_inputs(self) -> list[TensorDesc]:
        """Describe the inputs in model order, without the hidden ones (gear index, dynamic AIPP)."""
        return [tensor.desc for tensor in self._known().info.inputs]

    def get_outputs(self) -> list[TensorDesc]:
        """Describe the outputs in model order."""
        return [tensor.desc for tensor in self._known().info.outputs]

    @overload
    async def infer(
        self,
        feeds: Feeds,
        mode: Mode = ...,
        custom_sizes: Sizes = ...,
        out_array: Literal[True] = ...,
    ) -> list[np.ndarray]: ...
    @overload
    async def infer(
        self,
        feeds: Feeds,
        mode: Mode = ...,
        custom_sizes: Sizes = ...,
        *,
        out_array: Literal[False],
    ) -> list[Tensor]: ...
    @overload
    async def infer(self, feeds: Feeds, mode: Mode, custom_sizes: Sizes, out_array: Literal[False]) -> list[Tensor]: ...
    @overload
    async def infer(
        self, feeds: Feeds, mode: Mode = ..., custom_sizes: Sizes = ..., out_array: bool = ...
    ) -> list[np.ndarray] | list[Tensor]: ...
    async def infer(
        self,
        feeds: Feeds,
        mode: Mode = "static",
        custom_sizes: Sizes = DEFAULT_OUTPUT_BYTES,
        out_array: bool = True,
    ) -> list[np.ndarray] | list[Tensor]:
        """Run one request.

        Waits in FIFO order for a set of buffers, then for the device. Feeds that have to be converted first (large
        ``__array__`` or DLPack objects) join the line when they are.

        Parameters
        ----------
        feeds
            One feed per input, as a sequence in model order or a mapping by name: arrays, NumPy
            scalars, torch CPU tensors, objects with the buffer protocol, ``__array__`` or
            ``__dlpack__`` (CPU), and device tensors of the same device. Never modified, and not read
            after the call has returned.
        mode
            ``static``, ``dymbatch``, ``dymhw``, ``dymdims``, ``dymshape`` (also spelt ``dyn…``) or
            ``auto``. ``static`` on a model with gears runs its largest.
        custom_sizes
            ``dymshape`` only: bytes to preallocate for each output, one int for all or a list. They should
            do: CANN finds out behind the execution. Larger outputs make buffers grow, or ACL allocates them.
        out_array
            ``False`` leaves the outputs on the device.

        Returns
        -------
        list of numpy.ndarray or list of Tensor
            One per output in model order, with the shape of this run; owned by the caller, writable.

        Raises
        ------
        FeedError, ArgumentError
            The feeds, the mode or ``custom_sizes`` do not fit the model; nothing has run.
        AclError
            ACL failed. Requests that were executed together with the failed one raise it too, as ACL
            does not tell them apart.
        DeviceHangError, BrokenSessionError
            The device did not finish within ``hang_timeout``; the session is broken, now or since earlier.
        ClosedError, WrongLoopError, ForkError
            The session cannot be used here.

        Notes
        -----
        Cancelled while queued: nothing runs. Cancelled on the device: the device finishes, the result is
        dropped, the buffers return only then. The session stays usable either way.
        """
        request = self._request(feeds, mode, custom_sizes, out_array)
        if not isinstance(request, Request):
            request = await request
        try:
            return await request.future  # type: ignore[no-any-return]
        finally:
            request.abandon()
            del request  # an error's traceback holds this frame, and the request the error

    def infer_pipeline(
        self,
        feeds_list: Iterable[Feeds] | AsyncIterable[Feeds],
        mode: Mode = "static",
        custom_sizes: Sizes = DEFAULT_OUTPUT_BYTES,
    ) -> AsyncGenerator[list[np.ndarray], None]:
        """Run many requests, overlapping copies and executions, and yield their results in order.

        At most ``depth`` items are under way or waiting for the consumer; the source is not read further
        ahead, so it may be endless, and a consumer that stops stops it.

        Parameters
        ----------
        feeds_list
            Any iterable or async iterable of what :meth:`infer` takes as feeds. Shapes may differ from item to
            item wherever the model allows it. A plain iterable is advanced on the event loop.
        mode, custom_sizes
            As in :meth:`infer`.

        Yields
        ------
        list of numpy.ndarray
            The outputs of each item, in the order of the source; owned by the caller.

        Raises
        ------
        FeedError, ArgumentError, AclError, BrokenSessionError, ClosedError, WrongLoopError
            As in :meth:`infer`; an item that fails, or a source that raises, raises at its place, after the results
            before it, and ends the generator.

        Notes
        -----
        Leaving early (``break``, an error, ``aclose``, cancelling, dropping the generator) gives up every request
        under way: what is queued never runs, what the device works on is finished and dropped.
        An async source is cancelled where it waits, an async generator also at its ``yield``, and ends; what its
        clean-up raises, ``aclose`` raises, or the log has it. A plain source is left where it is.
        """

        def start(feeds: Feeds) -> Request | Awaitable[Request]:
            return self._request(feeds, mode, custom_sizes, True)

        def check() -> None:
            self._opened().entrance.check(mode, custom_sizes)

        return stream_results(feeds_list, start, lambda: (self._pipeline or self._opened()).slots.depth, check)

    async def infer_iteration(
        self,
        feeds: Feeds,
        in_out_list: Sequence[int] | None = None,
        iteration_times: int = 1,
        mode: Mode = "static",
        custom_sizes: Sizes = DEFAULT_OUTPUT_BYTES,
        mem_copy: bool = True,
    ) -> list[np.ndarray]:
        """Run the model several times, feeding outputs of each step to the next on the device.

        Other requests of the session have their turn between two steps, if ``depth`` leaves them buffers.
        Cancelled: the running step ends and no other begins; else as in :meth:`infer`.

        Parameters
        ----------
        feeds
            Of the first step, as in :meth:`infer`; device tensors among them are never overwritten.
        in_out_list
            For each input, -1 to keep what it is fed, or the output of the step before that feeds it, in the order
            of :meth:`get_inputs` and :meth:`get_outputs`. ``None`` keeps all.
        iteration_times
            Steps, at least 1; each runs ``loop`` executions.
        mode, custom_sizes
            As in :meth:`infer`. With ``dymshape`` shapes may change from step to step.
        mem_copy
            ``False`` exchanges buffers where ``True`` copies on the device; the results are the same bits.

        Returns
        -------
        list of numpy.ndarray
            The outputs of the last step, owned by the caller.

        Raises
        ------
        ArgumentError, FeedError
            As in :meth:`infer`; with ``dymshape`` also a step whose shapes the next does not take.
        AclError, BrokenSessionError, ClosedError, WrongLoopError, ForkError
            As in :meth:`infer`.
        """
        iteration = Iteration(self._opened().info, in_out_list, iteration_times, mem_copy, self._options.check)
        request = self._request(feeds, mode, custom_sizes, True, iteration)
        if not isinstance(request, Request):
            request = await request
        try:
            return await request.future  # type: ignore[no-any-return]
        finally:
            request.abandon()
            del request  # an error's traceback holds this frame, and the request the error

    def _request(
        self, feeds: Feeds, mode: Mode, custom_sizes: Sizes, to_host: bool, iteration: Iteration | None = None
    ) -> Request | Awaitable[Request]:
        """Check feeds and submit them; to be awaited where seeing them as arrays may take long."""
        pipeline = self._pipeline
        # Before the feeds: whatever they are, here nothing can run any more.
        if (
            pipeline is None
            or pipeline.admission.is_closed
            or pipeline.device.process.is_forked
            or self._loop is not asyncio.get_running_loop()
        ):
            pipeline = self._opened()
            pipeline.admission.check()
        return pipeline.entrance.request(feeds, mode, custom_sizes, to_host, iteration)

    async def to_device(self, array: Any) -> Tensor:
        """Copy an array to this session's device.

        Parameters
        ----------
        array
            Anything that ``infer`` takes as a feed; a device tensor of this device is returned as it is.

        Returns
        -------
        Tensor
            Owned by the caller; lives on after the session is closed.

        Raises
        ------
        FeedError
            It is no array.
        AclError
            The device has no room, or the copy failed.
        DeviceHangError, BrokenSessionError
            The copy was not done within ``hang_timeout``; the session is broken, now or since earlier.

        Notes
        -----
        Cancelled: the copy ends unseen and its memory is freed.
        """
        return await upload(self._opened(), array)

    async def aclose(self) -> None:
        """Free all that the session holds on the device; idempotent.

        Refuses new requests at once and waits for those submitted, queued ones included. Result arrays
        and device tensors stay valid.

        Raises
        ------
        WrongLoopError
            Called from another loop than the session's.
        AclError
            ACL failed while freeing; all else was freed all the same.

        Notes
        -----
        A broken session waits ``hang_timeout`` (10 s at most) for the device and then leaves what that may still
        use to :meth:`finalize`, or to the end of the process; that is in the log.

        Cancelled: the session closes all the same; call it again to wait for the end.
        """
        pipeline = self._pipeline
        if pipeline is not None and not pipeline.closed.done():
            self._check_loop()
        self._is_closed = True
        if pipeline is not None:
            pipeline.close()
            await wait_future(pipeline.closed)
            pipeline.join()

    async def free_resource(self) -> None:
        """Free all that the session holds on the device: ais_bench's name of :meth:`aclose`."""
        await self.aclose()

    @staticmethod
    async def finalize() -> None:
        """Free every session of the process, reset the devices and finalise ACL.

        Sessions of all event loops are closed, after their requests; device tensors are closed, with a
        ``ResourceWarning``. While result arrays still hold pinned memory of a device, the last step is left
        until they are gone. Sessions may be opened again afterwards.

        Raises
        ------
        AclError
            ACL failed while freeing; all else was freed all the same.
        """
        await run_in_thread("aioais-finalize", finalize_all)

    def _opened(self) -> Pipeline:
        """Give the pipeline, or say why there is none; a broken one that was finalised goes on saying what broke it."""
        pipeline = self._pipeline
        if self._is_closed or (pipeline is not None and pipeline.admission.is_closed and pipeline.breakage.ends_whole):
            raise ClosedError(f"{self!r} is closed: open a new session")
        if pipeline is None:
            raise ClosedError(f"{self!r} is not open: use 'async with InferSession(...)' or 'await InferSession(...)'")
        pipeline.device.process.check_fork()
        self._check_loop()
        return pipeline

    def _known(self) -> Pipeline:
        """Give the pipeline, that of a closed session too: what it has measured can still be read."""
        pipeline = self._pipeline
        return pipeline if pipeline is not None and self.closed else self._opened()

    def _check_loop(self) -> None:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return  # a plain method called outside of any loop: nothing to mix up
        if running is not self._loop:
            raise WrongLoopError(
                f"{self!r} was opened by another event loop; open one session per loop (they may share the device)"
            )

    def __del__(self) -> None:
        pipeline = getattr(self, "_pipeline", None)
        if pipeline is not None and not self.closed:
            warnings.warn(
                f"{self!r} was never closed: use 'async with', or 'await session.aclose()'",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
            # Not here: the collector runs this in any thread, one that holds the locks that closing takes included.
            pipeline.device.post(pipeline.close)

    def __repr__(self) -> str:
        options = self._options
        state = "closed" if self.closed else "open" if self._pipeline is not None else "not open"
        if not self._is_closed and self._pipeline is not None and self._pipeline.breakage.cause is not None:
            state = "broken"
        return f"<InferSession {options.model_path!r} on {options.platform} device {options.device_id}, {state}>"
