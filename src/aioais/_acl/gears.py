"""Gears: the fixed set of shapes that a model was compiled for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import ModelError
from .library import Library

__all__ = ["Gears", "read_gears"]

_MOST_ORDERS = 5040
"""Most input orders that are tried to read ``--dynamic_dims`` gears: enough for seven inputs."""


@dataclass(frozen=True)
class Gears:
    """The gear table of a model.

    Attributes
    ----------
    kind
        The option of ATC that made them: batch sizes, image sizes or dims.
    values
        ``(batch,)``, ``(height, width)``, or, for dims, all dims of all inputs concatenated.
    shapes
        For each gear, the full shape of every visible input, in the model's order.
    largest
        Position of the gear with the most elements.
    """

    kind: Literal["batch", "hw", "dims"]
    values: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[tuple[int, ...], ...], ...]
    largest: int

    def find(self, shapes: Sequence[tuple[int, ...]]) -> int | None:
        """Return the position of the gear with these input shapes; ``None`` if there is none."""
        try:
            return self.shapes.index(tuple(shapes))
        except ValueError:
            return None


def read_gears(
    library: Library, desc: int, inputs: Sequence[tuple[int, ...]], counts: Sequence[int | None]
) -> Gears | None:
    """Read the gear table of a model that has the hidden gear input.

    Parameters
    ----------
    library
        The ACL in use.
    desc
        The model description.
    inputs
        Shapes of the visible inputs, -1 where open.
    counts
        Largest number of elements of each of them, ``None`` where that is unknown.
    """
    mdl = library.acl.mdl
    batch, code = mdl.get_dynamic_batch(desc)
    library.check("acl.mdl.get_dynamic_batch", code)
    if batch["batchCount"]:
        batches: list[int] = batch["batch"]
        rows = [[_fill(shape, [size] * len(shape)) for shape in inputs] for size in batches]
        return _table("batch", tuple((size,) for size in batches), rows)
    sizes, code = mdl.get_dynamic_hw(desc, -1)
    library.check("acl.mdl.get_dynamic_hw", code)
    if sizes["hwCount"]:
        values = tuple((height, width) for height, width in sizes["hw"])
        return _table("hw", values, [[_fill(shape, gear) for shape in inputs] for gear in values])
    count, code = mdl.get_input_dynamic_gear_count(desc, -1)
    library.check("acl.mdl.get_input_dynamic_gear_count", code)
    if not count:
        return None
    dims, code = mdl.get_input_dynamic_dims(desc, -1, count)
    library.check("acl.mdl.get_input_dynamic_dims", code)
    values = tuple(tuple(row["dims"]) for row in dims)
    return _table("dims", values, _split(values, inputs, counts))


def _table(
    kind: Literal["batch", "hw", "dims"],
    values: tuple[tuple[int, ...], ...],
    shapes: Sequence[Sequence[tuple[int, ...]]],
) -> Gears:
    table = tuple(tuple(row) for row in shapes)
    largest = max(range(len(table)), key=lambda k: sum(map(math.prod, table[k])))
    return Gears(kind, values, table, largest)


def _fill(shape: tuple[int, ...], values: Sequence[int]) -> tuple[int, ...]:
    """Put values, in order, where a shape is open."""
    rest = iter(values)
    return tuple(next(rest) if dim < 0 else dim for dim in shape)


def _split(
    values: tuple[tuple[int, ...], ...], inputs: Sequence[tuple[int, ...]], counts: Sequence[int | None]
) -> list[list[tuple[int, ...]]]:
    """Cut the concatenated dims of each gear into the inputs' shapes.

    The dims are in the order of ATC's ``--input_shape``. That order may differ from the model's, and ACL does not
    report it. So the model's order is tried first, then the others. The first order is taken in which all fixed dims
    agree with all gears and the largest gear of each input has the size of its buffer. If there is none, the first
    order is taken in which the dims agree.
    """
    fallback: list[list[tuple[int, ...]]] | None = None
    orders = itertools.islice(itertools.permutations(range(len(inputs))), _MOST_ORDERS)
    for order in orders:
        table = [_cut(gear, inputs, order) for gear in values]
        rows = [row for row in table if row is not None]
        if len(rows) < len(table):
            continue
        most = [max(map(math.prod, column)) for column in zip(*rows, strict=True)]
        if all(count in (None, have) for count, have in zip(counts, most, strict=True)):
            return rows
        fallback = fallback or rows
    if fallback is not None:
        return fallback
    raise ModelError(
        f"the model's gears {values} do not fit its input shapes {[list(shape) for shape in inputs]}; "
        "convert the model again with the installed CANN"
    )


def _cut(
    gear: tuple[int, ...], inputs: Sequence[tuple[int, ...]], order: Sequence[int]
) -> list[tuple[int, ...]] | None:
    shapes: list[tuple[int, ...]] = [()] * len(inputs)
    start = 0
    for position in order:
        expected = inputs[position]
        piece = gear[start : start + len(expected)]
        start += len(expected)
        if len(piece) != len(expected) or any(e not in (-1, p) for e, p in zip(expected, piece, strict=True)):
            return None
        shapes[position] = piece
    return shapes if start == len(gear) else None
