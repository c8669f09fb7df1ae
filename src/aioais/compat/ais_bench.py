"""``ais_bench.infer.interface`` for programs that were written for it: the same calls, over this library.

``aioais.compat.install()`` has ``from ais_bench.infer.interface import InferSession`` find it. ``docs/ais_bench.md``
says what differs, and how a program moves on to ``await``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np

from ..types import DEFAULT_OUTPUT_BYTES
from . import aclruntime
from ._aio import AioSession, finalize_all
from ._gone import AIPP, GONE
from ._iteration import Steps
from ._multi import MultiDeviceSession
from ._summary import MemorySummary, Summary
from ._tensor import Tensor, as_feed, as_feeds, on_device
from ._types import tensor_desc

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["NP_TYPE_LIST", "TORCH_TENSOR_LIST", "InferSession", "MemorySummary", "MultiDeviceSession"]

logger: logging.Logger = logging.getLogger("aioais")

TORCH_TENSOR_LIST: Final = [
    "torch.FloatTensor",
    "torch.DoubleTensor",
    "torch.HalfTensor",
    "torch.BFloat16Tensor",
    "torch.ByteTensor",
    "torch.CharTensor",
    "torch.ShortTensor",
    "torch.LongTensor",
    "torch.BoolTensor",
    "torch.IntTensor",
]
NP_TYPE_LIST: Final[list[type[np.generic]]] = [
    np.int8,
    np.int16,
    np.int32,
    np.int64,
    np.uint8,
    np.uint16,
    np.uint32,
    np.float16,
    np.float32,
    np.float64,
]


class InferSession:
    """A model on a device, as ais_bench's ``InferSession``: calls block, from any thread and from many at once.

    Feeds are checked as in ais_bench: only their number and their bytes count. The mode belongs to the call, and
    device contexts of the calling thread are never touched. The GIL is released for the whole of each call.

    Parameters
    ----------
    device_id
        Which device, from 0.
    model_path
        A ``.om`` file for an Ascend NPU or an ``.onnx`` file for the CPU device; see :func:`aioais.compat.install`.
    acl_json_path
        ACL's configuration for profiling and dump.
    debug
        Log each request at DEBUG on the logger ``aioais``.
    loop
        Executions per request, at least 1.

    Raises
    ------
    RuntimeError
        The session cannot be opened, as every failure of every method: the error is an :class:`aioais.AioaisError`
        that is a ``RuntimeError`` too.

    Notes
    -----
    Ctrl-C ends a blocking call at once; the device finishes what it works on, and the session stays usable.

    A session that is dropped, or open at the end of the program, is closed, with a ``ResourceWarning``.
    """

    def __init__(
        self, device_id: int, model_path: str, acl_json_path: str | None = None, debug: bool = False, loop: int = 1
    ) -> None:
        self.device_id = device_id
        self.model_path = model_path
        self.acl_json_path = acl_json_path
        self.debug = debug
        self.loop = loop
        self.options: aclruntime.session_options = aclruntime.session_options(
            loop, 1 if debug else 2, acl_json_path or ""
        )
        self.session: aclruntime.InferenceSession = aclruntime.InferenceSession(model_path, device_id, self.options)
        self.intensors_desc: list[tensor_desc] = self.session.get_inputs()
        self.outtensors_desc: list[tensor_desc] = self.session.get_outputs()
        self.outputs_names: list[str] = [desc.name for desc in self.outtensors_desc]
        self.infer_mode_switch: dict[str, Callable[..., None]] = {
            mode: _preparation(self.session, mode) for mode in ("static", "dymbatch", "dymhw", "dymdims", "dymshape")
        }
        self._steps = Steps(self.session)

    @property
    def aio(self) -> AioSession:
        """The awaitable session behind this one, an :class:`aioais.InferSession`, for any event loop.

        ``await session.aio.infer(feeds)`` in a coroutine and ``session.infer(feeds)`` in a thread may be mixed
        freely. Its errors are those of :class:`aioais.InferSession`.
        """
        return self.session.aio

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free_resource()

    def get_inputs(self) -> list[tensor_desc]:
        """Describe the inputs in model order, without the hidden ones (gear index, dynamic AIPP)."""
        self.intensors_desc = self.session.get_inputs()
        return self.intensors_desc

    def get_outputs(self) -> list[tensor_desc]:
        """Describe the outputs in model order."""
        self.outtensors_desc = self.session.get_outputs()
        return self.outtensors_desc

    def infer(
        self,
        feeds: Any,
        mode: str = "static",
        custom_sizes: Any = DEFAULT_OUTPUT_BYTES,
        out_array: bool = True,
    ) -> list[Any]:
        """Run one request.

        Parameters
        ----------
        feeds
            One feed per input in model order: arrays, NumPy scalars, torch CPU tensors, ``aclruntime.Tensor``.
        mode
            ``static``, ``dymbatch``, ``dymhw``, ``dymdims``, ``dymshape``, also spelt ``dyn…``.
        custom_sizes
            ``dymshape`` only: bytes to preallocate for the outputs, one int for all or a list. Larger outputs make
            buffers grow.
        out_array
            ``False`` leaves the outputs on the device.

        Returns
        -------
        list of numpy.ndarray or list of aclruntime.Tensor
            One per output in model order.

        Raises
        ------
        RuntimeError
            The feeds or the mode do not fit the model, or the run failed.
        TypeError
            ``feeds`` is no list.
        """
        session = self.session
        outputs = session.infer(as_feeds(feeds), mode, self._sizes(mode, custom_sizes), out_array)
        session.mode.remember(mode)
        return outputs

    def infer_pipeline(
        self, feeds_list: Any, mode: str = "static", custom_sizes: Any = DEFAULT_OUTPUT_BYTES
    ) -> list[list[np.ndarray]]:
        """Run many requests, overlapping copies and executions.

        Parameters
        ----------
        feeds_list
            A list of what :meth:`infer` takes as feeds; shapes may differ in every mode.
        mode, custom_sizes
            As in :meth:`infer`.

        Returns
        -------
        list of list of numpy.ndarray
            The outputs of each item, in order.

        Raises
        ------
        RuntimeError, TypeError
            As in :meth:`infer`; an item that fails is named by its index in the notes.
        """
        items = [as_feeds(feeds) for feeds in feeds_list]
        sizes = self._sizes(mode, custom_sizes)
        aio = self.aio

        async def collect() -> list[list[np.ndarray]]:
            return [outputs async for outputs in aio.infer_pipeline(items, mode, sizes)]  # type: ignore[arg-type]

        results = aio.elsewhere.runner.run_coroutine(collect)
        self.session.mode.remember(mode)
        return results

    def infer_iteration(
        self,
        feeds: Any,
        in_out_list: Sequence[int] | None = None,
        iteration_times: int = 1,
        mode: str = "static",
        custom_sizes: Any = DEFAULT_OUTPUT_BYTES,
        mem_copy: bool = True,
    ) -> list[np.ndarray]:
        """Run the model several times, feeding outputs of each step to the next on the device.

        Parameters
        ----------
        feeds, mode, custom_sizes
            As in :meth:`infer`.
        in_out_list
            For each input, -1 to keep what it is fed, or the output of the step before that feeds it.
        iteration_times
            Steps, at least 1.
        mem_copy
            ``False`` exchanges buffers instead of copying; the results are the same.

        Returns
        -------
        list of numpy.ndarray
            The outputs of the last step.

        Raises
        ------
        RuntimeError, TypeError
            As in :meth:`infer`; all arguments are checked before the first step.
        """
        items = as_feeds(feeds)
        sizes = self._sizes(mode, custom_sizes)
        pairs = None if in_out_list is None or not len(in_out_list) else [max(-1, int(k)) for k in in_out_list]
        aio = self.aio
        outputs = aio.elsewhere.runner.run_coroutine(
            lambda: aio.infer_iteration(items, pairs, iteration_times, mode, sizes, mem_copy)  # type: ignore[arg-type]
        )
        self.session.mode.remember(mode)
        return outputs

    def first_inner_run(
        self, feeds: Any, mode: str = "static", custom_sizes: Any = DEFAULT_OUTPUT_BYTES
    ) -> list[Tensor]:
        """Run the first step of an iteration by hand; returns an empty list, as outputs stay on the device."""
        outputs = self._steps.first(as_feeds(feeds), mode, self._sizes(mode, custom_sizes))
        self.session.mode.remember(mode)
        return outputs

    def inner_run(
        self, in_out_list: Sequence[int], get_outputs: bool = False, mem_copy: bool = True
    ) -> list[Tensor] | None:
        """Run one more step of the calling thread's iteration; ``None``, or its outputs on the device.

        ``mem_copy`` changes nothing: outputs are fed where they are.
        """
        return self._steps.next(in_out_list, get_outputs)

    def run(self, feeds: Any, out_array: bool = False) -> list[Any]:
        """Run one request in the mode that was set last, by a ``set_…`` method or a call that named one.

        Parameters
        ----------
        feeds
            As in :meth:`infer`, or a mapping by input name.
        out_array
            ``False`` leaves the outputs on the device.
        """
        outputs = self.session.run_selected(feeds)
        if not out_array:
            return outputs
        self.convert_tensors_to_host(outputs)
        return self.convert_tensors_to_arrays(outputs)

    def set_staticbatch(self) -> None:
        """Select the model's own shapes, or its largest gear, for :meth:`run`."""
        self.session.set_staticbatch()

    def set_dynamic_batchsize(self, dym_batch: int) -> None:
        """Select a batch size for :meth:`run`; an int, or a string of one."""
        self.session.set_dynamic_batchsize(dym_batch)

    def set_dynamic_hw(self, w: int, h: int) -> None:
        """Select an image size for :meth:`run`: the **height** first. The names are ais_bench's, which are swapped."""
        self.session.set_dynamic_hw(w, h)

    def set_dynamic_dims(self, dym_dims: str) -> None:
        """Select a gear for :meth:`run` by the dims of all inputs, as ``name:1,3,224,224;name2:1,600``."""
        self.session.set_dynamic_dims(dym_dims)

    def set_dynamic_shape(self, dym_shape: str) -> None:
        """Select the shapes of all inputs for :meth:`run`, as ``name:1,3,224,224;name2:1,600``."""
        self.session.set_dynamic_shape(dym_shape)

    def set_custom_outsize(self, custom_sizes: Sequence[int] | int) -> None:
        """Set how many bytes :meth:`run` preallocates for outputs of dynamic shape."""
        self.session.set_custom_outsize(custom_sizes)

    def set_loop_count(self, loop: int) -> None:
        """Accept the number of executions that the session has; another one takes a session of its own.

        Raises
        ------
        RuntimeError
            It is another number.
        """
        if loop != self.loop:
            raise RuntimeError(
                f"got loop={loop!r}; expected {self.loop!r}, which the session was opened with; open another session "
                "with loop=..."
            )

    def get_max_dym_batchsize(self) -> int:
        """Return the largest batch size; 0 for a model without such gears."""
        return self.session.get_max_dym_batchsize()

    def get_dym_aipp_input_exist(self) -> int:
        """Return whether the model has dynamic AIPP, 1 or 0."""
        return self.session.get_dym_aipp_input_exist()

    def check_dym_aipp_input_exist(self) -> NoReturn:
        """Raise: dynamic AIPP cannot be used here."""
        raise RuntimeError(AIPP)

    def create_tensor_from_arrays_to_device(self, arrays: Any) -> Tensor:
        """Copy one array to the session's device."""
        aio, array = self.aio, as_feed(arrays)
        return on_device(aio.elsewhere.runner.run_coroutine(lambda: aio.to_device(array)))

    @staticmethod
    def convert_tensors_to_host(tensors: Sequence[Tensor]) -> None:
        """Move tensors to the host, in place."""
        for tensor in tensors:
            tensor.to_host()

    @staticmethod
    def convert_tensors_to_arrays(tensors: Sequence[Tensor]) -> list[np.ndarray]:
        """Copy tensors on the host to arrays."""
        return [np.array(tensor) for tensor in tensors]

    def summary(self) -> Summary:
        """Return the milliseconds of each execution, as ``.exec_time_list`` and as a sequence."""
        return self.session.summary()

    def sumary(self) -> Summary:
        """Return :meth:`summary`: the name in older releases."""
        return self.summary()

    def reset_summaryinfo(self) -> None:
        """Empty what :meth:`summary` returns."""
        self.session.reset_summaryinfo()

    def reset_sumaryinfo(self) -> None:
        """Call :meth:`reset_summaryinfo`: the name in older releases."""
        self.reset_summaryinfo()

    def free_resource(self) -> None:
        """Free all that the session holds on the device, after requests under way; idempotent, never fails."""
        self.session.free_resource()
        self._steps = Steps(self.session)  # an iteration by hand keeps device memory

    @staticmethod
    def finalize() -> None:
        """Free every session of the process, reset the devices and finalise ACL; sessions may be opened again."""
        finalize_all()

    def __getattr__(self, name: str) -> NoReturn:
        """Say what to do about a member of ais_bench that is not here."""
        if name in GONE:
            raise AttributeError(f"InferSession.{name} of ais_bench is not in aioais: {GONE[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return repr(self.aio)

    def _sizes(self, mode: str, custom_sizes: Any) -> Any:
        """Return ``custom_sizes`` where they count: with a dynamic shape."""
        if custom_sizes is DEFAULT_OUTPUT_BYTES or mode not in ("dymshape", "dynshape"):
            return DEFAULT_OUTPUT_BYTES
        return self.session.output_sizes(custom_sizes)


def _preparation(session: aclruntime.InferenceSession, mode: str) -> Callable[..., None]:
    """Return what prepares a mode. It does not hold the session's owner, which is closed when it is dropped."""

    def prepare(shapes: Sequence[Sequence[int]], custom_sizes: Any = DEFAULT_OUTPUT_BYTES) -> None:
        session.mode.set_from_feeds(mode, shapes)
        if mode == "dymshape":
            session.set_custom_outsize(custom_sizes)

    return prepare
