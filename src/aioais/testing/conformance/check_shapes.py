"""Checks of models of dynamic shape."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..._cann.codes import AclCode
from ..._cann.constants import MemcpyKind
from .bench import Bench, Check, Register, Skip, checks_of
from .net import Net, Slot

__all__ = ["CHECKS"]

CHECKS: list[Check] = []

check: Register = checks_of("shapes", CHECKS, model=True)


def _dynamic(bench: Bench) -> Net:
    net = Net(bench)
    net.needs("shape")
    return net


@check("get_cur_output_dims of a model of dynamic shape is ({}, 200001)")
def no_current_dims(bench: Bench) -> None:
    """The shapes are known after the run only."""
    net = _dynamic(bench)
    answer = bench.acl.mdl.get_cur_output_dims(net.desc, 0)
    bench.same("get_cur_output_dims", answer, ({}, AclCode.API_NOT_SUPPORT))


@check("shapes set on the input dataset hold, and the run leaves the real shapes in the output dataset")
def described(bench: Bench) -> None:
    """The descriptions given were destroyed before the run: they are copied."""
    net = _dynamic(bench)
    slot, stream = Slot(net), bench.stream()
    slot.fill(1, stream)
    slot.submit(stream)
    bench.wait(stream)
    dims = slot.result_dims()
    for tensor, shape in zip(net.outputs, dims, strict=True):
        bench.true(f"{tensor.name!r} has the shape {shape}", all(dim >= 0 for dim in shape))
        if tensor.dims == (-2,):  # of unknown rank
            continue
        bench.same(f"rank of {tensor.name!r}", len(shape), len(tensor.dims))
        fits = all(known in (-1, real) for known, real in zip(tensor.dims, shape, strict=True))
        bench.true(f"{tensor.name!r} has the shape {shape}, described as {tensor.dims}", fits)


@check("synchronous and asynchronous executions mix, with the same results")
def both_ways(bench: Bench) -> None:
    """Other than with a static model."""
    net = _dynamic(bench)
    slot, stream = Slot(net), bench.stream()
    slot.fill(1, stream)
    slot.submit(stream)
    bench.wait(stream)
    dims = slot.result_dims()
    found = slot.fetch(stream, dims)
    bench.wait(stream)
    expected = slot.read(found)
    bench.ok("execute", slot.execute())
    bench.same("shapes", slot.result_dims(), dims)
    found = slot.fetch(stream, dims)
    bench.wait(stream)
    bench.true("the results differ", slot.read(found) == expected)


@check("outputs of (0, 0) are allocated by a synchronous execution, and the caller frees them")
def allocated(bench: Bench) -> None:
    """How the engine learns the size of an output that outgrew its buffer."""
    acl = bench.acl
    net = _dynamic(bench)
    stream = bench.stream()
    slot = Slot(net)
    slot.fill(1, stream)
    bench.wait(stream)
    bench.ok("execute", slot.execute())
    dims = slot.result_dims()
    found = slot.fetch(stream, dims)
    bench.wait(stream)
    expected = slot.read(found)
    for k in range(len(net.outputs)):
        bench.ok("update_data_buffer", acl.update_data_buffer(slot.out_buffers[k], 0, 0))
    code = slot.execute()
    if code:
        raise Skip(f"the module refuses such outputs ({code}); the engine grows its buffers instead")
    bench.same("shapes", slot.result_dims(), dims)
    got = []
    for k, tensor in enumerate(net.outputs):
        nbytes = int(np.prod(dims[k])) * tensor.itemsize
        address, size = acl.get_data_buffer_addr(slot.out_buffers[k]), acl.get_data_buffer_size_v2(slot.out_buffers[k])
        if address:
            bench.later("free", partial(acl.rt.free, address))
        bench.true(f"output {k}: {size} bytes at {address:#x}, expected {nbytes}", size >= nbytes and bool(address))
        host = bench.pinned(max(1, nbytes))
        if nbytes:
            bench.copy(host, address, nbytes, MemcpyKind.DEVICE_TO_HOST, stream)
        got.append((host, nbytes))
    bench.wait(stream)
    bench.true("the results differ", slot.read(got) == expected)
