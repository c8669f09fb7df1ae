"""Fixtures of the conformance tests: an ``acl`` module, small models, a driver that checks every code."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402
from tests import inside  # noqa: E402

from aioais import emulator  # noqa: E402
from aioais.emulator.metadata import (  # noqa: E402
    METADATA_KEY,
    InputMetadata,
    Mode,
    ModelMetadata,
    OutputMetadata,
)

H2D, D2H, D2D = 1, 2, 3


@pytest.fixture
def acl() -> Iterator[Any]:
    """A fresh ``acl`` module; the emulator's, until real hardware takes its place."""
    inside.finalize_all()  # sessions that other tests had: the library must not think that ACL is still started
    emulator.reset()
    yield emulator.acl
    emulator.reset()


@pytest.fixture
def ready(acl: Any) -> Any:
    """``acl``, initialised, with device 0 set in this thread."""
    assert acl.init() == 0
    assert acl.rt.set_device(0) == 0
    return acl


class Models:
    """Writes small ONNX models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(
        self,
        name: str,
        nodes: list[Any],
        inputs: list[tuple[str, int, list[Any] | None]],
        outputs: list[tuple[str, int, list[Any] | None]],
        metadata: ModelMetadata | None = None,
        initializers: list[Any] | None = None,
    ) -> str:
        """Write one model; the file has no particular extension."""
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info(*entry) for entry in inputs],
            [helper.make_tensor_value_info(*entry) for entry in outputs],
            initializers or [],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        if metadata is not None:
            helper.set_model_props(model, {METADATA_KEY: metadata.dump()})
        path = self.folder / f"{name}.model"
        path.write_bytes(model.SerializeToString())
        return str(path)

    def add(self, shape: tuple[int, ...] = (2, 3), element: int = TensorProto.FLOAT) -> str:
        """``out = a + b`` with fixed shapes."""
        dims = list(shape)
        return self.write(
            f"add_{element}_{'x'.join(map(str, shape))}",
            [helper.make_node("Add", ["a", "b"], ["out"])],
            [("a", element, dims), ("b", element, dims)],
            [("out", element, dims)],
        )

    def gears(self, mode: Mode, shape: tuple[int, ...], gears: tuple[tuple[int, ...], ...]) -> str:
        """``out = a + b`` with gears; both inputs have the same shape."""
        table = ModelMetadata(mode, (InputMetadata("a", shape, None, 0), InputMetadata("b", shape, None, 0)), (), gears)
        shapes = tuple(table.input_shapes(gear)[0] for gear in range(len(gears)))
        nbytes = max(int(np.prod(s)) * 4 for s in shapes)
        table = ModelMetadata(mode, table.inputs, (OutputMetadata("out", shapes, nbytes),), gears)
        dims = [f"d{i}" if dim < 0 else dim for i, dim in enumerate(shape)]
        return self.write(
            f"gears_{mode}",
            [helper.make_node("Add", ["a", "b"], ["out"])],
            [("a", 1, dims), ("b", 1, dims)],
            [("out", 1, dims)],
            table,
        )

    def batch(self) -> str:
        """Batches 1, 2 and 4 of three values."""
        return self.gears("batch", (-1, 3), ((1,), (2,), (4,)))

    def shape(self, bounds: tuple[tuple[int, int], ...] | None = ((1, 4), (3, 3))) -> str:
        """``out = a + a`` with dims in ranges, or with open dims and no metadata."""
        table = None
        if bounds is not None:
            dims = tuple(low if low == high else -1 for low, high in bounds)
            size = 4 * int(np.prod([high for _, high in bounds])) if all(h >= 0 for _, h in bounds) else 0
            table = ModelMetadata("shape", (InputMetadata("a", dims, bounds, 2),), (OutputMetadata("out", (), size),))
        return self.write(
            f"shape_{'open' if bounds is None else 'range'}",
            [helper.make_node("Add", ["a", "a"], ["out"])],
            [("a", 1, ["n", 3])],
            [("out", 1, ["n", 3])],
            table,
        )

    def ranks(self) -> str:
        """``out`` has the shape of ``a`` where ``c`` is true, and else one dim: no dims hold for both."""
        branches = [
            helper.make_graph(
                [helper.make_node("Reshape", ["a", name], [f"out_{name}"])],
                name,
                [],
                [helper.make_tensor_value_info(f"out_{name}", 1, dims)],
                [helper.make_tensor(name, TensorProto.INT64, [len(dims)], dims)],
            )
            for name, dims in (("same", [2, 3]), ("flat", [6]))
        ]
        return self.write(
            "ranks",
            [helper.make_node("If", ["c"], ["out"], then_branch=branches[0], else_branch=branches[1])],
            [("c", TensorProto.BOOL, []), ("a", 1, [2, 3])],
            [("out", 1, None)],
        )


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """Writes models into the test's folder."""
    return Models(tmp_path)


class Net:
    """A loaded model with datasets and device buffers, every code checked."""

    def __init__(self, acl: Any, path: str, sizes: list[int] | None = None, out_sizes: list[int] | None = None) -> None:
        self.acl = acl
        self.id, code = acl.mdl.load_from_file(path)
        assert code == 0, acl.get_recent_err_msg()
        self.desc = acl.mdl.create_desc()
        assert acl.mdl.get_desc(self.desc, self.id) == 0
        count = acl.mdl.get_num_inputs(self.desc)
        want = [acl.mdl.get_input_size_by_index(self.desc, i) for i in range(count)]
        self.sizes = sizes or want
        count = acl.mdl.get_num_outputs(self.desc)
        want = [acl.mdl.get_output_size_by_index(self.desc, i) for i in range(count)]
        self.out_sizes = out_sizes or want
        self.ins, self.in_ptrs, self.in_bufs = self.dataset(self.sizes)
        self.outs, self.out_ptrs, self.out_bufs = self.dataset(self.out_sizes)

    def dataset(self, sizes: list[int]) -> tuple[int, list[int], list[int]]:
        dataset = self.acl.mdl.create_dataset()
        pointers, buffers = [], []
        for size in sizes:
            pointer = 0
            if size:
                pointer, code = self.acl.rt.malloc(size, 2)
                assert code == 0
            buffer = self.acl.create_data_buffer(pointer, size)
            assert self.acl.mdl.add_dataset_buffer(dataset, buffer) == (dataset, 0)
            pointers.append(pointer)
            buffers.append(buffer)
        return dataset, pointers, buffers

    def put(self, index: int, array: np.ndarray[Any, Any]) -> None:
        array = np.ascontiguousarray(array)
        pointer = self.in_ptrs[index]
        assert self.acl.rt.memcpy(pointer, self.sizes[index], array.ctypes.data, array.nbytes, H2D) == 0

    def get(self, index: int, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray[Any, Any]:
        array = np.empty(shape, dtype)
        pointer = self.acl.get_data_buffer_addr(self.out_bufs[index])
        assert self.acl.rt.memcpy(array.ctypes.data, array.nbytes, pointer, array.nbytes, D2H) == 0
        return array

    def execute(self) -> int:
        code: int = self.acl.mdl.execute(self.id, self.ins, self.outs)
        return code

    def execute_async(self, stream: int = 0) -> int:
        code: int = self.acl.mdl.execute_async(self.id, self.ins, self.outs, stream)
        return code

    def describe(self, index: int, dims: list[int], dtype: int = 0) -> None:
        desc = self.acl.create_tensor_desc(dtype, dims, 2)
        assert self.acl.mdl.set_dataset_tensor_desc(self.ins, desc, index) == (self.ins, 0)
        self.acl.destroy_tensor_desc(desc)

    def close(self) -> None:
        for dataset, buffers in ((self.ins, self.in_bufs), (self.outs, self.out_bufs)):
            for buffer in buffers:
                pointer = self.acl.get_data_buffer_addr(buffer)
                assert self.acl.destroy_data_buffer(buffer) == 0
                if pointer:
                    assert self.acl.rt.free(pointer) == 0
            assert self.acl.mdl.destroy_dataset(dataset) == 0
        assert self.acl.mdl.unload(self.id) == 0
        assert self.acl.mdl.destroy_desc(self.desc) == 0


@pytest.fixture
def net(ready: Any) -> Callable[..., Net]:
    """Loads a model and makes its buffers."""

    def make(path: str, **options: Any) -> Net:
        return Net(ready, path, **options)

    return make


class Pinned:
    """A pinned host block seen as an array."""

    def __init__(self, acl: Any, nbytes: int) -> None:
        self.pointer, code = acl.rt.malloc_host(nbytes)
        assert code == 0
        self.nbytes = nbytes
        memory = memoryview((ctypes.c_char * nbytes).from_address(self.pointer)).cast("B")
        self.bytes: np.ndarray[Any, Any] = np.frombuffer(memory, np.uint8)

    def view(self, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
        view: np.ndarray[Any, Any] = self.bytes.view(dtype)
        return view


@pytest.fixture
def pinned(ready: Any) -> Callable[[int], Pinned]:
    """Makes pinned host blocks."""
    return lambda nbytes: Pinned(ready, nbytes)
