"""MultiDeviceSession under random lanes, failures, deaths and cancellations: every promise holds."""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.tiers import Tier

from aioais import AclInternalError, BrokenSessionError, FeedError, InferSession, MultiDeviceSession, emulator

Array = np.ndarray[Any, np.dtype[Any]]

pytestmark = [pytest.mark.stress, pytest.mark.timeout(1800)]

LONG = Tier.is_long
STORM = settings(
    max_examples=150 if LONG else 15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not LONG,
)


@pytest.fixture(scope="module")
def path() -> Iterator[str]:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    node = onnx.helper.make_node("Add", ["a", "a"], ["b"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 8]) for name in "ab"]
    graph = onnx.helper.make_graph([node], "twice", values[:1], values[1:])
    opset = onnx.helper.make_opsetid("", 17)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "twice.onnx")
        onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), file)
        yield file


def feeds(k: int) -> list[Array]:
    return [np.full((1, 8), k, np.float32)]


BAD = [np.zeros((3, 3), np.float32)]


def right(outputs: list[Array], k: int) -> bool:
    return len(outputs) == 1 and bool((outputs[0] == 2 * k).all())


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run an example, end ACL, and see that nothing is left on any device."""

    async def whole() -> None:
        try:
            await main
        finally:
            await InferSession.finalize()

    asyncio.run(whole())
    left = {k: v for k, v in emulator.live().items() if v and k not in ("devices", "host_blocks", "host_bytes")}
    assert not left


lanes = st.dictionaries(st.integers(0, 3), st.lists(st.integers(0, 9), max_size=4), max_size=4)
"""Device to lanes; the lane of 9 is a bad one."""


@given(calls=st.lists(st.tuples(lanes, st.booleans()), min_size=1, max_size=4), depth=st.integers(1, 3))
@STORM
def test_lanes(path: str, calls: list[tuple[dict[int, list[int]], bool]], depth: int) -> None:
    async def call(session: MultiDeviceSession, wanted: dict[int, list[int]], is_pipeline: bool) -> None:
        bad = {f"device {d}, lane {n}" for d, its in wanted.items() for n, k in enumerate(its) if k == 9}
        sent = {d: [feeds(k) if k != 9 else BAD for k in its] for d, its in wanted.items()}
        try:
            if is_pipeline:
                many = await session.infer_pipeline({d: [[one] * 3 for one in its] for d, its in sent.items()})
                got = {d: [lane[-1] for lane in its] for d, its in many.items()}
                assert all(len(lane) == 3 for its in many.values() for lane in its)
            else:
                got = await session.infer(sent)
        except FeedError as error:
            first, *others = [note for note in getattr(error, "__notes__", []) if not note.startswith("item")]
            assert first in bad
            assert {other.partition(" failed too")[0] for other in others} <= bad
        else:
            assert not bad
            assert list(got) == list(wanted)
            for d, its in wanted.items():
                assert len(got[d]) == len(its)
                assert all(right(outputs, k) for outputs, k in zip(got[d], its, strict=True))

    async def main() -> None:
        async with MultiDeviceSession(path, depth=depth) as session:
            # The second half at once: a lane that fails touches no other call.
            for wanted, is_pipeline in calls:
                await call(session, wanted, is_pipeline)
            await asyncio.gather(*(call(session, *one) for one in calls))
            assert all(s.failure is None and s.opened == 1 for s in session.statistics().values() if s.is_open)

    run(main())


@given(
    devices=st.sets(st.integers(0, 3), min_size=1),
    dying=st.dictionaries(st.integers(0, 3), st.integers(0, 60), max_size=4),
    count=st.integers(0, 80),
    leave=st.none() | st.integers(1, 80),
    ordered=st.booleans(),
    depth=st.integers(1, 3),
    is_warm=st.booleans(),
)
@STORM
def test_streams(
    path: str,
    devices: set[int],
    dying: dict[int, int],
    count: int,
    leave: int | None,
    ordered: bool,
    depth: int,
    is_warm: bool,
) -> None:
    async def main() -> None:
        got: list[int] = []
        async with MultiDeviceSession(path, depth=depth) as session:
            if is_warm:
                await session.infer({device: [feeds(0)] for device in devices})
            with contextlib.ExitStack() as dead:
                stream = session.stream((feeds(k) for k in range(count)), sorted(devices), ordered=ordered)
                try:
                    async for one in stream:
                        assert one.device_id in devices
                        assert right(one.outputs, one.index)
                        got.append(one.index)
                        for device, moment in dying.items():
                            if moment == len(got):
                                dead.enter_context(emulator.kill(device))
                        if leave == len(got):
                            break
                except BrokenSessionError as error:
                    assert devices <= set(dying), "one was well"
                    text = str(error)
                    missing = [device for device in devices if f"device {device}: " not in text]
                    assert not missing, text
                except AclInternalError as error:  # two devices died under one item, which counts as at fault then
                    places = re.findall(r"devices (\d) and (\d)", " ".join(getattr(error, "__notes__", [])))
                    assert [dying[int(device)] <= len(got) for device in places[0]] == [True, True], "one was well"
                else:
                    assert len(got) == (count if leave is None else min(count, leave))
                await stream.aclose()
                assert len(set(got)) == len(got), "each once"
                if ordered:
                    assert got == list(range(len(got)))
            # What has died is back; whatever happened, the session goes on. Where the stream was left, what a device
            # had begun for it may break its session only now, once.
            for _ in dying:
                with contextlib.suppress(AclInternalError, BrokenSessionError):
                    await session.infer({device: [feeds(4)] for device in devices})
                    break
            again = await session.infer({device: [feeds(5)] for device in devices})
            assert all(right(again[device][0], 5) for device in devices)

    run(main())


@given(dying=st.sets(st.integers(0, 3)), cancel=st.booleans(), after=st.integers(0, 20))
@STORM
def test_the_end_comes_in_the_middle(path: str, dying: set[int], cancel: bool, after: int) -> None:
    async def main() -> None:
        session = MultiDeviceSession(path)
        with contextlib.ExitStack() as dead:
            calls = [
                asyncio.ensure_future(session.infer({device: [feeds(k)] * 3 for device in range(4)})) for k in range(3)
            ]
            for _ in range(1 + after):  # at least until the calls have begun
                await asyncio.sleep(0)
            for device in dying:
                dead.enter_context(emulator.kill(device))
            for _ in range(after):
                await asyncio.sleep(0)
            await session.aclose(cancel)
            for k, outcome in enumerate(await asyncio.gather(*calls, return_exceptions=True)):
                if isinstance(outcome, BaseException):
                    assert cancel or (dying and isinstance(outcome, AclInternalError | BrokenSessionError)), outcome
                else:
                    assert all(right(outputs, k) for its in outcome.values() for outputs in its)

    run(main())
