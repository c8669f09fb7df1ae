"""InferSession: the door to one model on one device."""

from __future__ import annotations

import os
import warnings
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

import numpy as np

from ._acl.library import Platform
from ._bridge.offload import run_in_thread
from ._engine.core import SessionCore
from ._engine.lifetime import finalize_all
from ._engine.options import Given, check_options, check_prefetch
from ._engine.request import Request
from ._misuse import AwaitedOnly, Results, check_loop_kind, instead
from ._sources.streaming import session_results
from .measures import Measures
from .tensor import Tensor
from .types import DEFAULT_OUTPUT_BYTES, Check, Depth, Mode, TensorDesc

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Feeds", "InferSession", "Sizes", "core_of"]

Feeds = Sequence[Any] | Mapping[str, Any]
"""One feed per model input, in model order or by name."""

Sizes = int | Sequence[int] | None
"""Bytes that are preallocated for the outputs of a model of dynamic shape: for each, or one for all."""


class InferSession(Measures, AwaitedOnly):
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
        Log the submission and the end of every request at DEBUG on the logger ``aioais``.
    loop
        Executions per request, at least 1. More than 64 are timed in 64 groups, as a device has few events: those of
        a group have the same entry in :meth:`summary`.
    platform
        ``"ascend"`` or ``"cpu"`` instead of what the file's name says.
    depth
        How many sets of device buffers there may be: each serves one request at a time. ``"auto"`` begins at 4 and
        grows, to 16 at most, while the device is so fast and the buffers so small that more keep it busier. Where the
        device needs up to 0.3 ms for a request and as many more requests wait as there are sets, or four, up to 32
        small ones share a set, unless ``depth`` is 1 or ``loop`` more than 1. Requests that can share a set do not
        make ``"auto"`` grow.
    check
        ``"strict"`` compares number, type and shape of feeds with the model, ``"bytes"`` only their
        bytes, as ais_bench does.
    hang_timeout
        Most seconds to wait for the device at one time, ``None`` for no limit. One wait covers one request and what
        the device has to do before it, for other sessions too: leave a margin. It bounds executions and copies, those
        of :meth:`to_device` and of ``to_host`` of the tensors that this session makes included; not opening (the
        device's start, the load), allocating, nor the turn that such a copy waits behind those of other
        sessions, as ACL bounds none of these. Needs a release of ACL that has
        ``acl.rt.synchronize_stream_with_timeout``.

    Raises
    ------
    DeviceError, ArgumentError, ModelError
        An argument is out of its range, whatever the machine.

    Notes
    -----
    Opening raises ``ModelError`` (the file is missing, damaged or for another device),
    ``AclNotFoundError`` (CANN or ONNX Runtime is missing), ``DeviceError`` (no such device),
    ``AclMemoryError`` or another ``AclError``, ``BrokenSessionError`` (the system has no thread left); a partial open
    is undone. Cancelled while opening:
    the wait ends at once, and what the thread still opens is closed again.

    A session breaks when the device does not finish within ``hang_timeout``, when ACL reports it lost, or
    when a thread of the session dies. Requests that the device had begun raise ``DeviceHangError`` or the
    ``AclError``, all others and every later one ``BrokenSessionError`` with the cause. No other session is
    touched. The buffers of these requests are not used again, and are freed by :meth:`aclose` if the device is
    done with them by then.

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
        depth: Depth = "auto",
        check: Check = "strict",
        hang_timeout: float | None = None,
    ) -> None:
        given = Given(device_id, model_path, acl_json_path, debug, loop, platform, depth, check, hang_timeout)
        self._core = SessionCore(check_options(given))
        self._may_enter = False  # opened by await, so that async with may take it over, once

    @property
    def device_id(self) -> int:
        """The device."""
        return self._core.options.device_id

    @property
    def model_path(self) -> str:
        """The model file."""
        return self._core.options.model_path

    @property
    def loop(self) -> int:
        """Executions per request."""
        return self._core.options.loop

    @property
    def depth(self) -> Depth:
        """How many sets of device buffers there may be now; until the session is open, what the constructor got."""
        pipeline = self._core.pipeline
        return self._core.options.depth if pipeline is None else pipeline.slots.depth

    @property
    def closed(self) -> bool:
        """Whether the session was closed, or ended by :meth:`finalize`."""
        return self._core.has_ended

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open(may_enter=True).__await__()

    async def __aenter__(self) -> Self:
        if not self._may_enter:
            return await self._open()
        self._core.opened()
        self._may_enter = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _open(self, may_enter: bool = False) -> Self:
        check_loop_kind()
        await self._core.open()
        self._may_enter = may_enter
        return self

    def get_inputs(self) -> list[TensorDesc]:
        """Describe the inputs in model order, without the hidden ones (gear index, dynamic AIPP)."""
        return [tensor.desc for tensor in self._core.known().info.inputs]

    def get_optional_inputs(self) -> list[TensorDesc]:
        """Describe the inputs that have a default and may be fed too, by position behind the others or by name.

        On the CPU device they are the initializers of the ONNX file that are inputs of its graph as well (IR version 4
        and later) and have fixed dims. A ``.om`` has none: ATC makes constants of them.
        """
        return [tensor.desc for tensor in self._core.known().info.optional]

    def get_outputs(self) -> list[TensorDesc]:
        """Describe the outputs in model order."""
        return [tensor.desc for tensor in self._core.known().info.outputs]

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
            ``dymshape`` only: bytes to preallocate for each output, one int for all or a list. Make them large
            enough: CANN checks only after the kernels have written. Larger outputs make buffers grow, or ACL
            allocates them.
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
            ACL failed. :func:`aioais.blame.blame` says who is at fault. Small requests that shared a set of buffers
            with the failed one run again, alone, unless the device is at fault.
        DeviceHangError, BrokenSessionError
            The device did not finish within ``hang_timeout``; the session is broken, now or since earlier.
        ClosedError, WrongLoopError, ForkError
            The session cannot be used here.

        Notes
        -----
        Cancelled while queued: nothing runs. Cancelled on the device: the device finishes, the result is
        dropped, the buffers return only then. The session stays usable either way.
        """
        request = self._core.request(feeds, mode, custom_sizes, out_array)
        if not isinstance(request, Request):
            request = await request
        try:
            return await request.future  # type: ignore[no-any-return]
        except BaseException:
            request.give_up()
            raise
        finally:
            del request  # an error's traceback holds this frame, and the request the error

    def infer_pipeline(
        self,
        feeds_list: Iterable[Feeds] | AsyncIterable[Feeds],
        mode: Mode = "static",
        custom_sizes: Sizes = DEFAULT_OUTPUT_BYTES,
        *,
        prefetch: int | None = None,
    ) -> AsyncGenerator[list[np.ndarray], None]:
        """Run many requests, overlapping copies and executions, and yield their results in order.

        At most ``depth`` sets of buffers are in use; small items may share one. The source is read ``prefetch`` items
        further ahead and no more, results that the consumer has not taken counted in: so it may be endless, and a
        consumer that stops stops it.

        Parameters
        ----------
        feeds_list
            Any iterable or async iterable of what :meth:`infer` takes as feeds. Shapes may differ from item to
            item wherever the model allows it. A plain iterable is advanced on the event loop.
        mode, custom_sizes
            As in :meth:`infer`.
        prefetch
            Items that are read ahead of those that have buffers, so that the device's next request never waits for the
            event loop; they hold their feeds and nothing else. Default: as many as ``depth``; 0 reads nothing ahead.
            Where small items share sets of buffers, the default reads on to 64 items that are not taken yet, from the
            129th on, and while the consumer waits for the device.

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
        clean-up raises is raised by ``aclose``, or logged. A plain source is left where it is.
        """
        results = session_results(self._core, feeds_list, mode, custom_sizes, check_prefetch(prefetch))
        return Results(results, "session.infer_pipeline(...)")

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
            of :meth:`get_inputs` and :meth:`get_outputs`. ``None`` only for a single step.
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
        core = self._core
        iteration = core.iteration(in_out_list, iteration_times, mem_copy)
        return await core.result(  # type: ignore[no-any-return]
            core.request(feeds, mode, custom_sizes, iteration=iteration)
        )

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
        return await self._core.upload(array)

    async def aclose(self) -> None:
        """Free all that the session holds on the device; idempotent.

        Refuses new requests at once and waits for those submitted, queued ones included. Result arrays
        and device tensors stay valid.

        Raises
        ------
        WrongLoopError
            Called from another loop than the session's.
        AclError
            ACL failed while freeing; everything else was freed.

        Notes
        -----
        A broken session waits ``hang_timeout`` (10 s at most) for the device and then leaves what that may still
        use to :meth:`finalize`, or to the end of the process, and logs that.

        Cancelled: the session still closes; call it again to wait for the end.
        """
        await self._core.aclose()

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
            ACL failed while freeing; everything else was freed.
        """
        await run_in_thread("aioais-finalize", finalize_all)

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is None:
            return
        text = repr(self)
        if core.abandon():
            warnings.warn(
                f"{text} was never closed: use 'async with', or 'await session.aclose()'",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    if not TYPE_CHECKING:  # to a type checker, it would stand for any name

        def __getattr__(self, name: str) -> Any:
            raise instead(self, name)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse copying and pickling: two objects would own one model on one device."""
        raise TypeError(
            f"{self!r} cannot be copied or pickled: it owns a model on a device; pass model_path and device_id on, and "
            "open another session there"
        )

    def __repr__(self) -> str:
        return repr(self._core)


def core_of(session: InferSession) -> SessionCore:
    """Return what is behind a session; for the library's own use."""
    return session._core
