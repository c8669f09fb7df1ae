"""Checks of models with gears: dynamic batch, image size and dims."""

from __future__ import annotations

import numpy as np

from ..._cann.codes import AclCode
from .batch import Batch
from .bench import Bench, Check, Register, checks_of
from .net import Net, Slot

__all__ = ["CHECKS"]

CHECKS: list[Check] = []

check: Register = checks_of("gears", CHECKS, model=True)

_KINDS = ("batch", "hw", "dims")


def _with_gears(bench: Bench) -> Net:
    net = Net(bench)
    net.needs(*_KINDS)
    return net


@check("a model without gears refuses all of them with 145013")
def none(bench: Bench) -> None:
    """Also an index that is no hidden input."""
    net = Net(bench)
    net.needs("static")
    slot = Slot(net)
    code = bench.acl.mdl.set_dynamic_batch_size(net.id, slot.in_data, 0, 1)
    bench.one_of("set_dynamic_batch_size", code, AclCode.GE_DYNAMIC_BATCH_SIZE_INVALID)


@check("the hidden input is counted, named and has a size; the gears are listed by the call for their kind")
def listed(bench: Bench) -> None:
    """``get_dynamic_batch``, ``get_dynamic_hw`` or ``get_input_dynamic_dims``."""
    net = _with_gears(bench)
    bench.true(f"the hidden input is {net.hidden} of {len(net.inputs)}", net.hidden >= len(net.visible))
    bench.true("the hidden input has no size", net.inputs[net.hidden].size > 0)
    gears = net.gears()
    bench.true(f"gears: got {gears}", bool(gears) and all(type(value) is int for gear in gears for value in gear))
    if net.kind == "dims":
        rank = sum(len(net.inputs[index].dims) for index in net.visible)
        bench.same("dims of each gear", {len(gear) for gear in gears}, {rank})


@check("setting a gear is accepted, shows in the current output dims, and executes at these")
def each(bench: Bench) -> None:
    """Output bytes never exceed the size in the description; equal input gives equal output."""
    net = _with_gears(bench)
    stream = bench.stream()
    slot = Slot(net)
    for gear in net.gears():
        bench.ok(f"gear {gear}", net.set_gear(slot.in_data, gear))
        dims = net.output_dims()
        for tensor, shape in zip(net.outputs, dims, strict=True):
            nbytes = int(np.prod(shape)) * tensor.itemsize
            bench.true(f"{tensor.name!r} at gear {gear}: {nbytes} bytes of {tensor.size}", 0 <= nbytes <= tensor.size)
        first = slot.run(1, stream, dims)
        bench.ok(f"gear {gear}", net.set_gear(slot.in_data, gear))
        bench.true(f"two runs of gear {gear} differ", slot.run(1, stream, dims) == first)


@check("a gear belongs to its dataset: another one set for another dataset does not change it")
def by_dataset(bench: Bench) -> None:
    """The engine sets the gear of a request and queues it while others are in flight."""
    net = _with_gears(bench)
    stream = bench.stream()
    gears = net.gears()
    chosen = (gears[0], gears[-1])
    slots = [Slot(net), Slot(net)]
    shapes, expected = [], []
    for slot, gear in zip(slots, chosen, strict=True):
        bench.ok(f"gear {gear}", net.set_gear(slot.in_data, gear))
        shapes.append(net.output_dims())
        expected.append(slot.run(2, stream, shapes[-1]))
    for slot, gear in zip(slots, chosen, strict=True):
        slot.fill(2, stream)
        bench.ok(f"gear {gear}", net.set_gear(slot.in_data, gear))
    for slot in slots:
        slot.submit(stream)
    found = [slot.fetch(stream, dims) for slot, dims in zip(slots, shapes, strict=True)]
    bench.wait(stream)
    got = [slot.read(parts) for slot, parts in zip(slots, found, strict=True)]
    bench.true("the results differ from those of requests one by one", got == expected)


@check("a gear belongs to its dataset also where executions are chained by events over several streams")
def chained(bench: Bench) -> None:
    """A stream for each request; the gear is set when it is submitted. Compared with requests one by one."""
    rt = bench.acl.rt
    net = _with_gears(bench)
    gears = (net.gears()[0], net.gears()[-1])
    slots = [Slot(net), Slot(net), Slot(net)]
    streams = [bench.stream() for _ in slots]
    shapes, expected, other = [], [], Slot(net)  # a slot of its own: the others must hold no results yet
    for seed in range(len(slots)):
        bench.ok("set a gear", net.set_gear(other.in_data, gears[seed % 2]))
        shapes.append(net.output_dims())
        expected.append(other.run(seed, streams[0], shapes[-1]))
    found, link = [], 0
    for seed, (slot, stream) in enumerate(zip(slots, streams, strict=True)):
        slot.fill(seed, stream)
        bench.ok("set a gear", net.set_gear(slot.in_data, gears[seed % 2]))
        if link:
            bench.ok("stream_wait_event", rt.stream_wait_event(stream, link))
        slot.submit(stream)
        link = bench.event()
        bench.ok("record_event", rt.record_event(link, stream))
        found.append(slot.fetch(stream, shapes[seed]))
    for stream in reversed(streams):
        bench.wait(stream)
    got = [slot.read(parts) for slot, parts in zip(slots, found, strict=True)]
    bench.true("the results differ from those of requests one by one", got == expected)


@check("requests of one gear on one stream do not mix, with datasets that share the hidden inputs")
def batch(bench: Bench) -> None:
    """One copy to the device, then all executions, then one copy back. Compared with requests one by one."""
    net = _with_gears(bench)
    first, stream = Slot(net), bench.stream()
    several = Batch(first, 4)
    for gear in (net.gears()[-1], net.gears()[0]):
        bench.ok(f"gear {gear}", net.set_gear(first.in_data, gear))
        shapes = net.output_dims()
        expected = [first.run(seed, stream, shapes) for seed in range(len(several.slots))]
        for slot in several.slots:
            bench.ok(f"gear {gear}", net.set_gear(slot.in_data, gear))
        got = several.run(0, stream, shapes)
        bench.true(f"the results at gear {gear} differ from those of requests one by one", got == expected)


@check("values that are no gear are refused with 145013 or 145012, and the gear set before stays")
def refused(bench: Bench) -> None:
    """As is a null dataset, with 100000."""
    net = _with_gears(bench)
    slot = Slot(net)
    gears = net.gears()
    bench.ok(f"gear {gears[0]}", net.set_gear(slot.in_data, gears[0]))
    before = net.output_dims()
    wrong = tuple(value + 977 for value in gears[0])
    expected = (AclCode.GE_DYNAMIC_BATCH_SIZE_INVALID, AclCode.GE_DYNAMIC_INPUT_LENGTH_INVALID)
    bench.one_of(f"gear {wrong}", net.set_gear(slot.in_data, wrong), *expected)
    bench.same("gear for no dataset", net.set_gear(0, gears[0]), AclCode.INVALID_PARAM)
    bench.same("get_cur_output_dims", net.output_dims(), before)
