"""The gear table of a CPU model: what ``aioais.convert`` writes into an ONNX file and the CPU device reads.

A ``.om`` file carries its gears inside; an ONNX file has no place of its own for them, so they travel as one
JSON text in ``metadata_props`` under :data:`METADATA_KEY`. Any other ONNX tool ignores it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

__all__ = ["METADATA_KEY", "InputMetadata", "Mode", "ModelMetadata", "OutputMetadata", "parse"]

METADATA_KEY: Final = "aioais.model"
"""Key of the gear table in ``metadata_props`` of the ONNX file."""

Mode = Literal["static", "batch", "hw", "dims", "shape"]

_VERSION = 1
_MODES = ("static", "batch", "hw", "dims", "shape")
_GEAR_LENGTH = {"batch": 1, "hw": 2}
_FORMATS = (0, 1, 2)  # aclFormat: NCHW, NHWC, ND


@dataclass(frozen=True)
class InputMetadata:
    """One input of the model.

    Parameters
    ----------
    name
        Name of the graph input.
    shape
        -1 where the gear (or, for mode ``shape``, the caller) decides.
    range
        Mode ``shape`` only: the bounds of each dim, both included; a high of -1 means no limit.
    format
        Value of ``aclFormat``: 0 NCHW, 1 NHWC, 2 ND.
    """

    name: str
    shape: tuple[int, ...]
    range: tuple[tuple[int, int], ...] | None = None
    format: int = 2


@dataclass(frozen=True)
class OutputMetadata:
    """One output of the model.

    Parameters
    ----------
    name
        Name of the graph output.
    shapes
        One for each gear, exactly one for a static model, none for mode ``shape``.
    max_bytes
        Bytes of the largest of ``shapes``; in mode ``shape`` the bytes at the upper bounds, 0 when these are
        unlimited or the output's size does not follow from them.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...] = ()
    max_bytes: int = 0


@dataclass(frozen=True)
class ModelMetadata:
    """What the CPU device knows of a converted model.

    Parameters
    ----------
    mode
        Which of ATC's forms the model has.
    inputs
        In the order of ``--input_shape``, then the inputs it did not name in graph order.
    outputs
        In graph order.
    gears
        ``(n,)`` for batch, ``(h, w)`` for hw, for dims every dim of every input concatenated in the order of
        ``inputs``; empty for static and shape.

    Raises
    ------
    ValueError
        The parts do not fit together; the message names the part.
    """

    mode: Mode
    inputs: tuple[InputMetadata, ...]
    outputs: tuple[OutputMetadata, ...]
    gears: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        _check(self.mode in _MODES, f"mode is {self.mode!r}, not one of {', '.join(_MODES)}")
        for kind, entries in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [entry.name for entry in entries]
            _check(len(set(names)) == len(names), f"two {kind} have the same name: {names}")
        self._check_inputs()
        self._check_gears()
        self._check_outputs()

    @property
    def has_gears(self) -> bool:
        """Whether the model runs one of a fixed list of shapes."""
        return self.mode in ("batch", "hw", "dims")

    def input_shapes(self, gear: int = 0) -> tuple[tuple[int, ...], ...]:
        """Return the full shape of every input at one gear.

        Parameters
        ----------
        gear
            Index into ``gears``; 0 for a static model.

        Returns
        -------
        tuple of shapes
            In the order of ``inputs``; in mode ``shape`` the dims that the caller decides stay -1.
        """
        if not self.has_gears:
            return tuple(entry.shape for entry in self.inputs)
        values = self.gears[gear]
        if self.mode == "dims":
            dims = iter(values)
            return tuple(tuple(next(dims) for _ in entry.shape) for entry in self.inputs)
        return tuple(_fill(entry.shape, iter(values)) for entry in self.inputs)

    def largest_gear(self, itemsizes: Sequence[int] | None = None) -> int:
        """Return the index of the gear whose inputs take the most bytes.

        Parameters
        ----------
        itemsizes
            Bytes of one element of each input, in the order of ``inputs``; one byte each when left out.

        Returns
        -------
        int
            Index into ``gears``, the first of equals; 0 for a model without gears.
        """
        sizes = itemsizes if itemsizes is not None else [1] * len(self.inputs)

        def nbytes(gear: int) -> int:
            return sum(math.prod(s) * n for s, n in zip(self.input_shapes(gear), sizes, strict=True))

        return max(range(len(self.gears)), key=nbytes) if self.gears else 0

    def dump(self) -> str:
        """Write the table as JSON, the text kept in the ONNX file."""
        return json.dumps(
            {
                "version": _VERSION,
                "mode": self.mode,
                "inputs": [
                    {"name": i.name, "shape": i.shape, "range": i.range, "format": i.format} for i in self.inputs
                ],
                "gears": self.gears,
                "outputs": [{"name": o.name, "shapes": o.shapes, "max_bytes": o.max_bytes} for o in self.outputs],
            },
            ensure_ascii=False,
        )

    def _check_inputs(self) -> None:
        for entry in self.inputs:
            where, shape = f"input {entry.name!r}", list(entry.shape)
            _check(all(d >= -1 for d in shape), f"shape of {where} is {shape}: a dim below -1")
            _check(entry.format in _FORMATS, f"format of {where} is {entry.format}, not 0, 1 or 2")
            _check(self.mode != "static" or -1 not in shape, f"shape of {where} is {shape} in a static model")
            if self.mode != "shape":
                _check(entry.range is None, f"range of {where} is given in mode {self.mode}")
                continue
            if entry.range is None or len(entry.range) != len(entry.shape):
                raise ValueError(f"range of {where} needs one pair for each of its {len(entry.shape)} dims")
            for dim, (low, high) in zip(entry.shape, entry.range, strict=True):
                fits = (low == high == dim) if dim >= 0 else low >= 0 and (high == -1 or low <= high)
                _check(fits, f"range of {where} has [{low}, {high}] at a dim of {dim}")

    def _check_gears(self) -> None:
        if not self.has_gears:
            _check(not self.gears, f"gears are given in mode {self.mode}")
            return
        _check(bool(self.gears), f"gears are empty in mode {self.mode}")
        holes = [entry.shape.count(-1) for entry in self.inputs]
        _check(any(holes), f"no input has a -1 in mode {self.mode}")
        length = _GEAR_LENGTH.get(self.mode) or sum(len(entry.shape) for entry in self.inputs)
        if self.mode != "dims":
            fits = all(n in (0, length) for n in holes)
            _check(fits, f"in mode {self.mode} an input has a number of -1 that is not 0 or {length}")
        fixed = [dim for entry in self.inputs for dim in entry.shape]
        for index, gear in enumerate(self.gears):
            what = f"gear {index} is {list(gear)}"
            _check(len(gear) == length, f"{what}: not {length} values")
            _check(all(v >= 0 for v in gear), f"{what}: a negative value")
            if self.mode == "dims":
                same = all(d in (-1, v) for d, v in zip(fixed, gear, strict=True))
                _check(same, f"{what}: differs from the fixed dims {fixed}")

    def _check_outputs(self) -> None:
        expected = {"static": 1, "shape": 0}.get(self.mode, len(self.gears))
        for entry in self.outputs:
            where = f"output {entry.name!r}"
            _check(entry.max_bytes >= 0, f"max_bytes of {where} is {entry.max_bytes}")
            _check(len(entry.shapes) == expected, f"{where} has {len(entry.shapes)} shapes, not {expected}")
            _check(all(d >= 0 for s in entry.shapes for d in s), f"shapes of {where} have a negative dim")


def parse(text: str) -> ModelMetadata:
    """Read the table from its JSON text.

    Parameters
    ----------
    text
        The value found under :data:`METADATA_KEY`.

    Returns
    -------
    ModelMetadata
        Checked: its parts fit together.

    Raises
    ------
    ValueError
        The text is not such a table; the message names what is wrong.
    """
    try:
        root = json.loads(text)
    except ValueError as exc:
        raise ValueError(f"{METADATA_KEY}: not JSON: {exc}") from None
    try:
        _check(isinstance(root, dict), f"the top is {type(root).__name__}, not an object")
        version = root.get("version")
        _check(version == _VERSION, f"version is {version!r}, this library reads {_VERSION}")
        return ModelMetadata(
            mode=cast(Mode, _text(root, "mode", "the model")),
            inputs=tuple(
                InputMetadata(
                    name := _text(item, "name", "an input"),
                    _ints(item.get("shape"), f"shape of input {name!r}"),
                    _range(item.get("range"), f"range of input {name!r}"),
                    _int(item.get("format"), f"format of input {name!r}"),
                )
                for item in _objects(root, "inputs")
            ),
            gears=tuple(_ints(g, "a gear") for g in _list(root.get("gears"), "gears")),
            outputs=tuple(
                OutputMetadata(
                    name := _text(item, "name", "an output"),
                    tuple(
                        _ints(shape, f"a shape of output {name!r}")
                        for shape in _list(item.get("shapes"), f"shapes of output {name!r}")
                    ),
                    _int(item.get("max_bytes"), f"max_bytes of output {name!r}"),
                )
                for item in _objects(root, "outputs")
            ),
        )
    except ValueError as exc:
        raise ValueError(f"{METADATA_KEY}: {exc}") from None


def _check(fits: bool, message: str) -> None:
    if not fits:
        raise ValueError(message)


def _fill(shape: tuple[int, ...], values: Iterator[int]) -> tuple[int, ...]:
    return tuple(next(values) if dim == -1 else dim for dim in shape)


def _list(value: Any, what: str) -> list[Any]:
    _check(isinstance(value, list), f"{what} is {value!r}, not a list")
    return cast("list[Any]", value)


def _objects(root: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = _list(root.get(key), key)
    _check(all(isinstance(item, dict) for item in items), f"{key} holds something that is not an object")
    return items


def _text(item: dict[str, Any], key: str, what: str) -> str:
    value = item.get(key)
    _check(isinstance(value, str), f"{key} of {what} is {value!r}, not a string")
    return cast(str, value)


def _int(value: Any, what: str) -> int:
    # bool is an int to Python, not to JSON.
    _check(type(value) is int, f"{what} is {value!r}, not an integer")
    return cast(int, value)


def _ints(value: Any, what: str) -> tuple[int, ...]:
    return tuple(_int(v, what) for v in _list(value, what))


def _range(value: Any, what: str) -> tuple[tuple[int, int], ...] | None:
    if value is None:
        return None
    pairs = [_ints(pair, what) for pair in _list(value, what)]
    _check(all(len(pair) == 2 for pair in pairs), f"{what} is {value!r}, not a list of pairs")
    return tuple((low, high) for low, high in pairs)
