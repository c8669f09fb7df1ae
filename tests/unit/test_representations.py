"""What users see when they print: names of types, statistics in a line."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest

from aioais import DataType, Format, InferSession, SessionStatistics, StageTime, Tensor
from aioais.demo_data import DIGITS_MODEL


@pytest.mark.parametrize(("value", "name"), [(DataType.float32, "float32"), (Format.NCHW, "NCHW")])
def test_types_and_formats_print_their_name(value: DataType | Format, name: str) -> None:
    assert str(value) == f"{value}" == f"{value!s}" == "%s" % value == name  # noqa: UP031 - one of the ways
    assert f"{value:>10}" == name.rjust(10)


@pytest.mark.parametrize("value", [DataType.bool, Format.FRACTAL_NZ])
def test_types_and_formats_are_still_numbers(value: DataType | Format) -> None:
    number = int(value)
    assert f"{value:d}" == str(number)
    assert f"{value:04x}" == f"{number:04x}"
    assert "%d" % value == str(number)  # noqa: UP031 - one of the ways
    assert json.dumps(value) == str(number)
    assert pickle.loads(pickle.dumps(value)) is value
    assert copy.deepcopy(value) is value


def test_statistics_are_one_short_line() -> None:
    third = StageTime(3, 1.0, 0.5)
    stages: dict[str, StageTime] = dict.fromkeys(("queue", "h2d", "execute", "d2h"), third)
    statistics = SessionStatistics(1, 2, 3, 4, 5, stages, 6, 7, 8, 9, 10, 11)
    assert repr(third) == "<3 times, mean 0.333 ms, max 0.500 ms>"
    assert repr(statistics) == (
        "<SessionStatistics: in_flight 1, queued 2, done 3, failed 4, cancelled 5; "
        "mean ms: queue 0.333, h2d 0.333, execute 0.333, d2h 0.333; depth 6, slots 7; 8 device bytes, 9 pinned bytes>"
    )


async def test_statistics_of_a_session() -> None:
    async with InferSession(0, DIGITS_MODEL) as session:
        await session.infer([np.ones(desc.shape, np.float32) for desc in session.get_inputs()])
        text = repr(session.statistics())
    assert "done 1, failed 0" in text
    assert len(text) < 250
    assert "\n" not in text


@pytest.mark.parametrize(
    "make", [copy.copy, copy.deepcopy, pickle.dumps, lambda tensor: pickle.dumps(tensor, protocol=2)]
)
async def test_a_tensor_cannot_be_copied_or_pickled(make: object) -> None:
    async with InferSession(0, DIGITS_MODEL) as session:
        tensor = await session.to_device(np.arange(3, dtype=np.float32))
        assert isinstance(tensor, Tensor)
        with pytest.raises(TypeError, match=r"cannot be copied or pickled: .*on a device.*await tensor\.to_host\(\)"):
            make(tensor)  # type: ignore[operator]
        assert not tensor.closed
        np.testing.assert_array_equal(await tensor.to_host(), [0, 1, 2])
        tensor.close()
