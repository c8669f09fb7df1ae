"""Devices and contexts: counts, the current context of a thread, handles of other contexts."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from aioais import emulator


def in_thread(function: Callable[[], Any]) -> Any:
    """Run a function in a new thread and give its result."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def test_set_device_needs_init(acl: Any) -> None:
    assert acl.rt.set_device(0) == 100001


@pytest.mark.parametrize("device", [-1, 4])
def test_unknown_device_is_107001(ready: Any, device: int) -> None:
    assert ready.rt.set_device(device) == 107001
    assert ready.rt.create_context(device) == (0, 107001)


def test_sets_are_counted_and_one_reset_too_many_is_507007(ready: Any) -> None:
    assert ready.rt.set_device(0) == 0
    assert ready.rt.reset_device(0) == 0
    assert ready.rt.malloc(8, 2)[1] == 0
    assert ready.rt.reset_device(0) == 0
    assert ready.rt.malloc(8, 2) == (0, 107002)
    assert ready.rt.reset_device(0) == 507007


def test_the_number_of_devices_changes_around_those_in_use(acl: Any) -> None:
    with emulator.configure(devices=2):
        acl.init()
        assert acl.rt.set_device(1) == 0
        first, _ = acl.rt.malloc(8, 2)
        with emulator.configure(devices=1):
            assert acl.rt.get_device_count() == (1, 0)
            assert acl.rt.set_device(1) == acl.rt.create_context(1)[1] == 107001
            assert acl.rt.malloc(8, 2)[1] == 0
    assert acl.rt.get_device_count() == (4, 0)
    assert acl.rt.set_device(1) == 0
    second, _ = acl.rt.malloc(8, 2)
    assert second != first
    with emulator.configure(devices=1):
        assert [acl.rt.reset_device(1) for _ in range(3)] == [0, 0, 507007]


def test_reset_force_frees_at_once(ready: Any) -> None:
    ready.rt.set_device(0)
    assert ready.rt.reset_device_force(0) == 0
    assert ready.rt.get_context() == (0, 107002)
    assert ready.rt.reset_device_force(0) == 507007


def test_a_new_thread_has_no_context(ready: Any) -> None:
    assert in_thread(lambda: ready.rt.get_context()) == (0, 107002)


@pytest.mark.parametrize(
    "call",
    [
        lambda acl: acl.rt.malloc(8, 2)[1],
        lambda acl: acl.rt.malloc_host(8)[1],
        lambda acl: acl.rt.memcpy(8, 8, 8, 8, 0),
        lambda acl: acl.rt.memset(8, 8, 0, 8),
        lambda acl: acl.rt.get_mem_info(0)[-1],
        lambda acl: acl.rt.create_stream()[1],
        lambda acl: acl.rt.create_event()[1],
        lambda acl: acl.rt.synchronize_stream(0),
        lambda acl: acl.rt.synchronize_device(),
        lambda acl: acl.mdl.load_from_file("x")[1],
        lambda acl: acl.mdl.execute(1, 1, 1),
        lambda acl: acl.mdl.set_dynamic_batch_size(1, 1, 0, 1),
        lambda acl: acl.rt.get_device()[1],
    ],
)
def test_calls_that_need_a_context(ready: Any, call: Callable[[Any], int]) -> None:
    assert in_thread(lambda: call(ready)) == 107002


def test_calls_that_need_none(ready: Any) -> None:
    block, _ = ready.rt.malloc(8, 2)
    pinned, _ = ready.rt.malloc_host(8)

    def work() -> list[Any]:
        dataset = ready.mdl.create_dataset()
        buffer = ready.create_data_buffer(block, 8)
        desc = ready.mdl.create_desc()
        ready.mdl.add_dataset_buffer(dataset, buffer)
        return [
            ready.rt.free(block),
            ready.rt.free_host(pinned),
            ready.destroy_data_buffer(buffer),
            ready.mdl.destroy_dataset(dataset),
            ready.mdl.destroy_desc(desc),
            ready.rt.get_device_count()[1],
            ready.rt.get_run_mode()[1],
        ]

    assert in_thread(work) == [0] * 7


def test_set_device_shares_the_default_context(ready: Any) -> None:
    mine = ready.rt.get_context()

    def work() -> Any:
        ready.rt.set_device(0)
        return ready.rt.get_context()

    assert in_thread(work) == mine


def test_set_context_makes_a_thread_usable(ready: Any) -> None:
    context, _ = ready.rt.get_context()
    assert in_thread(lambda: (ready.rt.set_context(context), ready.rt.malloc(8, 2)[1])) == (0, 0)


def test_a_created_context_is_current(ready: Any) -> None:
    context, code = ready.rt.create_context(1)
    assert code == 0
    assert ready.rt.get_context() == (context, 0)
    assert ready.rt.get_device() == (1, 0)
    assert ready.rt.destroy_context(context) == 0
    assert ready.rt.get_context() == (0, 107002)


def test_the_default_context_is_not_destroyed_by_hand(ready: Any) -> None:
    context, _ = ready.rt.get_context()
    assert ready.rt.destroy_context(context) == 100000
    assert ready.rt.destroy_context(0) == 100000


def test_set_device_replaces_an_explicit_context(ready: Any) -> None:
    explicit, _ = ready.rt.create_context(0)
    ready.rt.set_device(0)
    assert ready.rt.get_context()[0] != explicit


def test_stale_context_is_refused_loudly(ready: Any) -> None:
    context, _ = ready.rt.create_context(0)
    ready.rt.destroy_context(context)
    with pytest.raises(emulator.EmulatorError, match="is not a context"):
        ready.rt.set_context(context)


def test_streams_of_another_context_are_107003(ready: Any) -> None:
    stream, _ = ready.rt.create_stream()
    event, _ = ready.rt.create_event()
    block, _ = ready.rt.malloc(8, 2)
    host, _ = ready.rt.malloc_host(8)
    ready.rt.create_context(0)
    assert ready.rt.record_event(event, stream) == 107003
    assert ready.rt.stream_wait_event(stream, event) == 107003
    assert ready.rt.memcpy_async(block, 8, host, 8, 1, stream) == 107003
    assert ready.rt.launch_callback(print, 1, 0, stream) == 107003
    assert ready.rt.destroy_stream(stream) == 107003
    assert ready.rt.synchronize_stream(stream) == 0


def test_handles_are_never_used_twice(ready: Any) -> None:
    seen = set()
    for _ in range(50):
        stream, _ = ready.rt.create_stream()
        event, _ = ready.rt.create_event()
        seen |= {stream, event}
        ready.rt.destroy_stream(stream)
        ready.rt.destroy_event(event)
    assert len(seen) == 100
    assert 0 not in seen


def test_stream_limit_is_207008(ready: Any) -> None:
    for _ in range(1984):
        assert ready.rt.create_stream()[1] == 0
    assert ready.rt.create_stream() == (0, 207008)


def test_preset_values_of_failed_queries(acl: Any) -> None:
    assert acl.rt.stream_query(0) == (65535, 107002)
    assert acl.rt.query_device_status(9) == (65535, 107001)
    assert acl.rt.get_device_utilization_rate(9)[0]["cube_utilization"] == 0
    assert acl.rt.query_event(0) == (0, 100000)


def test_priorities(ready: Any) -> None:
    assert ready.rt.device_get_stream_priority_range() == (7, 0, 0)
    assert ready.rt.create_stream_with_config(3, 1)[1] == 0
    assert ready.rt.create_stream_with_config(8, 0) == (0, 107000)


def test_threads_with_a_device_each_do_not_disturb_one_another(ready: Any) -> None:
    wrong: list[str] = []

    def work(index: int) -> None:
        try:
            for _ in range(40):
                codes = [ready.rt.set_device(index)]
                streams, made = zip(*(ready.rt.create_stream() for _ in range(20)), strict=True)
                _, recorded = zip(*(ready.rt.create_event() for _ in range(20)), strict=True)
                codes += [ready.rt.synchronize_device(), *(ready.rt.destroy_stream(stream) for stream in streams[:10])]
                codes.append(ready.rt.reset_device(index))  # takes the rest away
                wrong.extend(f"device {index}: {code}" for code in (*codes, *made, *recorded) if code)
        except RuntimeError as exc:
            wrong.append(repr(exc))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(index,)) for index in (1, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
