"""A pipeline in every lane of every device: awaited for all results, or taken one by one as they are ready."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from add_devices import random_pair, run

from aioais import MultiDeviceSession

COUNT = 20


async def main(model: str, devices: list[int]) -> None:
    a, b = random_pair(1, 3, 32, 32)

    def source(start: int) -> Iterator[list[np.ndarray]]:
        return ([a + start + k, b] for k in range(COUNT))

    async with MultiDeviceSession(model) as session:
        # Two lanes on each device, each with a source of its own.
        results = await session.infer_pipeline({device: [source(0), source(100)] for device in devices})
        for lanes in results.values():
            for start, outputs_list in zip((0, 100), lanes, strict=True):
                for k, (total,) in enumerate(outputs_list):
                    np.testing.assert_array_equal(total, a + b + start + k)
        print(f"awaited: {COUNT} sums in each of {2 * len(results)} lanes are right")

        # Sources may be endless here: lanes stop while their results are not taken.
        count = 0
        async for device, lane, index, (total,) in session.infer_pipeline(
            {d: [source(d), source(50)] for d in devices}
        ):
            np.testing.assert_array_equal(total, a + b + (50 if lane else device) + index)
            count += 1
        assert count == 2 * COUNT * len(devices)
        print(f"iterated over: {count} sums are right, each as soon as it was there")


if __name__ == "__main__":
    run(main)
