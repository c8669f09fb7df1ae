"""MultiDeviceSession.infer_iteration: what each device's own session gives, in every lane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aioais import ArgumentError, FeedError, InferSession, MultiDeviceSession, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]


def feeds(seed: int) -> list[Array]:
    return [np.full((1, 8), seed, np.float32), np.arange(8, dtype=np.float32).reshape(1, 8)]


@pytest.mark.parametrize("mem_copy", [True, False])
async def test_lanes_are_those_of_single_sessions(models: Models, mem_copy: bool) -> None:
    path = models.add([1, 8])
    lanes = {0: [feeds(1), feeds(2)], 2: [feeds(3)]}
    async with MultiDeviceSession(path) as session, InferSession(0, path) as single:
        got = await session.infer_iteration(lanes, [0, -1], 5, mem_copy=mem_copy)
        assert list(got) == [0, 2]
        for device, its_lanes in lanes.items():
            assert len(got[device]) == len(its_lanes)
            for (output,), lane in zip(got[device], its_lanes, strict=True):
                np.testing.assert_array_equal(output, lane[0] + 5 * lane[1])
                (alone,) = await single.infer_iteration(lane, [0, -1], 5, mem_copy=mem_copy)
                np.testing.assert_array_equal(output, alone)
        assert {device: len(times) for device, times in session.summary().items()} == {0: 2, 2: 1}
        by_keyword = await session.infer_iteration(device_feeds={1: [feeds(4)]}, in_out_list=[0, -1], iteration_times=2)
        np.testing.assert_array_equal(by_keyword[1][0][0], feeds(4)[0] + 2 * feeds(4)[1])


async def test_what_fails_names_its_lane(models: Models) -> None:
    async with MultiDeviceSession(models.add([1, 8])) as session:
        with pytest.raises(FeedError) as caught:
            await session.infer_iteration({0: [feeds(1)], 1: [feeds(1)[:1]]}, [0, -1], 3)
        assert getattr(caught.value, "__notes__", [])[0] == "device 1, lane 0"
        with pytest.raises((ArgumentError, FeedError)):
            await session.infer_iteration({0: [feeds(1)]}, [7, -1], 3)
        with emulator.kill(1), pytest.raises(RuntimeError) as fatal:
            await session.infer_iteration({1: [feeds(1)]}, [0, -1], 3)
        assert "507010" in str(fatal.value)
        got = await session.infer_iteration({1: [feeds(1)]}, [0, -1], 3)
        np.testing.assert_array_equal(got[1][0][0], feeds(1)[0] + 3 * feeds(1)[1])
        assert session.statistics()[1].opened == 2
