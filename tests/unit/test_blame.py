"""Who is at fault: each row of the table of ``aioais.blame`` is played on emulated devices, in each place it names.

A play makes the failure happen through the public API and looks at all that is to follow.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import inside
from tests.unit.batching_models import doubled, picking, rows

from aioais import (
    AclError,
    AclNotFoundError,
    BatchingSession,
    BrokenSessionError,
    ClosedError,
    DeviceHangError,
    FeedError,
    ForkError,
    InferSession,
    ModelError,
    MultiDeviceSession,
    StreamOutput,
    emulator,
)
from aioais.blame import MOST_IN_A_ROW, TABLE, Culprit, Kind, Often, Row, Seen, Verdict, blame

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]
EXECUTE = "acl.mdl.execute_async"
CODES = {Kind.MEMORY: 207001, Kind.OPERATOR: 507015, Kind.DEVICE_CODE: 507899, Kind.LOST: 507010, Kind.CODE: 500002}
HANG_TIMEOUT = 0.05
PAGE = Path(__file__).parents[2] / "docs" / "blame.md"

pytestmark = pytest.mark.usefixtures("clean_slate")


@contextlib.contextmanager
def failing(row: Row, seen: Seen, times: int = 1) -> Iterator[None]:
    """Make so many requests fail as a row says."""
    if row.kind is Kind.HANG:
        with contextlib.ExitStack() as stack:
            for device in range(times):
                stack.enter_context(emulator.gate("execute", device))
            yield
        return
    if row.kind in CODES:
        emulator.fail(EXECUTE, CODES[row.kind], times=times, device_side=seen is Seen.WAIT)
    yield


def feeds(row: Row | None = None) -> list[Array]:
    return [np.zeros((1, 99), np.float32) if row is not None and row.kind is Kind.FEEDS else rows(1)]


def fixed(models: Models) -> str:
    """``y = x + x`` for one row."""
    return models.write("fixed", [("Add", ["x", "x"], ["y"], {})], {"x": (1, [1, 4])}, {"y": (1, [1, 4])})


def right(outputs: list[Array]) -> bool:
    return bool((outputs[0] == rows(1) * 2).all())


def notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", []))


def lives(session: MultiDeviceSession, device: int) -> bool:
    return session.statistics()[device].is_open


async def failure(work: Any) -> Exception:
    try:
        await work
    except Exception as error:  # noqa: BLE001 - the plays look at its class
        return error
    pytest.fail("nothing was raised")


async def collect(results: Any) -> list[StreamOutput]:
    return [one async for one in results]


# --- plays ----------------------------------------------------------------------------------------


async def check_session(session: InferSession, path: str, verdict: Verdict) -> None:
    """Look at what a failure leaves: the session, and the context of its device."""
    if verdict.breaks_session:
        assert isinstance(await failure(session.infer(feeds())), BrokenSessionError)
    else:
        assert right(await session.infer(feeds()))
    made = emulator.counts()["acl.rt.create_context"]
    async with InferSession(0, path) as other:
        assert right(await other.infer(feeds()))
    assert emulator.counts()["acl.rt.create_context"] - made == verdict.drops_context


async def once(models: Models, row: Row, seen: Seen) -> None:
    """In a request: of a session, of a lane, of a stream, and of four callers together."""
    path, verdict = fixed(models), row.verdict
    mode: Any = "none" if row.kind is Kind.OTHER else "static"
    async with InferSession(0, path, hang_timeout=HANG_TIMEOUT) as session:
        with failing(row, seen):
            assert blame(await failure(session.infer(feeds(row), mode)), seen) == verdict
        await check_session(session, path, verdict)

    async with MultiDeviceSession(path, hang_timeout=HANG_TIMEOUT) as session_of_many:
        await session_of_many.infer({0: [feeds()], 1: [feeds()]})
        with failing(row, seen):
            assert notes(await failure(session_of_many.infer({0: [feeds(row)]}, mode))) == ["device 0, lane 0"]
        assert lives(session_of_many, 0) != verdict.takes_device_out
        await session_of_many.infer({0: [feeds()]})
        with failing(row, seen):
            results = session_of_many.stream([feeds(row)], [0, 1], mode)
            if verdict.runs_elsewhere:
                (one,) = await collect(results)
                assert (one.device_id, right(one.outputs)) == (1, True)
            else:
                assert notes(await failure(collect(results))) == ["item 0 of the source, device 0"]
        assert lives(session_of_many, 0) != verdict.runs_elsewhere
        assert lives(session_of_many, 1)

    if row.kind in CODES or row.kind is Kind.HANG:
        gears = doubled(models)
        async with InferSession(0, gears, hang_timeout=HANG_TIMEOUT) as below, BatchingSession(below) as batching:
            with failing(row, seen):
                calls = [batching.infer(feeds()) for _ in range(4)]
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(one, Exception) != verdict.runs_alone for one in outcomes)
            assert batching.statistics().rerun == 4 * verdict.runs_alone


async def again(models: Models, row: Row, seen: Seen) -> None:
    """The item fails on two devices: it raises, and the third is not touched."""
    verdict = row.verdict
    async with MultiDeviceSession(fixed(models), hang_timeout=HANG_TIMEOUT) as session:
        await session.infer({device: [feeds()] for device in range(3)})
        with failing(row, seen, times=2):
            error = await failure(collect(session.stream([feeds()], [0, 1, 2])))
        assert notes(error) == ["item 0 of the source, devices 0 and 1"]
        assert blame(error, seen, Often.AGAIN) == verdict
        assert [lives(session, device) for device in range(3)] == [not verdict.takes_device_out] * 2 + [True]
        assert [s.opened for s in session.statistics().values()] == [1, 1, 1]
    gears = doubled(models)
    async with MultiDeviceSession(gears, hang_timeout=HANG_TIMEOUT) as below, BatchingSession(below) as batching:
        with failing(row, seen, times=2):
            assert blame(await failure(batching.infer(feeds())), seen, Often.AGAIN) == verdict
        assert batching.statistics().moved == 1
        assert lives(below, 2)
        if not verdict.takes_device_out:
            assert lives(below, 0)
            assert lives(below, 1)


async def fine_elsewhere(models: Models, row: Row, seen: Seen) -> None:
    """The item fails on one device and runs on another: the first is taken out, and opened anew by the next call."""
    async with MultiDeviceSession(fixed(models)) as session:
        await session.infer({device: [feeds()] for device in range(3)})
        with failing(row, seen):
            results = await collect(session.stream([feeds() for _ in range(20)], [0, 1, 2]))
        assert [one.index for one in results] == list(range(20))
        assert all(right(one.outputs) for one in results)
        lost = [device for device in range(3) if not lives(session, device)]
        assert len(lost) == row.verdict.takes_device_out
        assert str(CODES[row.kind]) in (session.statistics()[lost[0]].failure or "")
        await session.infer({lost[0]: [feeds()]})
        assert session.statistics()[lost[0]].opened == 2
    async with MultiDeviceSession(doubled(models)) as below, BatchingSession(below) as batching:
        await batching.infer(feeds())
        with failing(row, seen):
            assert right(await batching.infer(feeds()))
        assert sum(s.failure is not None for s in below.statistics().values()) == row.verdict.takes_device_out


async def in_a_row(models: Models, row: Row, seen: Seen) -> None:
    """One request after the other fails: the session is at fault then, and ends; a success between clears it."""
    path = fixed(models)
    async with InferSession(0, path) as session:
        for count in (MOST_IN_A_ROW - 1, MOST_IN_A_ROW):
            assert right(await session.infer(feeds()))
            with failing(row, seen, times=count):
                errors = [await failure(session.infer(feeds())) for _ in range(count)]
            assert {type(error) for error in errors} == {type(errors[0])}
        await check_session(session, path, row.verdict)
    async with MultiDeviceSession(path) as session_of_many:
        with failing(row, seen, times=MOST_IN_A_ROW):
            for _ in range(MOST_IN_A_ROW):
                await failure(session_of_many.infer({0: [feeds()]}))
        await session_of_many.infer({0: [feeds()]})
        assert session_of_many.statistics()[0].opened == 1 + row.verdict.takes_device_out


async def opening(models: Models, row: Row, seen: Seen) -> None:
    """A session cannot be opened; where the device is at fault a stream goes on without it."""
    path = fixed(models)
    platform: Any = "cpu"
    call, times = "acl.mdl.get_desc", 1
    if row.kind is Kind.FILE:
        Path(path).write_bytes(b"x")
    elif row.kind is Kind.PROCESS:
        platform = "ascend"
    else:
        times = 2 if row.kind is Kind.MEMORY else 1  # what is idle is freed, and the model loaded again
        emulator.fail(call, CODES[row.kind], times=times)
    error = await failure(InferSession(0, path, platform=platform).__aenter__())
    assert type(error) is {Kind.FILE: ModelError, Kind.PROCESS: AclNotFoundError}.get(row.kind, type(error))
    assert blame(error, seen) == row.verdict
    if row.kind in CODES:
        async with InferSession(0, path) as session:
            assert right(await session.infer(feeds()))
        emulator.fail(call, CODES[row.kind], times=times)
        async with MultiDeviceSession(path) as session_of_many:
            (one,) = await collect(session_of_many.stream([feeds()], [0, 1]))
            assert right(one.outputs)


async def copying(models: Models, row: Row, seen: Seen) -> None:
    """``to_device`` fails."""
    path = fixed(models)
    async with InferSession(0, path) as session:
        if row.kind in (Kind.BROKEN, Kind.CLOSED):
            await end(session, row.kind)
        if row.kind in CODES:
            emulator.fail("acl.rt.memcpy_async", CODES[row.kind])
        array = np.array([object()]) if row.kind is Kind.FEEDS else rows(1)
        assert blame(await failure(session.to_device(array)), seen) == row.verdict
        if row.kind not in (Kind.BROKEN, Kind.CLOSED):
            await check_session(session, path, row.verdict)


async def end(session: InferSession, kind: Kind) -> None:
    if kind is Kind.CLOSED:
        await session.aclose()
    else:
        emulator.fail(EXECUTE, CODES[Kind.LOST], device_side=True)
        assert isinstance(await failure(session.infer(feeds())), AclError)


async def ended(models: Models, row: Row, seen: Seen) -> None:
    """The session has ended, or ends while the request waits for its turn."""
    path = fixed(models)
    kind = ClosedError if row.kind is Kind.CLOSED else BrokenSessionError
    error: Any
    async with InferSession(0, path, depth=1, hang_timeout=HANG_TIMEOUT) as session:
        if seen is Seen.SUBMIT:
            await end(session, row.kind)
            error = await failure(session.infer(feeds()))
        else:
            with emulator.gate("execute"):
                calls = [session.infer(feeds()) for _ in range(3)]
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(outcomes[0], DeviceHangError)
            error = outcomes[-1]
        assert isinstance(error, kind)
        assert blame(error, seen) == row.verdict
    if row.verdict.takes_device_out:
        async with MultiDeviceSession(path) as session_of_many:
            await session_of_many.infer({0: [feeds()], 1: [feeds()]})
            stream = session_of_many.stream((feeds() for _ in range(40)), [0, 1])
            await anext(stream)
            emulator.fail(EXECUTE, CODES[Kind.LOST], device_side=True)
            with contextlib.suppress(AclError, BrokenSessionError):  # or the stream meets it
                await session_of_many.infer({0: [feeds()]})
            assert len(await collect(stream)) == 39
            assert sum(s.failure is not None for s in session_of_many.statistics().values()) == 1


async def in_a_child(models: Models, row: Row, seen: Seen) -> None:
    """A child of a process that uses ACL cannot use it."""
    async with InferSession(0, fixed(models)) as session:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            code = 1
            try:
                session.infer(feeds()).send(None)
            except ForkError as error:
                code = 7 if blame(error, seen) == row.verdict else 2
            finally:
                os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        assert right(await session.infer(feeds()))


async def in_a_thread(models: Models, row: Row, seen: Seen) -> None:
    """A thread of the session dies."""
    async with InferSession(0, fixed(models)) as session:
        with pytest.MonkeyPatch.context() as patch:
            inside.break_stage(patch, session, inside.STAGES[-1], ZeroDivisionError("a bug"))
            error = await failure(session.infer(feeds()))
        assert isinstance(error, BrokenSessionError)
        assert isinstance(error.__cause__, ZeroDivisionError)
        assert blame(error.__cause__, seen) == row.verdict
        assert isinstance(await failure(session.infer(feeds())), BrokenSessionError)


def play_of(row: Row, seen: Seen) -> Any:
    if row.often is not Often.ONCE:
        return {Often.AGAIN: again, Often.FINE_ELSEWHERE: fine_elsewhere, Often.IN_A_ROW: in_a_row}[row.often]
    if seen in (Seen.OPEN, Seen.COPY, Seen.THREAD):
        return {Seen.OPEN: opening, Seen.COPY: copying, Seen.THREAD: in_a_thread}[seen]
    return {Kind.BROKEN: ended, Kind.CLOSED: ended, Kind.PROCESS: in_a_child}.get(row.kind, once)


@pytest.mark.parametrize(
    ("row", "seen"),
    [
        pytest.param(row, seen, id=f"{row.kind.name} {row.often.name} {seen.name}".lower().replace(" ", "-"))
        for row in TABLE
        for seen in row.seen
    ],
)
async def test_each_row(models: Models, row: Row, seen: Seen) -> None:
    emulator.configure(devices=3)
    await play_of(row, seen)(models, row, seen)


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [507011, 507015, 507018, 507035])
def test_what_data_can_cause(code: int) -> None:
    assert blame(AclError("c", code)).culprit is Culprit.DATA
    assert blame(AclError("c", code), Seen.COPY).culprit is Culprit.DEVICE


def test_no_two_rows_fit_the_same() -> None:
    keys = [(row.kind, seen, row.often) for row in TABLE for seen in row.seen]
    assert len(keys) == len(set(keys))
    assert {row.kind for row in TABLE} == set(Kind)


@pytest.mark.parametrize("seen", Seen)
def test_every_error_has_a_verdict_in_every_place(seen: Seen) -> None:
    errors = [AclError("c", 145000), AclError("c", 507015), FeedError("x"), ClosedError("x"), OSError(), ForkError()]
    for error in errors:
        for often in Often:
            assert blame(error, seen, often) in [row.verdict for row in TABLE]


def line_of(row: Row) -> str:
    """Write a row as the page has it."""
    verdict = row.verdict
    runs = ["alone"] * verdict.runs_alone + ["elsewhere"] * verdict.runs_elsewhere
    ends = ["context"] * verdict.drops_context + ["session"] * verdict.breaks_session
    cells = [
        row.kind.value,
        ", ".join(seen.value for seen in row.seen),
        row.often.value,
        verdict.culprit.value,
        "runs " + ", ".join(runs) if runs else "raises",
        ", ".join(ends),
        "out" if verdict.takes_device_out else "",
        "" if verdict.is_ready else "not ready",
    ]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def test_the_page_has_the_table() -> None:
    wanted = [line_of(row) for row in TABLE]
    found = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("|")][2:]
    assert found == wanted, "docs/blame.md should have:\n" + "\n".join(wanted)


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
async def test_one_item_of_bad_data_costs_no_device(
    models: Models, ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside.chain_executions(monkeypatch)  # on one stream a failure concerns all that was queued
    async with MultiDeviceSession(picking(models)) as session:
        source = ([np.array([[1000 if k == 20 else k % 50]])] for k in range(200))
        got: list[StreamOutput] = []

        async def read() -> None:
            async for one in session.stream(source, mode="auto", ordered=ordered):
                got.append(one)  # noqa: PERF401 - what came before an error is wanted

        error = await failure(read())
        assert isinstance(error, AclError)
        (note,) = notes(error)
        assert note.startswith("item 20 of the source, devices ")
        assert all(one.outputs[0].item() == one.index % 50 for one in got)
        if ordered:
            assert [one.index for one in got] == list(range(20))
        assert {s.failure for s in session.statistics().values()} == {None}


async def test_the_item_of_a_pipeline_that_shares_buffers_with_others(models: Models) -> None:
    """They fail together on the device; each runs again alone, and the one at fault is named."""
    with pytest.MonkeyPatch.context() as patch:
        inside.treat_as_fast(patch)
        inside.chain_executions(patch)
        async with InferSession(0, picking(models), depth=2) as session:
            source = ([np.array([[1000 if k == 60 else k % 50]])] for k in range(200))
            got = []

            async def read() -> None:
                async for (outputs,) in session.infer_pipeline(source, mode="auto"):
                    got.append(outputs.item())

            error = await failure(read())
            assert isinstance(error, AclError)
            assert notes(error) == ["item 60 of the source"]
            assert got == [k % 50 for k in range(60)]

            values = [1000 if k in (7, 90) else k % 50 for k in range(128)]
            calls = [session.infer([np.array([[value]])], mode="auto") for value in values]
            for value, outcome in zip(values, await asyncio.gather(*calls, return_exceptions=True), strict=True):
                if value == 1000:
                    assert isinstance(outcome, AclError)
                else:
                    assert not isinstance(outcome, BaseException)
                    assert outcome[0].item() == value
            del outcome


async def test_an_item_that_fails_on_the_only_device(models: Models) -> None:
    async with MultiDeviceSession(fixed(models)) as session:
        emulator.fail(EXECUTE, 507015, device_side=True)
        error = await failure(collect(session.stream([feeds()], [0])))
        assert isinstance(error, AclError)
        assert notes(error) == ["item 0 of the source, device 0"]
        assert lives(session, 0)


async def test_an_item_that_fails_on_the_last_two_devices(models: Models) -> None:
    """No device is left then, and the notes name the item."""
    async with MultiDeviceSession(fixed(models)) as session:
        emulator.fail(EXECUTE, 507899, times=2, device_side=True)
        error = await failure(collect(session.stream([feeds()], [0, 1])))
        assert isinstance(error, BrokenSessionError)
        assert "item 0 of the source failed on devices 0 and 1 with the same code" in notes(error)


async def test_a_caller_runs_on_the_other_device_even_if_that_one_is_slow(models: Models) -> None:
    emulator.configure(devices=2)
    emulator.configure(device=1, execute_ms=20)
    async with MultiDeviceSession(doubled(models)) as below, BatchingSession(below) as batching:

        def done(device: int) -> int:
            session = below.statistics()[device].session
            assert session is not None
            return session.done

        while not (done(0) and done(1)):  # how long each takes is known then
            await asyncio.gather(*[batching.infer(feeds()) for _ in range(64)])
        before = done(0), done(1)
        assert right(await batching.infer(feeds()))
        assert (done(0), done(1)) == (before[0] + 1, before[1])
        emulator.fail(EXECUTE, 507015, device_side=True)
        assert right(await batching.infer(feeds()))
        assert done(1) == before[1] + 1
        assert below.statistics()[0].failure is not None
