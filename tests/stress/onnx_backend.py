"""The backend test suite of the package ``onnx``, on the CPU device and on bare ONNX Runtime.

A case is a model, inputs and the outputs that the ONNX standard wants. The outcome of a case on one of the two is
``""`` where it passes, else what went wrong. Nothing is downloaded: models that do not come with the package are no
cases.
"""

from __future__ import annotations

import ctypes
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from aioais import AioaisError, InferSession

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")

Value = Any
"""An array, a list of values (a sequence) or None (an optional that is empty)."""


@dataclass
class Case:
    """One case of the suite."""

    name: str
    model: onnx.ModelProto
    data_sets: list[tuple[list[Value], list[Value]]]
    rtol: float
    atol: float


def load_cases() -> list[Case]:
    """Collect every case whose data come with the package, by name."""
    from onnx.backend.test.loader import load_model_tests

    cases: dict[str, Case] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite computes infinities on purpose
        for kind in KINDS:
            for test in load_model_tests(kind=kind):
                data_sets: list[tuple[list[Value], list[Value]]]
                if test.model is not None:
                    model = test.model
                    data_sets = [(_normal(inputs), _normal(outputs)) for inputs, outputs in test.data_sets or ()]
                elif test.model_dir is not None:
                    folder = Path(test.model_dir)
                    model = onnx.load(str(folder / "model.onnx"))
                    data_sets = [_data_set(model, part) for part in sorted(folder.glob("test_data_set*"))]
                else:
                    model, data_sets = _light(str(test.url))
                cases[f"{kind}/{test.name}"] = Case(f"{kind}/{test.name}", model, data_sets, test.rtol, test.atol)
    return [cases[name] for name in sorted(cases)]


def _normal(values: Sequence[Any]) -> list[Value]:
    def normal(value: Any) -> Value:
        if isinstance(value, onnx.TensorProto):
            return numpy_helper.to_array(value)
        return np.asarray(value) if isinstance(value, np.generic) else value

    return [normal(value) for value in values]


def _light(url: str) -> tuple[onnx.ModelProto, list[tuple[list[Value], list[Value]]]]:
    """Read a large model without its weights: they are made by the graph; the inputs are ramps as in onnx's runner."""
    from onnx.backend.test.runner import Runner

    path = Path(onnx.__file__).parent.parent / url
    model = onnx.load(str(path))
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [
        Runner.generate_dummy_data(value, seed=0, name=path.stem, random=False)
        for value in model.graph.input
        if value.name not in weights
    ]
    outputs = [_load(path.with_name(f"{path.stem}_output_{k}.pb"), value) for k, value in enumerate(model.graph.output)]
    return model, [(inputs, outputs)]


def _data_set(model: onnx.ModelProto, folder: Path) -> tuple[list[Value], list[Value]]:
    def read(role: str, values: Sequence[onnx.ValueInfoProto]) -> list[Value]:
        count = len(list(folder.glob(f"{role}_*.pb")))
        return [_load(folder / f"{role}_{k}.pb", values[k]) for k in range(count)]

    return read("input", model.graph.input), read("output", model.graph.output)


def _load(path: Path, value: onnx.ValueInfoProto) -> Value:
    content = path.read_bytes()
    kind = value.type.WhichOneof("value")
    if kind == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if kind == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return numpy_helper.to_array(onnx.TensorProto.FromString(content))


# --- what ACL does not have -----------------------------------------------------------------------


def beyond_acl(model: onnx.ModelProto) -> str:
    """Say why a device cannot have a model's inputs or outputs: what ACL has is tensors of its own data types."""
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        if value.name in weights:
            continue
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            return f"{kind.partition('_')[0]}s" if kind else "no type"
        element = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        if element in BEYOND:
            return BEYOND[element]
    return ""


BEYOND = {
    "STRING": "strings",
    "COMPLEX64": "complex numbers",
    "COMPLEX128": "complex numbers",
    "FLOAT8E4M3FNUZ": "float8 without negative zero",
    "FLOAT8E5M2FNUZ": "float8 without negative zero",
    "UINT4": "packed elements",
    "INT4": "packed elements",
    "UINT2": "packed elements",
    "INT2": "packed elements",
    "FLOAT4E2M1": "packed elements",
}
"""ONNX element types that the CPU device has no tensors of, and how the list of differences calls them."""


# --- the two ways to run a case -------------------------------------------------------------------


def run_bare(case: Case, path: str) -> str:
    """Run a case on ONNX Runtime alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        types = {node.name: str(node.type) for node in session.get_inputs()}
        added = any("bfloat16" in kind or "float8" in kind for kind in types.values())
        added = added or any("bfloat16" in node.type or "float8" in node.type for node in session.get_outputs())
        for inputs, wanted in case.data_sets:
            feeds = dict(zip(types, inputs, strict=False))
            if added:
                # Its interface for NumPy lacks these types; values of its own kind have them.
                values = session.run_with_ort_values(None, {name: _to_ort(value) for name, value in feeds.items()})
                came = [_from_ort(value) for value in values]
            else:
                came = session.run(None, feeds)
            if trouble := compare(case, came, wanted):
                return trouble
    except Exception as exc:  # noqa: BLE001 - ONNX Runtime makes its exception classes at run time
        return f"{type(exc).__name__}: {exc}"
    return ""


def _to_ort(value: Value) -> Any:
    import onnxruntime

    array = np.asarray(value)
    if array.dtype.isbuiltin == 2:  # a type that ml_dtypes has added to NumPy
        element = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, element)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _from_ort(value: Any) -> Value:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.element_type())
    if dtype == np.float32 and value.element_type() != onnx.TensorProto.FLOAT:
        raise TypeError("this release of onnx has no arrays of the type")  # before 1.19: float32 in its place
    shape = tuple(value.shape())
    content = ctypes.string_at(value.data_ptr(), math.prod(shape) * dtype.itemsize) if math.prod(shape) else b""
    return np.frombuffer(content, dtype).reshape(shape)


async def run_aioais(case: Case, path: str) -> str:
    """Run a case through a session on the CPU device."""
    try:
        async with InferSession(0, path) as session:
            for inputs, wanted in case.data_sets:
                came = await session.infer(inputs, mode="auto")
                if trouble := compare(case, came, wanted):
                    return trouble
    except AioaisError as exc:
        return f"{type(exc).__name__}: {exc}"
    return ""


def compare(case: Case, came: list[Value], wanted: list[Value]) -> str:
    """Compare as onnx's own runner does; gives the first difference."""
    from onnx.backend.test.runner import Runner

    try:
        Runner.assert_similar_outputs(wanted, came, case.rtol, case.atol)
    except (AssertionError, TypeError, AttributeError) as exc:
        return " ".join(str(exc).split())[:300]
    return ""


def write(case: Case, folder: Path) -> str:
    """Write a case's model into a folder."""
    path = folder / "model.onnx"
    path.write_bytes(case.model.SerializeToString())
    return str(path)


def sample(cases: Sequence[Case], count: int) -> Iterator[Case]:
    """Give about as many cases, spread evenly over the list."""
    step = max(1, len(cases) // count)
    yield from cases[::step]
