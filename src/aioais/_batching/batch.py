"""Batch: rows of several callers that run as one request, and how the outputs come back to each of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from .._engine.request import Request
from .._feeds.arrays import Gathered
from ..errors import ModelError
from .caller import Caller, rows_of
from .layout import Kind, Layout

__all__ = ["Batch", "BatchFuture", "Piece", "copy_all", "takes_long"]

_LARGE: Final = 256 << 10
"""Bytes of outputs from which they are copied in a thread: about 50 µs."""


class Piece(NamedTuple):
    """Rows of one caller in a batch."""

    caller: Caller
    first: int
    """The first of them among the caller's rows."""
    rows: int
    offset: int
    """Where they begin in the batch."""


class BatchFuture(asyncio.Future[list[np.ndarray]]):
    """The future of a request that tells at once when it is set, a turn of the event loop earlier than a callback.

    Parameters
    ----------
    done
        Called with the outputs or the error, on the loop's thread.
    loop
        The loop.
    """

    def __init__(
        self, done: Callable[[list[np.ndarray] | None, BaseException | None], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(loop=loop)
        self._done = done

    def set_result(self, result: list[np.ndarray]) -> None:
        """Tell the outputs."""
        super().set_result([])  # the batch takes them: the future must not keep them
        self._done(result, None)

    def set_exception(self, exception: type | BaseException) -> None:
        """Tell the error."""
        super().set_result([])  # no task waits here, which would be reported
        self._done(None, exception() if isinstance(exception, type) else exception)


class Batch:
    """Rows that run together.

    Parameters
    ----------
    kind, pieces, size
        See below.
    gave_up
        Called with it if all callers leave before it begins.

    Attributes
    ----------
    kind
        What its rows have in common.
    pieces
        Whose rows they are, in order.
    rows, size
        Rows of callers, and rows that the model runs: the others are padding.
    request
        Once it is submitted.
    submitted_at
        When that was.
    """

    __slots__ = ("_gathered", "_gave_up", "kind", "pieces", "request", "rows", "size", "submitted_at")

    def __init__(
        self, kind: Kind, pieces: list[Piece], size: int, gave_up: Callable[[Batch], None] = lambda _: None
    ) -> None:
        self.kind = kind
        self._gave_up = gave_up
        self.pieces = pieces
        self.rows = sum([piece.rows for piece in pieces])
        self.size = size
        self.request: Request | None = None
        self.submitted_at = 0.0
        self._gathered: list[Gathered] = []

    def execute_s(self, copies_back: int) -> float:
        """Return the seconds of its executions on the device, as far as ACL tells; NaN if it does not."""
        request = self.request
        if request is None or request.row is None:
            return math.nan
        row = request.row
        return sum(row[request.copies_in : len(row) - copies_back]) * 1e-3

    @property
    def callers(self) -> list[Caller]:
        """Those that have not left."""
        return [piece.caller for piece in self.pieces if self in piece.caller.batches]

    def feeds(self, layout: Layout) -> list[Any]:
        """Return the feeds of the request; nothing is copied yet."""
        feeds: list[Any] = []
        pieces = self.pieces
        for k, axis in enumerate(layout.in_axes):
            array = pieces[0].caller.feeds[k]
            if axis is None or (len(pieces) == 1 and array.shape[axis] == self.rows == self.size):
                feeds.append(array)
                continue
            shape = self.kind.shapes[k]
            parts = [rows_of(piece.caller.feeds[k], axis, piece.first, piece.rows) for piece in pieces]
            gathered = Gathered(parts, (*shape[:axis], self.size, *shape[axis:]), array.dtype, axis)
            self._gathered.append(gathered)
            feeds.append(gathered)
        return feeds

    def leave(self, caller: Caller) -> None:
        """Take out a caller that has left; a batch that has none left before it begins does not run.

        Before its rows are copied they are replaced, after that only their results are dropped.
        """
        request = self.request
        if request is None or self.has_begun:
            return
        for k, piece in enumerate(self.pieces):
            if piece.caller is caller:
                for gathered in self._gathered:
                    gathered.drop(k)
        if not self.callers:
            request.give_up()
            self._gave_up(self)

    @property
    def has_begun(self) -> bool:
        """Whether its rows are on the device, or about to be."""
        return self.request is not None and self.request.state != "waiting"

    def check(self, outputs: Sequence[np.ndarray], layout: Layout, names: Sequence[str]) -> ModelError | None:
        """Return an error if the outputs do not have the rows that they should have."""
        for output, axis, name in zip(outputs, layout.out_axes, names, strict=True):
            if axis is not None and (output.ndim <= axis or output.shape[axis] != self.size):
                return ModelError(
                    f"output {name!r}: got shape {list(output.shape)}; expected {self.size} rows, one for each row of "
                    f"the inputs, in dim {axis}; state where its rows are: batch_axes={{{name!r}: ...}}, or None if it "
                    "has none"
                )
        return None

    def destinations(self, outputs: list[np.ndarray], layout: Layout) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return what is to be copied, as pairs of destination and source, for the callers that have not left.

        Small outputs of callers with all their rows here are copied already.
        """
        axes = layout.out_axes
        piece = self.pieces[0]
        if len(self.pieces) == 1 and piece.rows == piece.caller.rows == self.size:
            piece.caller.take_all(outputs)  # all of one caller and nothing else
            return []
        is_small = sum([output.nbytes for output in outputs]) <= _LARGE
        copies: list[tuple[np.ndarray, np.ndarray]] = []
        for caller, first, count, offset in self.pieces:
            if self not in caller.batches:
                continue
            parts = [rows_of(output, axis, offset, count) for output, axis in zip(outputs, axes, strict=True)]
            if is_small and count == caller.rows:  # most often
                caller.take_all([part.copy() for part in parts])
            else:
                copies += zip(caller.room(first, count, parts, axes), parts, strict=True)
        return copies


def copy_all(copies: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Copy; in a thread where that :func:`takes_long`."""
    for destination, source in copies:
        np.copyto(destination, source)


def takes_long(copies: Sequence[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether copies are so large that they must not be made on the event loop."""
    return sum([source.nbytes for _, source in copies]) > _LARGE
