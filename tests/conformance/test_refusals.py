"""What calls answer that make no sense where they are made: no context, null arguments, what the emulator has not."""

from __future__ import annotations

import ctypes
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.conformance.test_small_calls import INVALID, call

from aioais import emulator
from aioais.emulator import EmulatorError

if TYPE_CHECKING:
    from tests.conformance.conftest import Models

NO_CONTEXT = 107002
INVALID_DEVICE = 107001
NOT_SUPPORTED = 200001

NEED_A_CONTEXT: dict[str, tuple[Any, ...]] = {
    "rt.create_event": (),
    "rt.record_event": (0, 0),
    "rt.reset_event": (0, 0),
    "rt.stream_wait_event": (0, 0),
    "rt.synchronize_event": (0,),
    "rt.create_stream": (),
    "rt.synchronize_stream": (0,),
    "rt.synchronize_stream_with_timeout": (0, 10),
    "rt.stream_query": (0,),
    "rt.malloc": (64, 2),
    "rt.malloc_host": (64,),
    "rt.get_mem_info": (1,),
    "rt.memcpy_async": (64, 8, 128, 8, 1, 0),
    "rt.memset_async": (64, 8, 0, 8, 0),
    "rt.memset": (64, 8, 0, 8),
    "rt.memcpy2d": (64, 8, 128, 8, 8, 1, 1),
    "rt.stream_abort": (0,),
    "rt.stream_get_id": (0,),
    "rt.set_stream_failure_mode": (0, 1),
    "rt.subscribe_report": (1, 0),
    "rt.unsubscribe_report": (1, 0),
    "rt.launch_callback": (print, None, 0, 0),
    "rt.device_enable_peer_access": (1, 0),
    "mdl.load_from_file": ("x.model",),
}


def code_of(answer: Any) -> int:
    return int(answer[-1] if isinstance(answer, tuple) else answer)


@pytest.mark.parametrize("name", NEED_A_CONTEXT)
def test_a_thread_without_a_context_is_told(ready: Any, name: str) -> None:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(call(ready, name, *NEED_A_CONTEXT[name])))
    thread.start()
    thread.join()
    assert code_of(answers[0]) == NO_CONTEXT


def test_what_the_emulator_has_not(ready: Any, caplog: pytest.LogCaptureFixture) -> None:
    acl = ready
    assert acl.get_version_str("toolkit") == (".".join(map(str, acl.get_version()[:3])), 0)
    assert acl.get_cann_version(0) == ({}, NOT_SUPPORTED)
    assert acl.get_cann_attribute(0) == (0, NOT_SUPPORTED)
    assert acl.get_device_capability(0, 0) == (0, NOT_SUPPORTED)
    with caplog.at_level(logging.DEBUG):
        acl.app_log(3, "a message of the program")
    assert "a message of the program" in caplog.text


def test_devices_that_are_not_there(ready: Any) -> None:
    rt = ready.rt
    assert code_of(rt.set_device(99)) == INVALID_DEVICE
    assert code_of(rt.reset_device(99)) == INVALID_DEVICE
    assert code_of(rt.reset_device_force(99)) == INVALID_DEVICE
    rates, code = rt.get_device_utilization_rate(0)
    assert (rates["memory_utilization"], code) == (0, 0)
    assert code_of(rt.device_can_access_peer(0, 99)) == INVALID_DEVICE
    assert rt.device_enable_peer_access(99, 0) == INVALID_DEVICE
    assert rt.device_enable_peer_access(1, 7) == INVALID
    assert rt.device_enable_peer_access(0, 0) == INVALID, "it is the device itself"


def test_reports_and_streams_that_make_no_sense(ready: Any) -> None:
    rt = ready.rt
    stream, code = rt.create_stream()
    assert code == 0
    assert rt.set_stream_failure_mode(stream, 9) == INVALID
    assert rt.unsubscribe_report(threading.get_ident(), stream) == 107012, "the thread is not subscribed"
    assert rt.destroy_stream(stream) == 0


def test_memory_is_set_in_turn(ready: Any) -> None:
    rt = ready.rt
    block, code = rt.malloc(64, 2)
    assert code == 0
    stream, code = rt.create_stream()
    assert code == 0
    host = ctypes.create_string_buffer(64)
    assert code_of(rt.memset_async(ctypes.addressof(host), 64, 7, 64, stream)) == 107000, "pageable"
    with emulator.gate("d2d"):
        assert rt.memset_async(block, 64, 7, 64, stream) == 0
    assert rt.synchronize_stream(stream) == 0
    assert rt.memcpy(ctypes.addressof(host), 64, block, 64, 2) == 0
    assert host.raw == bytes([7]) * 64
    emulator.fail("acl.rt.memset_async", 507011, device_side=True)
    assert rt.memset_async(block, 64, 8, 64, stream) == 0
    assert rt.synchronize_stream(stream) == 507011
    assert (rt.destroy_stream(stream), rt.free(block)) == (0, 0)


def test_models_in_memory_that_are_none(ready: Any, models: Models) -> None:
    mdl = ready.mdl
    content = Path(models.add()).read_bytes()
    good, bad = (ctypes.create_string_buffer(text, len(text)) for text in (content, b"no model" * 8))
    desc = mdl.create_desc()
    assert mdl.get_desc_from_mem(desc, ctypes.addressof(good), len(content)) == 0
    assert mdl.get_num_inputs(desc) == 2
    assert mdl.destroy_desc(desc) == 0
    desc = mdl.create_desc()
    assert mdl.get_desc_from_mem(desc, ctypes.addressof(bad), 64) != 0
    assert mdl.get_desc_from_file(desc, "none.model") != 0
    assert mdl.get_desc_from_mem(0, ctypes.addressof(good), len(content)) == INVALID
    assert mdl.get_desc_from_file(0, "none.model") == INVALID
    assert mdl.destroy_desc(desc) == 0
    assert mdl.query_size_from_mem(ctypes.addressof(good), len(content))[-1] == 0
    assert mdl.query_size_from_mem(ctypes.addressof(bad), 64)[-1] != 0
    assert mdl.query_size("none.model")[-1] != 0


@pytest.mark.parametrize("size", [2**31, 2**32, 2**32 + 5, 2**64 - 1])
def test_models_in_memory_have_less_than_2_gib(ready: Any, models: Models, size: int) -> None:
    content = Path(models.add()).read_bytes()
    address = ready.util.bytes_to_ptr(content)
    assert ready.mdl.load_from_mem(address, size) == (0, 145006)
    assert f"load_from_mem: {size} bytes; an ONNX file has less than 2 GiB" in ready.get_recent_err_msg()
    assert ready.mdl.query_size_from_mem(address, size) == (0, 0, 145006)


def test_memory_that_makes_no_sense(ready: Any) -> None:
    rt = ready.rt
    assert rt.malloc(0, 2) == (0, INVALID)
    assert rt.malloc_host(0) == (0, INVALID)
    assert rt.malloc(8, 99) == (0, INVALID)
    assert rt.get_mem_info(99) == (0, 0, INVALID)
    assert code_of(rt.malloc_host(1 << 60)) == 207001
    with emulator.configure(memory_mb=1 << 45):  # more than any host has
        assert code_of(rt.malloc(1 << 60, 2)) == 207001
    block, code = rt.malloc_align32(33, 2)
    assert code == 0
    cached, code = rt.malloc_cached(64, 2)
    assert code == 0
    assert (rt.mem_flush(cached, 64), rt.mem_invalidate(cached, 8)) == (0, 0)
    assert rt.mem_invalidate(cached, 0) == INVALID
    with pytest.raises(EmulatorError, match="not inside a live block"):
        rt.mem_flush(cached, 65)
    assert rt.memset_async(0, 8, 0, 8, 0) == INVALID
    assert (rt.free(block), rt.free(cached)) == (0, 0)
    with emulator.configure(malloc_us=1):
        block, code = rt.malloc(8, 2)
        assert (code, rt.free(block)) == (0, 0)


@pytest.mark.filterwarnings("ignore:.*deprecated:Warning")
def test_pointers_of_what_has_none(ready: Any) -> None:
    util = ready.util
    for name in ("numpy_to_ptr", "numpy_contiguous_to_ptr"):
        with pytest.raises(TypeError, match="args parse failed"):
            call(util, name, [1, 2])
    with pytest.warns(Warning, match="not C-contiguous"):
        util.numpy_to_ptr(np.zeros((4, 4))[:, ::2])
    with pytest.raises(ValueError, match="shape is empty"):
        util.ptr_to_numpy(0, [2], 11)
    for shape, kind in (((1.5,), 11), ((2,), 999)):
        with pytest.raises(TypeError, match="args parse failed"):
            util.ptr_to_numpy(0, shape, kind)
    assert util.ptr_to_numpy(0, (2, 3), 11).shape == (2, 3)
    assert util.ptr_to_bytes(0, 4) == bytes(4)
    with pytest.raises(ValueError, match="absurd"):
        util.ptr_to_bytes(0, (1 << 63) - 1)
    with pytest.raises(TypeError, match="callable"):
        util.start_thread(5, None)
    assert util.stop_thread(12345) == 3
    memory = ctypes.create_string_buffer(b"text", 4)
    assert util.ptr_to_bytes(ctypes.addressof(memory), 4) == b"text"
    with pytest.raises(MemoryError):
        util.ptr_to_bytes(ctypes.addressof(memory), 1 << 62)  # all of it, not its lower 32 bits


def test_events_without_what_is_asked_of_them(ready: Any) -> None:
    rt = ready.rt
    event, code = rt.create_event_with_flag(8)  # a time line, nothing to wait for
    assert code == 0
    stream, code = rt.create_stream()
    assert code == 0
    assert rt.synchronize_event_with_timeout(event, -2) == 107000
    for answer in (rt.stream_wait_event(stream, event), rt.query_event_wait_status(event)[1]):
        assert answer == 107000
    assert rt.event_get_timestamp(event)[1] != 0, "it was not recorded"
    assert (rt.record_event(event, stream), rt.synchronize_stream(stream)) == (0, 0)
    stamp, code = rt.event_get_timestamp(event)
    assert (stamp > 0, code) == (True, 0)
    waited, code = rt.create_event()
    assert code == 0
    assert rt.query_event_wait_status(waited) == (0, 0)
    other, code = rt.create_stream()
    assert code == 0
    assert (rt.record_event(waited, stream), rt.stream_wait_event(other, waited)) == (0, 0)
    assert rt.synchronize_stream(other) == 0
    assert rt.query_event_wait_status(waited) == (0, 0)
    for handle in (event, waited):
        assert rt.destroy_event(handle) == 0
    for handle in (stream, other):
        assert rt.destroy_stream(handle) == 0
