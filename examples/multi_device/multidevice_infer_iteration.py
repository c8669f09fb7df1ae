"""A model run over its own output, in every lane of every device."""

from __future__ import annotations

import numpy as np
from add_devices import random_pair, run

from aioais import MultiDeviceSession

STEPS = 5


async def main(model: str, devices: list[int]) -> None:
    a, b = random_pair(1, 3, 32, 32)
    async with MultiDeviceSession(model) as session:
        # Output 0 becomes input 0 of the next step, input 1 stays: a + b, then + b, then + b ...
        feeds = {device: [[a, b], [b, a]] for device in devices}
        results = await session.infer_iteration(feeds, in_out_list=[0, -1], iteration_times=STEPS)
        for (first,), (second,) in results.values():
            np.testing.assert_array_equal(first, a + STEPS * b)
            np.testing.assert_array_equal(second, b + STEPS * a)
        print(f"{STEPS} steps in 2 lanes on each of {len(results)} devices are right")


if __name__ == "__main__":
    run(main)
