"""Every data type that ONNX Runtime and ACL share, and the numbers of ACL's enumerations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

from aioais import DataType, Format, InferSession

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]
Same = Callable[[Sequence[Array], Sequence[Array]], None]

# DataType, ONNX element type, numpy type
KINDS: list[tuple[DataType, int, Any]] = [
    (DataType.float32, 1, np.float32),
    (DataType.float16, 10, np.float16),
    (DataType.bfloat16, 16, ml_dtypes.bfloat16),
    (DataType.double64, 11, np.float64),
    (DataType.int8, 3, np.int8),
    (DataType.int16, 5, np.int16),
    (DataType.int32, 6, np.int32),
    (DataType.int64, 7, np.int64),
    (DataType.uint8, 2, np.uint8),
    (DataType.uint16, 4, np.uint16),
    (DataType.uint32, 12, np.uint32),
    (DataType.uint64, 13, np.uint64),
    (DataType.bool, 9, np.bool_),
    (DataType.float8_e5m2, 19, ml_dtypes.float8_e5m2),
    (DataType.float8_e4m3fn, 17, ml_dtypes.float8_e4m3fn),
]
IDS = [kind.name for kind, _, _ in KINDS]


def bits(dtype: Any, count: int) -> Array:
    """Random bits: infinities, NaNs and denormals of floats as well."""
    data = np.random.default_rng(11).integers(0, 256, count * np.dtype(dtype).itemsize, np.uint8)
    array: Array = data > 127 if dtype is np.bool_ else data.view(dtype)
    return array


@pytest.mark.parametrize(("kind", "element", "dtype"), KINDS, ids=IDS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dymshape"])
async def test_every_type_goes_through_bit_by_bit(
    models: Models, same: Same, kind: DataType, element: int, dtype: Any, dynamic: bool
) -> None:
    path = models.identity(["n", "k"] if dynamic else [3, 50], element)
    feed = bits(dtype, 150).reshape(3, 50)
    async with InferSession(0, path) as session:
        same(await session.infer([feed], "auto"), [feed])
        for desc, name in [(session.get_inputs()[0], "x"), (session.get_outputs()[0], "y")]:
            assert desc.name == name
            assert desc.datatype is kind
            assert desc.datatype.numpy == np.dtype(dtype)
            assert desc.format is Format.ND
            assert desc.shape == ([-1, -1] if dynamic else [3, 50])
            assert desc.size == desc.realsize == (0 if dynamic else feed.nbytes)
        (out,) = await session.infer([feed], "auto", out_array=False)
        assert (out.dtype, out.shape, out.nbytes) == (feed.dtype, feed.shape, feed.nbytes)
        same([await out.to_host()], [feed])
        same([await (await session.to_device(feed)).to_host()], [feed])


async def test_descriptions_are_the_callers_own(models: Models) -> None:
    async with InferSession(0, models.identity([2, 3])) as session:
        session.get_inputs()[0].shape.append(9)
        assert session.get_inputs()[0].shape == [2, 3]


async def test_descriptions_of_a_gear_model(models: Models) -> None:
    path = models.convert(
        models.conv(["n", 3, "h", "w"]), "gears", input_shape="image:-1,3,8,4", dynamic_batch_size="2,8,4"
    )
    async with InferSession(0, path) as session:
        (image,) = session.get_inputs()  # the hidden gear input is left out
        pixels, mean = session.get_outputs()
    assert (image.name, image.shape, image.size) == ("image", [-1, 3, 8, 4], 8 * 3 * 8 * 4 * 4)
    assert (pixels.name, pixels.shape, pixels.size) == ("pixels", [8, 4, 8, 4], 8 * 4 * 8 * 4 * 4)
    assert (mean.name, mean.shape, mean.size) == ("mean", [8, 4, 1, 1], 8 * 4 * 4)


async def test_descriptions_of_ranges(models: Models) -> None:
    path = models.convert(models.identity(["n", "k"]), "ranges", input_shape_range="x:[1~4,2~8]")
    async with InferSession(0, path) as session:
        assert session.get_inputs()[0][3:] == ([-1, -1], 4 * 8 * 4, 4 * 8 * 4)


# --- the tables ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number"),
    {
        "undefined": -1,
        "float32": 0,
        "float16": 1,
        "int8": 2,
        "int32": 3,
        "uint8": 4,
        "int16": 6,
        "uint16": 7,
        "uint32": 8,
        "int64": 9,
        "uint64": 10,
        "double64": 11,
        "float64": 11,
        "double": 11,
        "bool": 12,
        "string": 13,
        "complex64": 16,
        "complex128": 17,
        "bfloat16": 27,
        "int4": 29,
        "uint1": 30,
        "complex32": 33,
        "hifloat4": 42,
        "hifloat8": 34,
        "float8_e5m2": 35,
        "float8_e4m3fn": 36,
    }.items(),
)
def test_data_types_have_acl_numbers(name: str, number: int) -> None:
    assert DataType[name] == number
    assert DataType(number) is DataType[name]


@pytest.mark.parametrize(
    ("name", "number"),
    {
        "UNDEFINED": -1,
        "NCHW": 0,
        "NHWC": 1,
        "ND": 2,
        "NC1HWC0": 3,
        "FRACTAL_Z": 4,
        "NC1HWC0_C04": 12,
        "HWCN": 16,
        "NDHWC": 27,
        "FRACTAL_NZ": 29,
        "NCDHW": 30,
        "NDC1HWC0": 32,
        "FRACTAL_Z_3D": 33,
        "NC": 35,
        "NCL": 47,
    }.items(),
)
def test_formats_have_acl_numbers(name: str, number: int) -> None:
    assert int(Format[name]) == number


@pytest.mark.parametrize("kind", [DataType.string, DataType.int4, DataType.undefined, DataType.uint1])
def test_types_that_numpy_lacks(kind: DataType) -> None:
    with pytest.raises(TypeError, match=kind.name):
        _ = kind.numpy
