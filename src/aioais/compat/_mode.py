"""What ``set_staticbatch`` and ``set_dynamic_…`` have set: the mode and the shapes of the runs that follow."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .._acl.model import ModelInfo
from ..errors import ArgumentError
from ..tensor import Tensor as DeviceTensor
from ..tensor import block_of, device_of
from ._errors import as_runtime_error

__all__ = ["ModeState", "Selected"]

Shapes = tuple[tuple[int, ...], ...]


class Selected(NamedTuple):
    """A mode, as ``InferSession.infer`` of the library takes it."""

    mode: str
    shapes: Shapes | None
    """Shapes of the inputs; ``None`` where those of the feeds count."""


_STATIC = Selected("static", None)


class ModeState:
    """The mode of a session, for calls that do not name one.

    A thread that has set a mode keeps it whatever other threads set; all others have the one that was set last. So a
    thread may set a gear and run it while others do the same.

    Parameters
    ----------
    info
        The model.
    """

    def __init__(self, info: ModelInfo) -> None:
        self._info = info
        self._last = _STATIC
        self._own = threading.local()

    @property
    def selected(self) -> Selected:
        """What the calling thread has set, or else what was set last."""
        own: Selected = getattr(self._own, "selected", self._last)
        return own

    def remember(self, mode: str) -> None:
        """Keep the mode of a call that named one."""
        if mode is not self._last.mode or self._last.shapes is not None or hasattr(self._own, "selected"):
            self._select(Selected(mode, None))

    def set_static(self) -> None:
        """Select the model's fixed shapes, or its largest gear."""
        self._select(_STATIC)

    def set_batch(self, batch: Any) -> None:
        """Select a batch size.

        Raises
        ------
        TypeError
            It is no int.
        RuntimeError
            The model has no such gear; the message lists those that it has.
        """
        if isinstance(batch, str):
            batch = int(batch)
        if not isinstance(batch, (int, np.integer)):
            raise TypeError(f"got a batch size of type {type(batch).__name__}; expected an int")
        self._select(Selected("dymbatch", self._gear("batch", (int(batch),))))

    def set_image(self, height: Any, width: Any) -> None:
        """Select an image size; raises as :meth:`set_batch`."""
        self._select(Selected("dymhw", self._gear("hw", (int(height), int(width)))))

    def set_dims(self, text: str) -> None:
        """Select a gear by all dims of all inputs, as ``name:1,3,224,224;name2:1,600``.

        Raises
        ------
        RuntimeError
            The text cannot be read, or the model has no such gear.
        """
        shapes, info = self._read(text), self._info
        if info.gears is None or info.gears.kind != "dims" or info.gears.find(shapes) is None:
            raise self._illegal(f"dims {text!r}")
        self._select(Selected("dymdims", shapes))

    def set_shape(self, text: str) -> None:
        """Select the shapes of a model of dynamic shape, as ``name:1,3,224,224;name2:1,600``; raises as others."""
        shapes, info = self._read(text), self._info
        if info.kind != "shape" or not all(t.accepts(s) for t, s in zip(info.inputs, shapes, strict=True)):
            raise self._illegal(f"shapes {text!r}")
        self._select(Selected("dymshape", shapes))

    def set_from_feeds(self, mode: str, shapes: Sequence[Sequence[int]]) -> None:
        """Select a mode by the shapes of all inputs."""
        if mode == "static":
            self.set_static()
            return
        self._select(Selected(mode, tuple(tuple(map(int, shape)) for shape in shapes)))

    def most_batches(self) -> int:
        """Return the largest batch size; 0 without such gears."""
        gears = self._info.gears
        return max(value[0] for value in gears.values) if gears is not None and gears.kind == "batch" else 0

    def real_sizes(self) -> list[int | None]:
        """Return the bytes of each input in the selected shapes; ``None`` for those of the largest."""
        shapes = self.selected.shapes
        if shapes is None:
            return [None] * len(self._info.inputs)
        return [
            math.prod(shape) * tensor.dtype.itemsize if tensor.dtype is not None else None
            for tensor, shape in zip(self._info.inputs, shapes, strict=True)
        ]

    def shaped(self, feeds: Any) -> Any:
        """Return feeds in the selected shapes if they have the bytes of these: only bytes count in ais_bench.

        Others are returned as they are, and the library says what is wrong with them.
        """
        shapes = self.selected.shapes
        if shapes is None or not isinstance(feeds, list) or len(feeds) != len(shapes):
            return feeds
        return [
            _shaped(feed, shape, tensor.dtype)
            for feed, shape, tensor in zip(feeds, shapes, self._info.inputs, strict=True)
        ]

    def _select(self, selected: Selected) -> None:
        self._last = self._own.selected = selected

    def _gear(self, kind: str, value: tuple[int, ...]) -> Shapes:
        gears = self._info.gears
        if gears is None or gears.kind != kind or value not in gears.values:
            raise self._illegal(f"{'batch size' if kind == 'batch' else 'image size (H, W)'} {_plain(value)}")
        return gears.shapes[gears.values.index(value)]

    def _read(self, text: str) -> Shapes:
        names = [tensor.name for tensor in self._info.inputs]
        found: dict[str, tuple[int, ...]] = {}
        for part in text.split(";"):
            name, _, dims = part.strip().rpartition(":")
            try:
                found[name] = tuple(int(dim) for dim in dims.split(","))
            except ValueError:
                found.clear()
                break
        if sorted(found) != sorted(names):
            raise as_runtime_error(
                ArgumentError(
                    f"got {text!r}; expected the dims of all inputs {names}, as 'name:1,3,224,224;name2:1,600'"
                )
            )
        return tuple(found[name] for name in names)

    def _illegal(self, what: str) -> BaseException:
        gears, info = self._info.gears, self._info
        if gears is not None:
            legal = f"one of its gears {', '.join(_plain(value) for value in gears.values)} (mode {info.mode!r})"
        else:
            legal = "its own shapes " + ", ".join(f"{t.name!r} {list(t.shape)}" for t in info.inputs)
        return as_runtime_error(ArgumentError(f"got {what}; expected {legal}; {info.path!r} has no others"))


def _plain(value: tuple[int, ...]) -> str:
    return str(value[0]) if len(value) == 1 else str(value)


def _shaped(feed: Any, shape: tuple[int, ...], dtype: np.dtype[Any] | None) -> Any:
    if dtype is None or not isinstance(feed, (np.ndarray, DeviceTensor)) or tuple(feed.shape) == shape:
        return feed
    if feed.nbytes != math.prod(shape) * dtype.itemsize:
        return feed
    if isinstance(feed, DeviceTensor):  # the same memory, which both keep
        return DeviceTensor(device_of(feed), block_of(feed), shape, dtype, None)
    if feed.dtype.hasobject:
        return feed
    return np.ascontiguousarray(feed).reshape(-1).view(np.uint8).view(dtype).reshape(shape)
