"""A model run over its own output, in each lane of each device.

Run it with ``python examples/multi_device/multidevice_infer_iteration.py [model.om] [device ...]``.
The default is all devices.
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np

import aioais
from aioais import MultiDeviceSession
from aioais.demo_data import ADD_MODEL


async def main(model: str, devices: list[int]) -> None:
    a, b = np.full((1, 3, 32, 32), 2, np.float32), np.ones((1, 3, 32, 32), np.float32)
    async with MultiDeviceSession(model) as session:
        # Output 0 becomes input 0 of the next step, input 1 stays: a + b, then + b, then + b, …
        feeds = {device: [[a, b], [b, a]] for device in devices}
        results = await session.infer_iteration(feeds, in_out_list=[0, -1], iteration_times=5)
        for (first,), (second,) in results.values():
            assert (first == 2 + 5 * 1).all()
            assert (second == 1 + 5 * 2).all()
        print(f"5 steps in 2 lanes on each of {len(results)} devices are right")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            model = sys.argv[1]
        else:
            model = aioais.convert(ADD_MODEL, f"{folder}/add.onnx", input_shape="input1:1,3,32,32;input2:1,3,32,32")
        platform = "ascend" if model.endswith(".om") else "cpu"
        visible = [device.id for device in aioais.devices() if device.platform == platform]
        aioais.run(main, model, [int(word) for word in sys.argv[2:]] or visible)
