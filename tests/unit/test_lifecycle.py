"""Open, close, finalise: everything that was taken is given back, whichever way it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
import time
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import inside
from tests.unit.sums import feeds, wanted

from aioais import (
    AclError,
    AclInternalError,
    AclMemoryError,
    AioaisError,
    ArgumentError,
    BrokenSessionError,
    ClosedError,
    InferSession,
    ModelError,
    MultiDeviceSession,
    WrongLoopError,
    emulator,
)
from aioais.compat.ais_bench import InferSession as BlockingSession

if TYPE_CHECKING:
    from tests.unit.conftest import Models

pytestmark = pytest.mark.usefixtures("clean_slate")

SMALL = (1, 8)
LARGE = (1, 1 << 17)
BOTH = pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])


def left() -> dict[str, int]:
    """What is alive but for set devices, which stay until ACL is finalised."""
    return {name: n for name, n in emulator.live().items() if n and name != "devices"}


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("aioais-")]


def becomes(condition: Callable[[], bool]) -> bool:
    """Wait, without a loop, for what another thread does soon."""
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    return True


async def comes(condition: Callable[[], bool]) -> bool:
    """Wait, with the loop running, for what another thread does soon."""
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.0005)
    return True


def all_gone() -> bool:
    gc.collect()
    return not left() and not threads()


# --- close --------------------------------------------------------------------------------------


@BOTH
async def test_close_drains_what_was_submitted(models: Models, shape: tuple[int, ...]) -> None:
    async with InferSession(0, models.add(shape), depth=2) as session:
        await session.infer(feeds(shape, 0))
        with emulator.gate("execute") as gate:
            tasks = [asyncio.ensure_future(session.infer(feeds(shape, i))) for i in range(12)]
            await asyncio.sleep(0)
            assert gate.wait_reached()
            closing = asyncio.ensure_future(session.aclose())
            await asyncio.sleep(0)
            assert session.closed
            with pytest.raises(ClosedError):
                await session.infer(feeds(shape, 1))
            with pytest.raises(ClosedError):
                session.record()
            assert session.statistics().done == 1
            assert not closing.done()
        await closing
        assert not [name for name in threads() if "ctl" not in name], "aclose joins the threads"
        for i, task in enumerate(tasks):
            np.testing.assert_array_equal((await task)[0], wanted(shape, i))
        await session.aclose()
    del tasks, task
    assert await comes(all_gone), (left(), threads())


async def test_acl_that_refused_to_end_is_still_ours(models: Models) -> None:
    path = models.add(SMALL)
    async with InferSession(0, path):
        emulator.fail("acl.finalize", 507899)
    with contextlib.suppress(AclError):
        await InferSession.finalize()
    async with InferSession(0, path) as session:
        np.testing.assert_array_equal((await session.infer(feeds(SMALL, 4)))[0], wanted(SMALL, 4))
    emulator.reset_counts()
    await InferSession.finalize()
    assert emulator.counts()["acl.finalize"] == 1


async def test_a_device_that_starts_slowly_holds_up_no_other(models: Models) -> None:
    """The first use of a device can take seconds, which several devices take at the same time."""
    path = models.add(SMALL)
    with emulator.gate("set_device", 0) as gate:
        slow = asyncio.ensure_future(InferSession(0, path).__aenter__())
        assert await asyncio.to_thread(gate.wait_reached)
        async with InferSession(1, path) as session:
            np.testing.assert_array_equal((await session.infer(feeds(SMALL, 4)))[0], wanted(SMALL, 4))
        assert not slow.done()
    session = await slow
    np.testing.assert_array_equal((await session.infer(feeds(SMALL, 5)))[0], wanted(SMALL, 5))
    await session.aclose()


async def test_close_several_times_at_once(models: Models) -> None:
    session = await InferSession(0, models.add(SMALL))
    with emulator.gate("execute") as gate:
        task = asyncio.ensure_future(session.infer(feeds(SMALL, 4)))
        await asyncio.sleep(0)
        assert gate.wait_reached()
        closing = [asyncio.ensure_future(session.aclose()) for _ in range(3)]
        closing.append(asyncio.ensure_future(session.free_resource()))
        await asyncio.sleep(0)
        assert not any(each.done() for each in closing)
    await asyncio.gather(*closing)
    np.testing.assert_array_equal((await task)[0], wanted(SMALL, 4))
    await session.aclose()


async def test_close_cancelled_and_awaited_again(models: Models) -> None:
    session = await InferSession(0, models.add(SMALL))
    with emulator.gate("execute") as gate:
        task = asyncio.ensure_future(session.infer(feeds(SMALL, 4)))
        await asyncio.sleep(0)
        assert gate.wait_reached()
        closing = asyncio.ensure_future(session.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        done, _ = await asyncio.wait([closing], timeout=5)
        assert done
        assert closing.cancelled()
        with pytest.raises(ClosedError):
            await session.infer(feeds(SMALL, 4))
    await session.aclose()
    np.testing.assert_array_equal((await task)[0], wanted(SMALL, 4))
    assert await comes(all_gone), (left(), threads())


async def test_close_cancelled_and_never_awaited_again(models: Models) -> None:
    session = await InferSession(0, models.add(SMALL))
    with emulator.gate("execute") as gate:
        task = asyncio.ensure_future(session.infer(feeds(SMALL, 4)))
        await asyncio.sleep(0)
        assert gate.wait_reached()
        closing = asyncio.ensure_future(session.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing], timeout=5)
    await task
    assert await comes(all_gone), (left(), threads())


async def test_left_by_an_exception(models: Models) -> None:
    tasks = []
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is left
        async with InferSession(0, models.add(SMALL)) as session:
            tasks = [asyncio.ensure_future(session.infer(feeds(SMALL, i))) for i in range(8)]
            await asyncio.sleep(0)
            raise ZeroDivisionError
    assert session.closed
    for i, task in enumerate(tasks):
        np.testing.assert_array_equal((await task)[0], wanted(SMALL, i))
    assert await comes(all_gone), (left(), threads())


async def test_results_outlive_the_session(models: Models) -> None:
    async with InferSession(0, models.add(LARGE)) as session:
        (array,) = await session.infer(feeds(LARGE, 3))
        (tensor,) = await session.infer(feeds(LARGE, 4), out_array=False)
    np.testing.assert_array_equal(array, wanted(LARGE, 3))
    np.testing.assert_array_equal(await tensor.to_host(), wanted(LARGE, 4))
    array[:] = 1
    tensor.close()
    assert await comes(lambda: left()["host_blocks"] == 1), left()
    del array, tensor
    assert await comes(all_gone), (left(), threads())


@pytest.mark.parametrize(
    "call",
    [
        "acl.mdl.unload",
        "acl.mdl.destroy_desc",
        "acl.mdl.destroy_dataset",
        "acl.destroy_data_buffer",
        "acl.rt.destroy_event",
        "acl.rt.destroy_stream",
        "acl.rt.free",
    ],
)
async def test_failure_while_closing_frees_the_rest(models: Models, call: str) -> None:
    session = await InferSession(0, models.add(SMALL), depth=2)
    await asyncio.gather(*(session.infer(feeds(SMALL, i)) for i in range(4)))
    emulator.fail(call, 507899)
    with pytest.raises(AclError) as caught:
        await session.aclose()
    assert (caught.value.call, caught.value.code) == (call, 507899)
    assert await comes(lambda: not threads()), threads()
    # The one that ACL did not free, and the others of its dataset; nothing else.
    now = {name: n for name, n in left().items() if not name.endswith("bytes")}
    assert sum(now.values()) <= (3 if "data" in call else 1), now
    await InferSession.finalize()
    emulator.reset()  # what ACL did not free cannot be freed by anybody


# --- open ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["load", "init", "set_device"])
async def test_open_cancelled_midway(models: Models, stage: str) -> None:
    await InferSession.finalize()
    path = models.add(SMALL)
    with emulator.gate(stage) as gate:
        opening = asyncio.ensure_future(InferSession(0, path).__aenter__())
        await asyncio.sleep(0)
        assert gate.wait_reached()
        opening.cancel()
        done, _ = await asyncio.wait([opening], timeout=5)
        assert done
        assert opening.cancelled()
    assert await comes(all_gone), (left(), threads())
    async with InferSession(0, path) as session:
        np.testing.assert_array_equal((await session.infer(feeds(SMALL, 4)))[0], wanted(SMALL, 4))


async def test_closed_while_it_opens(models: Models) -> None:
    session = InferSession(0, models.add(SMALL))
    with emulator.gate("load") as gate:
        opening = asyncio.ensure_future(session.__aenter__())
        await asyncio.sleep(0)
        assert gate.wait_reached()
        closing = asyncio.ensure_future(session.aclose())
        await asyncio.sleep(0)
    with pytest.raises(ClosedError, match="was closed while it was being opened: open a new session"):
        await opening
    await closing
    assert session.closed
    assert await comes(all_gone), (left(), threads())


def test_open_cancelled_and_the_loop_closed(
    models: Models, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    path = models.add(SMALL)
    loop = loop_factory()
    with emulator.gate("load") as gate:

        async def main() -> None:
            opening = asyncio.ensure_future(InferSession(0, path).__aenter__())
            await asyncio.sleep(0)
            assert gate.wait_reached()
            opening.cancel()
            await asyncio.wait([opening])

        loop.run_until_complete(main())
        loop.close()
    assert becomes(all_gone), (left(), threads())


async def _calls_of_open(path: str) -> dict[str, int]:
    emulator.reset_counts()
    async with InferSession(0, path):
        calls = emulator.counts()
    return calls


FREEING = ("destroy", "unload", "acl.rt.free", "reset_device", "finalize", "get_recent_err_msg")
OPEN_CALLS = {
    "acl.init": 1,
    "acl.rt.get_device_count": 1,
    "acl.rt.set_device": 1,
    "acl.rt.get_run_mode": 1,
    "acl.rt.create_context": 1,
    "acl.rt.create_stream": 1,
    "acl.rt.set_context": 3,
    "acl.mdl.load_from_file": 1,
    "acl.mdl.create_desc": 1,
    "acl.mdl.get_desc": 1,
}
"""How often an open makes each call that may fail it."""


async def test_open_makes_the_calls_that_the_fault_test_knows(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    inside.chain_executions(monkeypatch)  # else there is one stream more
    await InferSession.finalize()
    calls = await _calls_of_open(models.add(SMALL))
    unknown = {
        name
        for name in calls
        if name not in OPEN_CALLS and not any(part in name for part in FREEING) and "get_" not in name
    }
    assert not unknown
    assert {name: calls[name] for name in OPEN_CALLS} == OPEN_CALLS


@pytest.mark.parametrize(("call", "nth"), [(call, nth) for call, count in OPEN_CALLS.items() for nth in range(count)])
async def test_open_failure_is_undone(models: Models, call: str, nth: int) -> None:
    path = models.add(SMALL)
    await InferSession.finalize()
    code = 207001 if call.endswith("load_from_file") else 507899
    emulator.fail(call, code, after=nth, times=2 if code == 207001 else 1)
    session = InferSession(0, path)
    with pytest.raises(AioaisError) as caught:
        await session
    error = caught.value
    if isinstance(error, AclError):
        assert error.call == call
        if not call.endswith("create_desc"):
            assert error.code == code
    else:
        assert isinstance(error, ModelError)
        assert isinstance(error.__cause__, AclError)
    if call.endswith("load_from_file"):
        assert isinstance(error, AclMemoryError)
    del caught, error
    assert await comes(all_gone), (left(), threads())
    async with session as again:  # the same session may be tried again
        np.testing.assert_array_equal((await again.infer(feeds(SMALL, 4)))[0], wanted(SMALL, 4))


@pytest.mark.parametrize(("code", "kind"), [(500002, ModelError), (507899, AclInternalError)])
async def test_open_failure_leaves_neighbours_alone(models: Models, code: int, kind: type[AioaisError]) -> None:
    """A device that fails is no bad model file."""
    path = models.add(SMALL)
    async with InferSession(0, path) as session:
        emulator.fail("acl.mdl.load_from_file", code)
        with pytest.raises(kind):
            await InferSession(0, path)
        np.testing.assert_array_equal((await session.infer(feeds(SMALL, 4)))[0], wanted(SMALL, 4))


# --- finalise -----------------------------------------------------------------------------------


async def test_finalize_closes_sessions_and_starts_anew(models: Models) -> None:
    path = models.add(SMALL)
    first, second = await InferSession(0, path), await InferSession(1, path)
    task = asyncio.ensure_future(first.infer(feeds(SMALL, 2)))
    await asyncio.sleep(0)
    await InferSession.finalize()
    np.testing.assert_array_equal((await task)[0], wanted(SMALL, 2))
    assert await comes(lambda: not threads()), threads()
    assert not any(emulator.live().values())
    assert not emulator.leaks()
    for session in (first, second):
        with pytest.raises(ClosedError):
            await session.infer(feeds(SMALL, 1))
        await session.aclose()
    async with InferSession(0, path) as session:
        np.testing.assert_array_equal((await session.infer(feeds(SMALL, 4)))[0], wanted(SMALL, 4))
    await InferSession.finalize()
    await InferSession.finalize()


async def test_another_configuration_behind_finalize(models: Models, tmp_path: Path) -> None:
    path = models.add(SMALL)
    for name in ("one", "none", "two"):
        config = None
        if name != "none":
            config = tmp_path / f"{name}.json"
            config.write_text(json.dumps({"err_msg_mode": "1" if name == "one" else "0"}))
        async with InferSession(0, path, config) as session:
            np.testing.assert_array_equal((await session.infer(feeds(SMALL, 4)))[0], wanted(SMALL, 4))
        await InferSession.finalize()


async def test_acl_that_keeps_its_first_configuration(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CANN's: who gives none has the first one again, another one is refused."""
    path, config, other = models.add(SMALL), tmp_path / "acl.json", tmp_path / "other.json"
    config.write_text('{"err_msg_mode": "1"}')
    other.write_text('{"err_msg_mode": "0"}')
    monkeypatch.setattr(inside.cpu_library(), "forget_config", None)
    await InferSession.finalize()
    emulator.forget_config()
    for given in (config, None, config):
        async with InferSession(0, path, given) as session:
            np.testing.assert_array_equal((await session.infer(feeds(SMALL, 4)))[0], wanted(SMALL, 4))
        await InferSession.finalize()
    with pytest.raises(ArgumentError, match="keeps the first for the life of the process"):
        await InferSession(0, path, other)
    await InferSession.finalize()
    emulator.forget_config()


async def test_finalize_with_live_tensors_warns(models: Models) -> None:
    async with InferSession(0, models.add(SMALL)) as session:
        tensor = await session.to_device(np.ones(3))
    with pytest.warns(ResourceWarning, match="1 device tensor"):
        await InferSession.finalize()
    assert tensor.closed
    with pytest.raises(ClosedError):
        await tensor.to_host()
    assert not any(emulator.live().values())


async def test_finalize_finalises_even_where_warnings_are_errors(models: Models) -> None:
    async with InferSession(0, models.add(SMALL)) as session:
        tensor = await session.to_device(np.ones(3))
    with warnings.catch_warnings(), pytest.raises(ResourceWarning):  # noqa: PT012
        warnings.simplefilter("error")
        await InferSession.finalize()
    assert tensor.closed
    assert not any(emulator.live().values())


async def test_finalize_leaves_results_valid(models: Models) -> None:
    async with InferSession(0, models.add(LARGE)) as session:
        (array,) = await session.infer(feeds(LARGE, 3))
    await InferSession.finalize()
    np.testing.assert_array_equal(array, wanted(LARGE, 3))
    while emulator.live()["host_blocks"] > 1:  # idle ones are freed by the control thread; the timeout ends it
        await asyncio.sleep(0.001)
    assert emulator.live()["host_blocks"] == 1
    del array
    assert await comes(lambda: not any(emulator.live().values())), emulator.live()
    assert await comes(lambda: not threads())


async def test_open_while_finalising(models: Models) -> None:
    path = models.add(SMALL)
    for _ in range(20):
        finalising = asyncio.ensure_future(InferSession.finalize())
        async with InferSession(0, path) as session:
            try:
                (result,) = await session.infer(feeds(SMALL, 4))
            except ClosedError:
                pass  # finalised right after it was opened
            else:
                np.testing.assert_array_equal(result, wanted(SMALL, 4))
        await finalising
    assert await comes(all_gone), (left(), threads())


# --- several sessions, devices, loops --------------------------------------------------------------


async def test_many_sessions_on_many_devices(models: Models) -> None:
    path, large = models.add(SMALL), models.add(LARGE, name="large")
    sessions = await asyncio.gather(*(InferSession(i % 3, large if i % 2 else path).__aenter__() for i in range(6)))
    shapes = [LARGE if i % 2 else SMALL for i in range(6)]
    work = [(i, seed) for seed in range(20) for i in range(6)]
    results = await asyncio.gather(*(sessions[i].infer(feeds(shapes[i], seed)) for i, seed in work))
    for (i, seed), (result,) in zip(work, results, strict=True):
        np.testing.assert_array_equal(result, wanted(shapes[i], seed))
    assert emulator.live()["contexts"] == 3
    for session in sessions[:4]:
        await session.aclose()
    np.testing.assert_array_equal((await sessions[4].infer(feeds(SMALL, 9)))[0], wanted(SMALL, 9))
    await asyncio.gather(*(session.aclose() for session in sessions))
    del results, result
    assert await comes(all_gone), (left(), threads())


def test_two_loops_in_two_threads(models: Models, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    path = models.add(SMALL)
    meet = threading.Barrier(2, timeout=20)
    errors: list[BaseException] = []
    opened: dict[int, InferSession] = {}

    async def main(number: int) -> None:
        async with InferSession(0, path) as session:
            opened[number] = session
            tensor = await session.to_device(feeds(SMALL, number)[0])
            meet.wait()
            for round_ in range(5):
                seeds = [100 * number + 10 * round_ + i for i in range(16)]
                results = await asyncio.gather(*(session.infer(feeds(SMALL, seed)) for seed in seeds))
                for seed, (result,) in zip(seeds, results, strict=True):
                    np.testing.assert_array_equal(result, wanted(SMALL, seed))
            other = opened[1 - number]
            with pytest.raises(WrongLoopError):
                await other.infer(feeds(SMALL, 1))
            with pytest.raises(WrongLoopError):
                await other.aclose()
            with pytest.raises(WrongLoopError):
                await other.to_device(np.ones(1))
            tensors[number] = tensor
            meet.wait()
            # A tensor belongs to its device, not to a loop; and it feeds any session there.
            theirs = tensors[1 - number]
            np.testing.assert_array_equal(await theirs.to_host(), feeds(SMALL, 1 - number)[0])
            (result,) = await session.infer([theirs, feeds(SMALL, 1 - number)[1]])
            np.testing.assert_array_equal(result, wanted(SMALL, 1 - number))
            meet.wait()
            tensor.close()

    tensors: dict[int, Any] = {}

    def body(number: int) -> None:
        loop = loop_factory()
        try:
            loop.run_until_complete(main(number))
        except BaseException as exc:  # noqa: BLE001 - the test's thread raises it
            errors.append(exc)
            meet.abort()
        finally:
            loop.close()

    workers = [threading.Thread(target=body, args=(n,)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    if errors:
        raise errors[0]
    opened.clear()
    tensors.clear()
    assert becomes(all_gone), (left(), threads())


async def test_awaited_and_then_entered(models: Models) -> None:
    path = models.add(SMALL)
    async with await InferSession(0, path) as session:
        np.testing.assert_array_equal((await session.infer(feeds(SMALL, 1)))[0], wanted(SMALL, 1))
        with pytest.raises(ClosedError, match="open already"):
            async with session:
                pass
        with pytest.raises(ClosedError, match="open already"):
            await session
    assert session.closed
    with pytest.raises(ClosedError, match="is closed"):
        async with session:
            pass
    closed = await InferSession(0, path)
    await closed.aclose()
    with pytest.raises(ClosedError, match="is closed"):
        async with closed:
            pass


def test_what_was_measured_outlives_the_session(models: Models) -> None:
    async def main() -> InferSession:
        async with InferSession(0, models.add(SMALL)) as session:
            for seed in range(3):
                await session.infer(feeds(SMALL, seed))
        return session

    session = asyncio.run(main())
    assert session.summary().count == 3
    assert (session.statistics().done, session.statistics().in_flight) == (3, 0)
    assert [tensor.name for tensor in session.get_inputs()] == ["input1", "input2"]
    assert [tensor.name for tensor in session.get_outputs()] == ["output"]
    session.reset_summaryinfo()
    assert session.summary() == []
    never_opened = InferSession(0, models.add(SMALL))
    with pytest.raises(ClosedError, match="not open"):
        never_opened.summary()


@pytest.mark.engine
async def test_a_session_may_be_collected_where_its_locks_are_held(models: Models) -> None:
    """The collector runs in any thread, and in any allocation."""
    session = await InferSession(0, models.add(SMALL))
    has_ended = inside.end_of(session)
    inside.collect_where_locks_are_held(session, gc.collect)
    holder: dict[str, Any] = {"session": session}
    holder["self"] = holder  # only the collector finds this
    with emulator.gate("execute") as gate:
        task = asyncio.ensure_future(session.infer(feeds(SMALL, 1)))
        assert await asyncio.to_thread(gate.wait_reached, 60)
        task.cancel()
        await asyncio.wait([task])
        gc.disable()
        try:
            with pytest.warns(ResourceWarning, match="never closed"):  # noqa: PT031
                del session, holder, task
                gate.open()
                assert await comes(has_ended)
        finally:
            gc.enable()
    assert await comes(all_gone), (left(), threads())


@pytest.mark.engine
async def test_a_request_that_enters_while_the_session_closes(models: Models) -> None:
    """It is turned away, and the session, which saw it under way, ends all the same."""
    session = await InferSession(0, models.add(SMALL))
    await session.infer(feeds(SMALL, 1))
    inside.when_counted(session, lambda: inside.close_entrance(session))
    with pytest.raises(ClosedError, match="closed"):
        await session.infer(feeds(SMALL, 1))
    await session.aclose()
    assert session.statistics().done == 1
    assert await comes(all_gone), (left(), threads())


@pytest.mark.engine
async def test_a_request_that_enters_while_the_session_breaks(models: Models) -> None:
    """It fails with those under way."""
    session = await InferSession(0, models.add(SMALL))
    await session.infer(feeds(SMALL, 1))
    error = AclError("acl.rt.synchronize_stream", 507899, "", "", "lost")
    inside.when_counted(session, lambda: inside.break_now(session, error))
    with pytest.raises(BrokenSessionError):
        await session.infer(feeds(SMALL, 1))
    with pytest.raises(BrokenSessionError):
        await session.infer(feeds(SMALL, 1))
    assert (session.statistics().failed, session.statistics().in_flight) == (1, 0)
    await session.aclose()
    assert await comes(all_gone), (left(), threads())


async def test_leaked_session_warns_and_is_closed(models: Models) -> None:
    session = await InferSession(0, models.add(SMALL))
    await session.infer(feeds(SMALL, 1))
    with pytest.warns(ResourceWarning, match="never closed"):  # noqa: PT031
        del session
        gc.collect()
    assert await comes(all_gone), (left(), threads())


async def test_finalize_waits_for_an_open_that_was_given_up(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread may not even have begun; what it does after ``finalize`` would never be ended."""
    may_begin = threading.Event()
    await InferSession.finalize()
    inside.hold_opening(monkeypatch, may_begin)
    opening = asyncio.ensure_future(InferSession(0, models.add(SMALL)).__aenter__())
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    asyncio.get_running_loop().call_later(0.05, may_begin.set)
    await InferSession.finalize()
    assert may_begin.is_set()
    assert emulator.live()["devices"] == 0
    assert not left()
    counts = emulator.counts()
    assert counts["acl.init"] == counts.get("acl.finalize", 0) + counts.get("acl.finalize_reference", 0)


async def test_finalize_waits_for_a_device_that_is_ending(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """No session can open it any more, but ACL must not end under what it still destroys."""
    has_begun, may_go_on = threading.Event(), threading.Event()
    inside.hold_end_of_device(monkeypatch, has_begun, may_go_on)
    session = await InferSession(0, models.add(SMALL))
    await session.aclose()
    assert await asyncio.to_thread(has_begun.wait, 60)
    emulator.reset_counts()
    ending = asyncio.ensure_future(InferSession.finalize())
    await asyncio.wait([ending], timeout=0.2)
    assert not ending.done()
    assert not emulator.counts().get("acl.finalize")
    may_go_on.set()
    await ending
    assert emulator.counts()["acl.finalize"] == 1


async def test_a_failure_that_the_end_of_a_device_meets(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its control thread ends ACL, as it is the last: ``finalize`` raises what that met, once."""
    has_begun, may_go_on = threading.Event(), threading.Event()
    inside.hold_end_of_device(monkeypatch, has_begun, may_go_on)
    session = await InferSession(0, models.add(SMALL))
    await session.aclose()
    assert await asyncio.to_thread(has_begun.wait, 60)
    ending = asyncio.ensure_future(InferSession.finalize())
    await asyncio.to_thread(inside.wait_finalize_requested)
    emulator.fail("acl.finalize", 507011)
    may_go_on.set()
    with pytest.raises(AclError, match=r"acl\.finalize failed with 507011"):
        await ending
    await InferSession.finalize()
    async with InferSession(0, models.add(SMALL)):
        pass
    await InferSession.finalize()


async def open_one(path: str) -> None:
    async with InferSession(0, path):
        pass


async def open_lane(path: str) -> None:
    async with MultiDeviceSession(path) as session:
        await session.infer({0: [[np.zeros(2, np.float32)]]})


async def open_stream(path: str) -> None:
    async with MultiDeviceSession(path) as session:
        async for _ in session.stream([[np.zeros(2, np.float32)]], [0]):
            pass


async def open_blocking(path: str) -> None:
    BlockingSession(0, path).free_resource()


@pytest.mark.parametrize("use", [open_one, open_lane, open_stream, open_blocking])
async def test_no_thread_can_be_started(
    models: Models, monkeypatch: pytest.MonkeyPatch, use: Callable[[str], Awaitable[None]]
) -> None:
    path = models.identity([2])
    await InferSession.finalize()
    before = set(threading.enumerate())
    start, failed = threading.Thread.start, 0
    for place in range(6):
        count = 0

        def refuse(thread: threading.Thread, place: int = place) -> None:
            nonlocal count
            count += 1
            if count == place + 1:
                raise RuntimeError("can't start new thread")
            start(thread)

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            try:
                await use(path)
            except BrokenSessionError as exc:
                failed += "no thread left" in str(exc)
        await InferSession.finalize()
        for thread in set(threading.enumerate()) - before:
            thread.join(5)  # that of finalize is about to end
            assert not thread.is_alive()
    assert failed >= 3
