"""ATC's option strings: what is read from them, and each rule with its message."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inside import InputShape, Options, parse_options

from aioais.errors import ConvertError

TWO = "input1:-1,3,32,32;input2:-1,3,32,32"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, Options("static")),
        (
            {"input_shape": "a:1,2;b:3"},
            Options("static", (InputShape("a", ((1, 1), (2, 2))), InputShape("b", ((3, 3),)))),
        ),
        ({"input_shape": "a:;b:2"}, Options("static", (InputShape("a", ()), InputShape("b", ((2, 2),))))),
        ({"input_shape": "a:0:1,2"}, Options("static", (InputShape("a:0", ((1, 1), (2, 2))),))),
        ({"input_shape": " a : 1 , 2 ; "}, Options("static", (InputShape("a", ((1, 1), (2, 2))),))),
        ({"input_shape": "a:-1,2"}, Options("shape", (InputShape("a", ((1, -1), (2, 2))),))),
        ({"input_shape": "a:1~8,2"}, Options("shape", (InputShape("a", ((1, 8), (2, 2))),))),
        ({"input_shape": "a:4~4,2"}, Options("static", (InputShape("a", ((4, 4), (2, 2))),))),
        (
            {"input_shape_range": "input1:[1~4,3,32~64,-1]"},
            Options("shape", (InputShape("input1", ((1, 4), (3, 3), (32, 64), (1, -1))),), ranged=True),
        ),
        (
            {"input_shape_range": "a:[2,3];b:[]"},
            Options("static", (InputShape("a", ((2, 2), (3, 3))), InputShape("b", ())), ranged=True),
        ),
        (
            {"input_shape": "a:-1,3", "dynamic_batch_size": "1, 2,4,"},
            Options("batch", (InputShape("a", ((1, -1), (3, 3))),), ((1,), (2,), (4,))),
        ),
        (
            {"input_shape": "a:1,3,-1,-1;b:4", "dynamic_image_size": "32,48; 64,64;"},
            Options(
                "hw",
                (InputShape("a", ((1, 1), (3, 3), (1, -1), (1, -1))), InputShape("b", ((4, 4),))),
                ((32, 48), (64, 64)),
            ),
        ),
        (
            {
                "input_shape": "a:1,-1,-1,3",
                "dynamic_image_size": "32,48;64,64",
                "input_format": "NHWC",
            },
            Options(
                "hw",
                (InputShape("a", ((1, 1), (1, -1), (1, -1), (3, 3))),),
                ((32, 48), (64, 64)),
                "NHWC",
            ),
        ),
        (
            {"input_shape": "a:1,-1;b:-1", "dynamic_dims": "8,1;16,2"},
            Options(
                "dims",
                (InputShape("a", ((1, 1), (1, -1))), InputShape("b", ((1, -1),))),
                ((8, 1), (16, 2)),
                "ND",
            ),
        ),
    ],
    ids=str,
)
def test_reading(given: dict[str, str], wanted: Options) -> None:
    assert parse_options(**given) == wanted


# Each rule: the options, what it got, what it expects, what to do.
REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    # --- any option
    ({"input_shape": ""}, "input_shape=''", "expected a string", "such as"),
    ({"dynamic_batch_size": [1, 2]}, "dynamic_batch_size=[1, 2]", "expected a string", 'such as "1,2,4,8"'),
    ({"input_format": "NWHC"}, "input_format='NWHC'", "expected one of NCHW, NHWC, ND", "leave it out"),
    # --- options together
    (
        {"input_shape": TWO, "dynamic_batch_size": "1,2", "dynamic_dims": "1,2;3,4"},
        "dynamic_batch_size and dynamic_dims together",
        "expected only one",
        "drop the others",
    ),
    (
        {"dynamic_image_size": "1,2;3,4", "input_shape_range": "a:[1]"},
        "dynamic_image_size and input_shape_range together",
        "expected only one",
        "drop the others",
    ),
    (
        {"input_shape": "a:1", "input_shape_range": "a:[1]"},
        "input_shape and input_shape_range together",
        "expected only one",
        "drop input_shape_range",
    ),
    (
        {"dynamic_batch_size": "1,2"},
        "dynamic_batch_size='1,2' without input_shape",
        "expected the shape of the inputs",
        "such as input_shape=",
    ),
    (
        {"input_shape": "a:1~4,3", "dynamic_batch_size": "1,2"},
        "input_shape='a:1~4,3' with a range beside dynamic_batch_size",
        "expected -1",
        "drop the gears",
    ),
    # --- input_shape
    ({"input_shape": "1,3"}, "input_shape='1,3'", "'1,3' is not name:dims", "such as"),
    ({"input_shape": "a:1;;b:1"}, "''", "is not name:dims", "such as"),
    ({"input_shape": ":1,3"}, "':1,3'", "is not name:dims", "such as"),
    ({"input_shape": "a:1;a:2"}, "a is named twice", "expected each input once", "drop one"),
    ({"input_shape": "a:1,x"}, "dim 'x' of a", "expected a number, a range low~high or -1", "such as"),
    ({"input_shape": "a:1,,2"}, "dim '' of a", "expected a number", "such as"),
    ({"input_shape": "a:1.5"}, "dim '1.5' of a", "expected a number", "such as"),
    ({"input_shape": "a:-2"}, "dim '-2' of a", "expected a number", "such as"),
    ({"input_shape": "a:٣"}, "dim '٣' of a", "expected a number", "such as"),
    ({"input_shape": "a:1~2~3"}, "dim '1~2~3' of a", "expected a number", "such as"),
    ({"input_shape": "a:1~-1"}, "dim '1~-1' of a", "expected a number", "such as"),
    ({"input_shape": "a:0"}, "dim '0' of a", "expected a number above 0", "-1 where it varies"),
    ({"input_shape": "a:4~1"}, "dim '4~1' of a", "low <= high", "swap"),
    ({"input_shape": f"a:{2**63}"}, f"dim '{2**63}' of a", "at most 64 bits", "smaller"),
    # --- input_shape_range
    ({"input_shape_range": "a:1~4,3"}, "dims of a", "one pair of brackets", "such as"),
    ({"input_shape_range": "a:[1~4],[3]"}, "dims of a", "one pair of brackets", "such as"),
    ({"input_shape_range": "[1~4,3]"}, "'[1~4,3]'", "is not name:dims", "such as"),
    # --- dynamic_batch_size
    (
        {"input_shape": "a:-1,-1", "dynamic_batch_size": "1,2"},
        "input_shape='-1,-1' for a",
        "expected -1 only as the first dim",
        "use dynamic_dims",
    ),
    (
        {"input_shape": "a:-1,3;b:3,-1", "dynamic_batch_size": "1,2"},
        "input_shape='3,-1' for b",
        "expected -1 only as the first dim",
        "use dynamic_dims",
    ),
    (
        {"input_shape": "a:1,3", "dynamic_batch_size": "1,2"},
        "input_shape='a:1,3'",
        "expected -1 as the first dim of at least one input",
        "write -1",
    ),
    ({"input_shape": TWO, "dynamic_batch_size": "4"}, "it has 1", "expected 2 to 100 gears", "fix the shape"),
    (
        {"input_shape": TWO, "dynamic_batch_size": ",".join(map(str, range(1, 102)))},
        "it has 101",
        "expected 2 to 100 gears",
        "give fewer",
    ),
    ({"input_shape": TWO, "dynamic_batch_size": "1,0"}, "'0'", "a whole number above 0", "such as"),
    ({"input_shape": TWO, "dynamic_batch_size": "1,-2"}, "'-2'", "a whole number above 0", "such as"),
    ({"input_shape": TWO, "dynamic_batch_size": "1,two"}, "'two'", "a whole number above 0", "such as"),
    ({"input_shape": TWO, "dynamic_batch_size": "1;2"}, "'1;2'", "a whole number above 0", "such as"),
    ({"input_shape": TWO, "dynamic_batch_size": "1,2,1"}, "'1' is given twice", "each gear once", "drop one"),
    # --- dynamic_image_size
    (
        {"input_shape": "a:1,3,-1,-1", "dynamic_image_size": "1,2;3,4", "input_format": "ND"},
        "input_format='ND'",
        "expected NCHW or NHWC for dynamic_image_size",
        "use dynamic_dims",
    ),
    (
        {"input_shape": "a:1,-1,-1,3", "dynamic_image_size": "1,2;3,4"},
        "input_shape='1,-1,-1,3' for a",
        "(dims 2 and 3, counted from 0, in NCHW)",
        "give the right input_format",
    ),
    (
        {"input_shape": "a:1,3,-1,-1", "dynamic_image_size": "1,2;3,4", "input_format": "NHWC"},
        "input_shape='1,3,-1,-1' for a",
        "(dims 1 and 2, counted from 0, in NHWC)",
        "give the right input_format",
    ),
    (
        {"input_shape": "a:-1,3,-1,-1", "dynamic_image_size": "1,2;3,4"},
        "input_shape='-1,3,-1,-1' for a",
        "height and width only",
        "use dynamic_dims",
    ),
    (
        {"input_shape": "a:3,-1,-1", "dynamic_image_size": "1,2;3,4"},
        "input_shape='3,-1,-1' for a",
        "expected 4 dims",
        "use dynamic_dims",
    ),
    (
        {"input_shape": "a:1,3,8,8", "dynamic_image_size": "1,2;3,4"},
        "input_shape='a:1,3,8,8'",
        "with -1 for height and width",
        "write -1 there",
    ),
    (
        {"input_shape": "a:1,3,-1,-1", "dynamic_image_size": "1,2;3"},
        "gear '3' has 1 values",
        "expected height,width",
        "such as",
    ),
    (
        {"input_shape": "a:1,3,-1,-1", "dynamic_image_size": "416,416"},
        "it has 1",
        "expected 2 to 100 gears",
        "fix the shape",
    ),
    (
        {"input_shape": "a:1,3,-1,-1", "dynamic_image_size": "8,8;8,8"},
        "'8,8' is given twice",
        "each gear once",
        "drop one",
    ),
    (
        {"input_shape": "a:1,3,-1,-1", "dynamic_image_size": "8x8;9,9"},
        "'8x8'",
        "a whole number above 0",
        "such as",
    ),
    # --- dynamic_dims
    (
        {"input_shape": "a:-1", "dynamic_dims": "1;2", "input_format": "NCHW"},
        "input_format='NCHW'",
        "expected ND for dynamic_dims",
        "leave input_format out",
    ),
    ({"input_shape": "a:1", "dynamic_dims": "1;2"}, "input_shape='a:1'", "at least one -1", "write -1"),
    (
        {"input_shape": "a:-1,2;b:-1", "dynamic_dims": "1,2;3"},
        "gear '3' has 1 values",
        "expected 2, one for each -1 of input_shape in its order (a:-1,2;b:-1)",
        "give each gear that many",
    ),
    (
        {"input_shape": "a:-1", "dynamic_dims": ";".join(map(str, range(1, 102)))},
        "it has 101",
        "2 to 100",
        "fewer",
    ),
    ({"input_shape": "a:-1", "dynamic_dims": "7"}, "it has 1", "2 to 100", "fix the shape"),
    ({"input_shape": "a:-1", "dynamic_dims": "7;7"}, "'7' is given twice", "each gear once", "drop one"),
    ({"input_shape": "a:-1", "dynamic_dims": "7;;8"}, "''", "a whole number above 0", "such as"),
]


@pytest.mark.parametrize(("given", "came", "wanted", "advice"), REFUSED, ids=[str(rule[0])[:90] for rule in REFUSED])
def test_each_rule_says_what_came_what_is_wanted_and_what_to_do(
    given: dict[str, Any], came: str, wanted: str, advice: str
) -> None:
    with pytest.raises(ConvertError) as caught:
        parse_options(**given)
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    for words in (came, wanted, advice):
        assert words in message
    assert len(message) < 500


def test_a_hundred_gears_are_legal() -> None:
    text = ",".join(map(str, range(1, 101)))
    assert len(parse_options(input_shape="a:-1,3", dynamic_batch_size=text).gears) == 100


NAMES = st.from_regex(r"[a-z][a-z0-9_/.:]{0,5}", fullmatch=True)
DIM = (
    st.integers(1, 9).map(str)
    | st.just("-1")
    | st.tuples(st.integers(0, 4), st.integers(5, 9)).map(lambda pair: f"{pair[0]}~{pair[1]}")
)
SHAPES = st.dictionaries(NAMES, st.lists(DIM, max_size=5), min_size=1, max_size=3)


@settings(max_examples=40)
@given(shapes=SHAPES)
def test_the_flags_for_atc_are_the_options_again(shapes: dict[str, list[str]]) -> None:
    text = ";".join(f"{name}:{','.join(dims)}" for name, dims in shapes.items())
    assert parse_options(input_shape=text).atc_flags() == [f"--input_shape={text}"]
    ranged = ";".join(f"{name}:[{','.join(dims)}]" for name, dims in shapes.items())
    assert parse_options(input_shape_range=ranged).atc_flags() == [f"--input_shape_range={ranged}"]


@pytest.mark.parametrize("text", ["a:" + "1" * 5000, "a:1~" + "1" * 5000])
def test_numbers_that_python_itself_does_not_read(text: str) -> None:
    with pytest.raises(ConvertError):
        parse_options(input_shape=text)
    with pytest.raises(ConvertError):
        parse_options(input_shape="a:-1,3", dynamic_batch_size=f"1,{text.partition(':')[2]}")


@given(text=st.text(alphabet="a1,;:-~[] ", max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    for option in ("input_shape", "input_shape_range"):
        try:
            parse_options(**{option: text})
        except ConvertError:
            pass
    for option in ("dynamic_batch_size", "dynamic_image_size", "dynamic_dims"):
        try:
            parse_options(input_shape="a:-1,3,4,4", **{option: text})
        except ConvertError:
            pass
