"""BatchingSession: which batch it chooses, and when it waits; figures in, decisions out."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.unit.batching_models import doubled

from aioais import InferSession
from aioais._batching.batch import Batch
from aioais._batching.caller import own_copy
from aioais._batching.gear_times import GearTimes, Overhead
from aioais._batching.layout import Kind
from aioais._batching.runner import ArrivalRate, Runner
from aioais._feeds.arrays import Gathered
from aioais.errors import AclError
from aioais.session import core_of

if TYPE_CHECKING:
    from tests.unit.conftest import Models

SIZES = (1, 2, 4, 8, 16)


def linear(size: int) -> float:
    """Seconds of a batch: 1 ms + 0.1 ms a row."""
    return 1e-3 + 1e-4 * size


def trained(times: Any = linear, sizes: tuple[int, ...] = SIZES, rounds: int = 3) -> GearTimes:
    found = GearTimes(sizes, Overhead())
    for _ in range(rounds):
        for size in sizes:
            found.learn(size, times(size))
    return found


# --- times ----------------------------------------------------------------------------------------


def test_nothing_is_known_before_the_first_execution() -> None:
    times = GearTimes(SIZES, Overhead())
    assert not times.is_known
    assert times.best == 16
    assert [times.choose(rows) for rows in (1, 3, 5, 16, 40)] == [1, 4, 8, 16, 16]


def test_the_best_size_has_the_most_rows_per_second() -> None:
    assert trained().best == 16
    assert trained(lambda size: 1e-3 if size <= 4 else 10e-3).best == 4
    assert trained(lambda size: 1e-3 * size).best == 16  # equal: fewer batches


def test_rows_are_covered_in_the_least_time() -> None:
    times = trained()
    assert [times.choose(rows) for rows in (1, 2, 3, 5, 9, 15)] == [1, 2, 4, 8, 16, 16]
    steep = trained(lambda size: {1: 1.0, 2: 1.8, 4: 3.4, 8: 6.6, 16: 12.0}[size] * 1e-3)
    assert steep.choose(9) == 8  # and the ninth behind it: 7.6 ms, and not 12 ms
    assert steep.choose(3) in (1, 2)


def test_sizes_that_never_ran_are_estimated() -> None:
    times = GearTimes(SIZES, Overhead())
    times.learn(16, 2e-3)
    assert 1e-3 <= times.seconds(1) < times.seconds(8) < 2e-3
    times.learn(1, 1e-3)
    assert times.seconds(8) == pytest.approx(1e-3 + 7 / 15 * 1e-3)
    assert set(times.measured()) == {1, 16}


def test_every_size_is_tried_where_work_queues_up() -> None:
    times = GearTimes(SIZES, Overhead())
    for _ in range(200):
        size = times.choose(64)
        times.learn(size, 1e-3 if size <= 4 else 10e-3)
    assert set(times.measured()) == set(SIZES)
    assert times.best == 4


def test_a_spike_is_no_news() -> None:
    times = trained()
    times.learn(16, 1.0)
    assert times.seconds(16) == pytest.approx(linear(16))
    for _ in range(9):
        times.learn(16, 5e-3)
    assert times.seconds(16) == pytest.approx(5e-3)


def test_overhead_counts_for_every_size() -> None:
    overhead = Overhead()
    for _ in range(8):
        overhead.add(1e-3)
    times = GearTimes(SIZES, overhead)
    for size in SIZES:
        times.learn(size, 1e-4 * size)
    assert times.seconds(1) == pytest.approx(1.1e-3)
    assert times.best == 16
    assert times.measured()[1] == pytest.approx(0.1)


# --- decisions ------------------------------------------------------------------------------------


KIND = Kind(((4,),), SIZES, 16, False)


@pytest.fixture
async def runner(models: Models) -> Any:
    async with InferSession(0, doubled(models, "1,2,4,8,16")) as session:
        runner = Runner(0, core_of(session))
        for _ in range(3):
            for size in SIZES:
                runner.times_of(KIND).learn(size, linear(size))
        yield runner


def occupy(runner: Runner, size: int, now: float) -> Batch:
    batch = Batch(KIND, [], size)
    runner.begin(batch, now, now - 0.001)
    return batch


def rate_of(per_second: float, now: float) -> ArrivalRate:
    rate = ArrivalRate()
    rate.add(round(per_second * rate.MEMORY_S), now)
    return rate


async def test_a_free_device_runs_at_once(runner: Runner) -> None:
    assert runner.decide(KIND, 1, 10.0, 10.0, rate_of(100_000, 10.0), 0.002)[0] == 1
    assert runner.decide(KIND, 3, 10.0, 10.0, ArrivalRate(), 0.002)[0] == 4


async def test_a_busy_device_gets_full_batches_ahead_only(runner: Runner) -> None:
    occupy(runner, 16, 10.0)
    assert runner.decide(KIND, 15, 10.0, 10.0, ArrivalRate(), 0.002)[0] == 0
    assert runner.decide(KIND, 16, 10.0, 10.0, ArrivalRate(), 0.002)[0] == 16
    occupy(runner, 16, 10.0)
    assert runner.decide(KIND, 64, 10.0, 10.0, ArrivalRate(), 0.002) == (0, math.inf)


async def test_a_batch_is_staged_shortly_before_a_long_one_ends(runner: Runner) -> None:
    for _ in range(9):
        runner.times_of(KIND).learn(16, 50e-3)
    runner.times_of(KIND)._best = 4
    occupy(runner, 16, 10.0)
    size, look_at = runner.decide(KIND, 3, 10.0, 10.0, ArrivalRate(), 0.002)
    assert size == 0
    assert look_at == pytest.approx(10.048)
    assert runner.decide(KIND, 3, 10.0, 10.0481, ArrivalRate(), 0.002)[0] == 4


async def test_a_device_that_is_late_does_not_hold_rows_back(runner: Runner) -> None:
    occupy(runner, 1, 10.0)
    size, look_at = runner.decide(KIND, 3, 10.0, 10.0, ArrivalRate(), 0.002)
    assert size == 0
    assert look_at == pytest.approx(10.0031)
    assert runner.decide(KIND, 3, 10.0, 10.004, ArrivalRate(), 0.002)[0] == 4


async def test_rows_wait_for_company_where_it_pays(runner: Runner) -> None:
    now = 10.0
    for _ in range(6):  # one batch right behind the other
        batch = occupy(runner, 1, now)
        now += linear(1)
        runner.batches.remove(batch)
        runner._ended_at = now
    busy = rate_of(5000, now)
    size, look_at = runner.decide(KIND, 2, now, now, busy, 0.004)
    assert size == 0
    assert now < look_at <= now + 0.004
    assert runner.decide(KIND, 3, now, now + 0.0001, busy, 0.004)[0] == 0
    assert runner.decide(KIND, 6, now, now + 0.0005, busy, 0.004)[0] == 8  # they came
    size, look_at = runner.decide(KIND, 2, now, now, busy, 0.004)
    assert size == 0
    assert runner.decide(KIND, 2, now, look_at, busy, 0.004)[0] == 2  # none came:
    assert runner.decide(KIND, 2, now, now, busy, 0.004)[0] == 2  # the next ones do not wait
    assert runner.decide(KIND, 2, now, now, busy, 0.004)[0] == 0
    assert runner.decide(KIND, 2, now, now, rate_of(100, now), 0.004)[0] == 0  # waits already
    runner._hold = None
    assert runner.decide(KIND, 2, now, now, rate_of(100, now), 0.004)[0] == 2
    assert runner.decide(KIND, 2, now - 0.004, now, busy, 0.004)[0] == 2  # never above max_delay
    assert runner.decide(KIND, 2, now, now, busy, 0.0)[0] == 2


async def test_times_that_acl_does_not_tell(runner: Runner) -> None:
    batch = occupy(runner, 8, 10.0)
    runner.end(batch, 10.5, has_succeeded=True)  # it has no request, so no times
    assert runner.times_of(KIND)._samples[3][-1] == pytest.approx(0.5)
    assert runner.overhead.seconds == 0


def test_the_rate_follows_what_comes() -> None:
    rate = ArrivalRate()
    for k in range(1000):
        rate.add(2, k * 1e-3)
    assert rate.at(0.999) == pytest.approx(2000, rel=0.1)
    assert rate.at(1.2) < 1


# --- errors ---------------------------------------------------------------------------------------


def test_each_caller_gets_an_error_of_its_own() -> None:
    error = AclError("acl.x", 500002, "NAME", "hint", "text")
    error.__cause__ = ValueError("why")
    own = own_copy(error)
    assert own is not error
    assert isinstance(own, AclError)
    assert (str(own), own.code, own.__cause__) == (str(error), 500002, error.__cause__)

    class Odd(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(f"{a} {b}")

    odd = Odd(1, 2)
    assert own_copy(odd) is odd


# --- gathering ------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("size", [6, 9])
def test_rows_are_gathered_and_padded(axis: int, size: int) -> None:
    whole = np.arange(2 * 6 * 5, dtype=np.int16).reshape(6, 2, 5)
    parts = [np.moveaxis(whole[a:b], 0, axis) for a, b in ((0, 1), (1, 4), (4, 6))]
    shape = [2, 5]
    shape.insert(axis, size)
    gathered = Gathered(parts, tuple(shape), whole.dtype, axis)
    area = np.full(shape, -1, np.int16)
    assert gathered.nbytes == area.nbytes
    gathered.copy_to(area)
    back = np.moveaxis(area, axis, 0)
    assert (back[:6] == whole).all()
    assert (back[6:] == whole[5]).all()
    gathered.drop(1)
    gathered.copy_to(area)
    assert (back[1:4] == 0).all()
    assert (back[4:6] == whole[4:]).all()


async def test_asyncio_debug_finds_nothing(models: Models) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    from aioais import BatchingSession

    async with InferSession(0, doubled(models)) as session, BatchingSession(session) as batching:
        await asyncio.gather(*[batching.infer([np.ones((1, 4), np.float32)]) for _ in range(8)])
    loop.set_debug(False)
