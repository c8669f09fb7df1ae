"""Each call of pyACL that the library makes fails once, at each place of a session's life, with each family of code.

Every time: the error names the call and the code, nothing is left on the device, the session is usable or cleanly
broken, and other sessions are untouched. The calls are read from the Protocols, so a new one must be tried too.
``AIOAIS_TEST_LONG=1`` takes all places and all families instead of a sample.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
import zlib
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import aioais
from aioais import AclError, AioaisError, BrokenSessionError, InferSession, Mode, ModelError, emulator
from aioais._acl.api import Acl, Mdl, Rt
from aioais._acl.library import find_library
from aioais._acl.slow import SlowCalls
from aioais._bridge.offload import wait_future
from aioais._path.lifecycle import finalize_all
from aioais.emulator._state import state

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]

LONG = bool(os.environ.get("AIOAIS_TEST_LONG"))
SMALL = (2, 8)
LARGE = (2, 1 << 15)

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
    "acl.rt.get_mem_info",  # free memory is not told
    "acl.mdl.get_input_dims_range",  # ranges are not checked ahead
    "acl.mdl.execute",  # asks how large outputs are; they grow by guesses instead
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


def public(protocol: type) -> set[str]:
    return {name for name in vars(protocol) if not name.startswith("_")} - {"rt", "mdl"}


CALLS = {
    f"{prefix}.{name}"
    for prefix, protocol in (("acl", Acl), ("acl.rt", Rt), ("acl.mdl", Mdl))
    for name in public(protocol)
}


@dataclass(frozen=True)
class Variant:
    """A kind of life, and the calls that only it makes."""

    mode: Mode
    shape: tuple[int, ...] = SMALL
    is_whole: bool = False
    """From ACL's start to its end, without another session."""
    is_recorded: bool = False
    hang_timeout: float | None = None
    flags: tuple[str, ...] = field(default=())
    """What the release is said not to have."""


VARIANTS = {
    "express": Variant("static"),
    "staged": Variant("static", LARGE),
    "whole": Variant("static", is_whole=True),
    "recorded": Variant("static", LARGE, is_recorded=True),
    "bounded": Variant("static", LARGE, hang_timeout=60),
    "old": Variant("static", LARGE, flags=("has_event_ex", "has_dims_v2")),
    "batch": Variant("dymbatch"),
    "hw": Variant("dymhw"),
    "dims": Variant("dymdims"),
    "shape": Variant("dymshape"),
}
EACH = pytest.mark.parametrize("name", VARIANTS)


@pytest.fixture(autouse=True)
def clean_slate() -> Iterator[None]:
    """Disarm what a failed test has armed."""
    yield
    state.armed.clear()
    gc.collect()
    finalize_all()
    emulator.reset()


def model(models: Models, variant: Variant) -> str:
    columns = variant.shape[1]
    if variant.mode == "static":
        return models.add(variant.shape)
    if variant.mode == "dymhw":
        path = models.add([1, 1, "h", "w"], name="open")
        spec = "input1:1,1,-1,-1;input2:1,1,-1,-1"
        return models.convert(path, "gears", input_shape=spec, dynamic_image_size="2,8;4,8")
    path = models.add(["n", columns], name="open")
    spec = f"input1:-1,{columns};input2:-1,{columns}"
    if variant.mode == "dymbatch":
        return models.convert(path, "gears", input_shape=spec, dynamic_batch_size="1,2,4")
    if variant.mode == "dymdims":
        return models.convert(path, "gears", input_shape=spec, dynamic_dims="2,2;4,4")
    return models.convert(path, "gears", input_shape_range=f"input1:[1~4,{columns}];input2:[1~4,{columns}]")


def feeds(variant: Variant, seed: int = 0) -> list[Array]:
    shape = (1, 1, *variant.shape) if variant.mode == "dymhw" else variant.shape
    return [np.full(shape, 1.0 + seed, np.float32), np.full(shape, 2.0, np.float32)]


async def infer(session: InferSession, variant: Variant, seed: int = 0) -> None:
    (got,) = await session.infer(feeds(variant, seed), variant.mode, 1)
    assert (got == 3.0 + seed).all()


async def concurrent(session: InferSession, variant: Variant) -> None:
    results = await asyncio.gather(*(infer(session, variant, seed) for seed in range(3)), return_exceptions=True)
    for result in results:
        if result is not None:
            raise result


async def on_the_device(session: InferSession, variant: Variant) -> None:
    x, y = feeds(variant)
    with contextlib.closing(await session.to_device(x)) as tensor:
        (got,) = await session.infer([tensor, y], variant.mode, out_array=False)
    with contextlib.closing(got):
        assert ((await got.to_host()) == 3).all()


async def pipelined(session: InferSession, variant: Variant) -> None:
    async for got in session.infer_pipeline([feeds(variant)] * 3, variant.mode):
        assert (got[0] == 3).all()


async def iterated(session: InferSession, variant: Variant, mem_copy: bool) -> None:
    (got,) = await session.infer_iteration(feeds(variant), [0, -1], 3, variant.mode, mem_copy=mem_copy)
    assert (got == 7).all()


async def live_through(path: str, variant: Variant) -> list[AioaisError]:
    """Do everything that a session can; gives what failed. Results are right or there are none."""
    errors: list[AioaisError] = []

    async def attempt(step: Awaitable[None]) -> bool:
        try:
            await step
        except AioaisError as exc:
            errors.append(exc)
            return False
        return True

    session = InferSession(0, path, depth=2, hang_timeout=variant.hang_timeout)

    async def start() -> None:
        await session

    if variant.is_whole:
        await attempt(asyncio.to_thread(aioais.devices))  # type: ignore[arg-type]
    if await attempt(start()):
        recording = session.record() if variant.is_recorded else None
        with recording if recording is not None else contextlib.nullcontext():
            steps = [
                infer(session, variant),
                concurrent(session, variant),
                on_the_device(session, variant),
                pipelined(session, variant),
                iterated(session, variant, True),
                iterated(session, variant, False),
            ]
            for step in steps:
                await attempt(step)
            # One failure has to be enough: the session works again, or says that it is broken.
            # The first of these two may be the one that fails.
            if not await attempt(infer(session, variant)) and not await attempt(infer(session, variant)):
                assert isinstance(errors[-1], BrokenSessionError)
        await attempt(session.aclose())
    if variant.is_whole:
        await attempt(InferSession.finalize())
    return errors


def live() -> dict[str, int]:
    return {name: number for name, number in emulator.live().items() if name not in ("devices", "contexts")}


def explains(error: BaseException, call: str, code: int) -> bool:
    """Whether an error, or what it is about, names the call and the code."""
    if isinstance(error, AclError):
        want = 500000 if call in CREATORS else code
        return (error.call, error.code) == (call, want) and call in str(error) and str(want) in str(error)
    assert isinstance(error, (BrokenSessionError, ModelError, aioais.ArgumentError)), repr(error)
    return error.__cause__ is not None and explains(error.__cause__, call, code)


def sample(name: str, call: str, count: int) -> list[tuple[int, int]]:
    """Choose places and codes: all of them, or the same few in each run."""
    if LONG:
        places = sorted({*range(min(count, 12)), count // 2, count - 1})
        return [(place, code) for place in places for code in CODES]
    turn = zlib.crc32(f"{name} {call}".encode())
    places = sorted({0, turn % count})
    return [(place, (INTERNAL, CODES[(turn + k) % len(CODES)])[k % 2]) for k, place in enumerate(places)]


async def count_calls(path: str, variant: Variant) -> dict[str, int]:
    emulator.reset_counts()
    assert await live_through(path, variant) == []
    return emulator.counts()


async def settled(other: InferSession | None) -> dict[str, int]:
    """Count what is alive when all that was dropped is freed."""
    gc.collect()
    if other is None:
        for thread in threading.enumerate():
            if thread.name.startswith("aioais-ctl-"):
                await asyncio.to_thread(thread.join, 10)  # it ends when the device is closed
    else:
        pipeline = other._pipeline
        assert pipeline is not None
        await wait_future(pipeline.device.worker.submit(pipeline.device.pinned.trim))
    return live()


async def back_to(before: dict[str, int], other: InferSession | None) -> dict[str, int]:
    """Give what is alive, once it is no more than before: a thread that ends a session may still hold a block."""
    deadline = time.monotonic() + 2
    while True:
        after = await settled(other)
        if time.monotonic() > deadline or all(after[key] <= before[key] for key in after if not key.endswith("_bytes")):
            return after
        await asyncio.sleep(0.01)


def prepare(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    for flag in variant.flags:
        monkeypatch.setattr(find_library("cpu"), flag, False)


@pytest.mark.skipif(not os.environ.get("AIOAIS_TEST_LONG"), reason="part of the long form, nox -s stress")
@EACH
async def test_each_call_fails(
    models: Models, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    variant = VARIANTS[name]
    prepare(variant, monkeypatch)
    path = model(models, variant)
    await count_calls(path, variant)  # once ahead: plans and sizes are learned
    other = None if variant.is_whole else await InferSession(0, path)
    if other is not None:
        await infer(other, variant)
    counts = await count_calls(path, variant)
    for call in sorted((CALLS & counts.keys()) - WITHOUT_CODE):
        for place, code in sample(name, call, counts[call]):
            before = await settled(other)
            emulator.fail(call, code, after=place)
            errors = await live_through(path, variant)
            state.armed.clear()
            story = f"{call} number {place} gave {code}: {errors}"
            has_told = bool(errors)
            if call not in CAN_DO_WITHOUT:
                assert all(explains(error, call, code) for error in errors), story
            errors.clear()
            after = await (settled(other) if call in RELEASES else back_to(before, other))
            # What the control thread does later, nobody waits for: its failures are in the log.
            has_told = has_told or f"{call} failed with {code}" in caplog.text
            assert has_told or code != INTERNAL or variant.is_recorded or call in CAN_DO_WITHOUT, story
            caplog.clear()
            left = {key: after[key] - before[key] for key in after if not key.endswith("_bytes")}
            left = {key: number for key, number in left.items() if number > 0}
            assert not left or (call in RELEASES and sum(left.values()) == 1), f"{story} left {left}"
            if other is None:
                emulator.reset()  # ACL that could not be finalised would pass for somebody else's the next time
            else:
                await infer(other, variant)
                assert other.statistics().failed == 0
    if other is not None:
        await other.aclose()


async def test_every_call_is_tried(models: Models) -> None:
    """What the Protocols list must occur in some life above."""
    tried: set[str] = set()
    for name, variant in VARIANTS.items():
        with pytest.MonkeyPatch.context() as patch:
            prepare(variant, patch)
            models.folder = models.folder.parent / name
            models.folder.mkdir()
            tried |= (await count_calls(model(models, variant), variant)).keys()
    assert CALLS - tried == set()


def test_slow_calls_are_in_the_protocols() -> None:
    slow = set(vars(SlowCalls(find_library("cpu").acl))) - {"releases_gil"}
    known = {call.rpartition(".")[2] for call in CALLS}
    assert slow <= known
