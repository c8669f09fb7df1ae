"""aclruntime's tensors: an array on the host, or memory on a device; they move from one to the other in place."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ..errors import DeviceError
from ..tensor import Tensor as DeviceTensor
from ._aio import live_sessions
from ._errors import as_runtime_error
from ._loop import hold
from ._types import dtype, dtype_of, memory_type

__all__ = ["BaseTensor", "Tensor", "as_feed", "as_feeds", "on_device"]


class Tensor:
    """A tensor in the memory of the host or of a device.

    Parameters
    ----------
    buffer
        An array, or anything with the buffer protocol; its elements are copied.

    Raises
    ------
    TypeError
        It has no buffer.

    Notes
    -----
    Calls block. On a device the memory is freed when the tensor moves to the host or is collected.
    """

    __slots__ = ("__weakref__", "_array", "_tensor")

    def __init__(self, buffer: Any) -> None:
        view = buffer if isinstance(buffer, (np.ndarray, np.generic)) else memoryview(buffer)
        array = np.array(view, order="C")
        self._array: np.ndarray | None = array.reshape(1) if array.ndim == 0 else array
        self._tensor: DeviceTensor | None = None

    @property
    def type(self) -> memory_type:
        """Where the memory is."""
        return memory_type.memory_host if self._tensor is None else memory_type.memory_device

    @property
    def device(self) -> int:
        """The device; -1 on the host."""
        return -1 if self._tensor is None else self._tensor.device_id

    @property
    def dtype(self) -> dtype:
        """Element type."""
        return dtype_of(self._memory().dtype)

    @property
    def shape(self) -> list[int]:
        """Dims."""
        return list(self._memory().shape)

    def to_device(self, device_id: int) -> None:
        """Move the tensor to a device on which a session is open, in place.

        Raises
        ------
        RuntimeError
            No session is open there, or the copy failed.
        """
        if self._tensor is not None:
            if self._tensor.device_id == device_id:
                return
            self.to_host()
        session = next((one for one in live_sessions() if one.device_id == device_id and not one.closed), None)
        if session is None:
            raise as_runtime_error(
                DeviceError(f"got device {device_id!r}; expected one that a session is open on; open a session there")
            )
        array = self._array
        self._tensor = session.elsewhere.runner.run_coroutine(lambda: session.to_device(array))
        self._array = None

    def to_host(self) -> None:
        """Move the tensor to the host, in place.

        Raises
        ------
        RuntimeError
            The copy failed, or the memory was freed by ``InferSession.finalize()``.
        """
        tensor = self._tensor
        if tensor is None:
            return
        holding = hold()
        try:
            self._array = holding.runner.run_coroutine(tensor.to_host)
        finally:
            holding.drop()
            holding.runner.join()
        self._tensor = None

    def to_dvpp(self, device_id: int) -> None:
        """Raise: this library does no media processing."""
        raise RuntimeError(f"got to_dvpp({device_id!r}); aioais has no DVPP memory; use to_device()")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self._array is None:
            raise RuntimeError(f"{self!r} is on a device; call to_host() first")
        if copy is False:
            return self._array if dtype is None else self._array.astype(dtype, copy=False)
        return np.array(self._array, dtype=dtype)

    def __buffer__(self, flags: int) -> memoryview:
        """Return the memory of the host (Python 3.12 and newer)."""
        if self._array is None:
            raise RuntimeError(f"{self!r} is on a device; call to_host() first")
        return self._array.data

    def __repr__(self) -> str:
        memory = self._memory()
        place = "host" if self._tensor is None else f"device {self._tensor.device_id}"
        return f"<Tensor {memory.dtype.name}{list(memory.shape)} on {place}>"

    def _memory(self) -> np.ndarray | DeviceTensor:
        memory = self._array if self._tensor is None else self._tensor
        assert memory is not None
        return memory


class BaseTensor:
    """Memory of the host by its address.

    Parameters
    ----------
    address, nbytes
        Memory that the caller keeps until the call that takes the tensor has returned.
    """

    __slots__ = ("_address", "nbytes")

    def __init__(self, address: int, nbytes: int) -> None:
        self._address = address
        self.nbytes: int = nbytes

    def view(self) -> np.ndarray:
        """Return the bytes as an array over the same memory."""
        if not self.nbytes:
            return np.empty(0, np.uint8)
        memory = (ctypes.c_uint8 * self.nbytes).from_address(self._address)
        return np.frombuffer(memoryview(memory), np.uint8)


def on_device(tensor: DeviceTensor) -> Tensor:
    """Return a device tensor of the library as one of aclruntime's."""
    made = Tensor.__new__(Tensor)
    made._array, made._tensor = None, tensor
    return made


def as_feed(value: Any) -> Any:
    """Return what the library takes for a feed."""
    if isinstance(value, Tensor):
        return value._memory()
    if isinstance(value, BaseTensor):
        return value.view()
    return value


def as_feeds(feeds: Any) -> Any:
    """Return feeds as the library takes them: any iterable of feeds, an array's rows too, or a mapping by name.

    Raises
    ------
    TypeError
        They are no iterable.
    """
    if type(feeds) is not list:
        if hasattr(feeds, "keys"):
            return {name: as_feed(feeds[name]) for name in feeds}
        feeds = [*feeds]
    for feed in feeds:
        if type(feed) is not np.ndarray:
            return [as_feed(feed) for feed in feeds]
    return feeds
