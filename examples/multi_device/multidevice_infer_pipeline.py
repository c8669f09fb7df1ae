"""A pipeline in each lane of each device: awaited for all results, or one by one as they are ready.

Run it with ``python examples/multi_device/multidevice_infer_pipeline.py [model.om] [device ...]``.
The default is all devices.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator

import numpy as np

import aioais
from aioais import MultiDeviceSession
from aioais.demo_data import ADD_MODEL


async def main(model: str, devices: list[int]) -> None:
    ones = np.ones((1, 3, 32, 32), np.float32)

    def source(start: int) -> Iterator[list[np.ndarray]]:
        return ([(start + k) * ones, ones] for k in range(20))

    async with MultiDeviceSession(model) as session:
        # Two lanes on each device, each with a source of its own.
        results = await session.infer_pipeline({device: [source(0), source(100)] for device in devices})
        for lanes in results.values():
            for start, outputs_list in zip((0, 100), lanes, strict=True):
                for k, (total,) in enumerate(outputs_list):
                    assert (total == start + k + 1).all()
        print(f"awaited: 20 sums in each of {2 * len(results)} lanes are right")

        # With async for the sources may be endless: a lane stops while its results are not taken.
        count = 0
        sources = {device: [source(0), source(100)] for device in devices}
        async for _, lane, index, (total,) in session.infer_pipeline(sources):
            assert (total == 100 * lane + index + 1).all()
            count += 1
        assert count == 2 * 20 * len(devices)
        print(f"one by one: {count} sums are right")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            model = sys.argv[1]
        else:
            model = aioais.convert(ADD_MODEL, f"{folder}/add.onnx", input_shape="input1:1,3,32,32;input2:1,3,32,32")
        platform = "ascend" if model.endswith(".om") else "cpu"
        visible = [device.id for device in aioais.devices() if device.platform == platform]
        aioais.run(main, model, [int(word) for word in sys.argv[2:]] or visible)
