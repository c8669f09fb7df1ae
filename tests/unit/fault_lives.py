"""Failing each call of pyACL in turn while a session lives: what is tried, and what must hold every time.

Shared by the tests of ``InferSession`` and of ``MultiDeviceSession``. ``--long`` tries many places
and all families of codes instead of a sample.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import zlib
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests import inside
from tests.tiers import Tier

import aioais
from aioais import AclError, AioaisError, BrokenSessionError, InferSession, ModelError, emulator

LONG = Tier.is_long

INTERNAL = 507899
CODES = [107000, 207001, 207008, 300000, 500000, INTERNAL, 507010, 507046]
"""Of each family, with those that get a treatment of their own: no memory, device lost, timed out."""

WITHOUT_CODE = {
    # pyACL gives the bare value of these, or nothing: they cannot tell a failure, and have none with a valid handle.
    "acl.destroy_tensor_desc",
    "acl.get_data_buffer_addr",
    "acl.get_data_buffer_size_v2",
    "acl.get_recent_err_msg",
    "acl.get_soc_name",
    "acl.get_tensor_desc_num_dims",
    "acl.mdl.get_dataset_tensor_desc",
    "acl.mdl.get_input_data_type",
    "acl.mdl.get_input_format",
    "acl.mdl.get_input_name_by_index",
    "acl.mdl.get_input_size_by_index",
    "acl.mdl.get_num_inputs",
    "acl.mdl.get_num_outputs",
    "acl.mdl.get_output_data_type",
    "acl.mdl.get_output_format",
    "acl.mdl.get_output_name_by_index",
    "acl.mdl.get_output_size_by_index",
}

CREATORS = {"acl.create_data_buffer", "acl.create_tensor_desc", "acl.mdl.create_dataset", "acl.mdl.create_desc"}
"""They give the bare handle, 0 for a failure: reported as 500000."""

CAN_DO_WITHOUT = {
    "acl.rt.stream_query",  # results are delivered one by one
    "acl.rt.get_mem_info",  # free memory is not told
    "acl.mdl.get_input_dims_range",  # ranges are not checked ahead
    "acl.mdl.execute",  # asks how large outputs are; they grow by guesses instead
    "acl.finalize_reference",  # who else uses ACL is not known; it is ended as the one that started it would
}

RELEASES = {
    # What such a call refuses to release stays: one handle.
    "acl.destroy_data_buffer",
    "acl.finalize",
    "acl.mdl.destroy_dataset",
    "acl.mdl.destroy_desc",
    "acl.mdl.unload",
    "acl.rt.destroy_context",
    "acl.rt.destroy_event",
    "acl.rt.destroy_stream",
    "acl.rt.free",
    "acl.rt.free_host",
    "acl.rt.reset_device",
}


@dataclass(frozen=True)
class Life:
    """What a session goes through, and who lives beside it."""

    name: str
    live: Callable[[], Awaitable[list[AioaisError]]]
    """From open to close; gives what failed. Results are right or there are none."""
    neighbours: Sequence[InferSession]
    """Other sessions, one on each device; none if the life begins and ends ACL itself."""
    go_on: Callable[[], Awaitable[None]]
    """Runs the neighbours; what happened must not concern them."""
    may_hide: bool = False
    """Some failures concern no request, such as those of time stamps that only a recording wants."""


async def attempt(step: Awaitable[object], errors: list[AioaisError]) -> bool:
    """Await a step of a life; tells whether it went well."""
    try:
        await step
    except AioaisError as exc:
        errors.append(exc)
        return False
    return True


async def fail_each_call(life: Life, first: int = 0, step: int = 1) -> str:
    """Live the life once for each call, place and code of the sample, with that fault; gives what was tried.

    ``first`` and ``step`` choose among the calls: different lives that each try a few try most of them together.
    """
    assert await life.live() == []  # once ahead: plans and sizes are learned
    counts = await count_calls(life.live)
    calls = sorted((inside.ACL_CALLS & counts.keys()) - WITHOUT_CODE)[first::step]
    assert calls
    faults: list[bool] = []
    with log_of_the_library() as log:
        for call in calls:
            for place, code in sample(life.name, call, counts[call]):
                faults.append(await _fail(life, call, place, code, log))
    return f"{life.name}: {sum(faults)} faults in {len(calls)} calls, each at a place and with a code of its own"


async def count_calls(live: Callable[[], Awaitable[list[AioaisError]]]) -> dict[str, int]:
    """Count the calls of a life without faults."""
    emulator.reset_counts()
    assert await live() == []
    return emulator.counts()


def sample(name: str, call: str, count: int) -> list[tuple[int, int]]:
    """Choose places and codes, the same in each run.

    The long form has all codes at the first places and, as calls of one kind are much alike, some at later ones.
    """
    turn = zlib.crc32(f"{name} {call}".encode())
    if not LONG:
        places = sorted({0, turn % count})
        return [(place, (INTERNAL, CODES[(turn + k) % len(CODES)])[k % 2]) for k, place in enumerate(places)]
    chosen = [(place, code) for place in range(min(count, 4)) for code in CODES]
    for place in sorted({*range(4, min(count, 16)), *range(16, count, 8), count - 1} - set(range(4))):
        codes = {INTERNAL, CODES[(turn + place) % len(CODES)]}
        chosen += [(place, code) for code in sorted(codes)]
    return chosen


def reported(call: str, code: int) -> int:
    """Give the code that an error of a failed call has."""
    return 500000 if call in CREATORS else code


def explains(error: BaseException, call: str, code: int) -> bool:
    """Whether an error, or what it is about, names the call and the code."""
    if isinstance(error, AclError):
        want = reported(call, code)
        return (error.call, error.code) == (call, want) and call in str(error) and str(want) in str(error)
    assert isinstance(error, (BrokenSessionError, ModelError, aioais.ArgumentError)), repr(error)
    return error.__cause__ is not None and explains(error.__cause__, call, code)


def tell(text: str) -> None:
    """Say what was tried, for ``pytest -rP``."""
    sys.stdout.write(f"{text}\n")


@contextmanager
def log_of_the_library() -> Iterator[list[str]]:
    """Collect what the library logs, as text, instead of handing it to pytest.

    pytest would keep every record, each with the frames of its error, and print thousands of them.
    """
    lines: list[str] = []
    logger, handler = logging.getLogger("aioais"), logging.Handler(logging.WARNING)
    formatter = logging.Formatter()
    handler.emit = lambda record: lines.append(formatter.format(record))  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.propagate = True
        logger.removeHandler(handler)


async def settled(neighbours: Sequence[InferSession]) -> dict[str, int]:
    """Count what is alive on the devices when all that was dropped is freed.

    Nothing here takes a time: each wait is for an event after which nothing is held any more.
    """
    await _ended(inside.PASSING_THREADS)  # their frames may hold a request, a session or a block
    gc.collect()  # dropped blocks are posted to the control threads
    # A control thread ends when nothing needs its device any more, as one that was opened after a failure may be.
    await _ended("aioais-ctl-", {inside.control_thread(session) for session in neighbours})
    for session in neighbours:
        await inside.settle_device(session)
    return {name: number for name, number in emulator.live().items() if name not in ("devices", "contexts")}


async def _ended(names: str | tuple[str, ...], kept: Collection[threading.Thread] = ()) -> None:
    for thread in threading.enumerate():
        if thread.name.startswith(names) and thread not in kept:
            await asyncio.to_thread(thread.join, 10)


async def _fail(life: Life, call: str, place: int, code: int, log: list[str]) -> bool:
    """Live a life with one fault; tells whether it came to that, as not every life has the same number of calls."""
    before = await settled(life.neighbours)
    log.clear()
    emulator.fail(call, code, after=place)
    errors = await life.live()
    has_struck = not emulator.pending()
    emulator.disarm()
    story = f"{life.name}: {call} number {place} gave {code}: {errors}"
    may_hide = not has_struck or code != INTERNAL or life.may_hide or call in CAN_DO_WITHOUT or bool(errors)
    if call not in CAN_DO_WITHOUT:
        assert all(explains(error, call, code) for error in errors), story
    errors.clear()  # they hold frames
    after = await settled(life.neighbours)
    # No caller waits for what a control thread does later: its failures are in the log.
    assert may_hide or any(f"{call} failed with {reported(call, code)}" in line for line in log), story
    left = {key: after[key] - before[key] for key in after if not key.endswith("_bytes")}
    left = {key: number for key, number in left.items() if number > 0}
    assert not left or (call in RELEASES and sum(left.values()) == 1), f"{story} left {left}"
    await life.go_on()
    return has_struck
