"""Many requests on many devices with one ``await``: a list of feeds for each device, a list of results back."""

from __future__ import annotations

import numpy as np
from add_devices import random_pair, run

from aioais import MultiDeviceSession


async def main(model: str, devices: list[int]) -> None:
    a, b = random_pair(1, 3, 32, 32)
    async with MultiDeviceSession(model) as session:
        feeds = {device: [[a, b], [a + 1, b], [a + 2, b]] for device in devices}
        for turn in ("first", "second"):
            results = await session.infer(feeds)
            for lanes in results.values():
                for k, (total,) in enumerate(lanes):
                    np.testing.assert_array_equal(total, a + b + k)
            slowest = max(ms for times in session.summary().values() for ms in times)
            print(
                f"{turn} call: 3 sums on each of {len(results)} devices are right; the slowest lane: {slowest:.1f} ms"
            )
        # The first call opened the sessions; the second one found them warm.
        assert all(device.opened == 1 for device in session.statistics().values())


if __name__ == "__main__":
    run(main)
