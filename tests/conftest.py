"""What every test gets: its tier, the event loop of ``--loop``, and guards against leaks and slowness.

After each test its threads are gone, nothing reached a loop's exception handler, and no
warning was left behind (pytest turns warnings into errors, those of finalisers included).
"""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import importlib.util
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping

import hypothesis
import pytest
from tests import tiers
from tests.tiers import Tier

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

THREAD_PREFIX = "aioais-"
THREAD_GRACE_S = 5.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        help="every test: slow ones, stress, and products of parameters where the default run has pairs",
    )
    parser.addoption(
        "--long", action="store_true", help="as --full, with the long forms of the stress tests: half an hour"
    )
    parser.addoption(
        "--one-stream",
        action="store_true",
        help="executions share one stream, as where ACL refuses to chain them over several",
    )
    parser.addoption(
        "--loop",
        choices=("asyncio", "uvloop", "both"),
        default=os.environ.get("AIOAIS_TEST_LOOP", "asyncio"),
        help="event loop of the async tests (default: AIOAIS_TEST_LOOP, else asyncio)",
    )


# --- tiers ----------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    Tier.is_long = bool(config.getoption("--long"))
    Tier.is_full = Tier.is_long or bool(config.getoption("--full"))
    if config.getoption("--one-stream"):
        os.environ["AIOAIS_ONE_STREAM"] = "1"  # for this process and the programs that tests start
    # A slow or busy machine is no failure, and all runs but the long ones are the same.
    hypothesis.settings.register_profile(
        "aioais",
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
        derandomize=not Tier.is_long,
    )
    hypothesis.settings.load_profile("aioais")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:], left = tiers.choose(config, items)
    if left:
        config.hook.pytest_deselected(items=left)


SPENT_S = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    item.stash[SPENT_S] = -tiers.cpu_s()
    result = yield
    global _since_frozen
    _since_frozen += 1
    if _since_frozen == FREEZE_EVERY:
        _since_frozen = 0
        freeze()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "teardown" and report.passed:
        text = tiers.too_slow(item, item.stash[SPENT_S] + tiers.cpu_s())
        if text:
            report.outcome, report.longrepr = "failed", text
    return report


# --- the event loop -----------------------------------------------------------------------------


def _loop_factories(config: pytest.Config) -> dict[str, LoopFactory]:
    choice = str(config.getoption("--loop"))
    names = ("asyncio", "uvloop") if choice == "both" else (choice,)
    factories: dict[str, LoopFactory] = {}
    for name in names:
        if name == "uvloop":
            import uvloop

            factories[name] = uvloop.new_event_loop
        else:
            factories[name] = asyncio.new_event_loop
    return factories


def pytest_asyncio_loop_factories(config: pytest.Config) -> Mapping[str, LoopFactory]:
    """Tell pytest-asyncio which loops to run each async test on."""
    return _loop_factories(config)


@pytest.fixture(scope="session")
def loop_factory(pytestconfig: pytest.Config) -> LoopFactory:
    """For tests that start loops of their own: makes one of the kind under test."""
    return next(iter(_loop_factories(pytestconfig).values()))


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is under test: a run without an NPU must not look like one with it."""
    try:
        ascend = importlib.util.find_spec("acl") is not None
    except ValueError:  # a stand-in in sys.modules that has no spec
        ascend = False
    try:
        runtime = "onnxruntime " + importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:
        runtime = "no onnxruntime"
    vendor = "pyACL found" if ascend else "no pyACL on this machine"
    tier = "long" if Tier.is_long else "full" if Tier.is_full else "default"
    return [f"aioais: acl=emulator ({runtime}; {vendor}), loop={config.getoption('--loop')}, tier={tier}"]


# --- the guards ---------------------------------------------------------------------------------


FREEZE_EVERY = 20
"""Tests; what is imported late and what pytest keeps of each test adds up."""

_since_frozen = 0


def freeze() -> None:
    """Keep what lives for the rest of the run out of the collector's sight.

    The collections after each test cost a millisecond then, instead of tens.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    freeze()


class LoopErrors(logging.Handler):
    """Collects what any event loop, on any thread, gave to its default exception handler."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


@pytest.fixture(autouse=True)
def loop_errors() -> Iterator[list[str]]:
    """Fail the test when an exception reached a loop's exception handler.

    A test that provokes one on purpose asks for this fixture and clears the list.
    """
    handler = LoopErrors()
    logger = logging.getLogger("asyncio")
    logger.addHandler(handler)
    try:
        yield handler.messages
        # Futures and tasks report an exception that was never taken when they are collected.
        gc.collect()
    finally:
        logger.removeHandler(handler)
    if handler.messages:
        pytest.fail("an event loop's exception handler was called:\n" + "\n".join(handler.messages), False)


def _new_threads(before: set[threading.Thread]) -> list[threading.Thread]:
    return [
        thread
        for thread in threading.enumerate()
        if thread not in before and (thread.name.startswith(THREAD_PREFIX) or not thread.daemon)
    ]


@pytest.fixture(autouse=True)
def no_thread_left(loop_errors: list[str]) -> Iterator[None]:
    """Fail the test when a thread it started, ours or any that is not a daemon, outlives it."""
    before = set(threading.enumerate())
    yield
    left = _new_threads(before)
    if not left:
        return
    gc.collect()  # what the test dropped without closing: its finaliser may end the thread
    deadline = time.monotonic() + THREAD_GRACE_S
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    left = [thread for thread in left if thread.is_alive()]
    if left:
        frames = sys._current_frames()
        where = []
        for thread in left:
            frame = frames.get(thread.ident or 0)
            place = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "no Python frame"
            where.append(f"{thread.name} at {place}")
        pytest.fail(f"still running {THREAD_GRACE_S:g} s after the test: " + ", ".join(where), False)
