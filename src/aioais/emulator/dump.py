"""The ``dump`` part of acl.json: the tensors of every layer of every execution, as files.

A model that is to be dumped gets a second ONNX Runtime session, in which the selected tensors are
outputs of the graph and no node is fused with another. It computes from the same inputs just
before the execution itself, which may write its outputs on top of them.

Layout: ``<dump_path>/<YYYYmmddHHMMSS>/<device>/<model name>/<model id>/<execution>/`` and in it
``<op type>.<node name>.<task>.<stream>.<microseconds>.<input|output>.<index>.npy``.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import math
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from threading import Lock
from time import time_ns
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._cann.codes import AclCode
from .config import ConfigError
from .ort import Bound, LoadError, start_session

__all__ = ["Dump", "Probe", "open_dump"]

_log = logging.getLogger("aioais.emulator")

# ONNX element type -> numpy; types missing here and below have no array
_DTYPES = {
    1: "f4", 2: "u1", 3: "i1", 4: "u2", 5: "i2", 6: "i4", 7: "i8", 9: "?", 10: "f2",
    11: "f8", 12: "u4", 13: "u8", 14: "c8", 15: "c16",
}  # fmt: skip
_BFLOAT16 = 16
_FLOAT8 = {17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz"}
_LONGEST = 255
"""Bytes of a file name."""
_TAIL = 80
"""Bytes of it reserved for the numbers, so that a layer keeps one name."""


class Layer(NamedTuple):
    """A node of the graph and the tensors of it that are dumped."""

    op_type: str
    name: str
    task: int
    """Its place in the graph."""
    tensors: tuple[tuple[str, int, str], ...]
    """``input`` or ``output``, index, and the name of the tensor."""

    def file_name(self, stream: int, stamp: int, role: str, index: int) -> str:
        """Return the name of the file of a tensor, short enough for a file system."""
        head, tail = f"{_clean(self.op_type)}.", f".{self.task}.{stream}.{stamp}.{role}.{index}.npy"
        name = _clean(self.name)
        room = max(_LONGEST - len(head.encode()) - _TAIL, _TAIL)
        if len(name.encode()) > room:
            check = f"_{zlib.crc32(self.name.encode()):08x}"
            name = name.encode()[: room - len(check)].decode(errors="ignore") + check
        return f"{head}{name}{tail}"


def _clean(name: str) -> str:
    """Make a name valid in a path, as CANN does."""
    return re.sub(r"[\s./\\\x00-\x1f]", "_", name) or "_"


class Probe:
    """The second session of a model, which gives the tensors inside.

    Parameters
    ----------
    dump
        Where the files go.
    name
        The model's name.
    session
        Has every selected tensor as an output.
    layers
        What to write.
    fed
        The inputs of the graph, which are read where they are.
    """

    def __init__(self, dump: Dump, name: str, session: Any, layers: Sequence[Layer], fed: Iterable[str]) -> None:
        self._dump = dump
        self._name = name
        self._session = session
        self._layers = layers
        self._inputs = set(fed)
        self._names = sorted({tensor for layer in layers for _, _, tensor in layer.tensors} - self._inputs)
        self._count = 0

    def run(self, fed: Sequence[Bound], device: int, model: int, stream: int) -> None:
        """Compute the layers and write their tensors.

        Parameters
        ----------
        fed
            Memory of every input of the graph.
        device, model, stream
            Their numbers.

        Raises
        ------
        OSError
            A file cannot be written.
        Exception
            The model fails; the classes of ONNX Runtime's errors are made at run time.
        """
        io = self._session.io_binding()
        arrays: dict[str, npt.NDArray[Any] | None] = {}
        for tensor in fed:
            io.bind_input(tensor.name, "cpu", 0, tensor.element, tensor.shape, tensor.pointer)
            arrays[tensor.name] = _array(tensor.pointer, tensor.shape, tensor.element)
        for name in self._names:
            io.bind_output(name)
        values: list[Any] = []
        if self._names:
            self._session.run_with_iobinding(io)
            values = io.get_outputs()
        for name, value in zip(self._names, values, strict=True):
            if value.is_tensor() and value.has_value():
                arrays[name] = _array(value.data_ptr(), tuple(value.shape()), value.element_type())
        folder = os.path.join(self._dump.folder(), str(device), _clean(self._name), str(model), str(self._count))
        self._count += 1
        os.makedirs(folder)
        stamp = time_ns() // 1000
        for layer in self._layers:
            for role, index, name in layer.tensors:
                array = arrays.get(name)
                if array is not None:
                    with open(os.path.join(folder, layer.file_name(stream, stamp, role, index)), "xb") as file:
                        np.save(file, array, allow_pickle=False)


def _array(pointer: int, shape: tuple[int, ...], element: int) -> npt.NDArray[Any] | None:
    """View memory as an array; floats that NumPy lacks become float32, strings are skipped."""
    if element in _DTYPES:
        dtype: np.dtype[Any] = np.dtype(_DTYPES[element])
    elif element == _BFLOAT16:
        dtype = np.dtype("u2")
    elif element in _FLOAT8:
        dtype = np.dtype("u1")
    else:
        return None
    count = math.prod(shape)
    if count == 0:
        return np.empty(shape, dtype if element in _DTYPES else np.float32)
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(pointer)
    array: npt.NDArray[Any] = np.frombuffer(memoryview(memory).cast("B"), dtype).reshape(shape)
    if element == _BFLOAT16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    elif element in _FLOAT8:
        import ml_dtypes

        array = array.view(getattr(ml_dtypes, _FLOAT8[element])).astype(np.float32)
    return array


class Dump:
    """A dump as acl.json asks for it.

    Parameters
    ----------
    path
        The folder to write below.
    mode
        ``input``, ``output`` or ``all``.
    entries
        Models and their layers; empty = every layer of every model.
    """

    def __init__(self, path: str, mode: str, entries: list[dict[str, Any]]) -> None:
        self._path = path
        self._roles = ("input", "output") if mode == "all" else (mode,)
        self._entries = entries
        self._lock = Lock()
        self._folder = ""

    def folder(self) -> str:
        """Return the folder of this run, made when it is first needed and shared with no other run."""
        with self._lock:
            moment = datetime.now()
            while not self._folder:
                folder = os.path.join(self._path, f"{moment:%Y%m%d%H%M%S}")
                try:
                    os.makedirs(folder)
                except FileExistsError:
                    if not os.path.isdir(self._path):
                        raise
                    moment += timedelta(seconds=1)  # another run started in this second
                else:
                    self._folder = folder
            return self._folder

    def _selected(self, names: set[str]) -> set[str] | None:
        """Return the selected layers of a model: empty for all, ``None`` when it is not dumped."""
        if not self._entries:
            return set()
        chosen = [entry for entry in self._entries if entry.get("model_name", "") in ("", *names)]
        if not chosen:
            return None
        if not all(entry.get("layer") for entry in chosen):
            return set()
        return {layer for entry in chosen for layer in entry["layer"]}

    def probe(self, source: str | bytes, name: str, title: str, fed: list[str], threads: int) -> Probe | None:
        """Prepare a model for dumping.

        Parameters
        ----------
        source
            Path or content of the ONNX model.
        name
            The model's name.
        title
            The name of its graph; matches too.
        fed
            The inputs of the graph.
        threads
            Intra-op threads of the session.

        Returns
        -------
        Probe or None
            ``None`` for a model of which nothing is dumped.

        Raises
        ------
        LoadError
            ``onnx`` is missing, or the model cannot be prepared.
        """
        selected = self._selected({name, title})
        if selected is None:
            return None
        try:
            import onnx
        except ImportError as exc:
            raise LoadError(AclCode.FEATURE_UNSUPPORTED, f"{_MISSING}: {exc}") from exc
        try:
            if isinstance(source, str):
                proto = onnx.load(source, load_external_data=False)
            else:
                proto = onnx.load_model_from_string(source)
        except Exception as exc:  # protobuf's own classes
            raise LoadError(AclCode.GE_LOAD_MODEL, f"dump: {name!r} cannot be read by onnx: {exc}") from exc
        layers = self._layers(proto.graph, selected)
        if not layers:
            _log.warning("dump: model %r has none of the layers asked for", name)
            return None
        known = {*fed, *(value.name for value in proto.graph.output)}
        for tensor in sorted({tensor for layer in layers for _, _, tensor in layer.tensors} - known):
            proto.graph.output.append(onnx.ValueInfoProto(name=tensor))
        folder = os.path.dirname(os.path.abspath(source)) if isinstance(source, str) else ""
        session = start_session(proto.SerializeToString(), f"dump: model {name!r}", threads, False, True, folder)
        return Probe(self, name, session, layers, fed)

    def _layers(self, graph: Any, selected: set[str]) -> list[Layer]:
        layers = []
        # missing inputs, and weights that ONNX Runtime cannot give as outputs
        left_out = {"", *(sparse.values.name for sparse in graph.sparse_initializer)}
        for task, node in enumerate(graph.node):
            name = node.name or f"{node.op_type}_{task}"
            if selected and selected.isdisjoint((name, _clean(name))):
                continue
            groups = {"input": node.input, "output": node.output}
            tensors = tuple(
                (role, index, tensor)
                for role in self._roles
                for index, tensor in enumerate(groups[role])
                if tensor not in left_out
            )
            layers.append(Layer(node.op_type, name, task, tensors))
        return layers


_MISSING = "dump needs the package onnx: pip install onnx"


def open_dump(config: dict[str, Any]) -> Dump | None:
    """Prepare dumping where the configuration asks for it.

    Parameters
    ----------
    config
        The content of acl.json, checked.

    Returns
    -------
    Dump or None
        ``None`` without a ``dump_list``: there are no single operators and exceptions to dump here.

    Raises
    ------
    ConfigError
        ``onnx`` is missing, statistics are requested instead of tensors, or the folder
        cannot be written.
    """
    part = config.get("dump")
    if part is None or "dump_list" not in part or "dump_scene" in part or part.get("dump_debug") == "on":
        return None
    if part.get("dump_data") == "stats":
        text = 'dump: "dump_data" is "stats", the CPU device writes tensors only'
        raise ConfigError(AclCode.FEATURE_UNSUPPORTED, text)
    if importlib.util.find_spec("onnx") is None:
        raise ConfigError(AclCode.FEATURE_UNSUPPORTED, _MISSING)
    path = os.path.abspath(part["dump_path"])
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        text = f'dump: the folder {path!r} of "dump_path" cannot be written: {reason}'
        raise ConfigError(AclCode.WRITE_FILE, text) from exc
    return Dump(path, part.get("dump_mode", "output"), part["dump_list"])
