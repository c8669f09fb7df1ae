"""Cancels, timeouts, breaks and closes at random, on two event loops at once; at the end all is right, nothing is left.

The short form makes some 2 000 of them, ``--long`` 100 000. Each result is compared with values that no
other request has. The emulator fills new and freed memory with junk and never uses an address of a device twice, so
memory that is used too late shows.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.stress.storm import Storm, Tally
from tests.stress.storm_work import Kind, write_kinds
from tests.stress.watch import STALL_S, LoopThread, watch
from tests.tiers import Tier

from aioais import InferSession, emulator
from aioais.testing import check_leaks

pytestmark = [pytest.mark.stress, pytest.mark.slow, pytest.mark.timeout(1800)]

LONG = Tier.is_long
DISRUPTIONS = 100_000 if LONG else 2_000
WEATHERS = ["calm", "slow", "ends", "breaks"]
ROUNDS = 5 if LONG else 1
DEVICES = 3
LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> list[Kind]:
    return write_kinds(tmp_path_factory.mktemp("storm"))


@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("weather", WEATHERS)
def test_storm(
    kinds: list[Kind],
    weather: str,
    seed: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL + 1, "aioais")  # thousands of sessions that break say so
    pick = random.Random(f"{weather} {seed}")
    timings: dict[str, Any] = {"threads": 1}
    if weather != "calm":
        timings |= {stage: pick.choice([0.0, 0.05, 0.3]) for stage in ("h2d_ms", "execute_ms", "d2h_ms")}
    tally = Tally(DISRUPTIONS // (ROUNDS * len(WEATHERS)))
    with emulator.configure(**timings):
        storms = [
            Storm(pick.randrange(1 << 30), kinds, DEVICES, tally, weather == "breaks", weather == "ends") for _ in LOOPS
        ]
        threads = [
            LoopThread(factory, lambda storm=storm: storm.run(4))  # type: ignore[misc]
            for factory, storm in zip(LOOPS, storms, strict=True)
        ]
        watch(threads, lambda: tally.steps)
    emulator.disarm()  # of faults that no call has met
    counts = dict(sorted(tally.disruptions.items()))
    sys.stdout.write(f"storm {weather} {seed}: {tally.total} disruptions {counts}, {tally.checked} results right\n")
    assert tally.total >= tally.quota
    assert tally.checked > tally.total // 10
    assert {"cancel", "timeout", "close"} <= set(counts)
    if weather == "breaks" and LONG:  # a few may all end before anybody meets them
        assert counts["broken session"]
    if weather != "breaks":  # there a device that was busy for long may hold something until ACL ends
        check_leaks(timeout_s=STALL_S)
    gc.collect()  # of errors that hold tensors by their frames
    asyncio.run(InferSession.finalize())
    check_leaks(timeout_s=STALL_S)
    assert emulator.leaks() == {}
