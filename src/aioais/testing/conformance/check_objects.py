"""Checks of arguments, data buffers, datasets and tensor descriptions: plain objects of the host."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..._cann.constants import MallocPolicy
from .bench import NULL, Bench, Check, Register, checks_of

__all__ = ["CHECKS"]

CHECKS: list[Check] = []

check: Register = checks_of("objects", CHECKS)

_FLOAT32, _ND = 0, 2


@check("arguments that do not parse raise TypeError: too few, keywords, NumPy ints as sizes")
def bad_arguments(bench: Bench) -> None:
    """Exceptions are for bad arguments only, failures have codes."""
    rt = bench.acl.rt
    policy = int(MallocPolicy.HUGE_FIRST)
    bench.refuses("malloc(64)", lambda: rt.malloc(64))
    bench.refuses("malloc(size=64, policy=0)", lambda: rt.malloc(size=64, policy=policy))
    bench.refuses("malloc(numpy.int64(64), 0)", lambda: rt.malloc(np.int64(64), policy))
    bench.refuses("malloc(None, 0)", lambda: rt.malloc(None, policy))
    bench.refuses("load_from_file(b'x')", lambda: bench.acl.mdl.load_from_file(b"x"))


@check("a data buffer keeps address and size, and can be pointed elsewhere")
def data_buffer(bench: Bench) -> None:
    """Created bare; address and size of 0 are allowed."""
    acl = bench.acl
    buffer = acl.create_data_buffer(0, 0)
    bench.true(f"create_data_buffer: got {buffer!r}, expected a bare handle", type(buffer) is int and buffer != 0)
    bench.later("destroy_data_buffer", lambda: acl.destroy_data_buffer(buffer))
    bench.same("address", acl.get_data_buffer_addr(buffer), 0)
    bench.same("size", acl.get_data_buffer_size_v2(buffer), 0)
    address = bench.memory(256)
    bench.ok("update_data_buffer", acl.update_data_buffer(buffer, address, 256))
    bench.same("address", acl.get_data_buffer_addr(buffer), address)
    bench.same("size", acl.get_data_buffer_size_v2(buffer), 256)


@check("a dataset gives itself and the code when a buffer is added, and frees neither buffers nor memory")
def dataset(bench: Bench) -> None:
    """``add_dataset_buffer`` answers ``(dataset, 0)``."""
    acl = bench.acl
    address = bench.memory(64)
    buffers = [acl.create_data_buffer(address, 64), acl.create_data_buffer(0, 0)]
    for buffer in buffers:
        bench.later("destroy_data_buffer", partial(acl.destroy_data_buffer, buffer))
    dataset = acl.mdl.create_dataset()
    bench.true(f"create_dataset: got {dataset!r}, expected a bare handle", type(dataset) is int and dataset != 0)
    bench.later("destroy_dataset", partial(acl.mdl.destroy_dataset, dataset))
    for buffer in buffers:
        bench.same("add_dataset_buffer", acl.mdl.add_dataset_buffer(dataset, buffer), (dataset, 0))
    other = acl.mdl.create_dataset()
    answer = acl.mdl.add_dataset_buffer(other, buffers[0])
    bench.ok("destroy_dataset", acl.mdl.destroy_dataset(other))
    bench.same("add_dataset_buffer", answer, (other, 0))
    bench.same("address of a buffer, its dataset destroyed", acl.get_data_buffer_addr(buffers[0]), address)


@check("a tensor description keeps its dims, scalars included, and is destroyed without a code")
def tensor_desc(bench: Bench) -> None:
    """``destroy_tensor_desc`` answers ``None``."""
    acl = bench.acl
    for dims in ([2, 3, 5], []):
        desc = acl.create_tensor_desc(_FLOAT32, dims, _ND)
        bench.true(f"create_tensor_desc: got {desc!r}, expected a bare handle", type(desc) is int and desc != 0)
        bench.same("get_tensor_desc_num_dims", acl.get_tensor_desc_num_dims(desc), len(dims))
        for place, dim in enumerate(dims):
            bench.same("get_tensor_desc_dim_v2", acl.get_tensor_desc_dim_v2(desc, place), (dim, 0))
        bench.same("destroy_tensor_desc", acl.destroy_tensor_desc(desc), None)


@check("dims of a tensor description are a list of real ints, anything else is a TypeError")
def tensor_desc_dims(bench: Bench) -> None:
    """No tuples, no NumPy ints."""
    acl = bench.acl
    bench.refuses("create_tensor_desc of a tuple", lambda: acl.create_tensor_desc(_FLOAT32, (2, 3), _ND))
    bench.refuses("create_tensor_desc of NumPy ints", lambda: acl.create_tensor_desc(_FLOAT32, [np.int64(2)], _ND))


@check("null handles are refused with 100000, or 107000 from the layer below")
def null_handles(bench: Bench) -> None:
    """Where there is a code; accessors answer 0."""
    acl = bench.acl
    bench.one_of("destroy_data_buffer(0)", acl.destroy_data_buffer(0), *NULL)
    bench.one_of("destroy_dataset(0)", acl.mdl.destroy_dataset(0), *NULL)
    bench.one_of("destroy_desc(0)", acl.mdl.destroy_desc(0), *NULL)
    bench.one_of("destroy_stream(0)", acl.rt.destroy_stream(0), *NULL)
    bench.same("get_num_inputs(0)", acl.mdl.get_num_inputs(0), 0)
    bench.same("get_data_buffer_addr(0)", acl.get_data_buffer_addr(0), 0)


@check("an empty model description is made and destroyed")
def model_desc(bench: Bench) -> None:
    """``create_desc`` answers the bare handle."""
    mdl = bench.acl.mdl
    desc = mdl.create_desc()
    bench.true(f"create_desc: got {desc!r}, expected a bare handle", type(desc) is int and desc != 0)
    bench.ok("destroy_desc", mdl.destroy_desc(desc))
