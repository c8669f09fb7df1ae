"""Host callbacks: subscription, block types, exceptions, deadlocks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aioais import emulator


class Serving:
    """A thread that sits in ``process_report``, with a stream subscribed to it."""

    def __init__(self, acl: Any) -> None:
        self.acl = acl
        self.context, _ = acl.rt.get_context()
        self.stream, _ = acl.rt.create_stream()
        self.stopping = False
        self.errors: list[BaseException] = []
        self.thread, code = acl.util.start_thread(self.loop, None)
        assert code == 0
        assert acl.rt.subscribe_report(self.thread, self.stream) == 0

    def loop(self) -> None:
        self.acl.rt.set_context(self.context)
        while not self.stopping:
            try:
                self.acl.rt.process_report(20)
            except SystemError as exc:
                self.errors.append(exc)

    def stop(self) -> None:
        self.stopping = True
        assert self.acl.util.stop_thread(self.thread) == 0
        self.acl.rt.unsubscribe_report(self.thread, self.stream)


@pytest.fixture
def serving(ready: Any) -> Iterator[Serving]:
    server = Serving(ready)
    yield server
    server.stop()


def test_callbacks_get_exactly_their_object_in_the_subscribed_thread(ready: Any, serving: Serving) -> None:
    seen: list[Any] = []
    data = ["anything"]

    def callback(argument: Any) -> None:
        seen.append((argument, threading.get_ident()))

    assert ready.rt.launch_callback(callback, data, 1, serving.stream) == 0
    assert ready.rt.synchronize_stream(serving.stream) == 0
    assert seen == [(data, serving.thread)]
    assert seen[0][0] is data


def test_a_blocking_callback_holds_the_stream(ready: Any, serving: Serving, pinned: Callable[[int], Any]) -> None:
    host = pinned(64)
    block, _ = ready.rt.malloc(64, 2)
    seen: list[int] = []
    ready.rt.memcpy_async(block, 64, host.pointer, 8, 1, serving.stream)
    ready.rt.launch_callback(lambda _: seen.append(emulator.copied()["h2d"]), None, 1, serving.stream)
    ready.rt.memcpy_async(block, 64, host.pointer, 16, 1, serving.stream)
    assert ready.rt.synchronize_stream(serving.stream) == 0
    assert seen == [8]
    assert emulator.copied()["h2d"] == 24


def test_callbacks_come_without_a_synchronise(ready: Any, serving: Serving) -> None:
    done = threading.Event()
    ready.rt.launch_callback(lambda _: done.set(), None, 0, serving.stream)
    assert done.wait(10)


def test_codes(ready: Any, serving: Serving) -> None:
    stream, _ = ready.rt.create_stream()
    assert ready.rt.launch_callback(print, 1, 0, stream) == 107015
    assert ready.rt.launch_callback(print, 1, 2, serving.stream) == 100000
    assert ready.rt.subscribe_report(serving.thread, serving.stream) == 107011
    assert ready.rt.unsubscribe_report(serving.thread, stream) == 107011
    assert ready.rt.process_report(0) == 100000
    assert ready.rt.process_report(-2) == 100000
    assert ready.rt.process_report(5) == 107012
    assert ready.rt.destroy_stream(serving.stream) == 107011


def test_nothing_in_time_is_507012(ready: Any) -> None:
    stream, _ = ready.rt.create_stream()
    assert ready.rt.subscribe_report(threading.get_ident(), stream) == 0
    assert ready.rt.process_report(5) == 507012
    seen: list[int] = []
    ready.rt.launch_callback(seen.append, 4, 1, stream)
    assert ready.rt.process_report(5) == 0
    assert seen == [4]
    assert ready.rt.unsubscribe_report(threading.get_ident(), stream) == 0


def test_an_exception_comes_out_as_system_error(ready: Any) -> None:
    stream, _ = ready.rt.create_stream()
    ready.rt.subscribe_report(threading.get_ident(), stream)

    def callback(_: Any) -> None:
        raise KeyError("mine")

    ready.rt.launch_callback(callback, 1, 0, stream)
    with pytest.raises(SystemError) as caught:
        ready.rt.process_report(100)
    assert isinstance(caught.value.__cause__, KeyError)


def test_waits_that_hold_the_gil_would_hang(ready: Any, serving: Serving, pinned: Callable[[int], Any]) -> None:
    release = threading.Event()
    stream, _ = ready.rt.create_stream()
    ready.rt.subscribe_report(serving.thread, stream)
    ready.rt.launch_callback(lambda _: release.wait(10), None, 1, stream)
    with pytest.raises(emulator.EmulatorError, match="would hang"):
        ready.rt.synchronize_device_with_timeout(1000)
    release.set()
    assert ready.rt.synchronize_stream(stream) == 0
    assert ready.rt.unsubscribe_report(serving.thread, stream) == 0
    assert ready.rt.destroy_stream(stream) == 0


@pytest.mark.filterwarnings("ignore")
def test_what_escapes_a_thread_is_raised_by_stop_thread(ready: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def work(argument: Any) -> None:
        raise SystemExit(argument)

    thread, _ = ready.util.start_thread(work, 3)
    with pytest.raises(RuntimeError, match="exception=SystemExit,msg=thread call failed;"):
        ready.util.stop_thread(thread)
    assert "SystemExit" in capsys.readouterr().err


def test_a_thread_serves_the_streams_of_one_device(ready: Any, serving: Serving) -> None:
    assert ready.rt.set_device(1) == 0
    stream, code = ready.rt.create_stream()
    assert code == 0
    assert ready.rt.subscribe_report(serving.thread, stream) == 107012
    assert ready.rt.destroy_stream(stream) == 0
    assert ready.rt.set_device(0) == 0


def test_the_end_of_the_last_subscription_ends_the_wait(ready: Any) -> None:
    context, _ = ready.rt.get_context()
    stream, _ = ready.rt.create_stream()
    subscribed, has_begun = threading.Event(), threading.Event()
    answers: list[int] = []

    def serve() -> None:
        ready.rt.set_context(context)
        assert subscribed.wait(10)
        ready.rt.launch_callback(lambda _: has_begun.set(), None, 0, stream)
        answers.append(ready.rt.process_report(-1))
        answers.append(ready.rt.process_report(-1))

    thread, code = ready.util.start_thread(serve, None)
    assert code == 0
    assert ready.rt.subscribe_report(thread, stream) == 0
    subscribed.set()
    assert has_begun.wait(10)
    assert ready.rt.unsubscribe_report(thread, stream) == 0
    assert ready.util.stop_thread(thread) == 0
    assert answers == [0, 107012], "the second wait ended, or did not begin"


def test_a_wait_with_a_limit_for_a_blocking_callback(ready: Any, serving: Serving) -> None:
    release = threading.Event()
    assert ready.rt.launch_callback(lambda _: release.wait(10), None, 1, serving.stream) == 0
    assert ready.rt.synchronize_stream_with_timeout(serving.stream, 10) == 507046
    release.set()
    assert ready.rt.synchronize_stream(serving.stream) == 0


def test_callbacks_of_a_failed_stream_are_not_called(
    ready: Any, serving: Serving, pinned: Callable[[int], Any]
) -> None:
    host, called = pinned(8), list[int]()
    block, _ = ready.rt.malloc(8, 2)
    assert ready.rt.set_stream_failure_mode(serving.stream, 1) == 0
    emulator.fail("acl.rt.memcpy_async", 507011, device_side=True)
    with emulator.gate("h2d"):
        assert ready.rt.memcpy_async(block, 8, host.pointer, 8, 1, serving.stream) == 0
        assert ready.rt.launch_callback(called.append, 1, 1, serving.stream) == 0
    assert ready.rt.synchronize_stream(serving.stream) == 507011
    assert called == []
