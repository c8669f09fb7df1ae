"""``aclruntime``, the module below ais_bench: sessions by output names, tensors that move in place.

``aioais.compat.install()`` has ``import aclruntime`` find it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import AioaisError, ArgumentError, ClosedError
from ..session import core_of
from ..types import DEFAULT_OUTPUT_BYTES
from ._aio import AioSession, finalize_all
from ._errors import as_runtime_error
from ._loop import hold, is_in_library
from ._mode import ModeState
from ._models import find_model
from ._summary import MemorySummary, Summary
from ._tensor import BaseTensor, Tensor, as_feeds, on_device
from ._types import dtype, make_desc, memory_type, session_options, tensor_desc

__all__ = [
    "BaseTensor",
    "InferenceSession",
    "MemorySummary",
    "Tensor",
    "dtype",
    "finalize",
    "memory_type",
    "model",
    "session_options",
    "tensor_desc",
]

_log = logging.getLogger("aioais")


class InferenceSession:
    """A model on a device, with blocking calls, from any thread and from many at once.

    Parameters
    ----------
    model_path
        A ``.om`` file for an Ascend NPU or an ``.onnx`` file for the CPU device.
    device_id
        Which device, from 0.
    options
        ``loop``, ``log_level`` and ``acl_json_path``.

    Raises
    ------
    RuntimeError
        The session cannot be opened; the error is the :class:`aioais.AioaisError` that says why.
    """

    def __init__(self, model_path: str, device_id: int = 0, options: session_options | None = None) -> None:
        self.options: session_options = session_options() if options is None else options
        given = self.options
        holding = hold()
        runner = self._runner = holding.runner
        try:
            path, platform = find_model(model_path)
            aio = self._aio = AioSession(
                holding,
                device_id,
                path,
                given.acl_json_path or None,
                given.log_level <= 1,
                given.loop,
                platform=platform,
                check="bytes",
            )
            runner.run_coroutine(lambda: _open(aio))
        except BaseException as exc:
            holding.drop()
            runner.join()
            if isinstance(exc, AioaisError):
                raise as_runtime_error(exc) from exc.__cause__
            raise
        self.mode: ModeState = ModeState(core_of(aio).known().info)
        self._inputs, self._outputs = aio.get_inputs(), aio.get_outputs()
        self._sizes: list[int] | int = DEFAULT_OUTPUT_BYTES

    @property
    def aio(self) -> AioSession:
        """The awaitable session behind this one: an :class:`aioais.InferSession` for any event loop."""
        return self._aio

    def get_inputs(self) -> list[tensor_desc]:
        """Describe the inputs in model order; ``realsize`` is that of the gear or shapes that were set last."""
        return [make_desc(desc, size) for desc, size in zip(self._inputs, self.mode.real_sizes(), strict=True)]

    def get_outputs(self) -> list[tensor_desc]:
        """Describe the outputs in model order."""
        return [make_desc(desc) for desc in self._outputs]

    def run(
        self, names: Sequence[str], feeds: Sequence[Tensor | BaseTensor] | Mapping[str, Tensor | BaseTensor]
    ) -> list[Tensor]:
        """Run the model in the mode that was set last.

        Parameters
        ----------
        names
            Outputs to return, in this order.
        feeds
            Tensors in model order or by name.

        Returns
        -------
        list of Tensor
            On the device.

        Raises
        ------
        TypeError
            ``names`` is ``None``, or a feed is no tensor.
        RuntimeError
            There is no such output, or the run failed.
        """
        if names is None or isinstance(names, str):
            raise TypeError(f"got names={names!r}; expected a list of output names")
        asked = list(names)
        values = feeds.values() if isinstance(feeds, Mapping) else feeds
        for feed in values:
            if not isinstance(feed, (Tensor, BaseTensor)):
                raise TypeError(f"got a feed of type {type(feed).__name__}; expected aclruntime.Tensor(array)")
        known = [desc.name for desc in self._outputs]
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise as_runtime_error(ArgumentError(f"got output names {unknown}; expected some of {known}"))
        outputs = self.run_selected(feeds)
        return [outputs[known.index(name)] for name in asked]

    def run_selected(self, feeds: Any) -> list[Tensor]:
        """Run the model in the mode that was set last; feeds of any kind, all outputs on the device."""
        feeds = as_feeds(feeds)
        if isinstance(feeds, dict) and set(feeds) == {desc.name for desc in self._inputs}:
            feeds = [feeds[desc.name] for desc in self._inputs]
        mode = self.mode.selected.mode
        return self.infer(self.mode.shaped(feeds), mode, self._sizes, False)

    def infer(self, feeds: Any, mode: str, custom_sizes: Any, to_host: bool) -> list[Any]:
        """Run feeds as the library takes them; arrays, or tensors on the device."""
        core = self._aio.elsewhere
        outputs = self._runner.run(lambda: core.begin(feeds, mode, custom_sizes, to_host))
        return outputs if to_host else [on_device(tensor) for tensor in outputs]

    def set_staticbatch(self) -> None:
        """Select the model's own shapes, or its largest gear."""
        self.mode.set_static()

    def set_dynamic_batchsize(self, batchsize: int) -> None:
        """Select a batch size."""
        self.mode.set_batch(batchsize)

    def set_dynamic_hw(self, height: int, width: int) -> None:
        """Select an image size, the height first."""
        self.mode.set_image(height, width)

    def set_dynamic_dims(self, dims: str) -> None:
        """Select a gear by the dims of all inputs, as ``name:1,3,224,224;name2:1,600``."""
        self.mode.set_dims(dims)

    def set_dynamic_shape(self, shape: str) -> None:
        """Select the shapes of a model of dynamic shape, written as in :meth:`set_dynamic_dims`."""
        self.mode.set_shape(shape)

    def set_custom_outsize(self, sizes: Sequence[int] | int) -> None:
        """Set how many bytes :meth:`run` preallocates for outputs of dynamic shape; larger ones make them grow."""
        self._sizes = self.output_sizes(sizes)

    def output_sizes(self, sizes: Any) -> Any:
        """Return ``custom_sizes`` with one size per output, as ais_bench reads a list that is shorter or longer.

        Raises
        ------
        RuntimeError
            It is neither an int nor a list of them.
        """
        if isinstance(sizes, (list, tuple)):
            count = len(self._outputs)
            return [*sizes, *([DEFAULT_OUTPUT_BYTES] * count)][:count]
        if isinstance(sizes, (int, np.integer)):
            return int(sizes)
        raise as_runtime_error(
            ArgumentError(f"got custom_sizes={sizes!r} of type {type(sizes).__name__}; expected an int, or a list")
        )

    def get_max_dym_batchsize(self) -> int:
        """Return the largest batch size; 0 for a model without such gears."""
        return self.mode.most_batches()

    def get_dym_aipp_input_exist(self) -> int:
        """Return whether the model has dynamic AIPP, 1 or 0."""
        return int(core_of(self._aio).known().info.has_dynamic_aipp)

    def summary(self) -> Summary:
        """Return the milliseconds of each execution, as ``.exec_time_list``."""
        return Summary.of(self._aio.summary())

    def sumary(self) -> Summary:
        """Return :meth:`summary`: the name in older releases."""
        return self.summary()

    def reset_summaryinfo(self) -> None:
        """Empty what :meth:`summary` returns."""
        self._aio.reset_summaryinfo()

    def reset_sumaryinfo(self) -> None:
        """Call :meth:`reset_summaryinfo`: the name in older releases."""
        self.reset_summaryinfo()

    def free_resource(self) -> None:
        """Free all that the session holds on the device, after requests under way; idempotent, never fails."""
        runner, aio = self._runner, self._aio
        if runner.is_over:
            aio.elsewhere.abandon()
            aio.let_go()
        elif is_in_library():  # in a finaliser, which must not wait here
            aio.close_soon()
            return
        elif aio.has_loop:
            try:
                runner.run_coroutine(aio.aclose)
            except ClosedError:
                pass  # another thread has freed it first
            except AioaisError as exc:  # ais_bench's does not raise either; all else was freed
                _log.warning("%r was not freed cleanly: %s", aio, exc)
        runner.join()

    def finalize(self) -> None:
        """Free every session of the process, reset the devices and finalise ACL."""
        finalize()

    def __repr__(self) -> str:
        lines = [f"<Model> {self._aio!r}"]
        for what, descs in (("input", self.get_inputs()), ("output", self.get_outputs())):
            for k, desc in enumerate(descs):
                lines.append(
                    f"  {what} {k}: {desc.name!r} {list(desc.shape)} {desc.datatype}, size {desc.size}, "
                    f"realsize {desc.realsize}"
                )
        return "\n".join(lines)


def model(modelPath: str, deviceId: int = 0, options: session_options | None = None) -> InferenceSession:
    """Open a model: aclruntime's other name of :class:`InferenceSession`."""
    return InferenceSession(modelPath, deviceId, options)


async def _open(aio: AioSession) -> None:
    await aio


def finalize() -> None:
    """Free every session of the process, reset the devices and finalise ACL; blocks."""
    finalize_all()


def __getattr__(name: str) -> Any:
    """Return an enumerator, such as ``aclruntime.float32``: aclruntime has them in the module too."""
    for kind in (dtype, memory_type):
        if name in kind.__members__:
            return kind[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
