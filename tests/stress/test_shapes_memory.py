"""Random shapes, sizes, types and modes on several sessions and devices: memory follows what is in use."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tests import inside
from tests.tiers import Tier

from aioais import InferSession, Mode, convert, emulator

pytestmark = [pytest.mark.stress, pytest.mark.timeout(900)]

MIB = 1 << 20
REQUESTS = 100_000 if Tier.is_long else 10_000
LANES = 4
"""Requests at once on each session: as many as it has buffers for."""
ROW = 256
MOST_ROWS = 4096
TYPES = {np.float32: 1, np.float16: 10, np.int8: 3}


def write(path: Path, dims: list[Any], kind: int) -> str:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    nodes = [onnx.helper.make_node("Abs", ["x"], ["t"]), onnx.helper.make_node("Neg", ["t"], ["y"])]
    values = [onnx.helper.make_tensor_value_info(name, kind, dims) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "negative", values[:1], values[1:])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))
    return str(path)


class Load:
    """Random requests, and what they use."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.left = REQUESTS
        self.in_use = self.most_in_use = self.most_held = self.most_resident = 0
        self.process = psutil.Process()
        self.resident = self.process.memory_info().rss

    def look(self) -> None:
        live = emulator.live()
        self.most_in_use = max(self.most_in_use, self.in_use)
        self.most_held = max(self.most_held, live["device_bytes"] + live["host_bytes"])
        if self.left % 16 == 0:
            self.most_resident = max(self.most_resident, self.process.memory_info().rss - self.resident)

    async def lane(self, session: InferSession, mode: Mode, rows: list[int], data: np.ndarray[Any, Any]) -> None:
        while self.left > 0:
            self.left -= 1
            n = self.random.choice(rows) if rows else int(MOST_ROWS ** self.random.random())
            feed, to_host = data[:n], self.random.random() < 0.9
            used = 4 * feed.nbytes  # feed and result, on the host and on the device
            self.in_use += used
            self.look()
            (result,) = await session.infer([feed], mode, out_array=to_host)
            self.look()
            if isinstance(result, np.ndarray):
                assert result.shape == feed.shape
                assert result[-1, -1] == -1
            else:
                result.close()
            del result
            self.in_use -= used


@pytest.mark.parametrize("most_idle", [None, 8 * MIB], ids=["as_is", "little_idle"])
async def test_memory_follows_what_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], most_idle: int | None
) -> None:
    if most_idle is not None:
        inside.limit_idle(monkeypatch, most_idle)
    await InferSession.finalize()
    gears = convert(
        write(tmp_path / "open.onnx", ["n", ROW], 1),
        str(tmp_path / "gears.onnx"),
        input_shape=f"x:-1,{ROW}",
        dynamic_batch_size="1,16,256",
    )
    paths: list[tuple[str, Mode, list[int], np.ndarray[Any, Any]]] = [
        (write(tmp_path / f"{kind}.onnx", ["n", ROW], kind), "dymshape", [], np.ones((MOST_ROWS, ROW), dtype))
        for dtype, kind in TYPES.items()
    ]
    paths.append((gears, "dymbatch", [1, 16, 256], np.ones((256, ROW), np.float32)))
    paths.append((write(tmp_path / "fixed.onnx", [500, ROW], 1), "static", [500], np.ones((500, ROW), np.float32)))
    sessions: list[tuple[InferSession, Mode, list[int], np.ndarray[Any, Any]]] = [
        (await InferSession(device, path, depth=LANES), mode, rows, data)
        for device in range(2)
        for path, mode, rows, data in paths
    ]
    for session, mode, rows, data in sessions:
        await session.infer([data[: rows[-1] if rows else 1]], mode)
    gc.collect()
    load = Load(7)
    await asyncio.gather(*(load.lane(*one) for one in sessions for _ in range(LANES)))

    # Beside what is in use there may be idle blocks in two pools of each device; small buffers that each slot of open
    # dims keeps, in and out on the device and staging; and the buffers of the other slots, as large as the models say.
    idle = 4 * inside.most_idle()
    limits = idle + 3 * MIB * (6 * LANES) + MIB * (2 * LANES) + 2 * MIB * (2 * LANES)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{REQUESTS} requests of random shapes, at most {load.most_in_use / MIB:.0f} MiB in use and "
            f"{idle / MIB:.0f} MiB idle: {load.most_held / MIB:.0f} MiB held, "
            f"{load.most_held / (load.most_in_use + idle):.2f} of that; {load.most_resident / MIB:.0f} MiB resident\n"
        )
    assert load.most_held <= 1.3 * load.most_in_use + limits
    assert load.most_resident <= 1.3 * load.most_in_use + limits
    for _ in range(3):
        for session, *_ in sessions:
            await inside.sweep(session)
    live = emulator.live()
    assert live["device_bytes"] + live["host_bytes"] <= limits - idle, "idle memory has been given back"
    for session, *_ in sessions:
        await session.aclose()
    await InferSession.finalize()
    gc.collect()
    assert emulator.live()["device_bytes"] == emulator.live()["host_bytes"] == 0
    # The CPU device keeps 16 MiB of freed memory to see late uses.
    assert load.process.memory_info().rss - load.resident <= 64 * MIB
