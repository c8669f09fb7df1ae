"""The gear table: its JSON, its rules, and what it answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioais.emulator.metadata import (
    InputMetadata,
    ModelMetadata,
    OutputMetadata,
    parse,
)

STATIC = ModelMetadata("static", (InputMetadata("x", (1, 3), format=2),), (OutputMetadata("y", ((1,),), 4),))
BATCH = ModelMetadata(
    "batch",
    (InputMetadata("x", (-1, 3, 8, 8), format=0), InputMetadata("scale", (3,))),
    (OutputMetadata("y", ((1, 3), (4, 3), (2, 3)), 48),),
    ((1,), (4,), (2,)),
)
HW = ModelMetadata(
    "hw",
    (InputMetadata("x", (1, -1, -1, 3), format=1),),
    (OutputMetadata("y", ((1, 8, 16), (1, 16, 4)), 512),),
    ((8, 16), (16, 4)),
)
DIMS = ModelMetadata(
    "dims",
    (InputMetadata("a", (1, -1)), InputMetadata("b", (-1, 4)), InputMetadata("c", ())),
    (OutputMetadata("y", ((1, 8), (1, 2)), 32),),
    ((1, 8, 1, 4), (1, 2, 3, 4)),
)
SHAPE = ModelMetadata(
    "shape",
    (InputMetadata("x", (-1, 3, -1, -1), ((1, 4), (3, 3), (32, 64), (1, -1)), 0),),
    (OutputMetadata("y"),),
)
ALL = [STATIC, BATCH, HW, DIMS, SHAPE]


@pytest.mark.parametrize("metadata", ALL, ids=lambda m: m.mode)
def test_what_is_written_is_read_back(metadata: ModelMetadata) -> None:
    assert parse(metadata.dump()) == metadata


def test_the_json_is_the_schema() -> None:
    assert json.loads(SHAPE.dump()) == {
        "version": 1,
        "mode": "shape",
        "inputs": [
            {
                "name": "x",
                "shape": [-1, 3, -1, -1],
                "range": [[1, 4], [3, 3], [32, 64], [1, -1]],
                "format": 0,
            }
        ],
        "gears": [],
        "outputs": [{"name": "y", "shapes": [], "max_bytes": 0}],
    }


def test_input_shapes_of_a_gear() -> None:
    assert STATIC.input_shapes() == ((1, 3),)
    assert BATCH.input_shapes(1) == ((4, 3, 8, 8), (3,))
    assert HW.input_shapes(1) == ((1, 16, 4, 3),)
    assert DIMS.input_shapes(1) == ((1, 2), (3, 4), ())
    assert SHAPE.input_shapes() == ((-1, 3, -1, -1),)


def test_the_largest_gear_is_the_one_of_most_bytes() -> None:
    assert STATIC.largest_gear() == SHAPE.largest_gear() == 0
    assert BATCH.largest_gear() == 1
    assert HW.largest_gear() == 0
    assert DIMS.largest_gear() == 1
    assert DIMS.largest_gear([8, 1, 4]) == 0  # 64 + 4 bytes against 16 + 12


def test_has_gears() -> None:
    assert [m.has_gears for m in ALL] == [False, True, True, True, False]


def broken(metadata: ModelMetadata, **changes: Any) -> dict[str, Any]:
    root: dict[str, Any] = json.loads(metadata.dump())
    for path, value in changes.items():
        at: Any = root
        *parts, last = (int(part) if part.isdigit() else part for part in path.split("__"))
        for part in parts:
            at = at[part]
        at[last] = value
    return root


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ([], "the top is list"),
        (broken(STATIC, version=2), "version is 2, this library reads 1"),
        (broken(STATIC, mode="gear"), "mode is 'gear'"),
        (broken(STATIC, mode=1), "mode of the model is 1, not a string"),
        (broken(STATIC, inputs=None), "inputs is None, not a list"),
        (broken(STATIC, inputs=[1]), "inputs holds something that is not an object"),
        (broken(STATIC, inputs__0__name=3), "name of an input is 3"),
        (broken(STATIC, inputs__0__shape="1"), "shape of input 'x' is '1', not a list"),
        (broken(STATIC, inputs__0__shape=[1.5]), "shape of input 'x' is 1.5, not an integer"),
        (broken(STATIC, inputs__0__shape=[True]), "shape of input 'x' is True, not an integer"),
        (broken(STATIC, inputs__0__shape=[-2]), "a dim below -1"),
        (broken(STATIC, inputs__0__shape=[-1]), "shape of input 'x' is [-1] in a static model"),
        (broken(STATIC, inputs__0__format=3), "format of input 'x' is 3"),
        (broken(STATIC, inputs__0__range=[[1, 1], [3, 3]]), "range of input 'x' is given in mode static"),
        (broken(STATIC, gears=[[1]]), "gears are given in mode static"),
        (broken(STATIC, outputs__0__shapes=[]), "output 'y' has 0 shapes, not 1"),
        (broken(STATIC, outputs__0__shapes=[[-1]]), "shapes of output 'y' have a negative dim"),
        (broken(STATIC, outputs__0__max_bytes=-1), "max_bytes of output 'y' is -1"),
        (broken(STATIC, outputs__0__max_bytes=None), "max_bytes of output 'y' is None"),
        (broken(BATCH, gears=[]), "gears are empty in mode batch"),
        (broken(BATCH, gears__0=[1, 2]), "gear 0 is [1, 2]: not 1 values"),
        (broken(BATCH, gears__1=[-1]), "gear 1 is [-1]: a negative value"),
        (broken(BATCH, inputs__0__shape=[-1, -1]), "a number of -1 that is not 0 or 1"),
        (broken(BATCH, inputs__0__shape=[1, 3]), "no input has a -1 in mode batch"),
        (broken(BATCH, inputs__1__name="x"), "two inputs have the same name"),
        (broken(BATCH, outputs__0__shapes=[[1, 3]]), "output 'y' has 1 shapes, not 3"),
        (broken(DIMS, gears__0=[2, 8, 1, 4]), "gear 0 is [2, 8, 1, 4]: differs from the fixed dims"),
        (broken(SHAPE, inputs__0__range=None), "range of input 'x' needs one pair for each of its 4 dims"),
        (broken(SHAPE, inputs__0__range=[[1, 4, 5]]), "not a list of pairs"),
        (broken(SHAPE, inputs__0__range__1=[3, 4]), "range of input 'x' has [3, 4] at a dim of 3"),
        (broken(SHAPE, inputs__0__range__0=[5, 4]), "range of input 'x' has [5, 4] at a dim of -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_content_is_named(root: Any, words: str) -> None:
    with pytest.raises(ValueError, match=r"^aioais\.model: ") as caught:
        parse(json.dumps(root))
    assert words in str(caught.value)


def test_what_is_no_json_is_named() -> None:
    with pytest.raises(ValueError, match=r"^aioais\.model: not JSON"):
        parse("{")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 5) | st.sampled_from(["x", "static", "batch"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["version", "mode", "inputs", "gears", "outputs", "name", "shape"]), inner)
    ),
    max_leaves=12,
)


@given(changes=st.dictionaries(st.sampled_from(["mode", "inputs", "gears", "outputs"]), JSON))
def test_any_json_is_read_or_refused_with_a_value_error(changes: dict[str, Any]) -> None:
    root = json.loads(BATCH.dump()) | changes
    try:
        metadata = parse(json.dumps(root))
    except ValueError:
        return
    assert parse(metadata.dump()) == metadata
