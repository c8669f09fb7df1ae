"""Feeds of any kind, seen as NumPy arrays without a copy, or put together where they are copied from."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from ..errors import FeedError
from ..tensor import Tensor

__all__ = ["Gathered", "as_feed", "converts_slowly", "describe", "dtype_text", "is_ml"]

_DLPACK_CPU = 1
_ML_DTYPES = "ml_dtypes"


def as_feed(value: Any, where: str, dtype: np.dtype[Any] | None = None) -> np.ndarray | Tensor:
    """See one feed as an array over its own memory; device tensors stay what they are.

    Parameters
    ----------
    value
        An array, a NumPy scalar, a torch CPU tensor, a device tensor, or an object with the
        buffer protocol, ``__dlpack__`` (CPU) or ``__array__``.
    where
        Which input this is for, for the message.
    dtype
        The type of the input, for the message.

    Raises
    ------
    FeedError
        It is none of these, or its memory is not on the host.
    """
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.generic):
        return np.asarray(value)
    if type(value).__module__.partition(".")[0] == "torch" and "torch" in sys.modules:
        return _from_torch(value, where)
    try:
        return np.asarray(memoryview(value))
    except (TypeError, BufferError):
        pass  # no buffer protocol, or one that cannot export this
    except (ValueError, NotImplementedError) as exc:
        raise _unusable(value, where, exc) from exc
    try:
        if hasattr(value, "__dlpack__"):
            return _from_dlpack(value, where)
        if _has_array(value):
            return np.asarray(value)
    except FeedError:
        raise
    except Exception as exc:
        raise _unusable(value, where, exc) from exc
    raise FeedError(
        f"{where}: got {type(value).__name__}; expected an array (numpy.ndarray or scalar, torch CPU tensor, device "
        f"Tensor, or an object with the buffer protocol, __dlpack__ or __array__){_conversion(value, dtype)}"
    )


def converts_slowly(value: Any) -> bool:
    """Whether seeing this as an array runs foreign code that may copy (``__array__`` and DLPack)."""
    if isinstance(value, (np.ndarray, np.generic, Tensor, bytes, bytearray, memoryview)):
        return False
    return _has_array(value) or hasattr(value, "__dlpack__")


def describe(feed: np.ndarray | Tensor | Gathered) -> str:
    """Write type and shape of a feed."""
    place = f" on device {feed.device_id}" if isinstance(feed, Tensor) else ""
    return f"{feed.dtype}{list(feed.shape)}{place}"


def _has_array(value: Any) -> bool:
    return hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def _from_torch(value: Any, where: str) -> np.ndarray:  # pragma: no cover - coverage is measured without torch
    """See a torch tensor as an array; torch is there already, as the caller made the tensor."""
    torch = sys.modules["torch"]
    device = getattr(getattr(value, "device", None), "type", None)
    if device != "cpu":
        raise FeedError(
            f"{where}: got a torch tensor on {device!r}; expected one in host memory; move it first: tensor.cpu()"
        )
    try:
        value = value.detach()
        if value.dtype is torch.bfloat16:
            import ml_dtypes  # a dependency of this library

            return np.asarray(value.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
        return np.asarray(value.numpy())
    except Exception as exc:
        raise _unusable(value, where, exc) from exc


def _from_dlpack(value: Any, where: str) -> np.ndarray:
    kind, number = value.__dlpack_device__()
    if kind != _DLPACK_CPU:
        raise FeedError(
            f"{where}: got {type(value).__name__} in memory of DLPack device ({int(kind)}, {number}); expected host "
            "memory (DLPack CPU); copy it to the host first"
        )
    try:
        return np.from_dlpack(value)
    except Exception:
        # NumPy cannot import some types and read-only memory this way; __array__ can.
        if _has_array(value):
            return np.asarray(value)
        raise


def _unusable(value: Any, where: str, exc: Exception) -> FeedError:
    return FeedError(
        f"{where}: got {type(value).__name__}, which cannot be seen as an array ({type(exc).__name__}: {exc}); "
        "expected a dense array in host memory"
    )


def _conversion(value: Any, dtype: np.dtype[Any] | None) -> str:
    """Return the advice for a list of numbers, or a number."""
    if not isinstance(value, (list, tuple, int, float, complex)):
        return ""
    try:
        np.asarray(value, dtype)
    except (TypeError, ValueError, OverflowError):
        return ""
    return f"; convert it: np.asarray(value{'' if dtype is None else ', ' + dtype_text(dtype)})"


def dtype_text(dtype: np.dtype[Any]) -> str:
    """Write a type as an argument in a Python program."""
    return f"{_ML_DTYPES}.{dtype.name}" if is_ml(dtype) else repr(dtype.name)


def is_ml(dtype: np.dtype[Any]) -> bool:
    """Whether a type is one of ``ml_dtypes``, such as bfloat16."""
    return dtype.type.__module__.partition(".")[0] == _ML_DTYPES


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
