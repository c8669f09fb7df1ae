"""Gathered: rows of several arrays that become one feed, written straight into the memory that is copied from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["Gathered"]


class Gathered:
    """A feed that is put together where it is staged: the parts one behind the other, then padding.

    The planner takes it in the place of an array of that shape and type. The thread that stages a request calls
    :meth:`copy_to`; until then the event loop may drop parts.

    Parameters
    ----------
    parts
        Arrays that differ in nothing but their number of rows.
    shape, dtype
        Of the whole; it has at least as many rows as the parts together.
    axis
        The dim of the rows.
    """

    __slots__ = ("_axis", "_parts", "dtype", "nbytes", "shape")

    def __init__(self, parts: list[np.ndarray], shape: tuple[int, ...], dtype: np.dtype[Any], axis: int = 0) -> None:
        self._parts = parts
        self._axis = axis
        self.shape = shape
        self.dtype = dtype
        self.nbytes = math.prod(shape) * dtype.itemsize

    def drop(self, k: int) -> None:
        """Have zeros take the place of part ``k``, unless it is copied already; its array is let go."""
        part = self._parts[k]
        self._parts[k] = np.broadcast_to(np.zeros((), part.dtype), part.shape)

    def copy_to(self, area: np.ndarray) -> None:
        """Write all rows; those beyond the parts repeat the last one, so that padding is never unlike real data."""
        parts, axis = [*self._parts], self._axis
        rows = sum([part.shape[axis] for part in parts])
        if rows == self.shape[axis]:
            np.concatenate(parts, axis, out=area)
            return
        area = np.moveaxis(area, axis, 0)
        np.concatenate(parts, axis, out=np.moveaxis(area[:rows], 0, axis))
        area[rows:] = area[rows - 1]
