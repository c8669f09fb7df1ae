"""ATC's shape options: parsing of the strings, and the rules that need no model.

Sources: ATC documentation, ``--input_shape``, ``--input_shape_range``, ``--input_format``,
``--dynamic_batch_size``, ``--dynamic_image_size``, ``--dynamic_dims``, and the error codes E10001 to
E10048 of the same guide (CANN 6.0 to 9.x). The codes stand beside the rules below.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

from ..emulator.metadata import Mode
from ..errors import ConvertError

__all__ = ["FORMATS", "InputShape", "Options", "parse_options", "show_shape"]

FORMATS: Final = {"NCHW": 0, "NHWC": 1, "ND": 2}
"""Values of ``--input_format`` on both platforms, with their numbers in ``aclFormat``."""

_FIVE_DIMS = ("NCDHW", "NDHWC")  # ATC accepts these too; the CPU device does not
_MIN_GEARS, _MAX_GEARS = 2, 100
_HEIGHT_WIDTH = {"NCHW": [2, 3], "NHWC": [1, 2]}
_MAX_DIM = 2**63 - 1
_NUMBER = r"\d{1,1000}"  # Python refuses to read numbers of more than 4300 digits
_SAMPLE = {
    "input_format": "NCHW",
    "input_shape": "input1:1,3,224,224;input2:-1,4",
    "input_shape_range": "input1:[1~4,3,32~64,-1];input2:[2,4]",
    "dynamic_batch_size": "1,2,4,8",
    "dynamic_image_size": "416,416;832,832",
    "dynamic_dims": "1,224;8,448",
}

Bounds = tuple[int, int]
"""Lowest and highest value of a dim; a high of -1 means no limit."""


@dataclass(frozen=True)
class InputShape:
    """One input of ``input_shape`` or ``input_shape_range``.

    Parameters
    ----------
    name
        Name of the model input.
    bounds
        One pair (low, high) for each dim, empty for a scalar; ``(1, -1)`` for a -1.
    """

    name: str
    bounds: tuple[Bounds, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The dims; -1 where more than one value is legal."""
        return tuple(low if low == high else -1 for low, high in self.bounds)

    def __str__(self) -> str:
        return ",".join(_show_bounds(pair) for pair in self.bounds)


@dataclass(frozen=True)
class Options:
    """The shape options of one conversion, parsed and checked.

    Parameters
    ----------
    mode
        The kind of model to make. Without options the model decides between ``static`` and ``shape``.
    inputs
        In the order given, which is the order of the values of ``dynamic_dims``; empty if not given.
    gears
        ``(n,)``, ``(h, w)``, or one value for each -1 in order.
    input_format
        As given; ``ND`` for ``dynamic_dims``.
    ranged
        Whether the shapes were given as ``input_shape_range``.
    """

    mode: Mode
    inputs: tuple[InputShape, ...] = ()
    gears: tuple[tuple[int, ...], ...] = ()
    input_format: str | None = None
    ranged: bool = False

    def atc_flags(self) -> list[str]:
        """Return the options as arguments of ``atc``, without blanks, which it refuses in some of them."""
        flags = []
        if self.input_format:
            flags.append(f"--input_format={self.input_format}")
        if self.inputs and self.ranged:
            flags.append("--input_shape_range=" + ";".join(f"{i.name}:[{i}]" for i in self.inputs))
        elif self.inputs:
            flags.append("--input_shape=" + ";".join(f"{i.name}:{i}" for i in self.inputs))
        if self.mode == "batch":
            flags.append("--dynamic_batch_size=" + ",".join(str(n) for (n,) in self.gears))
        elif self.mode in ("hw", "dims"):
            flag = "--dynamic_image_size=" if self.mode == "hw" else "--dynamic_dims="
            flags.append(flag + ";".join(",".join(map(str, gear)) for gear in self.gears))
        return flags


def parse_options(
    *,
    input_format: str | None = None,
    input_shape: str | None = None,
    dynamic_batch_size: str | None = None,
    dynamic_image_size: str | None = None,
    dynamic_dims: str | None = None,
    input_shape_range: str | None = None,
) -> Options:
    """Parse ATC's shape options and check them against each other.

    Parameters
    ----------
    input_format, input_shape, dynamic_batch_size, dynamic_image_size, dynamic_dims, input_shape_range
        The strings that ``atc`` takes; None for an option that is not given.

    Returns
    -------
    Options
        The options of the conversion.

    Raises
    ------
    ConvertError
        A string is not in ATC's form, or the options contradict each other. The message says what it got, what it
        expects and what to do.
    """
    given = {
        "input_format": input_format,
        "input_shape": input_shape,
        "dynamic_batch_size": dynamic_batch_size,
        "dynamic_image_size": dynamic_image_size,
        "dynamic_dims": dynamic_dims,
        "input_shape_range": input_shape_range,
    }
    for option, value in given.items():
        if value is not None and not _is_text(value):
            _refuse(option, value, "expected a string that is not empty", f'such as "{_SAMPLE[option]}"')
    if input_format is not None and input_format not in (*FORMATS, *_FIVE_DIMS):  # E10001
        _refuse(
            "input_format", input_format, f"expected one of {', '.join(FORMATS)}", "give one of these or leave it out"
        )

    gears = {option: value for option, value in given.items() if option in _GEAR_PARSERS and value is not None}
    exclusive = [*gears, *(["input_shape_range"] if input_shape_range is not None else [])]
    if len(exclusive) > 1:  # E10009
        _fail(f"{' and '.join(exclusive)} together", "expected only one of them", "drop the others")
    if input_shape_range is not None:
        if input_shape is not None:
            _fail(
                "input_shape and input_shape_range together",
                "expected only one of them",
                'write the ranges into input_shape ("input1:1~4,3,32~64,-1") and drop input_shape_range',
            )
        ranges = _parse_shapes("input_shape_range", input_shape_range)
        return Options(_mode_of(ranges), ranges, (), input_format, ranged=True)

    shapes = _parse_shapes("input_shape", input_shape) if input_shape is not None else ()
    if not gears:
        return Options(_mode_of(shapes), shapes, (), input_format)
    ((option, value),) = gears.items()
    if not shapes:  # E10004
        _fail(
            f"{option}={value!r} without input_shape",
            "expected the shape of the inputs with -1 where the gear decides",
            f'such as input_shape="{_SAMPLE["input_shape"]}"',
        )
    if any("~" in str(entry) for entry in shapes):  # E10040
        _fail(
            f"input_shape={input_shape!r} with a range beside {option}",
            "expected -1 where the gear decides",
            "write -1 for the range, or drop the gears for a dynamic-shape model",
        )
    return _GEAR_PARSERS[option](value, shapes, input_format)


def show_shape(shape: tuple[int, ...]) -> str:
    """Return a shape in the form of ``input_shape``."""
    return ",".join(map(str, shape)) or "(scalar)"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _fail(got: str, expected: str, advice: str) -> NoReturn:
    raise ConvertError(f"got {got}; {expected}; {advice}")


def _refuse(option: str, value: object, expected: str, advice: str) -> NoReturn:
    shown = repr(value)
    _fail(f"{option}={shown if len(shown) <= 200 else shown[:200] + '…'}", expected, advice)


def _mode_of(shapes: tuple[InputShape, ...]) -> Mode:
    return "shape" if any(-1 in entry.shape for entry in shapes) else "static"


def _show_bounds(pair: Bounds) -> str:
    low, high = pair
    if low == high:
        return str(low)
    return "-1" if high == -1 else f"{low}~{high}"


def _parse_shapes(option: str, text: str) -> tuple[InputShape, ...]:
    """Parse ``name:dims;name:dims``, with brackets around the dims for ``input_shape_range``."""
    sample = f'such as "{_SAMPLE[option]}"'
    shapes: dict[str, InputShape] = {}
    for item in text.strip().removesuffix(";").split(";"):
        # A name may contain colons, as those of TensorFlow do: the last colon separates.
        name, colon, dims = item.rpartition(":")
        name, dims = name.strip(), dims.strip()
        if not colon or not name:  # E10002
            _refuse(option, text, f"{item.strip()!r} is not name:dims", f"write each input {sample}")
        if option == "input_shape_range":  # E10048
            if not re.fullmatch(r"\[[^][]*\]", dims):
                _refuse(
                    option, text, f"expected one pair of brackets around the dims of {name}", f"write them {sample}"
                )
            dims = dims[1:-1].strip()
        if name in shapes:
            _refuse(option, text, f"{name} is named twice, expected each input once", "drop one of the two")
        bounds = tuple(_parse_dim(option, text, name, dim.strip()) for dim in dims.split(",")) if dims else ()
        shapes[name] = InputShape(name, bounds)
    return tuple(shapes.values())


def _parse_dim(option: str, text: str, name: str, dim: str) -> Bounds:
    where = f"dim {dim!r} of {name}"
    if dim == "-1":
        return 1, -1
    match = re.fullmatch(rf"({_NUMBER})(?:\s*~\s*({_NUMBER}))?", dim, re.ASCII)
    if match is None:  # E10002, E10014, E10048
        expected = f"{where}: expected a number, a range low~high or -1"
        _refuse(option, text, expected, f'such as "{_SAMPLE[option]}"')
    low = int(match[1])
    high = int(match[2] or low)
    if max(low, high) > _MAX_DIM:  # E10013
        _refuse(option, text, f"{where}: expected a number of at most 64 bits", "give a smaller one")
    if match[2] is None and low == 0:  # E10011
        _refuse(option, text, f"{where}: expected a number above 0", "give the size, or -1 where it varies")
    if low > high:
        _refuse(option, text, f"{where}: expected low~high with low <= high", "swap the two numbers")
    return low, high


def _parse_batch(text: str, shapes: tuple[InputShape, ...], input_format: str | None) -> Options:
    for entry in shapes:
        if -1 in entry.shape[1:]:  # E10018
            _fail(
                f"input_shape={show_shape(entry.shape)!r} for {entry.name}",
                "expected -1 only as the first dim, as dynamic_batch_size varies no other",
                "fix the others, or use dynamic_dims",
            )
    if not any(-1 in entry.shape for entry in shapes):  # E10031
        _fail(
            f"input_shape={_show(shapes)!r}",
            f"expected -1 as the first dim of at least one input for dynamic_batch_size={text!r}",
            'write -1 for the batch, such as "input1:-1,3,224,224"',
        )
    gears = tuple((value,) for value in _numbers("dynamic_batch_size", text, text.strip().removesuffix(",")))
    return Options("batch", shapes, _checked_gears("dynamic_batch_size", text, gears), input_format)


def _parse_image(text: str, shapes: tuple[InputShape, ...], input_format: str | None) -> Options:
    layout = input_format or "NCHW"  # ATC's default for ONNX models
    if layout not in _HEIGHT_WIDTH:  # E10003
        _refuse(
            "input_format",
            layout,
            "expected NCHW or NHWC for dynamic_image_size",
            "give one of these or use dynamic_dims",
        )
    places = _HEIGHT_WIDTH[layout]
    expected = (
        f"expected 4 dims with -1 for height and width only (dims {places[0]} and {places[1]}, counted from 0, in "
        f"{layout}) for dynamic_image_size={text!r}"
    )
    for entry in shapes:
        holes = [place for place, dim in enumerate(entry.shape) if dim == -1]
        if holes and (len(entry.shape) != 4 or holes != places):  # E10019
            _fail(
                f"input_shape={show_shape(entry.shape)!r} for {entry.name}",
                expected,
                "fix the others, give the right input_format, or use dynamic_dims",
            )
    if not any(-1 in entry.shape for entry in shapes):  # E10019
        _fail(f"input_shape={_show(shapes)!r}", expected, 'write -1 there, such as "input1:1,3,-1,-1" in NCHW')
    gears = _groups("dynamic_image_size", text)
    for gear in gears:
        if len(gear) != 2:  # E10020
            _refuse(
                "dynamic_image_size",
                text,
                f"gear {show_shape(gear)!r} has {len(gear)} values, expected height,width",
                f'such as "{_SAMPLE["dynamic_image_size"]}"',
            )
    return Options("hw", shapes, _checked_gears("dynamic_image_size", text, gears), input_format)


def _parse_dims(text: str, shapes: tuple[InputShape, ...], input_format: str | None) -> Options:
    if input_format not in (None, "ND"):
        _refuse("input_format", input_format, "expected ND for dynamic_dims", "give ND or leave input_format out")
    count = sum(entry.shape.count(-1) for entry in shapes)
    if count == 0:  # E10001
        _fail(
            f"input_shape={_show(shapes)!r}",
            f"expected at least one -1 for dynamic_dims={text!r}",
            "write -1 for each dim that the gear decides",
        )
    gears = _groups("dynamic_dims", text)
    for gear in gears:
        if len(gear) != count:  # E10003
            _refuse(
                "dynamic_dims",
                text,
                f"gear {show_shape(gear)!r} has {len(gear)} values, expected {count}, "
                f"one for each -1 of input_shape in its order ({_show(shapes)})",
                "give each gear that many",
            )
    return Options("dims", shapes, _checked_gears("dynamic_dims", text, gears), "ND")


_GEAR_PARSERS: dict[str, Callable[[str, tuple[InputShape, ...], str | None], Options]] = {
    "dynamic_batch_size": _parse_batch,
    "dynamic_image_size": _parse_image,
    "dynamic_dims": _parse_dims,
}


def _show(shapes: tuple[InputShape, ...]) -> str:
    return ";".join(f"{entry.name}:{entry}" for entry in shapes)


def _groups(option: str, text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(_numbers(option, text, group) for group in text.strip().removesuffix(";").split(";"))


def _numbers(option: str, text: str, group: str) -> tuple[int, ...]:
    values = [value.strip() for value in group.split(",")]
    for value in values:
        if not re.fullmatch(_NUMBER, value, re.ASCII) or not 0 < int(value) <= _MAX_DIM:  # E10003, E10038
            _refuse(option, text, f"{value!r}: expected a whole number above 0", f'such as "{_SAMPLE[option]}"')
    return tuple(map(int, values))


def _checked_gears(option: str, text: str, gears: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    if not _MIN_GEARS <= len(gears) <= _MAX_GEARS:  # E10035, E10036
        advice = "fix the shape in input_shape for a single one" if len(gears) < _MIN_GEARS else "give fewer"
        _refuse(option, text, f"it has {len(gears)}, expected {_MIN_GEARS} to {_MAX_GEARS} gears", advice)
    for gear in gears:
        if gears.count(gear) > 1:  # E10039
            expected = f"gear {show_shape(gear)!r} is given twice, expected each gear once"
            _refuse(option, text, expected, "drop one of the two")
    return gears
