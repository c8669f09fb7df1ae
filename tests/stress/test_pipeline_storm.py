"""infer_pipeline for long: memory stays flat; many consumers that leave in every way at random moments."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from aioais import InferSession, emulator

Array = np.ndarray[Any, np.dtype[Any]]

pytestmark = pytest.mark.stress


def write_add(path: Path, shape: list[int]) -> str:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    node = onnx.helper.make_node("Add", ["a", "b"], ["c"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "abc"]
    graph = onnx.helper.make_graph([node], "add", values[:2], values[2:])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))
    return str(path)


@pytest.mark.parametrize("kind", ["plain", "awaited"])
@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
async def test_memory_is_flat(tmp_path: Path, kind: str, count: int) -> None:
    path = write_add(tmp_path / "add.onnx", [1, 64])
    one = np.ones((1, 64), np.float32)

    def plain() -> Iterator[list[Array]]:
        for k in range(count):
            yield [np.full((1, 64), k, np.float32), one]

    async def awaited() -> AsyncIterator[list[Array]]:
        for feeds in plain():
            yield feeds

    process = psutil.Process()
    marks: list[tuple[int, int]] = []
    async with InferSession(0, path) as session:
        k = 0
        async for (output,) in session.infer_pipeline(plain() if kind == "plain" else awaited()):
            assert output[0, 0] == k + 1
            k += 1
            if k == count // 2 or k == count:
                gc.collect()
                marks.append((process.memory_info().rss, sys.getallocatedblocks()))
        assert k == count
        assert session.statistics().done == count
    (rss, blocks), (rss_after, blocks_after) = marks
    assert rss_after - rss < 4 << 20
    assert blocks_after - blocks < 3_000


@pytest.mark.parametrize("seed", range(4))
async def test_storm(tmp_path: Path, seed: int) -> None:
    """Consumers come and leave by every way at random moments, beside single infers that are cancelled too."""
    shape = (1, 1 << 15) if seed % 2 else (1, 32)
    path = write_add(tmp_path / "add.onnx", list(shape))
    rng = np.random.default_rng(seed)
    one = np.ones(shape, np.float32)

    def feeds(k: int) -> list[Array]:
        return [np.full(shape, k, np.float32), one]

    def plain(count: int) -> Iterator[list[Array]]:
        return (feeds(k) for k in range(count))

    async def awaited(count: int) -> AsyncIterator[list[Array]]:
        for k in range(count):
            if k % 5 == 0:
                await asyncio.sleep(0.0002 * (k % 3))
            yield feeds(k)

    async with InferSession(0, path, depth=int(rng.integers(1, 6))) as session:

        async def consume(stop: int, way: int, source: Any) -> None:
            pipe = session.infer_pipeline(source)
            k = 0
            async for (output,) in pipe:
                assert output[0, 0] == output[0, -1] == k + 1
                k += 1
                if k == stop:
                    if way == 0:
                        break
                    if way == 1:
                        raise ValueError
                    if way == 2:
                        await pipe.aclose()
                        return
                if way == 3 and k % 4 == 0:
                    await asyncio.sleep(0.0005)

        async def single(k: int) -> None:
            (output,) = await session.infer(feeds(k))
            assert output[0, 0] == k + 1

        with emulator.configure(h2d_ms=0.05, execute_ms=0.1, d2h_ms=0.05):
            for _ in range(12):
                tasks: list[asyncio.Task[None]] = []
                for _ in range(4):
                    count, stop, way = int(rng.integers(1, 40)), int(rng.integers(1, 30)), int(rng.integers(5))
                    source = plain(count) if rng.random() < 0.5 else awaited(count)
                    tasks.append(asyncio.ensure_future(consume(stop, way, source)))
                tasks += [asyncio.ensure_future(single(k)) for k in range(6)]
                for task in tasks:
                    if rng.random() < 0.4:
                        asyncio.get_running_loop().call_later(float(rng.random()) * 0.01, task.cancel)
                done = await asyncio.gather(*tasks, return_exceptions=True)
                for outcome in done:
                    assert outcome is None or isinstance(outcome, (ValueError, asyncio.CancelledError)), outcome
        gc.collect()
        statistics = session.statistics()
        while statistics.in_flight or statistics.queued:  # the suite's timeout ends it
            await asyncio.sleep(0.001)
            statistics = session.statistics()
        assert statistics.in_flight == statistics.queued == statistics.failed == 0
        await asyncio.gather(*(single(k) for k in range(20)))
