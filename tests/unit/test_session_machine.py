"""The life of a session, as Hypothesis makes it up: whatever came before, each step does what the contract says.

The short form runs a few lives that are the same each time, ``--long`` many new ones.
"""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.tiers import Tier

from aioais import AclError, BrokenSessionError, ClosedError, DeviceHangError, FeedError, InferSession, Tensor, emulator
from aioais.emulator import Gate

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]
Request = tuple[list[Any], Array]

pytestmark = pytest.mark.timeout(1800)

LONG = Tier.is_long
LOST = 507010
HANG_S = 0.5
COLUMNS = [8, 1 << 13]
"""Of small results, which are copied out, and of large ones, which lease the memory they came in."""


def is_open(machine: SessionLife) -> bool:
    return machine.state == "open"


def is_flowing(machine: SessionLife) -> bool:
    """Whether what is asked for now comes to an end by itself."""
    return machine.gate is None


class SessionLife(RuleBasedStateMachine):
    """One session after the other, and what a program may do with them."""

    def __init__(self, paths: dict[str, str], factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        super().__init__()
        self.paths = paths
        self.loop = factory()
        self.state = "closed"
        self.mode: Any = ""
        self.session: InferSession | None = None
        self.gate: Gate | None = None
        self.hang_timeout: float | None = None
        self.number = 0
        self.submitted = 0
        self.verified = 0
        self.pending: list[tuple[asyncio.Task[list[Array]], Array]] = []
        self.pipe: Any = None
        self.has_broken = False
        self.asked: deque[Array] = deque()
        self.tensors: list[tuple[Tensor, Array]] = []
        self.kept: list[tuple[Array, Array]] = []

    # --- helpers ------------------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def array(self, rows: int, columns: int) -> Array:
        self.number += 1
        return (np.arange(rows * columns, dtype=np.float32) % 13 + self.number).reshape(rows, columns)

    def request(self, rows: int, columns: int) -> Request:
        feeds = [self.array(rows, columns), self.array(rows, columns) * 3]
        return feeds, feeds[0] - feeds[1]

    def check(self, outputs: list[Array], wanted: Array) -> None:
        (output,) = outputs
        np.testing.assert_array_equal(output, wanted)
        self.verified += 1
        self.kept.append((output, wanted))

    def ask(self, work: Coroutine[Any, Any, list[Array]], wanted: Array) -> None:
        """Await a request; what must come of it follows from the state."""
        if self.state == "open":
            self.submitted += 1
            self.check(self.run(work), wanted)
        else:
            with pytest.raises(ClosedError if self.state == "closed" else BrokenSessionError):
                self.run(work)

    def settle(self) -> None:
        """Await what is pending: right results, but for requests that a break has met."""
        pending, self.pending = self.pending, []
        for task, wanted in pending:
            try:
                self.check(self.run(_awaited(task)), wanted)
            except asyncio.CancelledError:
                assert task.cancelled()
            except (AclError, BrokenSessionError):
                assert self.state == "broken"

    def flow(self) -> None:
        if self.gate is not None:
            self.gate.open()
            self.gate = None

    def break_by(self, cause: type[AclError]) -> None:
        """Make a request that breaks the session, or meets it broken by one before it."""
        assert self.session is not None
        work = self.session.infer(self.request(1, 8)[0], self.mode)
        self.submitted += 1
        with pytest.raises((cause, BrokenSessionError)) as caught:
            self.run(work)
        error: BaseException | None = caught.value
        assert isinstance(error if isinstance(error, cause) else error.__cause__ if error else None, cause)
        self.state, self.has_broken = "broken", True
        del caught, error
        self.flow()
        self.settle()

    # --- open and close -----------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.open("dymdims", 0, 2, None)

    @precondition(lambda self: self.state == "closed" and self.pipe is None)
    @rule(
        mode=st.sampled_from(["dymdims", "dymshape"]),
        device=st.integers(0, 1),
        depth=st.integers(1, 4),
        hang_timeout=st.sampled_from([None, HANG_S]),
    )
    def open(self, mode: str, device: int, depth: int, hang_timeout: float | None) -> None:
        self.mode, self.hang_timeout = mode, hang_timeout
        session = InferSession(device, self.paths[mode], depth=depth, hang_timeout=hang_timeout)
        assert self.run(_open(session)) is session
        self.session, self.state = session, "open"
        self.submitted = self.verified = 0
        self.has_broken = False

    @precondition(lambda self: self.session is not None)
    @rule()
    def open_it_again(self) -> None:
        assert self.session is not None
        with pytest.raises(ClosedError, match="open"):
            self.run(_open(self.session))

    @precondition(lambda self: self.session is not None)
    @rule(is_cancelled=st.booleans())
    def close(self, is_cancelled: bool) -> None:
        """Requests that were submitted are finished, whatever becomes of the call."""
        session = self.session
        assert session is not None

        async def close() -> None:
            closing = asyncio.ensure_future(session.aclose())
            await asyncio.sleep(0)
            self.flow()
            if is_cancelled:
                closing.cancel()
            await asyncio.wait([closing])
            await session.aclose()
            assert session.closed

        self.run(close())
        self.settle()
        self.state = "closed"

    @rule()
    def finalize(self) -> None:
        self.flow()
        has_tensors = any(not tensor.closed for tensor, _ in self.tensors)
        try:
            self.run(InferSession.finalize())
        except ResourceWarning:
            assert has_tensors
        else:
            assert not has_tensors
        assert all(tensor.closed for tensor, _ in self.tensors)
        self.tensors.clear()
        self.settle()
        if self.state == "open":  # one that is broken says why, until it is closed itself
            self.state = "closed"

    # --- requests -----------------------------------------------------------------------------------

    @precondition(lambda self: self.session is not None and is_flowing(self))
    @rule(rows=st.sampled_from([1, 2, 4]), columns=st.sampled_from(COLUMNS))
    def infer(self, rows: int, columns: int) -> None:
        assert self.session is not None
        feeds, wanted = self.request(rows, columns)
        self.ask(self.session.infer(feeds, self.mode), wanted)

    @precondition(lambda self: is_flowing(self) and self.session is not None)
    @rule(steps=st.integers(1, 4), columns=st.sampled_from(COLUMNS), mem_copy=st.booleans())
    def iterate(self, steps: int, columns: int, mem_copy: bool) -> None:
        assert self.session is not None
        (a, b), _ = self.request(2, columns)
        work = self.session.infer_iteration([a, b], [0, -1], steps, self.mode, mem_copy=mem_copy)
        self.ask(work, a - steps * b)

    @precondition(is_open)
    @rule(count=st.integers(1, 6), columns=st.sampled_from(COLUMNS))
    def start(self, count: int, columns: int) -> None:
        assert self.session is not None
        for _ in range(count):
            feeds, wanted = self.request(1, columns)
            task = self.loop.create_task(self.session.infer(feeds, self.mode))
            self.pending.append((task, wanted))
            self.submitted += 1
        self.run(asyncio.sleep(0))

    @precondition(lambda self: bool(self.pending))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task, wanted = self.pending.pop(data.draw(st.integers(0, len(self.pending) - 1)))
        task.cancel()
        try:
            self.check(self.run(_awaited(task)), wanted)  # it had ended already
        except asyncio.CancelledError:
            assert task.cancelled()

    @precondition(is_open)
    @rule(seconds=st.sampled_from([0, 0.001]))
    def run_out_of_time(self, seconds: float) -> None:
        assert self.session is not None
        feeds, wanted = self.request(1, 8)
        work = self.session.infer(feeds, self.mode)
        if seconds:
            self.submitted += 1
        try:
            self.check(self.run(asyncio.wait_for(work, seconds)), wanted)
        except asyncio.TimeoutError:
            pass

    @precondition(is_flowing)
    @rule()
    def await_all(self) -> None:
        self.settle()

    @precondition(lambda self: is_open(self) and is_flowing(self) and self.hang_timeout is None)
    @rule()
    def hold(self) -> None:
        self.gate = emulator.gate("execute")

    @rule()
    def let_go(self) -> None:
        self.flow()

    # --- pipelines ----------------------------------------------------------------------------------

    @precondition(lambda self: is_open(self) and self.pipe is None)
    @rule(count=st.integers(0, 12), columns=st.sampled_from(COLUMNS))
    def begin_pipeline(self, count: int, columns: int) -> None:
        assert self.session is not None

        def source() -> Iterator[list[Any]]:
            for _ in range(count):
                feeds, wanted = self.request(2, columns)
                self.asked.append(wanted)
                self.submitted += 1
                yield feeds

        self.pipe = self.session.infer_pipeline(source(), self.mode)

    @precondition(lambda self: self.pipe is not None and is_flowing(self))
    @rule(count=st.integers(1, 5))
    def take(self, count: int) -> None:
        assert self.session is not None
        for _ in range(count):
            try:
                outputs = self.run(_next(self.pipe))
            except ClosedError:
                assert self.state == "closed"
                self.leave()
                return
            except (AclError, BrokenSessionError):
                assert self.has_broken
                self.leave()
                return
            if outputs is None:
                assert not self.asked, "a result is missing"
                self.leave()
                return
            self.check(outputs, self.asked.popleft())

    @precondition(lambda self: self.pipe is not None)
    @rule()
    def leave(self) -> None:
        self.run(self.pipe.aclose())
        self.pipe = None
        self.asked.clear()

    # --- device tensors -----------------------------------------------------------------------------

    @precondition(lambda self: self.session is not None and is_flowing(self))
    @rule(columns=st.sampled_from(COLUMNS))
    def upload(self, columns: int) -> None:
        assert self.session is not None
        array = self.array(1, columns)
        work = self.session.to_device(array)
        if is_open(self):
            self.tensors.append((self.run(work), array))
        else:
            with pytest.raises(ClosedError if self.state == "closed" else BrokenSessionError):
                self.run(work)

    @precondition(lambda self: bool(self.tensors) and is_flowing(self))
    @rule(data=st.data())
    def feed_a_tensor(self, data: st.DataObject) -> None:
        assert self.session is not None
        tensor, array = data.draw(st.sampled_from(self.tensors))
        other = self.array(*array.shape)
        work = self.session.infer({"b": other, "a": tensor}, self.mode)
        if is_open(self) and tensor.device_id != self.session.device_id:
            with pytest.raises(FeedError, match=r"on device \d"):
                self.run(work)
        else:
            self.ask(work, array - other)

    @precondition(lambda self: bool(self.tensors))
    @rule(data=st.data(), is_closed=st.booleans())
    def download(self, data: st.DataObject, is_closed: bool) -> None:
        """A tensor outlives its session, and a session that broke."""
        tensor, array = data.draw(st.sampled_from(self.tensors))
        np.testing.assert_array_equal(self.run(tensor.to_host()), array)
        if is_closed:
            tensor.close()
            self.tensors = [pair for pair in self.tensors if pair[0] is not tensor]

    # --- breaks -------------------------------------------------------------------------------------

    @precondition(lambda self: is_open(self) and is_flowing(self))
    @rule()
    def lose_the_device(self) -> None:
        emulator.fail("acl.mdl.execute_async", LOST, device_side=True)
        self.break_by(AclError)

    @precondition(lambda self: is_open(self) and is_flowing(self) and self.hang_timeout is not None)
    @rule()
    def hang(self) -> None:
        self.gate = emulator.gate("execute")
        self.break_by(DeviceHangError)

    # --- what holds at all times ----------------------------------------------------------------------

    @invariant()
    def counters_make_sense(self) -> None:
        session = self.session
        if session is None or self.state == "closed":
            return
        seen = session.statistics()
        assert 0 <= seen.in_flight <= seen.depth
        assert 0 <= seen.slots <= seen.depth
        assert seen.queued >= 0
        assert seen.done + seen.failed + seen.cancelled <= self.submitted
        if is_open(self):
            assert seen.failed == 0
            assert seen.done >= self.verified
            assert session.summary().count >= self.verified
        if is_flowing(self) and self.pipe is None and not self.pending:
            # Requests without a waiting caller end too; the test's timeout ends this.
            while (seen.in_flight or seen.queued or _ended(seen) != self.submitted) and is_open(self):
                self.run(asyncio.sleep(0.0005))
                seen = session.statistics()

    @invariant()
    def results_stay_as_they_are(self) -> None:
        for output, wanted in self.kept:
            np.testing.assert_array_equal(output, wanted)
        del self.kept[:-6]

    def teardown(self) -> None:
        self.flow()
        emulator.disarm()
        if self.pipe is not None:
            self.leave()
        for task, _ in self.pending:
            task.cancel()
            self.run(asyncio.wait([task]))
        if self.session is not None:
            self.run(self.session.aclose())
        for tensor, _ in self.tensors:
            tensor.close()
        self.kept.clear()
        self.pending.clear()
        self.session = None
        gc.collect()
        self.run(InferSession.finalize())
        self.loop.close()
        assert emulator.leaks() == {}


def _ended(seen: Any) -> int:
    return int(seen.done + seen.failed + seen.cancelled)


async def _awaited(task: asyncio.Task[list[Array]]) -> list[Array]:
    return await task


async def _open(session: InferSession) -> InferSession:
    return await session


async def _next(pipe: Any) -> Any:
    """Give the next result, ``None`` at the end."""
    return await anext(pipe, None)


@pytest.mark.parametrize("lives", [15, pytest.param(400 if LONG else 40, marks=pytest.mark.slow)], ids=["few", "many"])
def test_the_life_of_a_session(
    models: Models, loop_factory: Callable[[], asyncio.AbstractEventLoop], lives: int
) -> None:
    path = models.subtract(["n", "m"], ["n", "m"], ["n", "m"])
    dims = ";".join(f"{rows},{columns},{rows},{columns}" for rows in (1, 2, 4) for columns in COLUMNS)
    paths = {
        "dymdims": models.convert(path, "dims", input_shape="a:-1,-1;b:-1,-1", dynamic_dims=dims, input_format="ND"),
        "dymshape": path,
    }
    life: Any = lambda: SessionLife(paths, loop_factory)  # noqa: E731 - any factory will do, the types say a class
    run_state_machine_as_test(
        life,
        settings=settings(
            max_examples=lives,
            stateful_step_count=60 if LONG else 30,
            derandomize=not LONG,
            deadline=None,
            phases=[Phase.generate, Phase.shrink] if LONG else [Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
