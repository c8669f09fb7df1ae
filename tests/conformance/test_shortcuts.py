"""The usual case of the calls of a request is as strict as the checked entry points behind it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aioais import emulator

Make = Callable[..., Any]
NAMES = (
    "rt.set_context",
    "rt.record_event",
    "rt.stream_wait_event",
    "rt.memcpy_async",
    "mdl.execute_async",
    "rt.synchronize_stream",
    "rt.event_elapsed_time",
)


class Calls:
    """Every call with arguments that are right, after all of them were made once."""

    def __init__(self, acl: Any, one: Any, host: Any) -> None:
        self.acl, self.one, self.host = acl, one, host
        self.context = acl.rt.get_context()[0]
        self.stream = acl.rt.create_stream()[0]
        self.start, self.end = (acl.rt.create_event_ex_with_flag(9)[0] for _ in range(2))
        self.args: dict[str, tuple[int, ...]] = {
            "rt.set_context": (self.context,),
            "rt.record_event": (self.end, self.stream),
            "rt.stream_wait_event": (self.stream, self.start),
            "rt.memcpy_async": (one.in_ptrs[0], 24, host.pointer, 24, 1, self.stream),
            "mdl.execute_async": (one.id, one.ins, one.outs, self.stream),
            "rt.synchronize_stream": (self.stream,),
            "rt.event_elapsed_time": (self.start, self.end),
        }
        assert acl.rt.record_event(self.start, self.stream) == 0
        for name in ("mdl.execute_async", "rt.record_event", "rt.synchronize_stream"):
            assert self(name) == 0

    def __call__(self, name: str, *args: Any) -> Any:
        owner, _, short = name.partition(".")
        return getattr(getattr(self.acl, owner), short)(*(args or self.args[name]))


@pytest.fixture
def calls(ready: Any, net: Make, models: Any, pinned: Callable[[int], Any]) -> Calls:
    return Calls(ready, net(models.add()), pinned(24))


@pytest.mark.parametrize("name", NAMES)
def test_the_usual_case_succeeds_and_is_counted_once(calls: Calls, name: str) -> None:
    before = emulator.counts().get(f"acl.{name}", 0)
    answer = calls(name)
    assert answer == 0 or (answer[0] >= 0.0 and answer[1] == 0)
    assert emulator.counts()[f"acl.{name}"] == before + 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [np.int64, float, str, lambda value: [value]])
def test_numbers_of_other_types_are_refused_even_if_they_are_equal(calls: Calls, name: str, kind: Any) -> None:
    args = calls.args[name]
    for place in range(len(args)):
        if kind is np.int64 and (name, place) in (("rt.memcpy_async", 4), ("mdl.execute_async", 0)):
            continue  # the kind of a copy and the id of a model take anything with an index
        wrong = (*args[:place], kind(args[place]), *args[place + 1 :])
        with pytest.raises(TypeError, match=f"acl.{name} args parse failed"):
            calls(name, *wrong)


@pytest.mark.parametrize("name", NAMES)
def test_another_number_of_arguments_is_refused(calls: Calls, name: str) -> None:
    for wrong in ((*calls.args[name], 1), calls.args[name][:-1] or (1, 2)):
        with pytest.raises(TypeError, match="args parse failed"):
            calls(name, *wrong)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "rt.event_elapsed_time"])
def test_injected_faults_strike(calls: Calls, name: str) -> None:
    emulator.fail(f"acl.{name}", 507000)
    assert calls(name) == 507000
    assert calls(name) == 0


@pytest.mark.parametrize("name", ["rt.memcpy_async", "mdl.execute_async"])
def test_injected_faults_strike_on_the_device(calls: Calls, name: str) -> None:
    emulator.fail(f"acl.{name}", 507011, device_side=True)
    assert calls(name) == 0
    assert calls("rt.synchronize_stream") == 507011
    assert calls("rt.synchronize_stream") == 0


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("rt.record_event", 107003),
        ("rt.stream_wait_event", 107003),
        ("rt.memcpy_async", 107003),
        ("mdl.execute_async", 107003),
        ("rt.synchronize_stream", 0),
    ],
)
def test_contexts(calls: Calls, name: str, code: int) -> None:
    """In another context than the stream's, in a thread without one, and in one that was destroyed."""
    rt = calls.acl.rt
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(calls(name)))
    thread.start()
    thread.join(10)
    assert codes == [107002]
    other, _ = rt.create_context(0)
    assert calls(name) == code
    assert rt.destroy_context(other) == 0
    assert calls(name) == 107002
    assert rt.set_context(calls.context) == 0
    assert calls(name) == 0


@pytest.mark.parametrize("name", NAMES)
def test_stale_handles_raise_without_a_trace_of_the_shortcut(calls: Calls, name: str) -> None:
    """What the shortcut ran into is no part of the error."""
    args = calls.args[name]
    place = args.index(calls.stream) if calls.stream in args else 0
    with pytest.raises(emulator.EmulatorError) as caught:
        calls(name, *args[:place], 0x5A00_FFFF_FFF0, *args[place + 1 :])
    assert caught.value.__context__ is None


def test_copies_that_do_not_fit(calls: Calls) -> None:
    device, _, host, *_ = calls.args["rt.memcpy_async"]
    assert calls("rt.memcpy_async", device, 23, host, 24, 1, calls.stream) == 107000
    assert calls("rt.memcpy_async", device, 24, host, 24, 7 + 1, calls.stream) == 100000
    for count in (25, 1 << 20):
        with pytest.raises(emulator.EmulatorError, match="go beyond"):
            calls("rt.memcpy_async", device, count, host, count, 1, calls.stream)
    assert calls("rt.memcpy_async", device, 24, host, 0, 1, calls.stream) == 0
    assert calls("rt.memcpy_async", host, 24, device, 24, 1, calls.stream) == 107000  # the wrong direction
    assert calls.acl.rt.free(device) == 0
    with pytest.raises(emulator.EmulatorError, match="already freed"):
        calls("rt.memcpy_async")


def test_a_plan_is_used_only_while_it_is_valid(calls: Calls) -> None:
    acl, one = calls.acl, calls.one
    pointer, _ = acl.rt.malloc(24, 2)
    for index in range(2):
        one.put(index, np.ones((2, 3), np.float32))
    assert calls("mdl.execute_async") == 0
    assert acl.update_data_buffer(one.in_bufs[0], pointer, 24) == 0
    other = np.full((2, 3), 4, np.float32)
    assert acl.rt.memcpy(pointer, 24, other.ctypes.data, 24, 1) == 0
    assert calls("mdl.execute_async") == 0
    assert calls("rt.synchronize_stream") == 0
    assert (one.get(0, (2, 3)) == 5).all()
    assert acl.rt.free(pointer) == 0
    with pytest.raises(emulator.EmulatorError, match="already freed"):
        calls("mdl.execute_async")
    assert acl.update_data_buffer(one.in_bufs[0], one.in_ptrs[0], 24) == 0
    assert calls("mdl.execute_async") == 0
    assert calls("rt.synchronize_stream") == 0
    assert acl.mdl.destroy_dataset(one.outs) == 0
    with pytest.raises(emulator.EmulatorError, match="is not a dataset"):
        calls("mdl.execute_async")


def test_elapsed_times_that_there_are_not(calls: Calls) -> None:
    rt = calls.acl.rt
    emulator.fail("acl.rt.event_elapsed_time", 507000)
    assert calls("rt.event_elapsed_time") == (0.0, 507000)
    assert rt.event_elapsed_time(calls.end, calls.start) == (0.0, 107007)
    untimed, _ = rt.create_event_ex_with_flag(1)
    for event in (untimed, calls.end):
        assert rt.record_event(event, calls.stream) == 0
    assert calls("rt.synchronize_stream") == 0
    unrecorded, _ = rt.create_event_ex_with_flag(9)
    pending, _ = rt.create_event_ex_with_flag(9)
    assert rt.record_event(pending, calls.stream) == 0
    for other in (untimed, unrecorded, pending):
        assert rt.event_elapsed_time(calls.start, other) == (0.0, 107006)
        assert rt.event_elapsed_time(other, calls.end) == (0.0, 107006)


def test_a_context_that_another_thread_destroyed(ready: Any, net: Make, models: Any, pinned: Any) -> None:
    context, _ = ready.rt.create_context(0)
    calls = Calls(ready, net(models.add()), pinned(24))
    assert ready.rt.set_context(context) == 0
    thread = threading.Thread(target=lambda: ready.rt.destroy_context(context))
    thread.start()
    thread.join(10)
    for name in NAMES:
        if name not in ("rt.set_context", "rt.event_elapsed_time"):
            assert calls(name) == 107002, name


def test_an_event_that_must_be_reset(calls: Calls) -> None:
    rt = calls.acl.rt
    event, _ = rt.create_event_with_flag(9)
    assert rt.record_event(event, calls.stream) == 0
    assert rt.stream_wait_event(calls.stream, event) == 0
    assert rt.record_event(event, calls.stream) == 0
    with pytest.raises(emulator.EmulatorError, match="without a reset"):
        rt.stream_wait_event(calls.stream, event)


def test_memory_of_another_device(calls: Calls) -> None:
    rt = calls.acl.rt
    assert rt.set_device(1) == 0
    pointer, _ = rt.malloc(24, 2)
    assert rt.set_context(calls.context) == 0
    own = calls.one.in_ptrs[0]
    for args in (
        (pointer, 24, calls.host.pointer, 24, 1),
        (pointer, 24, own, 24, 3),
        (own, 24, pointer, 24, 3),
    ):
        with pytest.raises(emulator.EmulatorError, match="is memory of device 1"):
            calls("rt.memcpy_async", *args, calls.stream)


def test_copies_on_the_device(calls: Calls) -> None:
    source, target = calls.one.in_ptrs
    array = np.arange(6, dtype=np.float32)
    calls.one.put(0, array)
    before = emulator.copied()["d2d"]
    assert calls("rt.memcpy_async", target, 24, source, 24, 3, calls.stream) == 0
    assert emulator.copied()["d2d"] == before, "it is queued"
    assert calls("rt.synchronize_stream") == 0
    assert emulator.copied()["d2d"] == before + 24
    back = np.empty_like(array)
    assert calls.acl.rt.memcpy(back.ctypes.data, 24, target, 24, 2) == 0
    assert (back == array).all()
    assert calls("rt.memcpy_async", target, 23, source, 24, 3, calls.stream) == 107000
    assert calls("rt.memcpy_async", target, 24, calls.host.pointer, 24, 3, calls.stream) == 107000


def test_a_model_that_was_executed_synchronously(ready: Any, net: Make, models: Any) -> None:
    one = net(models.add())
    stream, _ = ready.rt.create_stream()
    assert one.execute() == 0
    assert one.execute_async(stream) == 500002


def test_time_that_is_configured_is_waited_for(calls: Calls) -> None:
    with emulator.configure(execute_ms=20):
        began = time.perf_counter()
        assert calls("mdl.execute_async") == 0
        assert calls("rt.synchronize_stream") == 0
        assert time.perf_counter() - began >= 0.02


def test_failures_and_dead_devices_are_reported(calls: Calls) -> None:
    host, one = calls.host, calls.one
    assert calls("rt.memcpy_async", one.in_ptrs[1], 24, host.pointer, 24, 1, calls.stream) == 0
    assert calls.acl.rt.free_host(host.pointer) == 0
    assert calls("rt.synchronize_stream") != 0
    assert calls("rt.synchronize_stream") == 0
    with emulator.kill(0):
        assert calls("rt.synchronize_stream") == 507010
        assert calls("mdl.execute_async") == 507010
    assert calls("rt.synchronize_stream") == 0
