"""A seeded random schedule of everything at once; at the end all is right and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aioais import ClosedError, InferSession, emulator

Array = np.ndarray[Any, np.dtype[Any]]

pytestmark = [pytest.mark.stress, pytest.mark.slow, pytest.mark.timeout(90)]

STORM_S = 2.0


def write_model(folder: Path) -> str:
    """``y = a + b`` of open shape."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info(name, 1, ["n", "m"]) for name in "ab"],
        [helper.make_tensor_value_info("y", 1, ["n", "m"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "add.onnx"
    path.write_bytes(model.SerializeToString())
    return str(path)


class Storm:
    """Random users of a few sessions."""

    def __init__(self, seed: int, paths: dict[tuple[int, int] | None, str]) -> None:
        self.random = random.Random(seed)
        self.paths = paths
        self.checked = self.cancelled = self.refused = 0
        self.is_over = False

    async def user(self, number: int) -> None:
        """Open a session, use it for a while from many tasks, close it some way, start over."""
        while not self.is_over:
            shape = self.random.choice(list(self.paths))
            session = InferSession(
                self.random.randrange(2),
                self.paths[shape],
                depth=self.random.randint(1, 5),
                loop=self.random.choice([1, 1, 2]),
            )
            opening = asyncio.ensure_future(session.__aenter__())
            if self.random.random() < 0.1:
                await asyncio.sleep(self.random.random() * 0.003)
                opening.cancel()
            try:
                await opening
            except asyncio.CancelledError:
                continue
            tasks = [asyncio.ensure_future(self.requests(session, shape)) for _ in range(self.random.randint(1, 8))]
            await asyncio.sleep(self.random.random() * 0.3)
            closing = asyncio.ensure_future(session.aclose())
            if self.random.random() < 0.3:
                await asyncio.sleep(0)
                closing.cancel()
            await asyncio.wait([closing])
            await session.aclose()
            await asyncio.gather(*tasks)

    async def requests(self, session: InferSession, shape: tuple[int, int] | None) -> None:
        pick = self.random
        while True:
            dims = shape or (pick.randint(1, 40), pick.choice([1, 7, 4096]))
            a: Any = np.full(dims, pick.randint(0, 999), np.float32)
            b: Any = np.full(dims[::-1], pick.randint(0, 999), np.float32).T
            result = a + b
            mode: Any = "static" if shape else "dymshape"
            to_host = pick.random() < 0.7
            try:
                if pick.random() < 0.2:
                    a = await session.to_device(a)
                feeds: Any = {"a": a, "b": b} if pick.random() < 0.3 else [a, b]
                task = asyncio.ensure_future(session.infer(feeds, mode, out_array=to_host))
                if pick.random() < 0.25:
                    await asyncio.sleep(pick.choice([0, 0, 0.0005, 0.002]))
                    task.cancel()
                    await asyncio.wait([task])
                    if task.cancelled():
                        self.cancelled += 1
                        continue
                output: Any
                (output,) = await task
                got = output if to_host else await output.to_host()
            except ClosedError:
                self.refused += 1
                return
            assert got.shape == result.shape
            np.testing.assert_array_equal(got, result)
            self.checked += 1
            del got, output, task


@pytest.mark.parametrize("seed", [1, 2])
async def test_storm(tmp_path: Path, seed: int) -> None:
    dynamic = write_model(tmp_path)
    import aioais

    paths: dict[tuple[int, int] | None, str] = {None: dynamic}
    for shape in ((1, 16), (64, 4096)):
        text = ",".join(map(str, shape))
        name = str(tmp_path / f"add_{shape[0]}.onnx")
        paths[shape] = aioais.convert(dynamic, name, input_shape=f"a:{text};b:{text}")
    timings: dict[str, Any] = {"execute_ms": 0.0} if seed % 2 else {"execute_ms": 0.3, "h2d_ms": 0.1, "d2h_ms": 0.1}
    with emulator.configure(**timings):
        storm = Storm(seed, paths)
        users = [asyncio.ensure_future(storm.user(number)) for number in range(5)]
        await asyncio.sleep(STORM_S)
        storm.is_over = True
        await asyncio.wait_for(asyncio.gather(*users), 60)
    assert storm.checked > 50
    assert storm.cancelled
    assert storm.refused
    deadline = time.monotonic() + 10
    while True:
        gc.collect()
        left = {name: n for name, n in emulator.live().items() if n and name != "devices"}
        names = [thread.name for thread in threading.enumerate() if thread.name.startswith("aioais-")]
        if not left and not names:
            break
        assert time.monotonic() < deadline, (left, names)
        await asyncio.sleep(0.01)
    await InferSession.finalize()
    assert not emulator.leaks()
