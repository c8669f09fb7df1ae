"""Fixtures of the unit tests: small models, what bare ONNX Runtime says of them, a guard against leaked handles."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import inside

import aioais
from aioais import emulator
from aioais.testing import LeakError, check_leaks

Array = np.ndarray[Any, np.dtype[Any]]
Dims = Sequence[int | str]


@pytest.fixture(autouse=True)
def no_handle_left() -> Iterator[None]:
    """Fail the test when anything on a device outlives the sessions, tensors and results of the test."""
    yield
    try:
        check_leaks()
    except LeakError as error:
        pytest.fail(str(error), False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a test that arms a fault which never strikes: it has not seen what it is about."""
    yield
    armed = (*emulator.pending().items(), *emulator.pending(device_side=True).items())
    pending = {call: len(faults) for call, faults in armed if faults}
    if pending:
        emulator.disarm()
        pytest.fail(f"faults that never struck: {pending}; disarm what is meant to be left", False)


@pytest.fixture
def clean_slate() -> Iterator[None]:
    """Begin without ACL, whatever ran before, and disarm what a failed test has armed."""
    inside.finalize_all()
    emulator.reset()
    yield
    emulator.disarm()
    gc.collect()
    inside.finalize_all()
    emulator.reset()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the CPU device pass for one that is faster than threads wake, however slow the machine is."""
    inside.treat_as_fast(monkeypatch)


@pytest.fixture
def dialled() -> Iterator[None]:
    """Stages that take 1, 2 and 1 ms on the device."""
    with emulator.configure(h2d_ms=1, execute_ms=2, d2h_ms=1):
        yield


class Models:
    """Writes small ONNX models and runs them on bare ONNX Runtime."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._references: dict[str, Any] = {}

    def write(
        self,
        name: str,
        nodes: Sequence[tuple[str, list[str], list[str], dict[str, Any]]],
        inputs: Mapping[str, tuple[int, Dims]],
        outputs: Mapping[str, tuple[int, Dims | None]],
        weights: Mapping[str, Array] | None = None,
        ir_version: int = 9,
    ) -> str:
        """Write a graph; types are those of ``onnx.TensorProto``, 1 for float32."""
        import onnx
        from onnx import helper, numpy_helper

        graph = helper.make_graph(
            [helper.make_node(kind, ins, outs, **attributes) for kind, ins, outs, attributes in nodes],
            "g",
            [helper.make_tensor_value_info(key, kind, dims) for key, (kind, dims) in inputs.items()],
            [helper.make_tensor_value_info(key, kind, dims) for key, (kind, dims) in outputs.items()],
            [numpy_helper.from_array(array, key) for key, array in (weights or {}).items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=ir_version)
        path = self.folder / f"{name}.onnx"
        onnx.save(model, str(path))
        return str(path)

    def identity(self, dims: Dims, kind: int = 1, name: str = "identity") -> str:
        """One input ``x`` that is the output ``y``."""
        return self.write(name, [("Identity", ["x"], ["y"], {})], {"x": (kind, dims)}, {"y": (kind, dims)})

    def add(self, dims: Dims, kind: int = 1, name: str = "add") -> str:
        """``output = input1 + input2``."""
        return self.write(
            name,
            [("Add", ["input1", "input2"], ["output"], {})],
            {"input1": (kind, dims), "input2": (kind, dims)},
            {"output": (kind, dims)},
        )

    def add_in(self, mode: str, shape: tuple[int, ...]) -> str:
        """``output = input1 + input2`` for a mode: its rows are fixed, a gear of 1, 2 and 4, or open."""
        if mode == "static":
            return self.add(shape)
        path = self.add(["n", shape[1]])
        if mode == "dymshape":
            return path
        spec = f"input1:-1,{shape[1]};input2:-1,{shape[1]}"
        return self.convert(path, "batch", input_shape=spec, dynamic_batch_size="1,2,4")

    def subtract(self, first: Dims, second: Dims, result: Dims, name: str = "subtract") -> str:
        """``c = a - b``: which feed is which matters."""
        return self.write(
            name, [("Sub", ["a", "b"], ["c"], {})], {"a": (1, first), "b": (1, second)}, {"c": (1, result)}
        )

    def conv(self, dims: Dims, *, nhwc: bool = False, name: str = "conv") -> str:
        """Convolution over 3 channels, with the pixels and their mean as two outputs."""
        weights = np.random.default_rng(7).standard_normal((4, 3, 3, 3)).astype(np.float32)
        nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
        if nhwc:
            nodes.append(("Transpose", ["image"], ["planes"], {"perm": [0, 3, 1, 2]}))
        nodes += [
            ("Conv", ["planes" if nhwc else "image", "w"], ["c"], {"pads": [1, 1, 1, 1]}),
            ("Relu", ["c"], ["pixels"], {}),
            ("GlobalAveragePool", ["pixels"], ["mean"], {}),
        ]
        batch = dims[0]
        spots = dims[1:3] if nhwc else dims[2:]
        return self.write(
            name,
            nodes,
            {"image": (1, dims)},
            {"pixels": (1, [batch, 4, *spots]), "mean": (1, [batch, 4, 1, 1])},
            {"w": weights},
        )

    def convert(self, path: str, name: str, **options: str) -> str:
        """Give a model gears or ranges."""
        return aioais.convert(path, str(self.folder / f"{name}.onnx"), **options)

    def run(self, path: str, **feeds: Array) -> list[Array]:
        """Run bare ONNX Runtime on the same file."""
        import onnxruntime

        session = self._references.get(path)
        if session is None:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            session = self._references[path] = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        outputs: list[Array] = session.run(None, feeds)
        return outputs


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """Writes small ONNX models and runs them on bare ONNX Runtime."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return Models(tmp_path)


@pytest.fixture
def path(models: Models) -> str:
    """A model for the programs of ``tests.unit.programs``."""
    return models.identity((1, 8))


def assert_same(got: Sequence[Array], wanted: Sequence[Array]) -> None:
    """Check that results are the same bits, of the same type and shape."""
    assert [(a.dtype, a.shape) for a in got] == [(a.dtype, a.shape) for a in wanted]
    for one, other in zip(got, wanted, strict=True):
        assert one.tobytes() == np.ascontiguousarray(other).tobytes()


@pytest.fixture
def same() -> Any:
    """Checks that results are the same bits, of the same type and shape."""
    return assert_same
