"""Each call of pyACL that the library makes fails once, at each place of a session's life, with each family of code.

Every time: the error names the call and the code, nothing is left on the device, the session is usable or cleanly
broken, and other sessions are untouched. The calls are read from the Protocols, so a new one must be tried too.
``--long`` takes many places and all families instead of a sample.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import inside
from tests.unit.fault_lives import Life, attempt, count_calls, fail_each_call, tell

import aioais
from aioais import AioaisError, BrokenSessionError, InferSession, Mode, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

pytestmark = pytest.mark.usefixtures("clean_slate")

Array = np.ndarray[Any, np.dtype[Any]]

SMALL = (2, 8)
LARGE = (2, 1 << 15)


@dataclass(frozen=True)
class Variant:
    """A kind of life, and the calls that only it makes."""

    mode: Mode
    shape: tuple[int, ...] = SMALL
    is_whole: bool = False
    """From ACL's start to its end, without another session."""
    is_recorded: bool = False
    hang_timeout: float | None = None
    items: int = 3
    """Of its pipeline; with more of them the session learns how fast the device is."""
    flags: tuple[str, ...] = field(default=())
    """What the release is said not to have."""


VARIANTS = {
    "small": Variant("static"),
    "large": Variant("static", LARGE),
    "fast": Variant("static", LARGE, items=40),
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
    async for got in session.infer_pipeline([feeds(variant)] * variant.items, variant.mode):
        assert (got[0] == 3).all()


async def iterated(session: InferSession, variant: Variant, mem_copy: bool) -> None:
    (got,) = await session.infer_iteration(feeds(variant), [0, -1], 3, variant.mode, mem_copy=mem_copy)
    assert (got == 7).all()


async def live_through(path: str, variant: Variant) -> list[AioaisError]:
    """Do everything that a session can; gives what failed. Results are right or there are none."""
    errors: list[AioaisError] = []
    session = InferSession(0, path, depth=2, hang_timeout=variant.hang_timeout)

    async def start() -> None:
        await session

    if variant.is_whole:
        await attempt(asyncio.to_thread(aioais.devices), errors)
    if await attempt(start(), errors):
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
                await attempt(step, errors)
            # One failure has to be enough: the session works again, or says that it is broken.
            # The first of these two may be the one that fails.
            if not await attempt(infer(session, variant), errors) and not await attempt(
                infer(session, variant), errors
            ):
                assert isinstance(errors[-1], BrokenSessionError)
        await attempt(session.aclose(), errors)
    if variant.is_whole:
        await attempt(InferSession.finalize(), errors)
    return errors


def prepare(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    for flag in variant.flags:
        monkeypatch.setattr(inside.cpu_library(), flag, False)
    if variant.items > 3:
        inside.treat_as_fast(monkeypatch)


@pytest.mark.slow
@EACH
async def test_each_call_fails(models: Models, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await try_calls(models, name, monkeypatch)


@EACH
async def test_some_calls_fail(models: Models, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third in each kind of life, all of them in each three."""
    await try_calls(models, name, monkeypatch, list(VARIANTS).index(name) % 3, 3)


async def try_calls(models: Models, name: str, monkeypatch: pytest.MonkeyPatch, first: int = 0, step: int = 1) -> None:
    variant = VARIANTS[name]
    prepare(variant, monkeypatch)
    path = model(models, variant)
    async with contextlib.AsyncExitStack() as stack:
        neighbours = [] if variant.is_whole else [await stack.enter_async_context(InferSession(0, path))]

        async def go_on() -> None:
            for neighbour in neighbours:
                await infer(neighbour, variant)
                # The copies of a device share one stream; after one that hung this makes another, which is no leak.
                (await neighbour.to_device(feeds(variant)[0])).close()
                assert neighbour.statistics().failed == 0
            if not neighbours:
                emulator.reset()  # ACL that could not be finalised would be taken for another test's

        await go_on()
        life = Life(name, lambda: live_through(path, variant), neighbours, go_on, may_hide=variant.is_recorded)
        tell(await fail_each_call(life, first, step))


async def test_every_call_is_tried(models: Models) -> None:
    """What the Protocols list must occur in some life above."""
    tried: set[str] = set()
    for name, variant in VARIANTS.items():
        with pytest.MonkeyPatch.context() as patch:
            prepare(variant, patch)
            models.folder = models.folder.parent / name
            models.folder.mkdir()
            path = model(models, variant)
            tried |= (await count_calls(functools.partial(live_through, path, variant))).keys()
    assert inside.ACL_CALLS - tried == set()


def test_slow_calls_are_in_the_protocols() -> None:
    assert {call.rpartition(".")[2] for call in inside.ACL_CALLS} >= inside.SLOW_CALLS
