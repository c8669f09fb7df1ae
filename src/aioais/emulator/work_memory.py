"""Work memory that ONNX Runtime keeps between the runs of a model: given back where the sizes of runs change."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

__all__ = ["WorkMemory", "trim_heap"]

_MANY = 1 << 20
"""Bytes of inputs from which on work memory is worth giving back."""


class WorkMemory:
    """Decides after which runs of a model with open dims ONNX Runtime gives its work memory back.

    Runs of one size after the other use the same memory again. Where sizes change, what is kept would grow to some
    times the memory of the largest run.
    """

    def __init__(self) -> None:
        self._last_bytes = 0

    def changes_size(self, nbytes: int) -> bool:
        """Return whether a run has other bytes of inputs than the one before, and either has many."""
        last, self._last_bytes = self._last_bytes, nbytes
        return nbytes != last and max(nbytes, last) >= _MANY


@functools.cache
def _find_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # no glibc
        return None


def trim_heap() -> None:
    """Have the allocator of C give free pages back to the system, also those between blocks that are in use."""
    trim = _find_trim()
    if trim is not None:
        trim(ctypes.c_size_t(0))
