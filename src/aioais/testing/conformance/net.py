"""A model under the checks: loaded, described, with sets of buffers to run it on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from ..._cann.constants import AIPP_INPUT_NAME, DYNAMIC_INPUT_NAME, MemcpyKind
from ...types import DataType
from .bench import Bench, Skip

__all__ = ["Net", "Slot", "Tensor"]

_ROOM = 1 << 16
"""Bytes for an output of unknown size, beside sixteen times the inputs."""


@dataclass(frozen=True)
class Tensor:
    """An input or output as the description has it."""

    name: str
    dtype: int
    format: int
    size: int
    dims: tuple[int, ...]

    @property
    def numpy(self) -> np.dtype[Any] | None:
        """NumPy's type, ``None`` where there is none."""
        try:
            return DataType(self.dtype).numpy
        except (ValueError, TypeError, ImportError):
            return None

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        dtype = self.numpy
        if dtype is None:
            raise Skip(f"{self.name!r} is of data type {self.dtype}, which NumPy does not have")
        return dtype.itemsize


class Net:
    """A loaded model, unloaded at the end of the check.

    Parameters
    ----------
    bench
        Where it is loaded.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        assert bench.path is not None
        mdl = bench.acl.mdl
        self.id: int = bench.value("load_from_file", mdl.load_from_file(bench.path))
        bench.later("unload", lambda: mdl.unload(self.id))
        self.desc: int = mdl.create_desc()
        bench.true("create_desc: got a handle of 0", self.desc != 0)
        bench.later("destroy_desc", lambda: mdl.destroy_desc(self.desc))
        bench.ok("get_desc", mdl.get_desc(self.desc, self.id))
        self.inputs: list[Tensor] = [self._read("input", k) for k in range(mdl.get_num_inputs(self.desc))]
        self.outputs: list[Tensor] = [self._read("output", k) for k in range(mdl.get_num_outputs(self.desc))]
        names = [tensor.name for tensor in self.inputs]
        self.hidden: int = names.index(DYNAMIC_INPUT_NAME) if DYNAMIC_INPUT_NAME in names else -1
        self.kind: str = self._kind()

    @property
    def visible(self) -> list[int]:
        """Indexes of the inputs that a caller feeds."""
        return [
            index
            for index, tensor in enumerate(self.inputs)
            if index != self.hidden and not tensor.name.startswith(AIPP_INPUT_NAME)
        ]

    def needs(self, *kinds: str) -> None:
        """Skip the check unless the model is of one of these kinds."""
        if self.kind not in kinds:
            raise Skip(f"the model is of kind {self.kind!r}, the check needs one of kind {' or '.join(kinds)}")

    def gears(self) -> list[tuple[int, ...]]:
        """List the gears, as the calls that set them take them."""
        bench, mdl = self.bench, self.bench.acl.mdl
        batch = bench.value("get_dynamic_batch", mdl.get_dynamic_batch(self.desc))
        sizes = bench.value("get_dynamic_hw", mdl.get_dynamic_hw(self.desc, -1))
        count = bench.value("get_input_dynamic_gear_count", mdl.get_input_dynamic_gear_count(self.desc, -1))
        bench.same("batchCount", batch["batchCount"], len(batch["batch"]))
        bench.same("hwCount", sizes["hwCount"], len(sizes["hw"]))
        if self.kind == "batch":
            return [(size,) for size in batch["batch"]]
        if self.kind == "hw":
            return [tuple(pair) for pair in sizes["hw"]]
        if self.kind == "dims":
            rows = bench.value("get_input_dynamic_dims", mdl.get_input_dynamic_dims(self.desc, -1, count))
            return [tuple(row["dims"]) for row in rows]
        bench.same("gears of a model without", batch["batchCount"] + sizes["hwCount"] + count, 0)
        return []

    def set_gear(self, dataset: int, gear: tuple[int, ...]) -> int:
        """Choose a gear; return the code."""
        mdl = self.bench.acl.mdl
        if self.kind == "batch":
            code: int = mdl.set_dynamic_batch_size(self.id, dataset, self.hidden, *gear)
        elif self.kind == "hw":
            code = mdl.set_dynamic_hw_size(self.id, dataset, self.hidden, *gear)
        else:
            dims = {"name": "", "dimCount": len(gear), "dims": list(gear)}
            code = mdl.set_input_dynamic_dims(self.id, dataset, self.hidden, dims)
        return code

    def output_dims(self) -> list[tuple[int, ...]]:
        """Ask for the dims of the gear set last, or of a static model."""
        mdl, found = self.bench.acl.mdl, []
        for k in range(len(self.outputs)):
            dims = self.bench.value("get_cur_output_dims", mdl.get_cur_output_dims(self.desc, k))
            found.append(tuple(dims["dims"]))
        return found

    def small_shapes(self) -> list[tuple[int, ...]]:
        """Return a small legal shape for each input of a dynamic-shape model: 2, or the nearest in its range."""
        mdl, shapes = self.bench.acl.mdl, []
        for index in self.visible:
            dims = self.inputs[index].dims
            bounds = [(1, -1)] * len(dims)
            if hasattr(mdl, "get_input_dims_range"):
                found, code = mdl.get_input_dims_range(self.desc, index)
                if not code and found["rangeCount"] == len(dims):
                    bounds = [(low, high) for low, high in found["range"]]
            pairs = zip(dims, bounds, strict=True)
            shapes.append(tuple(d if d >= 0 else max(low, 2 if high < 0 else min(2, high)) for d, (low, high) in pairs))
        return shapes

    def _read(self, role: Literal["input", "output"], index: int) -> Tensor:
        mdl, desc = self.bench.acl.mdl, self.desc
        dims = self.bench.value(f"get_{role}_dims", getattr(mdl, f"get_{role}_dims")(desc, index))
        return Tensor(
            getattr(mdl, f"get_{role}_name_by_index")(desc, index),
            getattr(mdl, f"get_{role}_data_type")(desc, index),
            getattr(mdl, f"get_{role}_format")(desc, index),
            getattr(mdl, f"get_{role}_size_by_index")(desc, index),
            tuple(dims["dims"]),
        )

    def _kind(self) -> str:
        mdl = self.bench.acl.mdl
        if self.hidden < 0:
            is_open = any(dim < 0 for tensor in (*self.inputs, *self.outputs) for dim in tensor.dims)
            return "shape" if is_open else "static"
        if self.bench.value("get_dynamic_batch", mdl.get_dynamic_batch(self.desc))["batchCount"]:
            return "batch"
        return "hw" if self.bench.value("get_dynamic_hw", mdl.get_dynamic_hw(self.desc, -1))["hwCount"] else "dims"


class Slot:
    """A set of device buffers and datasets for one run at a time.

    Parameters
    ----------
    net
        The model.
    out_bytes
        Bytes of every output; by default what the description says, or ample where it says 0.
        0 lets ACL allocate the outputs.
    memory
        Addresses of its inputs and outputs; by default it allocates them.
    """

    def __init__(
        self, net: Net, out_bytes: int | None = None, memory: tuple[list[int], list[int]] | None = None
    ) -> None:
        bench = net.bench
        self.net = net
        self.shapes: list[tuple[int, ...]] = net.small_shapes() if net.kind == "shape" else []
        self.sizes: list[int] = [tensor.size for tensor in net.inputs]
        for index, shape in zip(net.visible, self.shapes, strict=False):
            self.sizes[index] = int(np.prod(shape)) * net.inputs[index].itemsize
        ample = 16 * sum(self.sizes) + _ROOM
        self.out_sizes: list[int] = [(t.size or ample) if out_bytes is None else out_bytes for t in net.outputs]
        if memory is None:
            inputs = [bench.memory(max(1, size)) for size in self.sizes]
            memory = inputs, [bench.memory(size) if size else 0 for size in self.out_sizes]
        self.in_memory: list[int] = memory[0]
        self.out_memory: list[int] = memory[1]
        self.out_buffers: list[int] = []
        self.in_data: int = self._dataset(self.in_memory, self.sizes, [])
        self.out_data: int = self._dataset(self.out_memory, self.out_sizes, self.out_buffers)
        for index, shape in zip(net.visible, self.shapes, strict=False):
            self._describe(index, shape)

    def fill(self, seed: int, stream: int) -> None:
        """Queue the upload of small numbers to every visible input."""
        bench = self.net.bench
        for index in self.net.visible:
            nbytes = self.sizes[index]
            if not nbytes:
                continue
            host = bench.pinned(nbytes)
            bench.put(host, self.content(index, seed))
            bench.copy(self.in_memory[index], host, nbytes, MemcpyKind.HOST_TO_DEVICE, stream)

    def content(self, index: int, seed: int) -> bytes:
        """Return small numbers for a visible input."""
        tensor, nbytes = self.net.inputs[index], self.sizes[index]
        dtype = np.dtype(np.uint8) if tensor.numpy is None else tensor.numpy
        counter = np.arange(nbytes // dtype.itemsize) + seed
        # Floats differ from one another; integers may be indexes, for which 0 and 1 are safe.
        values = (counter % 7 if dtype.kind == "f" else counter % 2).astype(dtype)
        return values.tobytes().ljust(nbytes, b"\0")

    def submit(self, stream: int) -> None:
        """Queue an execution."""
        code = self.net.bench.acl.mdl.execute_async(self.net.id, self.in_data, self.out_data, stream)
        self.net.bench.ok("execute_async", code)

    def execute(self) -> int:
        """Execute and wait; return the code."""
        code: int = self.net.bench.acl.mdl.execute(self.net.id, self.in_data, self.out_data)
        return code

    def fetch(self, stream: int, dims: list[tuple[int, ...]] | None = None) -> list[tuple[int, int]]:
        """Queue the copies back; return address and bytes of each on the host, to read after a wait."""
        bench, found = self.net.bench, []
        for k, nbytes in enumerate(self.fetched(dims)):
            host = bench.pinned(max(1, nbytes))
            if nbytes:
                bench.copy(host, self.out_memory[k], nbytes, MemcpyKind.DEVICE_TO_HOST, stream)
            found.append((host, nbytes))
        return found

    def fetched(self, dims: list[tuple[int, ...]] | None = None) -> list[int]:
        """Return the bytes of each output that are results."""
        outputs = self.net.outputs
        if dims is None:
            return [tensor.size for tensor in outputs]
        return [int(np.prod(dim)) * tensor.itemsize for dim, tensor in zip(dims, outputs, strict=True)]

    def read(self, found: list[tuple[int, int]]) -> list[bytes]:
        """Read what was fetched."""
        return [self.net.bench.get(host, nbytes) for host, nbytes in found]

    def run(self, seed: int, stream: int, dims: list[tuple[int, ...]] | None = None) -> list[bytes]:
        """Upload, execute, fetch and wait, queued in one go; outputs of dynamic shape need ``execute``."""
        self.fill(seed, stream)
        self.submit(stream)
        found = self.fetch(stream, dims)
        self.net.bench.wait(stream)
        return self.read(found)

    def result_dims(self) -> list[tuple[int, ...]]:
        """Return the shapes that a dynamic-shape run left in the output dataset."""
        bench, acl, found = self.net.bench, self.net.bench.acl, []
        for k in range(len(self.net.outputs)):
            desc = acl.mdl.get_dataset_tensor_desc(self.out_data, k)
            bench.true(f"get_dataset_tensor_desc of output {k}: got {desc!r}, expected a handle", bool(desc))
            rank = acl.get_tensor_desc_num_dims(desc)
            found.append(
                tuple(bench.value("get_tensor_desc_dim_v2", acl.get_tensor_desc_dim_v2(desc, i)) for i in range(rank))
            )
        return found

    def _dataset(self, addresses: list[int], sizes: list[int], buffers: list[int]) -> int:
        bench, acl = self.net.bench, self.net.bench.acl
        dataset: int = acl.mdl.create_dataset()
        bench.later("destroy_dataset", lambda: acl.mdl.destroy_dataset(dataset))
        for address, size in zip(addresses, sizes, strict=True):
            buffer = acl.create_data_buffer(address, size)
            bench.later("destroy_data_buffer", partial(acl.destroy_data_buffer, buffer))
            bench.same("add_dataset_buffer", acl.mdl.add_dataset_buffer(dataset, buffer), (dataset, 0))
            buffers.append(buffer)
        return dataset

    def _describe(self, index: int, shape: tuple[int, ...]) -> None:
        bench, acl, tensor = self.net.bench, self.net.bench.acl, self.net.inputs[index]
        desc = acl.create_tensor_desc(tensor.dtype, list(shape), tensor.format)
        answer = acl.mdl.set_dataset_tensor_desc(self.in_data, desc, index)
        bench.same("set_dataset_tensor_desc", answer, (self.in_data, 0))
        acl.destroy_tensor_desc(desc)  # it was copied
