"""Executions of one model over several streams: ordered ones are accepted, others are refused."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper

from aioais import emulator
from aioais.emulator.event import events
from aioais.emulator.memory import device_memory
from aioais.emulator.model import models as loaded
from aioais.emulator.ordering import Executions, Queue, is_ordered, note_wait
from aioais.emulator.stream import streams

Make = Callable[..., Any]
ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


class Chain:
    """One model, three streams, and events on demand."""

    def __init__(self, acl: Any, one: Any) -> None:
        self.acl, self.one = acl, one
        self.streams = [acl.rt.create_stream()[0] for _ in range(3)]

    def event(self) -> int:
        event, code = self.acl.rt.create_event_ex_with_flag(9)
        assert code == 0
        return int(event)

    def execute(self, k: int) -> None:
        assert self.one.execute_async(self.streams[k]) == 0

    def record(self, k: int, event: int | None = None) -> int:
        event = event or self.event()
        assert self.acl.rt.record_event(event, self.streams[k]) == 0
        return event

    def wait(self, k: int, event: int) -> None:
        assert self.acl.rt.stream_wait_event(self.streams[k], event) == 0

    def refused(self, k: int, match: str = "waits for no event recorded behind it") -> None:
        with pytest.raises(emulator.EmulatorError, match=match):
            self.one.execute_async(self.streams[k])
        assert self.acl.rt.synchronize_device() == 0
        self.execute(k)
        assert self.acl.rt.synchronize_device() == 0


@pytest.fixture(params=["shortcut", "checked"])
def chain(ready: Any, net: Make, models: Any, request: pytest.FixtureRequest) -> Chain:
    if request.param == "checked":
        emulator.fail("acl.get_version", 1)  # while anything is armed, every call takes the long way
    return Chain(ready, net(models.add()))


# --- chains that hold ---------------------------------------------------------------------------------


def test_executions_on_several_streams_behind_each_others_events(
    ready: Any, net: Make, models: Any, pinned: Callable[[int], Any]
) -> None:
    """As the engine does it: a stream for each request, each execution behind the one before."""
    one = net(models.add())
    streams = [ready.rt.create_stream()[0] for _ in range(3)]
    events = [ready.rt.create_event_ex_with_flag(9)[0] for _ in streams]
    sets = [(one.dataset(one.sizes), one.dataset(one.out_sizes), pinned(24), pinned(24)) for _ in streams]
    for round_ in range(5):
        for k, (stream, (ins, outs, source, target)) in enumerate(zip(streams, sets, strict=True)):
            source.view()[:] = np.arange(6) + 10 * round_ + k
            for pointer in ins[1]:
                assert ready.rt.memcpy_async(pointer, 24, source.pointer, 24, 1, stream) == 0
            if round_ or k:
                assert ready.rt.stream_wait_event(stream, events[k - 1]) == 0
            assert ready.mdl.execute_async(one.id, ins[0], outs[0], stream) == 0
            assert ready.rt.record_event(events[k], stream) == 0
            assert ready.rt.memcpy_async(target.pointer, 24, outs[1][0], 24, 2, stream) == 0
        for k in (2, 0, 1):
            assert ready.rt.synchronize_stream(streams[k]) == 0
            assert (sets[k][3].view() == 2 * (np.arange(6) + 10 * round_ + k)).all()


def test_one_stream_needs_nothing(chain: Chain) -> None:
    for _ in range(3):
        chain.execute(1)


def test_the_default_stream_takes_part(chain: Chain) -> None:
    chain.streams[0] = 0
    for k in (0, 1, 0, 2, 0):
        chain.execute(k)
        event = chain.record(k)
        for other in range(3):
            chain.wait(other, event)


def test_order_goes_through_a_stream_in_between(chain: Chain) -> None:
    chain.execute(0)
    chain.wait(1, chain.record(0))
    chain.wait(2, chain.record(1))
    chain.execute(2)


def test_a_wait_keeps_the_recording_that_it_was_queued_for(chain: Chain) -> None:
    chain.execute(0)
    event = chain.record(0)
    chain.wait(1, event)
    chain.record(2, event)
    chain.execute(1)


def test_events_of_older_releases_are_reset_by_the_stream_that_waited(chain: Chain) -> None:
    rt = chain.acl.rt
    event, code = rt.create_event_with_flag(9)
    assert code == 0
    for k in (0, 1, 2, 0, 1):
        chain.execute(k)
        chain.record(k, event)
        chain.wait((k + 1) % 3, event)
        assert rt.reset_event(event, chain.streams[(k + 1) % 3]) == 0


@pytest.mark.parametrize(
    "how",
    ["stream", "stream-timeout", "event", "event-timeout", "device", "query", "status", "stream-query", "destroy"],
)
def test_the_host_has_waited(chain: Chain, how: str) -> None:
    rt, first = chain.acl.rt, chain.streams[0]
    chain.execute(0)
    event = chain.record(0)
    waits: dict[str, tuple[Callable[..., Any], tuple[int, ...], Any]] = {
        "stream": (rt.synchronize_stream, (first,), 0),
        "stream-timeout": (rt.synchronize_stream_with_timeout, (first, 5000), 0),
        "event": (rt.synchronize_event, (event,), 0),
        "event-timeout": (rt.synchronize_event_with_timeout, (event, 5000), 0),
        "device": (rt.synchronize_device, (), 0),
        "query": (rt.query_event, (event,), (0, 0)),
        "status": (rt.query_event_status, (event,), (1, 0)),
        "stream-query": (rt.stream_query, (first,), (0, 0)),
        "destroy": (rt.destroy_stream, (first,), 0),
    }
    call, args, wanted = waits[how]
    assert call(*args) == wanted
    chain.execute(1)


def test_the_host_has_waited_for_a_stream_behind_it(chain: Chain) -> None:
    chain.execute(0)
    chain.wait(1, chain.record(0))
    assert chain.acl.rt.synchronize_stream(chain.streams[1]) == 0
    chain.execute(2)


def test_the_host_was_called_back_behind_it(chain: Chain) -> None:
    rt, first = chain.acl.rt, chain.streams[0]
    assert rt.subscribe_report(threading.get_ident(), first) == 0
    called: list[int] = []
    chain.execute(0)
    assert rt.launch_callback(called.append, 1, 0, first) == 0
    assert rt.process_report(1000) == 0
    assert called == [1]
    chain.execute(1)
    assert rt.unsubscribe_report(threading.get_ident(), first) == 0


def test_threads_submit_to_one_stream() -> None:
    """Neither waits nor executions are lost."""
    target = Queue()
    lost: list[int] = []

    def work() -> None:
        mine = Executions(1)
        for number in range(1, 20_000):
            if number % 2:
                note_wait(target, {mine: number})
            else:  # an execution of its own there
                target.behind = {**target.behind, mine: number}
            if not is_ordered(mine, number, target):
                lost.append(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        sys.setswitchinterval(interval)
    assert lost == []


# --- chains that are broken -----------------------------------------------------------------------------


def test_nothing_between_two_streams(chain: Chain) -> None:
    chain.execute(0)
    first, second = chain.streams[:2]
    with pytest.raises(emulator.EmulatorError) as caught:
        chain.execute(1)
    text = str(caught.value)
    for part in (
        f"model {chain.one.id}",
        f"stream {first:#x}",
        f"stream {second:#x}",
        "stream_wait_event",
        "synchronise",
    ):
        assert part in text
    chain.wait(1, chain.record(0))
    chain.execute(1)


def test_the_event_was_recorded_before_the_execution(chain: Chain) -> None:
    chain.execute(0)
    event = chain.record(0)
    chain.execute(0)
    chain.wait(1, event)
    chain.refused(1, "waits only for an event behind an earlier")


def test_the_event_is_recorded_but_not_waited_for(chain: Chain) -> None:
    chain.execute(0)
    chain.record(0)
    chain.refused(1)


def test_another_stream_waits(chain: Chain) -> None:
    chain.execute(0)
    chain.wait(2, chain.record(0))
    chain.refused(1)


def test_the_wait_comes_before_the_recording(chain: Chain) -> None:
    chain.execute(0)
    event = chain.event()
    chain.wait(1, event)
    chain.record(0, event)
    chain.refused(1)


def test_the_wait_is_for_an_older_recording_of_the_event(chain: Chain) -> None:
    event = chain.record(0)
    chain.wait(1, event)
    chain.execute(0)
    chain.record(0, event)
    chain.refused(1)


def test_the_event_was_reset_before_the_wait(chain: Chain) -> None:
    rt = chain.acl.rt
    event, _ = rt.create_event()
    chain.execute(0)
    chain.record(0, event)
    assert rt.reset_event(event, chain.streams[0]) == 0
    chain.wait(1, event)
    chain.refused(1)


def test_the_wait_failed(chain: Chain) -> None:
    rt = chain.acl.rt
    event, _ = rt.create_event_with_flag(8)  # a time only
    chain.execute(0)
    chain.record(0, event)
    assert rt.stream_wait_event(chain.streams[1], event) == 107000
    chain.refused(1)


def test_only_the_last_but_one_execution_is_waited_for(chain: Chain) -> None:
    chain.execute(0)
    event = chain.record(0)
    chain.wait(1, event)
    chain.execute(1)
    chain.wait(2, event)
    chain.refused(2, "waits only for an event behind an earlier")


def test_the_wait_was_dropped(chain: Chain) -> None:
    chain.execute(0)
    chain.wait(1, chain.record(0))
    assert chain.acl.rt.stream_abort(chain.streams[1]) == 0
    chain.refused(1)


def test_the_execution_was_dropped(chain: Chain) -> None:
    chain.execute(0)
    assert chain.acl.rt.stream_abort(chain.streams[0]) == 0
    chain.execute(1)


def test_the_wait_on_the_host_ran_out_of_time(chain: Chain) -> None:
    """The emulator has run the work by then, but on the device it goes on."""
    rt = chain.acl.rt
    with emulator.configure(execute_ms=200):
        chain.execute(0)
        event = chain.record(0)
        assert rt.synchronize_stream_with_timeout(chain.streams[0], 1) == 507046
        assert rt.synchronize_event_with_timeout(event, 1) == 507047
        assert rt.query_event(event) == (1, 0)
        assert rt.stream_query(chain.streams[0]) == (1, 0)
        chain.refused(1)


def test_the_host_has_waited_for_something_else(chain: Chain) -> None:
    chain.execute(0)
    event = chain.record(0)
    chain.execute(0)
    assert chain.acl.rt.synchronize_event(event) == 0
    assert chain.acl.rt.synchronize_stream(chain.streams[2]) == 0
    chain.refused(1)


# --- synchronous executions -----------------------------------------------------------------------------


def test_a_synchronous_execution_needs_the_host_to_have_waited(ready: Any, net: Make, models: Any) -> None:
    one = net(models.shape())
    one.describe(0, [2, 3])
    stream, _ = ready.rt.create_stream()
    assert one.execute_async(stream) == 0
    with pytest.raises(emulator.EmulatorError, match=f"stream {stream:#x}: wait for that one first"):
        one.execute()
    assert ready.rt.synchronize_stream(stream) == 0
    assert one.execute() == 0
    assert one.execute_async(stream) == 0
    assert ready.rt.synchronize_stream(stream) == 0


def test_nothing_is_queued_during_a_synchronous_execution(ready: Any, net: Make, models: Any) -> None:
    one = net(models.shape())
    one.describe(0, [2, 3])
    context, _ = ready.rt.get_context()
    codes: list[int] = []

    def work() -> None:
        ready.rt.set_context(context)
        codes.append(one.execute())

    with emulator.gate("execute") as gate:
        thread = threading.Thread(target=work)
        thread.start()
        assert gate.wait_reached()
        with pytest.raises(emulator.EmulatorError, match="inside a synchronous execute"):
            one.execute_async(0)
        with pytest.raises(emulator.EmulatorError, match="a synchronous execute"):
            one.execute()
    thread.join(10)
    assert codes == [0]
    assert one.execute_async(0) == 0
    assert ready.rt.synchronize_stream(0) == 0


# --- memory of several models ---------------------------------------------------------------------------


class Pair:
    """Two models; the second one has a block of the first one as an input or output."""

    def __init__(self, acl: Any, net: Make, path: str, mine: str, theirs: str) -> None:
        self.acl = acl
        self.one, self.two = net(path), net(path)
        self.first, self.second = (acl.rt.create_stream()[0] for _ in range(2))
        pointer = (self.one.in_ptrs if mine == "in" else self.one.out_ptrs)[0]
        buffer = (self.two.in_bufs if theirs == "in" else self.two.out_bufs)[0]
        assert acl.update_data_buffer(buffer, pointer, 24) == 0


@pytest.mark.parametrize(("mine", "theirs"), [("out", "in"), ("in", "out"), ("out", "out")])
@pytest.mark.parametrize("ran_before", [False, True])
def test_memory_that_one_model_writes_and_another_uses(
    ready: Any, net: Make, models: Any, mine: str, theirs: str, ran_before: bool
) -> None:
    pair = Pair(ready, net, models.add(), mine, theirs)
    if ran_before:  # the plans are made, nothing is under way
        for one in (pair.one, pair.two):
            assert one.execute_async(pair.first) == 0
        assert ready.rt.synchronize_stream(pair.first) == 0
    assert pair.one.execute_async(pair.first) == 0
    with pytest.raises(emulator.EmulatorError, match="uses the same device memory"):
        pair.two.execute_async(pair.second)
    event, _ = ready.rt.create_event()
    assert ready.rt.record_event(event, pair.first) == 0
    assert ready.rt.stream_wait_event(pair.second, event) == 0
    assert pair.two.execute_async(pair.second) == 0
    with pytest.raises(emulator.EmulatorError, match="uses the same device memory"):
        pair.one.execute_async(pair.first)
    assert ready.rt.synchronize_device() == 0
    assert pair.one.execute_async(pair.first) == 0
    assert ready.rt.synchronize_device() == 0


def test_memory_that_both_models_read(ready: Any, net: Make, models: Any) -> None:
    pair = Pair(ready, net, models.add(), "in", "in")
    assert pair.one.execute_async(pair.first) == 0
    assert pair.two.execute_async(pair.second) == 0


def test_two_halves_of_one_block(ready: Any, net: Make, models: Any) -> None:
    pair = Pair(ready, net, models.add(), "out", "out")
    block, _ = ready.rt.malloc(64, 2)
    for one, offset in ((pair.one, 0), (pair.two, 32)):
        assert ready.update_data_buffer(one.out_bufs[0], block + offset, 24) == 0
    assert pair.one.execute_async(pair.first) == 0
    assert pair.two.execute_async(pair.second) == 0


def test_a_dataset_that_was_pointed_elsewhere_still_counts_where_it_runs(ready: Any, net: Make, models: Any) -> None:
    pair = Pair(ready, net, models.add(), "out", "out")
    other, _ = ready.rt.malloc(24, 2)
    assert pair.one.execute_async(pair.first) == 0
    assert ready.update_data_buffer(pair.one.out_bufs[0], other, 24) == 0
    assert pair.one.execute_async(pair.first) == 0
    with pytest.raises(emulator.EmulatorError, match="uses the same device memory"):
        pair.two.execute_async(pair.second)


def test_a_synchronous_execution_of_a_model_with_the_same_memory(ready: Any, net: Make, models: Any) -> None:
    pair = Pair(ready, net, models.add(), "out", "in")
    assert pair.one.execute_async(pair.first) == 0
    with pytest.raises(emulator.EmulatorError, match="with the same device memory"):
        pair.two.execute()
    assert ready.rt.synchronize_stream(pair.first) == 0
    assert pair.two.execute() == 0


# --- what is kept ---------------------------------------------------------------------------------------


def test_nothing_piles_up(ready: Any, net: Make, models: Any) -> None:
    """Streams that come and go, and a model whose every execution is another plan."""
    one = net(models.shape())
    event, _ = ready.rt.create_event_ex_with_flag(9)
    for k in range(50):
        stream, _ = ready.rt.create_stream()
        one.describe(0, [1 + k % 4, 3])
        assert ready.rt.stream_wait_event(stream, event) == 0
        assert one.execute_async(stream) == 0
        assert ready.rt.record_event(event, stream) == 0
        assert ready.rt.destroy_stream(stream) == 0
        assert len(events[event].record.behind) <= 1  # type: ignore[union-attr]
    assert max(len(block.uses) for block in device_memory.blocks.values()) <= 2


def test_a_stream_that_was_waited_for_keeps_no_models(chain: Chain) -> None:
    chain.execute(0)
    chain.wait(1, chain.record(0))
    for handle in chain.streams:
        assert chain.acl.rt.synchronize_stream(handle) == 0
    assert [streams[handle].behind for handle in chain.streams] == [{}, {}, {}]


def test_memory_of_a_model_is_freed_at_once(ready: Any, net: Make, models: Any) -> None:
    """What blocks and models know of each other is no circle that only the collector would cut."""
    path = models.write(
        "many", [helper.make_node("Add", ["a", "a"], ["out"])], [("a", 1, [1000])], [("out", 1, [1000])]
    )
    one = net(path)
    assert one.execute_async(0) == 0
    assert ready.rt.synchronize_stream(0) == 0
    array = weakref.ref(device_memory.blocks[one.in_ptrs[0]].array)
    gc.disable()
    try:
        one.close()
        assert array() is None
    finally:
        gc.enable()


def test_a_model_that_was_unloaded_is_freed_at_once(ready: Any, net: Make, models: Any) -> None:
    """Records of events that lie behind its executions do not keep it."""
    one, stream = net(models.add()), ready.rt.create_stream()[0]
    event, _ = ready.rt.create_event_ex_with_flag(9)
    assert one.execute_async(stream) == 0
    assert ready.rt.record_event(event, stream) == 0
    assert ready.rt.synchronize_event(event) == 0
    engine = weakref.ref(loaded[one.id].engine)
    gc.disable()
    try:
        one.close()
        assert engine() is None
    finally:
        gc.enable()
