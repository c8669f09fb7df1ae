"""What to do about a feed that does not fit: an expression that makes one that does, where there is one.

An advice is worth giving only if the numbers are right afterwards: an image in another layout has to be transposed and
not reshaped, and the bits of a bfloat16 number are not the number.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .._acl.model import TensorInfo
from ..tensor import Tensor
from .arrays import Gathered, dtype_text, is_ml

__all__ = ["advise"]


def advise(
    feed: np.ndarray | Tensor | Gathered,
    tensor: TensorInfo,
    shape: tuple[int, ...],
    accepts: Callable[[tuple[int, ...]], bool] | None = None,
) -> str | None:
    """Return how to make a feed fit, or ``None`` if no expression does.

    Parameters
    ----------
    feed
        What does not fit.
    tensor
        The input.
    shape
        The shape that the request must have; -1 for open dims.
    accepts
        Whether a shape is legal where dims are open; by default as the input says.
    """
    if isinstance(feed, Gathered):
        return None  # it is made by the library
    dtype = tensor.dtype
    if dtype is None:
        return None
    name = "(await tensor.to_host())" if isinstance(feed, Tensor) else "array"
    is_open = any(dim < 0 for dim in shape)
    for conversion, got, verb in _conversions(feed, dtype):
        arranged = _arrange_open(got, shape, accepts or tensor.accepts) if is_open else _arrange(got, shape)
        if arranged is None:
            continue
        arranged_by, suffix = arranged
        if conversion or suffix:
            return f"{verb or arranged_by}: {conversion.format(name) or name}{suffix}"
    return None


def _conversions(feed: np.ndarray | Tensor, dtype: np.dtype[Any]) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Yield ways to the type, the likely ones first: template of an expression, the shape afterwards, and a verb."""
    got, shape, text = feed.dtype, tuple(feed.shape), dtype_text(dtype)
    if got == dtype:
        yield "", shape, ""
        return
    count, rest = divmod(feed.nbytes, dtype.itemsize)
    from_bytes = f"np.frombuffer(feed, {text})"
    can_be_bytes = isinstance(feed, np.ndarray) and not rest and feed.nbytes > 0 and feed.flags.c_contiguous
    is_raw = can_be_bytes and len(shape) == 1 and got.itemsize == 1 and _is_buffer(feed)
    if is_raw:
        yield from_bytes, (count,), "take its bytes"
    if is_raw and type(getattr(feed, "base", None)) is memoryview:
        return  # bytes, or a file: the feed is no array, and has none of its methods
    is_untyped = got.kind == "V" and got.names is None and not is_ml(got)
    if got.itemsize == dtype.itemsize and (is_untyped or (is_ml(dtype) and got.kind in "iu")):
        yield f"{{}}.view({text})", shape, "take its bits"
    elif got.kind in "biuf" or is_ml(got) or (got.kind == "c" and dtype.kind == "c"):
        yield f"{{}}.astype({text})", shape, "convert it"
    if can_be_bytes and not is_raw and got.itemsize == 1 and got.kind in "iuV":
        yield from_bytes, (count,), "if these are its bytes"


def _is_buffer(feed: np.ndarray | Tensor) -> bool:
    """Whether an array shows raw memory: bytes, or a file."""
    base: Any = feed
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return isinstance(base, (bytes, bytearray, mmap.mmap))


def _arrange(got: tuple[int, ...], shape: tuple[int, ...]) -> tuple[str, str] | None:
    """Return a verb and the suffix of an expression that gives an array the right dims; ``None`` if none does."""
    if got == shape:
        return "", ""
    if math.prod(got) != math.prod(shape):
        return None
    order = _order(got, shape)
    if order is None or not math.prod(got):
        return "reshape it", f".reshape({shape})"
    suffix = f".transpose({', '.join(map(str, order))})"
    if tuple(got[axis] for axis in order) != shape:
        suffix += f".reshape({shape})"  # dims of 1 are added or removed
    return "transpose it", suffix


def _order(got: tuple[int, ...], shape: tuple[int, ...]) -> list[int] | None:
    """Return the axes in which an array has the dims of a shape, dims of 1 apart; ``None`` for the order it has.

    Of dims that are equal the first comes first: height and width are seldom exchanged.
    """
    large = [axis for axis, dim in enumerate(got) if dim != 1]
    order: list[int] = []
    for dim in shape:
        if dim == 1:
            continue
        axis = next((axis for axis in large if got[axis] == dim and axis not in order), None)
        if axis is None:
            return None
        order.append(axis)
    if len(order) != len(large) or order == large:
        return None
    ones = [axis for axis, dim in enumerate(got) if dim == 1]
    # A dim of 1 stays where the shape has one, as far as there are any.
    full = [ones.pop(0) if dim == 1 and ones else None if dim == 1 else order.pop(0) for dim in shape]
    return [axis for axis in full if axis is not None] + ones


def _arrange_open(
    got: tuple[int, ...], shape: tuple[int, ...], accepts: Callable[[tuple[int, ...]], bool]
) -> tuple[str, str] | None:
    """Do as :func:`_arrange` does, for a shape with open dims."""
    if accepts(got):
        return "", ""
    if len(got) == 1 and sum(dim < 0 for dim in shape) == 1 and len(shape) > 1:
        known = math.prod(dim for dim in shape if dim >= 0)
        if known and got[0] and got[0] % known == 0:
            whole = tuple(got[0] // known if dim < 0 else dim for dim in shape)
            if accepts(whole):
                return "reshape it", f".reshape({tuple(max(dim, -1) for dim in shape)})"
    for order in _moves(len(got)):
        moved = tuple(got[axis] for axis in order)
        is_moved = order != sorted(order)
        suffix = f".transpose({', '.join(map(str, order))})" if is_moved else ""
        verb = "transpose it" if is_moved else "add a dim"
        if is_moved and accepts(moved):
            return verb, suffix
        if accepts((1, *moved)):
            return verb, f"{suffix}[np.newaxis]"
    return None


def _moves(rank: int) -> Iterator[list[int]]:
    """Yield orders of axes: as they are, then with the channels moved from the end to the front, or back."""
    axes = list(range(rank))
    yield axes
    if rank == 2:
        yield [1, 0]
    # Behind a first dim for the batch, then in front of all dims of an image.
    for source, target in ((rank - 1, 1), (1, rank - 1), (rank - 1, rank - 3), (rank - 3, rank - 1)):
        if 0 <= source < rank and 0 <= target < rank:
            moved = [axis for axis in axes if axis != source]
            moved.insert(target, source)
            yield moved
