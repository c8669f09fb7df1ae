"""Many requests on many devices with one ``await``: lists of feeds per device, lists of results back.

Run it with ``python examples/multi_device/multidevice_infer.py [model.om] [device ...]``.
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
    ones = np.ones((1, 3, 32, 32), np.float32)
    async with MultiDeviceSession(model) as session:
        # Three lanes on each device: requests of different lanes run at the same time.
        feeds = {device: [[ones, k * ones] for k in range(3)] for device in devices}
        for turn in ("first", "second"):
            results = await session.infer(feeds)
            for lanes in results.values():
                for k, (total,) in enumerate(lanes):
                    assert (total == 1 + k).all()
            slowest = max(ms for times in session.summary().values() for ms in times)
            print(f"{turn} call: 3 sums on each of {len(results)} devices are right; slowest lane {slowest:.1f} ms")
        # The first call opened the sessions; the second one used them again.
        assert all(device.opened == 1 for device in session.statistics().values())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            model = sys.argv[1]
        else:
            model = aioais.convert(ADD_MODEL, f"{folder}/add.onnx", input_shape="input1:1,3,32,32;input2:1,3,32,32")
        platform = "ascend" if model.endswith(".om") else "cpu"
        visible = [device.id for device in aioais.devices() if device.platform == platform]
        aioais.run(main, model, [int(word) for word in sys.argv[2:]] or visible)
