"""infer_pipeline for long: memory stays flat. Consumers that leave in every way are part of the storm."""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tests.tiers import Tier

from aioais import InferSession

Array = np.ndarray[Any, np.dtype[Any]]

pytestmark = [pytest.mark.stress, pytest.mark.timeout(600)]

LONG = Tier.is_long


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
async def test_memory_is_flat(tmp_path: Path, kind: str) -> None:
    count = 100_000 if LONG else 20_000
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
            if k % (count // 4) == 0:
                gc.collect()
                marks.append((process.memory_info().rss, sys.getallocatedblocks()))
        assert k == count
        assert session.statistics().done == count
    # A leak grows in each quarter; what the allocator of C or another thread takes once, in one of them.
    grown = [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(marks)]
    assert min(rss for rss, _ in grown) < 2 << 20, grown
    assert min(blocks for _, blocks in grown) < 1_500, grown
