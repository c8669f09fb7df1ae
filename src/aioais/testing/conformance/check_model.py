"""Checks of loading, descriptions and static execution."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from ..._cann.codes import AclCode
from .batch import Batch
from .bench import Bench, Check, Register, checks_of
from .net import Net, Slot

__all__ = ["CHECKS"]

CHECKS: list[Check] = []

loads: Register = checks_of("load", CHECKS)
check: Register = checks_of("model", CHECKS, model=True)

_NO_MODEL = 0x7FFF_FFF0
_BAD_INDEX = 1000
_CHAINED = 4
"""Streams of the chain: as many as a session has by default."""
_BATCHED = 16
"""Requests that share a set of buffers, at most."""
_ROUNDS = 6
"""Requests on each of them, all queued before the first wait."""


@loads("a model file that is not there is refused with 145002, one that is no model with another code")
def no_file(bench: Bench) -> None:
    """``(0, code)``."""
    mdl = bench.acl.mdl
    with tempfile.TemporaryDirectory() as folder:
        missing = os.path.join(folder, "missing.om")
        bench.same("load_from_file of nothing", mdl.load_from_file(missing), (0, AclCode.GE_EXEC_MODEL_PATH_INVALID))
        junk = Path(folder, "junk.om")
        junk.write_bytes(b"this is no model\n" * 64)
        answer = mdl.load_from_file(str(junk))
        bench.same("id of a file that is no model", answer[0], 0)
        bench.fails("code of a file that is no model", answer[1])


@loads("an unknown model id is refused with 145003")
def no_model(bench: Bench) -> None:
    """By ``unload`` and ``get_desc``."""
    mdl = bench.acl.mdl
    expected = AclCode.GE_EXEC_MODEL_ID_INVALID
    bench.same("unload", mdl.unload(_NO_MODEL), expected)
    desc = mdl.create_desc()
    bench.later("destroy_desc", lambda: mdl.destroy_desc(desc))
    bench.same("get_desc", mdl.get_desc(desc, _NO_MODEL), expected)


@check("a file loaded twice gives two models, each with its own id")
def loaded_twice(bench: Bench) -> None:
    """Sessions of one file are independent."""
    first, second = Net(bench), Net(bench)
    bench.true(f"both have the id {first.id}", first.id != second.id)
    bench.same("descriptions", (first.inputs, first.outputs), (second.inputs, second.outputs))


@check("a description has names, types, formats, sizes and dims of the types that pyACL gives")
def description(bench: Bench) -> None:
    """``{'name', 'dimCount', 'dims'}`` with as many dims as it says."""
    net = Net(bench)
    mdl = bench.acl.mdl
    bench.true("the model has no outputs", bool(net.outputs))
    for role, tensors in (("input", net.inputs), ("output", net.outputs)):
        for index, tensor in enumerate(tensors):
            what = f"{role} {index}"
            bench.true(f"name of {what}: got {tensor.name!r}, expected a str", isinstance(tensor.name, str))
            bench.true(f"numbers of {what}: got {tensor}", min(tensor.dtype, tensor.size) >= 0 and tensor.format >= -1)
            dims = bench.value(f"dims of {what}", getattr(mdl, f"get_{role}_dims")(net.desc, index))
            bench.same(f"keys of the dims of {what}", sorted(dims), ["dimCount", "dims", "name"])
            bench.same(f"dimCount of {what}", dims["dimCount"], len(dims["dims"]))
            bench.true(f"dims of {what}: got {dims['dims']}", all(type(dim) is int for dim in dims["dims"]))


@check("an index that the model does not have is answered with 0, '', -1, or 100000 and empty dims")
def bad_index(bench: Bench) -> None:
    """Never an exception."""
    net = Net(bench)
    mdl = bench.acl.mdl
    for role in ("input", "output"):
        calls = {"size_by_index": 0, "name_by_index": "", "data_type": -1, "format": -1}
        for call, expected in calls.items():
            bench.same(f"get_{role}_{call}", getattr(mdl, f"get_{role}_{call}")(net.desc, _BAD_INDEX), expected)
        answer = getattr(mdl, f"get_{role}_dims")(net.desc, _BAD_INDEX)
        bench.same(f"get_{role}_dims", answer, ({}, AclCode.INVALID_PARAM))


@check("ranges: one pair for each dim, equal where a dim is fixed; none at all where gears decide")
def dims_range(bench: Bench) -> None:
    """``{'rangeCount': n, 'range': [[low, high], …]}``."""
    net = Net(bench)
    mdl = bench.acl.mdl
    for index in net.visible:
        dims = net.inputs[index].dims
        if hasattr(mdl, "get_input_dims_v2"):
            second = bench.value("get_input_dims_v2", mdl.get_input_dims_v2(net.desc, index))
            bench.same("rank by get_input_dims_v2", len(second["dims"]), len(dims))
        if hasattr(mdl, "get_input_dims_range"):
            found = bench.value("get_input_dims_range", mdl.get_input_dims_range(net.desc, index))
            bench.same("rangeCount", found["rangeCount"], len(found["range"]))
            bench.one_of("rangeCount", found["rangeCount"], 0, len(dims))
            for dim, (low, high) in zip(dims, found["range"], strict=False):
                if dim >= 0:
                    bench.same("range of a fixed dim", (low, high), (dim, dim))


@check("an unknown model, or no datasets, are refused by both ways to execute")
def bad_execute(bench: Bench) -> None:
    """145003 and 100000."""
    mdl = bench.acl.mdl
    net = Net(bench)
    slot, stream = Slot(net), bench.stream()
    unknown, null = AclCode.GE_EXEC_MODEL_ID_INVALID, AclCode.INVALID_PARAM
    bench.same("execute", mdl.execute(_NO_MODEL, slot.in_data, slot.out_data), unknown)
    bench.same("execute_async", mdl.execute_async(_NO_MODEL, slot.in_data, slot.out_data, stream), unknown)
    bench.same("execute_async without inputs", mdl.execute_async(net.id, 0, slot.out_data, stream), null)
    bench.same("execute_async without outputs", mdl.execute_async(net.id, slot.in_data, 0, stream), null)


@check("executing in a thread without a context is refused with 107002")
def no_context(bench: Bench) -> None:
    """Contexts belong to threads."""
    slot = Slot(Net(bench))
    bench.same("execute", bench.in_thread(slot.execute), AclCode.RT_CONTEXT_NULL)


@check("a static model: sizes follow from the dims, and the current output dims are the output dims")
def static_sizes(bench: Bench) -> None:
    """Nothing was set, nothing is open."""
    net = Net(bench)
    net.needs("static")
    bench.same("gears", net.gears(), [])
    bench.same("get_cur_output_dims", net.output_dims(), [tensor.dims for tensor in net.outputs])
    for index in (*net.visible,):
        tensor = net.inputs[index]
        least = int(np.prod(tensor.dims)) * tensor.itemsize
        bench.true(f"size of {tensor.name!r}: got {tensor.size}, expected {least} or more", tensor.size >= least)


@check("upload, execution and copies back, queued in one go on one stream, give what a synchronous run gives")
def static_stream(bench: Bench) -> None:
    """Twice with different input; the synchronous run has a model of its own."""
    net = Net(bench)
    net.needs("static")
    other = Net(bench)
    stream, expected = bench.stream(), []
    for seed in (0, 1):
        slot = Slot(other)
        slot.fill(seed, stream)
        bench.wait(stream)
        bench.ok("execute", slot.execute())
        found = slot.fetch(stream)
        bench.wait(stream)
        expected.append(slot.read(found))
    slot = Slot(net)
    for seed in (0, 1, 0):
        bench.true(f"results of input {seed} differ", slot.run(seed, stream) == expected[seed])


@check("requests in two sets of buffers, chained by events over three streams, do not mix")
def static_chain(bench: Bench) -> None:
    """One way of the engine: copies of each request in a stream of its own, executions in one."""
    rt = bench.acl.rt
    net = Net(bench)
    net.needs("static")
    execute = bench.stream()
    slots = [Slot(net), Slot(net)]
    streams = [bench.stream(), bench.stream()]
    expected = [slot.run(seed, execute) for seed, slot in enumerate(slots)]
    found = []
    for seed, (slot, stream) in enumerate(zip(slots, streams, strict=True)):
        there, done = bench.event(), bench.event()
        slot.fill(seed, stream)
        bench.ok("record_event", rt.record_event(there, stream))
        bench.ok("stream_wait_event", rt.stream_wait_event(execute, there))
        slot.submit(execute)
        bench.ok("record_event", rt.record_event(done, execute))
        bench.ok("stream_wait_event", rt.stream_wait_event(stream, done))
        found.append(slot.fetch(stream))
    bench.wait(execute)
    for stream in streams:
        bench.wait(stream)
    got = [slot.read(parts) for slot, parts in zip(slots, found, strict=True)]
    bench.true("the results differ from those of requests one by one", got == expected)


@check("executions of one model on several streams, each behind the one before by an event, do not mix")
def static_chained(bench: Bench) -> None:
    """A stream for each request; only the event behind the last execution links them. Compared with one stream."""
    rt = bench.acl.rt
    net = Net(bench)
    net.needs("static")
    slots = [Slot(net) for _ in range(_CHAINED)]
    streams = [bench.stream() for _ in slots]
    requests = range(_ROUNDS * _CHAINED)
    expected = [slots[0].run(seed, streams[0]) for seed in requests]
    found, link = [], 0
    for seed in requests:
        slot, stream = slots[seed % _CHAINED], streams[seed % _CHAINED]
        slot.fill(seed, stream)
        if link:
            bench.ok("stream_wait_event", rt.stream_wait_event(stream, link))
        slot.submit(stream)
        link = bench.event()
        bench.ok("record_event", rt.record_event(link, stream))
        found.append(slot.fetch(stream))
    for stream in reversed(streams):
        bench.wait(stream)
    wrong = [seed for seed in requests if slots[0].read(found[seed]) != expected[seed]]
    bench.true(f"the results of requests {wrong} of {len(requests)} differ from those on one stream", not wrong)


@check("requests on one stream do not mix: one copy to the device, then all executions, then one copy back")
def static_batch(bench: Bench) -> None:
    """Small requests that share a set of buffers: each has datasets over parts of one block of memory."""
    net = Net(bench)
    net.needs("static")
    first, stream = Slot(net), bench.stream()
    batch = Batch(first, _BATCHED)
    for before in (0, _BATCHED):
        expected = [first.run(before + k, stream) for k in range(_BATCHED)]
        got = batch.run(before, stream)
        bench.true("the results differ from those of requests one by one", got == expected)


@check("a static model executes in one manner: after execute, execute_async is refused, and the other way round")
def static_manner(bench: Bench) -> None:
    """500002; the first call decides until the model is unloaded."""
    first, second, stream = Net(bench), Net(bench), bench.stream()
    first.needs("static")
    slot = Slot(first)
    bench.ok("execute", slot.execute())
    code = bench.acl.mdl.execute_async(first.id, slot.in_data, slot.out_data, stream)
    bench.fails("execute_async after execute", code)
    slot = Slot(second)
    slot.submit(stream)
    bench.wait(stream)
    bench.fails("execute after execute_async", slot.execute())


@check("a static model is refused in another context than the one it was loaded in")
def static_context(bench: Bench) -> None:
    """107004."""
    rt = bench.acl.rt
    net = Net(bench)
    net.needs("static")
    slot = Slot(net)

    def body() -> int:
        context = bench.value("create_context", rt.create_context(bench.device))
        try:
            return slot.execute()
        finally:
            bench.ok("destroy_context", rt.destroy_context(context))

    bench.same("execute", bench.in_thread(body), AclCode.RT_MODEL_CONTEXT)


@check("a dataset with too few buffers is refused")
def static_count(bench: Bench) -> None:
    """145000 for a static model."""
    acl = bench.acl
    net = Net(bench)
    net.needs("static")
    slot, stream = Slot(net), bench.stream()
    empty = acl.mdl.create_dataset()
    bench.later("destroy_dataset", lambda: acl.mdl.destroy_dataset(empty))
    bench.fails("execute_async", acl.mdl.execute_async(net.id, slot.in_data, empty, stream))
    bench.wait(stream)
