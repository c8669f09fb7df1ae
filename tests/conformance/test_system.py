"""Initialisation, configuration, messages, finalisation, fork."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from aioais import emulator


def test_second_init_is_100002_and_counts(acl: Any) -> None:
    assert acl.init() == 0
    assert acl.init() == 100002
    assert acl.finalize_reference() == (1, 0)
    assert acl.finalize_reference() == (0, 0)
    assert acl.finalize_reference() == (0, 100037)


def test_finalize_drops_everything_and_twice_is_100037(acl: Any) -> None:
    assert acl.init() == 0
    assert acl.init() == 100002
    assert acl.finalize() == 0
    assert acl.finalize() == 100037


def test_finalize_without_init_is_no_error(acl: Any) -> None:
    assert acl.finalize() == 0


def test_init_again_after_finalize(acl: Any) -> None:
    assert [acl.init(), acl.finalize(), acl.init("")] == [0, 0, 0]


def test_another_configuration_is_100000(acl: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text("{}")
    second.write_text('{"err_msg_mode": "1"}')
    assert acl.init(str(first)) == 0
    assert acl.finalize() == 0
    assert acl.init(str(second)) == 100000
    assert acl.init(str(first)) == 0


def test_missing_configuration_is_100003(acl: Any, tmp_path: Path) -> None:
    assert acl.init(str(tmp_path / "none.json")) == 100003


def test_empty_configuration_is_100005(acl: Any, tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    path.touch()
    assert acl.init(str(path)) == 100005


DEEP = '{"a": ' * 11 + "1" + "}" * 11


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", 100006),
        ("[]", 100006),
        (DEEP, 100006),
        ('{"dump": []}', 100009),
        ('{"dump": {"dump_mode": "some"}}', 100009),
        ('{"dump": {"dump_list": [{}]}}', 100009),
        ('{"profiler": 1}', 100010),
        ('{"profiler": {"switch": "on", "output": 3}}', 100010),
        ('{"max_opqueue_num": 20000}', 148048),
        ('{"profiler": {"switch": "off"}, "max_opqueue_num": "20000"}', 0),
        ('{"dump": {"dump_list": [], "dump_path": "/tmp", "dump_mode": "all"}}', 0),
    ],
)
def test_configuration_content(acl: Any, tmp_path: Path, text: str, code: int) -> None:
    path = tmp_path / "acl.json"
    path.write_text(text)
    assert acl.init(str(path)) == code


def test_default_device_serves_threads_without_context(acl: Any, tmp_path: Path) -> None:
    path = tmp_path / "acl.json"
    path.write_text('{"defaultDevice": {"default_device": "0"}}')
    assert acl.init(str(path)) == 0
    assert acl.rt.set_device(0) == 0
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(acl.rt.malloc(8, 2)[1]))
    thread.start()
    thread.join()
    assert codes == [0]


def test_message_is_read_once(ready: Any) -> None:
    assert ready.rt.free(0) == 100000
    assert "free of 0" in ready.get_recent_err_msg()
    assert ready.get_recent_err_msg() is None


def test_message_is_per_thread(ready: Any) -> None:
    assert ready.rt.free(0) == 100000
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(ready.get_recent_err_msg()))
    thread.start()
    thread.join()
    assert seen == [None]


def test_message_per_process(acl: Any, tmp_path: Path) -> None:
    path = tmp_path / "acl.json"
    path.write_text('{"err_msg_mode": "1"}')
    assert acl.init(str(path)) == 0
    assert acl.rt.free(0) == 100000
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(acl.get_recent_err_msg()))
    thread.start()
    thread.join()
    assert "free of 0" in seen[0]


def test_message_stays_in_a_thread_without_context(acl: Any) -> None:
    assert acl.rt.free(0) == 100000
    assert acl.get_recent_err_msg() == acl.get_recent_err_msg() != None  # noqa: E711 - a chain on purpose


def test_queries_before_init(acl: Any) -> None:
    assert acl.rt.get_device_count() == (4, 0)
    assert acl.rt.get_run_mode() == (1, 0)
    assert isinstance(acl.get_soc_name(), str)
    assert len(acl.get_version()) == 4


def test_devices_from_the_environment(acl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOAIS_CPU_DEVICES", "6")
    emulator.reset()
    assert acl.rt.get_device_count() == (6, 0)
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "1,3,2,5")
    emulator.reset()
    assert acl.rt.get_device_count() == (2, 0)


@pytest.mark.parametrize("value", ["abc", "0", "-1", "2.5"])
def test_devices_of_the_environment_that_cannot_be_are_logged(
    acl: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    monkeypatch.setenv("AIOAIS_CPU_DEVICES", value)
    with caplog.at_level(logging.WARNING, "aioais"):
        emulator.reset()
    assert acl.rt.get_device_count() == (4, 0)
    assert caplog.messages == [f"AIOAIS_CPU_DEVICES is {value!r}, not a whole number of at least 1: 4 is used"]


@pytest.mark.parametrize(("value", "threads"), [("", 0), ("0", 0), ("3", 3), ("abc", 0), ("-1", 0)])
def test_threads_from_the_environment(
    acl: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str, threads: int
) -> None:
    monkeypatch.setenv("AIOAIS_CPU_THREADS", value)
    with caplog.at_level(logging.WARNING, "aioais"):
        emulator.reset()
    assert emulator.settings()["threads"] == threads
    usable = not value or value.isdecimal()
    text = f"AIOAIS_CPU_THREADS is {value!r}, not a whole number of at least 0: 0 is used"
    assert caplog.messages == ([] if usable else [text])


def test_leaks_are_logged_at_finalize(ready: Any, caplog: pytest.LogCaptureFixture) -> None:
    ready.rt.malloc(100, 2)
    ready.rt.create_stream()
    with caplog.at_level(logging.WARNING, "aioais.emulator"):
        assert ready.finalize() == 0
    assert "1 device_blocks" in caplog.text
    assert "1 streams" in caplog.text
    assert emulator.leaks()["device_bytes"] == 100


def test_what_a_reset_took_away_is_a_leak(ready: Any, caplog: pytest.LogCaptureFixture) -> None:
    ready.rt.create_event()
    assert ready.rt.reset_device(0) == 0
    assert emulator.leaks() == {"events": 1}
    ready.finalize()
    assert "1 events" in caplog.text


def test_nothing_is_logged_without_leaks(ready: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert ready.rt.reset_device(0) == 0
    assert ready.finalize() == 0
    assert not caplog.records


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_cannot_use_the_devices(ready: Any) -> None:
    child = os.fork()
    if child == 0:
        good = ready.rt.malloc(8, 2) == (0, 507000) and ready.init() == 507000
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert ready.rt.malloc(8, 2)[1] == 0
