"""ONNX Runtime: loading a model and running it in place on device memory."""

from __future__ import annotations

import ctypes
import io
import math
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from .._cann.codes import AclCode
from .errors import CodedError, DeviceError
from .onnx_ranks import without_rank
from .ort_library import preload
from .threads import Weights, cores, is_brief, weigh
from .work_memory import WorkMemory

__all__ = ["UNKNOWN_RANK", "Binding", "LoadError", "OrtModel", "OrtTensor", "start_session"]

# type name of ONNX Runtime -> (aclDataType, ONNX element type, bytes of one element)
_TYPES = {
    "tensor(float)": (0, 1, 4),
    "tensor(float16)": (1, 10, 2),
    "tensor(int8)": (2, 3, 1),
    "tensor(int32)": (3, 6, 4),
    "tensor(uint8)": (4, 2, 1),
    "tensor(int16)": (6, 5, 2),
    "tensor(uint16)": (7, 4, 2),
    "tensor(uint32)": (8, 12, 4),
    "tensor(int64)": (9, 7, 8),
    "tensor(uint64)": (10, 13, 8),
    "tensor(double)": (11, 11, 8),
    "tensor(bool)": (12, 9, 1),
    "tensor(bfloat16)": (27, 16, 2),
    "tensor(float8e5m2)": (35, 19, 1),
    "tensor(float8e4m3fn)": (36, 17, 1),
    "tensor(float8e8m0)": (37, 24, 1),
}

UNKNOWN_RANK = (-2,)
"""Dims of a tensor whose number of dims is open, as GE has them."""

OM_MAGIC = b"IMOD"
"""First bytes of an offline model."""


class LoadError(CodedError):
    """A model cannot be loaded; the load returns the code."""


class OrtTensor(NamedTuple):
    """An input or output of the graph."""

    name: str
    dtype: int
    """``aclDataType``."""
    element: int
    """ONNX element type."""
    itemsize: int
    shape: tuple[int, ...]
    """-1 where the graph leaves a dim open; ``(-2,)``, as in GE, where even their number is open."""


class Bound(NamedTuple):
    """Memory for one tensor of a run."""

    name: str
    element: int
    shape: tuple[int, ...]
    pointer: int
    nbytes: int


def _import() -> Any:
    if not preload():
        text = "ONNX Runtime is not installed: pip install onnxruntime"
        raise LoadError(AclCode.GE_EXEC_NOT_INIT, text)
    import onnxruntime

    return onnxruntime


@cache
def _cpu() -> Any:
    """Return where all memory is, as ONNX Runtime names it below its own Python layer."""
    return _import().OrtDevice.make("cpu", 0)._get_c_device()


def check_magic(head: bytes, what: str) -> None:
    """Refuse offline models and empty files.

    Raises
    ------
    LoadError
        The first bytes are not those of an ONNX model.
    """
    if head.startswith(OM_MAGIC):
        text = f"{what} is an offline model (.om) for an Ascend NPU; the CPU device runs ONNX models"
        raise LoadError(AclCode.GE_LOAD_MODEL, text)
    if not head:
        raise LoadError(AclCode.GE_EXEC_MODEL_DATA_SIZE_INVALID, f"{what} is empty")


_SPIN_US = 60
"""Microseconds that a thread spins before it sleeps: about what it takes to wake it up for the next operator."""


def _can_limit_spinning(version: str) -> bool:
    """Whether a release can; others ignore the option, and would spin for milliseconds."""
    numbers = [int(part) for part in version.split(".")[:2] if part.isdecimal()]
    return numbers >= [1, 32]


def start_session(
    source: str | bytes, what: str, threads: int, spin: bool, plain: bool = False, folder: str = ""
) -> Any:
    """Create a session of ONNX Runtime.

    Parameters
    ----------
    source
        Path (loading releases the GIL) or content (it does not).
    what
        What is loaded, for messages.
    threads
        Intra-op threads; 0 = as many as there are cores.
    spin
        Whether they spin between operators for as long as ONNX Runtime likes, instead of briefly.
    plain
        Run the graph node by node as it is written, without optimising it.
    folder
        Where the weights outside of the content are.

    Returns
    -------
    onnxruntime.InferenceSession
        The session.

    Raises
    ------
    LoadError
        It is not an ONNX model, or not one that can run here.
    """
    onnxruntime = _import()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.log_severity_level = 4  # failures are reported by return codes, not on stderr
    pause = _SPIN_US if not spin and _can_limit_spinning(onnxruntime.__version__) else 0
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin or pause > 0)))
    if pause:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(pause))
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if folder:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    try:
        # The fallback would try the same provider again and print a message to stdout.
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as exc:  # the classes of its errors are made at run time
        kind = type(exc).__name__
        no_model = kind == "InvalidProtobuf" or "No graph was found" in str(exc)
        code = AclCode.GE_EXEC_MODEL_DATA_SIZE_INVALID if no_model else AclCode.GE_LOAD_MODEL
        raise LoadError(code, f"{what} is not a model that ONNX Runtime loads: {exc}") from exc


class Binding:
    """A run with fixed memory: inputs and outputs in place.

    Parameters
    ----------
    model
        The model.
    inputs, outputs
        Memory of every input, and of every output in graph order; an output with a pointer of 0
        is allocated by ONNX Runtime.
    """

    __slots__ = ("_bound", "_elsewhere", "_is_checked", "_model", "_outputs", "_run")

    def __init__(self, model: OrtModel, inputs: Sequence[Bound], outputs: Sequence[Bound]) -> None:
        nbytes = sum(tensor.nbytes for tensor in (*inputs, *outputs))
        session = model.session_for([tensor.shape for tensor in inputs], nbytes)
        self._model = model
        # What is around these costs more than a small model.
        self._bound = bound = session.io_binding()._iobinding
        self._run = session._sess.run_with_iobinding
        self._outputs = outputs
        self._is_checked = False
        self._elsewhere: list[int] = []
        for tensor in inputs:
            bound.bind_input(tensor.name, _cpu(), tensor.element, tensor.shape, tensor.pointer)
        for tensor in outputs:
            if tensor.pointer:
                bound.bind_output(tensor.name, _cpu(), tensor.element, tensor.shape, tensor.pointer)
            else:
                bound.bind_output(tensor.name, _cpu())

    def run(self, gives_back: bool = False) -> None:
        """Compute; the outputs are in their memory afterwards.

        Parameters
        ----------
        gives_back
            ONNX Runtime gives work memory back that is not used at the end of the run.

        Raises
        ------
        DeviceError
            The model failed, or its run was ended by :meth:`OrtModel.stop`.
        """
        model = self._model
        model.is_running = True
        try:
            self._run(self._bound, model.returning if gives_back else model.options)
        except Exception as exc:  # the classes of its errors are made at run time
            if model.options.terminate:
                raise DeviceError(AclCode.RT_STREAM_ABORT, "the running model was stopped") from exc
            raise DeviceError(AclCode.RT_MODEL_EXECUTE, f"the model failed: {exc}") from exc
        finally:
            model.is_running = False
            if model.is_stopping:
                model.end_stop()
        if not self._is_checked:
            # an output that is also an input of the graph comes back as that input, unbound
            values = self._bound.get_outputs()
            self._elsewhere = [
                index
                for index, (value, bound) in enumerate(zip(values, self._outputs, strict=True))
                if bound.pointer and value.data_ptr() != bound.pointer
            ]
            self._is_checked = True
        if self._elsewhere:
            values = self._bound.get_outputs()
            for index in self._elsewhere:
                bound = self._outputs[index]
                ctypes.memmove(bound.pointer, values[index].data_ptr(), bound.nbytes)

    def results(self) -> list[tuple[tuple[int, ...], int]]:
        """Return shape and address of every output of the last run."""
        values = self._bound.get_outputs()
        found = [values[index] for index in range(len(values))]  # its iterator is slow
        return [(tuple(value.shape()), value.data_ptr()) for value in found]


def _run_options() -> Any:
    options = _import().RunOptions()
    options.log_severity_level = 4
    # Looked up before every run; a missing entry costs 40 µs for an exception inside.
    options.add_run_config_entry("gpu_graph_id", "-1")
    return options


class OrtModel:
    """A loaded ONNX model.

    Parameters
    ----------
    source
        Path (loading releases the GIL) or content (it does not).
    threads
        Intra-op threads; 0 = as many as there are cores, but one for a run that is brief.
    spin
        Whether they spin between operators for as long as ONNX Runtime likes, instead of briefly.

    Attributes
    ----------
    session
        What runs it.
    brief_session
        The same with one thread, for its brief runs; ``None`` where all its runs have the same threads.
    options, returning
        Options of its runs, which run one at a time; with ``returning``, work memory is given back at the end.
    work_memory
        Decides about that.
    lock
        Guards the end of a run against :meth:`stop`.
    is_running
        Whether it is computing.
    is_stopping
        Whether the current run is being ended early.

    Raises
    ------
    LoadError
        It is not an ONNX model, or not one that can run here.
    """

    def __init__(self, source: str | bytes, threads: int, spin: bool) -> None:
        what = source if isinstance(source, str) else "the model in memory"
        if isinstance(source, str):
            try:
                with io.open(source, "rb") as file:  # noqa: UP020 - Python removes the built-in before the modules
                    head = file.read(4)
            except OSError as exc:
                text = f"cannot read {source}: {exc.strerror or exc}"
                raise LoadError(AclCode.GE_EXEC_MODEL_PATH_INVALID, text) from exc
        else:
            head = source[:4]
        check_magic(head, what)
        self._weights: Weights | None = None if threads or cores() == 1 else weigh(source)
        self.session: Any = start_session(source, what, threads if self._weights is None else 1, spin)
        self.brief_session: Any = None
        try:
            self.inputs: list[OrtTensor] = [self._tensor(node, "input") for node in self.session.get_inputs()]
            self.outputs: list[OrtTensor] = [self._tensor(node, "output") for node in self.session.get_outputs()]
            if any(tensor.shape == () for tensor in (*self.inputs, *self.outputs)):
                unknown = without_rank(source)
                for tensors in (self.inputs, self.outputs):
                    tensors[:] = [
                        tensor._replace(shape=UNKNOWN_RANK) if tensor.shape == () and tensor.name in unknown else tensor
                        for tensor in tensors
                    ]
            self.optional: list[OrtTensor] = self._overridable(source)
            about = self.session.get_modelmeta()
            self.metadata: dict[str, str] = dict(about.custom_metadata_map)
            self.title: str = str(about.graph_name)
        except UnicodeDecodeError as exc:
            text = f"{what} is damaged: a name in it is not UTF-8 ({exc})"
            raise LoadError(AclCode.GE_LOAD_MODEL, text) from exc
        if self._weights is not None:
            tensors = self.inputs + self.outputs
            is_open = any(dim < 0 for tensor in tensors for dim in tensor.shape)
            nbytes = sum(math.prod(tensor.shape) * tensor.itemsize for tensor in tensors)
            if is_open:
                self.brief_session = self.session
            if is_open or not is_brief(self._weights, [tensor.shape for tensor in self.inputs], nbytes):
                self.session = start_session(source, what, 0, spin)
        self.options: Any = _run_options()
        self.returning: Any = _run_options()
        self.returning.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.work_memory: WorkMemory = WorkMemory()
        self.lock: threading.Lock = threading.Lock()
        self.is_running = False
        self.is_stopping: bool = False

    def session_for(self, shapes: Sequence[Sequence[int]], nbytes: int) -> Any:
        """Return the session for runs with inputs of these shapes, and so many bytes of inputs and outputs."""
        if self.brief_session is None or self._weights is None or not is_brief(self._weights, shapes, nbytes):
            return self.session
        return self.brief_session

    def _overridable(self, source: str | bytes) -> list[OrtTensor]:
        """Describe the initializers that may be fed: those that are inputs of the graph too, since IR version 4.

        Those of open dims, and of types that the device does not have, are left as constants.
        """
        nodes = [node for node in self.session.get_overridable_initializers() if node.type in _TYPES]
        tensors = [self._tensor(node, "input") for node in nodes]
        unknown = without_rank(source) if any(tensor.shape == () for tensor in tensors) else set()
        return [tensor for tensor in tensors if min(tensor.shape, default=0) >= 0 and tensor.name not in unknown]

    def stop(self) -> None:
        """End the current run at the next operator, if there is one."""
        with self.lock:
            # In this order: a run that ends now either sees is_stopping, or is seen to have ended.
            self.is_stopping = True
            if self.is_running:
                self.options.terminate = self.returning.terminate = True
            else:
                self.is_stopping = False

    def end_stop(self) -> None:
        """Let later runs run: the one that was stopped has ended."""
        with self.lock:
            self.is_stopping = self.options.terminate = self.returning.terminate = False

    @staticmethod
    def _tensor(node: Any, role: str) -> OrtTensor:
        known = _TYPES.get(node.type)
        if known is None:
            text = f"{role} {node.name!r} is a {node.type}: the device has no such tensors"
            raise LoadError(AclCode.GE_DATATYPE_INVALID, text)
        shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in node.shape)
        return OrtTensor(node.name, *known, shape)
