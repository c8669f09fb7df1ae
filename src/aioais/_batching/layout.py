"""Layout: which dim of each input and output counts the rows, and which batch sizes the model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .._acl.model import ModelInfo, TensorInfo
from .._feeds.advice import advise
from .._feeds.arrays import describe
from ..errors import ArgumentError, FeedError, ModelError
from ..tensor import Tensor

__all__ = ["Axes", "BatchAxes", "Kind", "Layout"]

BatchAxes = int | Mapping[str, int | None] | None
"""The dim that counts the rows, of all inputs and outputs or by name; ``None`` for a tensor without rows."""

Axes = tuple[int | None, ...]

_UNBOUNDED: Final = 32
"""Most rows of a batch where neither the caller nor the model sets a limit."""
_MOST_KINDS: Final = 256
_SMALL: Final = 4096
"""Bytes of an input without rows up to which its content is compared; larger ones must be the same array."""


@dataclass(frozen=True)
class Kind:
    """Rows that may share a batch: all their dims but the number of rows are the same.

    Attributes
    ----------
    shapes
        Of one row of each input, or of the whole input where it has no rows.
    sizes
        Batch sizes to choose from, in ascending order.
    most
        Most rows of a batch.
    is_exact
        The model takes any number of rows from the smallest size on: nothing is padded beyond that.
    """

    shapes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    most: int
    is_exact: bool

    def padded(self, rows: int) -> int:
        """Return the smallest batch size for so many rows."""
        if self.is_exact:
            return max(rows, self.sizes[0])
        return next(size for size in self.sizes if size >= rows)


class Layout:
    """What a model has to do with batches.

    Parameters
    ----------
    info
        The model.
    batch_axes
        What the caller states; the rest is found from the model.
    max_batch_size
        Most rows of a batch; ``None`` for the model's largest.

    Attributes
    ----------
    in_axes, out_axes
        The dim that counts the rows of each input and output; ``None`` where it has no rows.

    Raises
    ------
    ArgumentError
        The model does not tell what counts the rows, or what the caller states does not fit it.
    ModelError
        No request can be run in batches.
    """

    def __init__(self, info: ModelInfo, batch_axes: BatchAxes, max_batch_size: int | None) -> None:
        self._info = info
        self._most = max_batch_size
        stated = _stated(info, batch_axes)
        self.in_axes: Axes = _input_axes(info, stated)
        if all(axis is None for axis in self.in_axes):
            raise ModelError(f"{info.path!r} has no input with a batch dimension: use the session without batching")
        self._tables = self._read_tables()
        self.out_axes: Axes = self._output_axes(stated)
        self._known: dict[tuple[Any, ...], tuple[int, Kind]] = {}
        self._last: tuple[list[tuple[Any, tuple[int, ...]]], tuple[int, Kind]] | None = None
        self._has_content = None in self.in_axes

    def known(self, feeds: Any) -> tuple[int, Kind] | None:
        """Return what :meth:`measure` does for arrays that are like the last ones in everything, else ``None``."""
        last = self._last
        if last is None or type(feeds) is not list or len(feeds) != len(last[0]):
            return None
        for feed, (dtype, shape) in zip(feeds, last[0], strict=True):
            if type(feed) is not np.ndarray or feed.dtype is not dtype or feed.shape != shape:
                return None
        return last[1]

    def measure(self, feeds: Sequence[np.ndarray | Tensor]) -> tuple[int, Kind]:
        """Check the feeds of one caller; returns its rows, and with what they may share a batch.

        Raises
        ------
        FeedError
            They do not fit the model.
        """
        key = tuple([(feed.dtype, feed.shape) for feed in feeds if type(feed) is np.ndarray])
        found = self._known.get(key) if len(key) == len(feeds) else None
        if found is None:
            found = self._measure(feeds)
            if len(self._known) >= _MOST_KINDS:
                self._known.clear()
            self._known[key] = found
        self._last = [(feed.dtype, feed.shape) for feed in feeds], found
        return found

    def content(self, feeds: Sequence[np.ndarray]) -> tuple[Any, ...]:
        """Return what inputs without rows contain: callers share a batch only if it is the same."""
        if not self._has_content:
            return ()
        return tuple(
            [
                feed.tobytes() if feed.nbytes <= _SMALL else id(feed)
                for feed, axis in zip(feeds, self.in_axes, strict=True)
                if axis is None
            ]
        )

    def _measure(self, feeds: Sequence[np.ndarray | Tensor]) -> tuple[int, Kind]:
        if len(feeds) > len(self._info.inputs):
            names = [tensor.name for tensor in self._info.optional]
            raise FeedError(
                f"feeds: got some for inputs that have a default ({', '.join(names[:4])}); expected those of the other "
                "inputs alone: rows of several callers run together, with one value of such an input; use "
                "InferSession.infer for requests that feed it"
            )
        rows: int | None = None
        shapes = []
        for k, (feed, tensor, axis) in enumerate(zip(feeds, self._info.inputs, self.in_axes, strict=True)):
            where = f"input {tensor.name!r} (position {k})"
            expected = f"{tensor.datatype.name}{self._expected(tensor, axis)}{self._legal(slice(k, k + 1))}"
            if isinstance(feed, Tensor):
                raise FeedError(
                    f"{where}: got a device tensor; expected an array on the host, {expected}: rows of several callers "
                    "are gathered there; use InferSession.infer for tensors on the device"
                )
            if tensor.dtype is None or feed.dtype != tensor.dtype or not self._fits(k, tuple(feed.shape)):
                raise FeedError(f"{where}: got {describe(feed)}; expected {expected}; {self._advice(k, feed)}")
            if axis is None:
                shapes.append(tuple(feed.shape))
                continue
            if not feed.shape[axis]:
                raise FeedError(
                    f"{where}: got {describe(feed)}; expected {expected}, n at least 1; give one row or more"
                )
            if rows is None:
                rows = feed.shape[axis]
            elif feed.shape[axis] != rows:
                counts = ", ".join(
                    f"{t.name!r} {f.shape[a]}"
                    for t, f, a in zip(self._info.inputs, feeds, self.in_axes, strict=True)
                    if a is not None and len(f.shape) > a
                )
                raise FeedError(f"feeds: got different numbers of rows ({counts}); expected the same for each input")
            shapes.append(_without(feed.shape, axis))
        assert rows is not None
        return rows, self._kind(tuple(shapes), feeds)

    def _fits(self, k: int, shape: tuple[int, ...]) -> bool:
        """Whether an input takes such a shape with some number of rows."""
        tensor, axis = self._info.inputs[k], self.in_axes[k]
        if axis is not None and len(shape) <= axis:
            return False
        if self._tables is not None:
            return len(shape) == len(tensor.shape) and any(row[k] == _without(shape, axis) for row in self._tables)
        if axis is not None:
            least, _ = self._rows_of(tensor, axis)
            shape = (*shape[:axis], max(least, 1), *shape[axis + 1 :])
        return tensor.accepts(shape)

    def _advice(self, k: int, feed: np.ndarray) -> str:
        tensor, axis = self._info.inputs[k], self.in_axes[k]
        shape = tuple(-1 if place == axis else dim for place, dim in enumerate(tensor.shape))
        return advise(feed, tensor, shape, lambda got: self._fits(k, got)) or "give an array of that type and shape"

    def _kind(self, shapes: tuple[tuple[int, ...], ...], feeds: Sequence[np.ndarray | Tensor]) -> Kind:
        sizes = self._tables.get(shapes) if self._tables is not None else self._open_sizes(shapes)
        if sizes is not None:
            return self._limited(shapes, sizes, is_exact=self._tables is None)
        got = ", ".join(f"{t.name!r} {describe(f)}" for t, f in zip(self._info.inputs, feeds, strict=True))
        expected = ", ".join(
            f"{t.name!r} {self._expected(t, axis)}" for t, axis in zip(self._info.inputs, self.in_axes, strict=True)
        )
        legal = self._legal(slice(None))
        raise FeedError(f"feeds: got {got}; expected {expected}{legal}; give all inputs the shapes of one gear")

    def _legal(self, which: slice) -> str:
        """Write the dims that inputs may have beside their rows, where there is a choice."""
        if self._tables is None or len(self._tables) < 2:
            return ""
        each = {"; ".join(str(list(shape)) for shape in row[which]) for row in self._tables}
        return f", without the rows one of {' | '.join(sorted(each))}"

    def _limited(self, shapes: tuple[tuple[int, ...], ...], sizes: Sequence[int], is_exact: bool) -> Kind:
        most = self._most or sizes[-1]
        if is_exact:
            most = max(min(most, sizes[-1]), sizes[0])
            legal = [size for size in sizes if size < most] + [most]
        else:
            legal = [size for size in sizes if size <= most] or [sizes[0]]
            most = min(most, legal[-1])
        return Kind(shapes, tuple(legal), most, is_exact)

    def _expected(self, tensor: TensorInfo, axis: int | None) -> str:
        if tensor.shape == (-2,):
            return "[n, ...]"
        return "[" + ", ".join("n" if k == axis else str(dim) for k, dim in enumerate(tensor.shape)) + "]"

    def _read_tables(self) -> dict[tuple[tuple[int, ...], ...], tuple[int, ...]] | None:
        """Return the batch sizes for each set of other dims; ``None`` if the number of rows is open."""
        info = self._info
        if info.gears is None:
            rows: Sequence[Sequence[tuple[int, ...]]] = [[tensor.shape for tensor in info.inputs]]
            if any(a is not None and t.shape[:1] != (-2,) and t.shape[a] < 0 for t, a in self._with_axes()) or any(
                t.shape == (-2,) for t in info.inputs
            ):
                return None
            if info.kind == "shape":
                raise ModelError(f"{info.path!r}: the number of rows is fixed and other dims are open: not supported")
        else:
            rows = info.gears.shapes
        tables: dict[tuple[tuple[int, ...], ...], set[int]] = {}
        for row in rows:
            sizes = {shape[a] for shape, a in zip(row, self.in_axes, strict=True) if a is not None}
            if len(sizes) == 1 and min(sizes) > 0:
                others = tuple(_without(shape, a) for shape, a in zip(row, self.in_axes, strict=True))
                tables.setdefault(others, set()).update(sizes)
        if not tables:
            text = "; ".join(", ".join(str(list(shape)) for shape in row) for row in rows)
            raise ArgumentError(
                f"{info.path!r} takes {text}: the inputs differ in what seems to be their number of rows; "
                "state it: batch_axes={'input': 0, 'input without rows': None}"
            )
        return {others: tuple(sorted(sizes)) for others, sizes in tables.items()}

    def _open_sizes(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[int, ...] | None:
        low, high = 1, 0
        for (tensor, axis), shape in zip(self._with_axes(), shapes, strict=True):
            whole = shape
            if axis is not None:
                least, most = self._rows_of(tensor, axis)
                low = max(low, least)
                if most > 0:
                    high = min(high, most) if high else most
                whole = (*shape[:axis], max(least, 1), *shape[axis:])
            if not tensor.accepts(whole):
                return None
        if not high:
            high = max(self._most or _UNBOUNDED, low)
        if low > high:
            return None
        sizes = [low]
        while sizes[-1] * 2 < high:
            sizes.append(1 << sizes[-1].bit_length())
        return (*sizes, high) if high > sizes[-1] else tuple(sizes)

    def _rows_of(self, tensor: TensorInfo, axis: int) -> tuple[int, int]:
        """Return the least and the most rows of an input; -1 for no limit."""
        if tensor.shape != (-2,) and tensor.shape[axis] >= 0:
            return tensor.shape[axis], tensor.shape[axis]
        return tensor.ranges[axis] if tensor.ranges is not None and axis < len(tensor.ranges) else (1, -1)

    def _with_axes(self) -> list[tuple[TensorInfo, int | None]]:
        return [*zip(self._info.inputs, self.in_axes, strict=True)]

    def _output_axes(self, stated: Mapping[str, int | None]) -> Axes:
        """Find the rows of the outputs, whose shapes are those of the largest gear."""
        info = self._info
        size = -1
        if self._tables is not None:
            shapes = [t.shape for t in info.inputs] if info.gears is None else info.gears.shapes[info.gears.largest]
            size = next(shape[a] for shape, a in zip(shapes, self.in_axes, strict=True) if a is not None)
        axes: list[int | None] = []
        for k, tensor in enumerate(info.outputs):
            if tensor.name in stated:
                axes.append(stated[tensor.name])
                continue
            if tensor.shape == (-2,) or tensor.shape[:1] == (size,):
                axes.append(0)
                continue
            found = [axis for axis, dim in enumerate(tensor.shape) if dim == size]
            if len(found) != 1:
                raise ArgumentError(
                    f"output {tensor.name!r} (position {k}) is {tensor.datatype.name}{list(tensor.shape)}: no dim, or "
                    f"no single one, is the number of rows; state it: batch_axes={{{tensor.name!r}: 0}}, or None if it "
                    "has no rows, as each caller then gets all of it"
                )
            axes.append(found[0])
        return tuple(axes)


def _without(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    return shape if axis is None else (*shape[:axis], *shape[axis + 1 :])


def _stated(info: ModelInfo, batch_axes: BatchAxes) -> Mapping[str, int | None]:
    """Return what the caller states, by name, with axes counted from 0."""
    tensors = {tensor.name: tensor for tensor in (*info.outputs, *info.inputs)}
    given: Mapping[str, int | None]
    if batch_axes is None:
        return {}
    given = dict.fromkeys(tensors, batch_axes) if isinstance(batch_axes, int) else batch_axes
    stated: dict[str, int | None] = {}
    for name, axis in given.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ArgumentError(f"batch_axes names {name!r}; expected inputs or outputs: {', '.join(tensors)}")
        count = len(tensor.shape)
        if axis is not None and tensor.shape != (-2,) and not -count <= axis < count:
            raise ArgumentError(
                f"batch_axes: got {axis} for {name!r} of shape {list(tensor.shape)}; expected a dim of it, or None"
            )
        stated[name] = axis if axis is None or axis >= 0 else axis + count
    return stated


def _input_axes(info: ModelInfo, stated: Mapping[str, int | None]) -> Axes:
    axes: list[int | None] = []
    has_open = any(t.shape[:1] in ((-1,), (-2,)) for t in info.inputs if t.name not in stated)
    for tensor in info.inputs:
        shape = tensor.shape
        if tensor.name in stated:
            axes.append(stated[tensor.name])
        elif info.kind == "batch":
            axes.append(shape.index(-1) if -1 in shape else None)  # what dynamic_batch_size leaves open
        elif not shape or (has_open and shape[0] >= 0):
            axes.append(None)
        else:
            axes.append(0)
    return tuple(axes)
