"""Streams and events: laziness, order across streams, queries, failures, threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aioais import emulator
from aioais.emulator.context import contexts
from aioais.emulator.event import events
from aioais.emulator.model import models as models_of_acl
from aioais.emulator.stream import streams

H2D, D2H = 1, 2
Pin = Callable[[int], Any]


@pytest.fixture
def device(ready: Any) -> int:
    block, code = ready.rt.malloc(64, 2)
    assert code == 0
    return int(block)


def test_work_runs_only_when_waited_for(ready: Any, device: int, pinned: Pin) -> None:
    host = pinned(64)
    stream, _ = ready.rt.create_stream()
    ready.rt.memcpy_async(device, 64, host.pointer, 64, H2D, stream)
    assert emulator.copied()["h2d"] == 0
    assert ready.rt.synchronize_stream(stream) == 0
    assert emulator.copied()["h2d"] == 64


def test_stream_0_is_the_default_stream_of_the_context(ready: Any, device: int, pinned: Pin) -> None:
    host = pinned(64)
    assert ready.rt.memcpy_async(device, 64, host.pointer, 64, H2D, 0) == 0
    assert ready.rt.synchronize_stream(0) == 0
    assert emulator.copied()["h2d"] == 64


def test_polling_makes_progress(ready: Any, device: int, pinned: Pin) -> None:
    host = pinned(64)
    event, _ = ready.rt.create_event()
    ready.rt.memcpy_async(device, 64, host.pointer, 64, H2D, 0)
    ready.rt.record_event(event, 0)
    assert ready.rt.query_event_status(event) == (1, 0)
    assert ready.rt.query_event(event) == (0, 0)
    assert ready.rt.stream_query(0) == (0, 0)


def test_unrecorded_events(ready: Any) -> None:
    event, _ = ready.rt.create_event()
    assert ready.rt.query_event(event) == (1, 0)
    assert ready.rt.query_event_status(event) == (0, 0)
    assert ready.rt.query_event_wait_status(event) == (0, 0)
    assert ready.rt.synchronize_event(event) == 0
    assert ready.rt.stream_wait_event(0, event) == 0
    assert ready.rt.synchronize_stream(0) == 0
    assert ready.rt.event_get_timestamp(event) == (0, 107006)


def test_a_stream_waits_for_the_record_of_another(ready: Any, device: int, pinned: Pin) -> None:
    source, out = pinned(64), pinned(64)
    source.bytes[:] = 3
    one, two = ready.rt.create_stream()[0], ready.rt.create_stream()[0]
    event, _ = ready.rt.create_event()
    ready.rt.memcpy_async(device, 64, source.pointer, 64, H2D, one)
    ready.rt.record_event(event, one)
    ready.rt.stream_wait_event(two, event)
    ready.rt.memcpy_async(out.pointer, 64, device, 64, D2H, two)
    assert ready.rt.synchronize_stream(two) == 0
    assert (out.bytes == 3).all()


def test_a_wait_means_the_record_that_was_latest_then(ready: Any, device: int, pinned: Pin) -> None:
    first, second, out = pinned(64), pinned(64), pinned(64)
    first.bytes[:], second.bytes[:] = 1, 2
    one, two = ready.rt.create_stream()[0], ready.rt.create_stream()[0]
    event, _ = ready.rt.create_event()
    ready.rt.memcpy_async(device, 64, first.pointer, 64, H2D, one)
    ready.rt.record_event(event, one)
    ready.rt.stream_wait_event(two, event)
    ready.rt.memcpy_async(out.pointer, 64, device, 64, D2H, two)
    ready.rt.memcpy_async(device, 64, second.pointer, 64, H2D, one)
    ready.rt.record_event(event, one)
    assert ready.rt.synchronize_stream(two) == 0
    assert (out.bytes == 1).all()
    assert ready.rt.query_event_status(event) == (1, 0)


def test_event_synchronise_runs_no_further_than_the_record(ready: Any, device: int, pinned: Pin) -> None:
    host = pinned(64)
    event, _ = ready.rt.create_event()
    ready.rt.memcpy_async(device, 64, host.pointer, 16, H2D, 0)
    ready.rt.record_event(event, 0)
    ready.rt.memcpy_async(device, 64, host.pointer, 32, H2D, 0)
    assert ready.rt.synchronize_event(event) == 0
    assert emulator.copied()["h2d"] == 16


def test_synchronize_device_runs_every_stream(ready: Any, device: int, pinned: Pin) -> None:
    host = pinned(64)
    for stream in (0, ready.rt.create_stream()[0], ready.rt.create_stream()[0]):
        ready.rt.memcpy_async(device, 64, host.pointer, 8, H2D, stream)
    assert ready.rt.synchronize_device() == 0
    assert emulator.copied()["h2d"] == 24


def test_destroy_stream_finishes_its_work_and_force_drops_it(ready: Any, device: int, pinned: Pin) -> None:
    host = pinned(64)
    for destroy, copied in ((ready.rt.destroy_stream, 8), (ready.rt.destroy_stream_force, 8)):
        stream, _ = ready.rt.create_stream()
        ready.rt.memcpy_async(device, 64, host.pointer, 8, H2D, stream)
        assert destroy(stream) == 0
        assert emulator.copied()["h2d"] == copied


def test_abort_drops_work_and_lets_waiters_go_on(ready: Any, device: int, pinned: Pin) -> None:
    host = pinned(64)
    stream, _ = ready.rt.create_stream()
    event, _ = ready.rt.create_event()
    ready.rt.memcpy_async(device, 64, host.pointer, 8, H2D, stream)
    ready.rt.record_event(event, stream)
    assert ready.rt.stream_abort(stream) == 0
    assert ready.rt.synchronize_event(event) == 0
    assert emulator.copied()["h2d"] == 0


def test_null_and_stale_handles(ready: Any) -> None:
    stream, _ = ready.rt.create_stream()
    event, _ = ready.rt.create_event()
    assert ready.rt.destroy_stream(0) == 100000
    assert ready.rt.destroy_event(0) == 100000
    assert ready.rt.destroy_stream(stream) == 0
    assert ready.rt.destroy_event(event) == 0
    with pytest.raises(emulator.EmulatorError, match="is not a stream"):
        ready.rt.synchronize_stream(stream)
    with pytest.raises(emulator.EmulatorError, match="is not an event"):
        ready.rt.record_event(event, 0)


def test_timeouts(ready: Any, device: int, pinned: Pin) -> None:
    host = pinned(64)
    event, _ = ready.rt.create_event()
    with emulator.gate("h2d"):
        ready.rt.memcpy_async(device, 64, host.pointer, 8, H2D, 0)
        ready.rt.record_event(event, 0)
        assert ready.rt.synchronize_stream_with_timeout(0, 5) == 507046
        assert ready.rt.synchronize_event_with_timeout(event, 5) == 507047
        assert ready.rt.synchronize_device_with_timeout(5) == 507046
        assert ready.rt.stream_query(0) == (1, 0)
        assert ready.rt.query_event(event) == (1, 0)
    assert ready.rt.synchronize_event_with_timeout(event, -1) == 0
    assert ready.rt.synchronize_stream_with_timeout(0, 0) == 0
    assert ready.rt.synchronize_stream_with_timeout(0, -2) == 107000


def test_event_flags(ready: Any) -> None:
    timed, code = ready.rt.create_event_with_flag(8)
    assert code == 0
    assert ready.rt.create_event_with_flag(0) == (0, 107000)
    assert ready.rt.create_event_ex_with_flag(4) == (0, 107000)
    sync, _ = ready.rt.create_event_ex_with_flag(1)
    ready.rt.record_event(timed, 0)
    ready.rt.record_event(sync, 0)
    assert ready.rt.stream_wait_event(0, timed) == 107000
    assert ready.rt.stream_wait_event(0, sync) == 0
    ready.rt.synchronize_stream(0)
    assert ready.rt.event_elapsed_time(timed, sync) == (0.0, 107006)
    assert ready.rt.reset_event(sync, 0) == 107000


def test_a_wait_for_an_event_that_was_recorded_again_without_a_reset(ready: Any) -> None:
    event, _ = ready.rt.create_event_with_flag(1)
    for _ in range(2):
        ready.rt.record_event(event, 0)
        assert ready.rt.stream_wait_event(0, event) == 0
        assert ready.rt.reset_event(event, 0) == 0
    ready.rt.record_event(event, 0)
    ready.rt.record_event(event, 0)
    with pytest.raises(emulator.EmulatorError, match="without a reset"):
        ready.rt.stream_wait_event(0, event)


def test_reset_makes_an_event_unrecorded(ready: Any) -> None:
    event, _ = ready.rt.create_event()
    ready.rt.record_event(event, 0)
    ready.rt.synchronize_event(event)
    assert ready.rt.reset_event(event, 0) == 0
    assert ready.rt.query_event_status(event) == (0, 0)


def test_elapsed_time(ready: Any) -> None:
    start, end = ready.rt.create_event()[0], ready.rt.create_event()[0]
    ready.rt.record_event(start, 0)
    ready.rt.record_event(end, 0)
    assert ready.rt.event_elapsed_time(start, end) == (0.0, 107006)
    ready.rt.synchronize_stream(0)
    elapsed, code = ready.rt.event_elapsed_time(start, end)
    assert code == 0
    assert 0 < elapsed < 1000
    assert ready.rt.event_elapsed_time(end, start) == (0.0, 107007)
    stamp, code = ready.rt.event_get_timestamp(end)
    assert code == 0
    assert stamp > 0


def test_a_failed_operation_is_reported_once(ready: Any, device: int, pinned: Pin) -> None:
    host = pinned(64)
    emulator.fail("acl.rt.memcpy_async", 507901, device_side=True)
    assert ready.rt.memcpy_async(device, 64, host.pointer, 8, H2D, 0) == 0
    assert ready.rt.memcpy_async(device, 64, host.pointer, 16, H2D, 0) == 0
    assert ready.rt.synchronize_stream(0) == 507901
    assert ready.rt.synchronize_stream(0) == 0
    assert emulator.copied()["h2d"] == 16


def test_only_the_stream_of_a_failed_operation_reports_it(ready: Any, device: int, pinned: Pin) -> None:
    host = pinned(64)
    one, two = ready.rt.create_stream()[0], ready.rt.create_stream()[0]
    event, done = ready.rt.create_event()[0], ready.rt.create_event()[0]
    emulator.fail("acl.rt.memcpy_async", 507013, device_side=True)
    ready.rt.memcpy_async(device, 64, host.pointer, 8, H2D, one)
    ready.rt.record_event(event, one)
    ready.rt.stream_wait_event(two, event)
    ready.rt.record_event(done, two)
    assert ready.rt.synchronize_event(done) == 0
    assert ready.rt.synchronize_stream(two) == 0
    assert ready.rt.synchronize_stream(one) == 507013
    assert ready.rt.synchronize_stream(one) == 0


def test_failure_mode_1_stops_the_stream(ready: Any, device: int, pinned: Pin) -> None:
    host = pinned(64)
    stream, _ = ready.rt.create_stream()
    assert ready.rt.set_stream_failure_mode(stream, 1) == 0
    emulator.fail("acl.rt.memcpy_async", 507013, device_side=True)
    ready.rt.memcpy_async(device, 64, host.pointer, 8, H2D, stream)
    ready.rt.memcpy_async(device, 64, host.pointer, 16, H2D, stream)
    assert ready.rt.synchronize_stream(stream) == 507013
    assert emulator.copied()["h2d"] == 0


def test_two_threads_wait_for_two_streams_in_parallel(ready: Any, device: int, pinned: Pin) -> None:
    context, _ = ready.rt.get_context()
    host = pinned(64)
    streams = [ready.rt.create_stream()[0] for _ in range(2)]
    codes: list[int] = []

    def wait(stream: int) -> None:
        ready.rt.set_context(context)
        codes.append(ready.rt.synchronize_stream(stream))

    with emulator.gate("h2d") as gate:
        for stream in streams:
            ready.rt.memcpy_async(device, 64, host.pointer, 8, H2D, stream)
        threads = [threading.Thread(target=wait, args=(stream,)) for stream in streams]
        for thread in threads:
            thread.start()
        assert gate.wait_reached(10, count=2)
        assert codes == []
    for thread in threads:
        thread.join(10)
    assert codes == [0, 0]


def test_a_waiter_of_an_early_record_is_not_held_up_by_later_work(ready: Any, device: int, pinned: Pin) -> None:
    """One thread runs the stream on to a later, blocked copy; another one waits for what is done already."""
    context, _ = ready.rt.get_context()
    host = pinned(64)
    early = ready.rt.create_event()[0]
    result: list[int] = []

    def run_all() -> None:
        ready.rt.set_context(context)
        ready.rt.synchronize_stream(0)

    def wait_early() -> None:
        ready.rt.set_context(context)
        result.append(ready.rt.synchronize_event(early))

    gate_in, gate_out = emulator.gate("h2d"), emulator.gate("d2h")
    ready.rt.memcpy_async(device, 64, host.pointer, 8, H2D, 0)
    ready.rt.record_event(early, 0)
    ready.rt.memcpy_async(host.pointer, 64, device, 8, D2H, 0)
    runner = threading.Thread(target=run_all)
    runner.start()
    assert gate_in.wait_reached()
    waiter = threading.Thread(target=wait_early)
    waiter.start()
    gate_in.open()
    waiter.join(10)
    assert result == [0]
    assert gate_out.wait_reached()
    gate_out.open()
    runner.join(10)
    assert not runner.is_alive()


def test_threads_that_need_each_others_streams(ready: Any, pinned: Pin) -> None:
    """A chain that goes back and forth between two streams, waited for from both ends."""
    context, _ = ready.rt.get_context()
    host = pinned(64)
    blocks = [ready.rt.malloc(64, 2)[0] for _ in range(2)]
    streams = [ready.rt.create_stream()[0] for _ in range(2)]
    for _ in range(30):
        host.view(np.int32)[:] = 7
        for step in range(20):
            mine, other = streams[step % 2], streams[(step + 1) % 2]
            event, _ = ready.rt.create_event()
            ready.rt.memcpy_async(blocks[step % 2], 64, host.pointer, 64, H2D, mine)
            ready.rt.record_event(event, mine)
            ready.rt.stream_wait_event(other, event)
            ready.rt.destroy_event(event)

        def wait(stream: int) -> None:
            ready.rt.set_context(context)
            assert ready.rt.synchronize_stream(stream) == 0

        threads = [threading.Thread(target=wait, args=(stream,)) for stream in streams]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
    assert emulator.copied()["h2d"] == 30 * 20 * 64


def test_many_threads_on_one_stream(ready: Any, device: int, pinned: Pin) -> None:
    context, _ = ready.rt.get_context()
    host = pinned(64)
    codes: list[int] = []

    def work() -> None:
        ready.rt.set_context(context)
        event, _ = ready.rt.create_event()
        for _ in range(100):
            ready.rt.memcpy_async(device, 64, host.pointer, 8, H2D, 0)
            ready.rt.record_event(event, 0)
            codes.append(ready.rt.synchronize_event(event))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert codes == [0] * 400
    assert emulator.copied()["h2d"] == 3200


def test_polling_never_blocks_behind_another_thread(ready: Any, device: int, pinned: Pin) -> None:
    context, _ = ready.rt.get_context()
    host = pinned(64)

    def wait() -> None:
        ready.rt.set_context(context)
        ready.rt.synchronize_stream(0)

    with emulator.gate("h2d") as gate:
        ready.rt.memcpy_async(device, 64, host.pointer, 8, H2D, 0)
        thread = threading.Thread(target=wait)
        thread.start()
        assert gate.wait_reached()
        began = time.perf_counter()
        assert ready.rt.stream_query(0) == (1, 0)
        assert time.perf_counter() - began < 1
    thread.join(10)
    assert ready.rt.stream_query(0) == (0, 0)


class Neighbour:
    """Passes for a handle of another device; whenever it is looked at, its thread has made one more."""

    def __init__(self, table: dict[int, Any]) -> None:
        self._table = table

    @property
    def device(self) -> None:
        self._table[-1 - len(self._table)] = self


@pytest.mark.parametrize("kind", ["streams", "events", "models", "contexts"])
def test_other_threads_make_handles_at_the_same_time(ready: Any, kind: str) -> None:
    table: dict[int, Any] = {"streams": streams, "events": events, "models": models_of_acl, "contexts": contexts}[kind]  # type: ignore[assignment]
    table[-1] = Neighbour(table)
    try:
        if kind == "streams":
            stream, code = ready.rt.create_stream()
            assert code == 0
            assert ready.rt.synchronize_device() == 0
            assert ready.rt.destroy_stream(stream) == 0
        assert ready.rt.reset_device(0) == 0
    finally:
        for handle in [handle for handle in table if handle < 0]:
            del table[handle]
