"""Device tensors: results that stay on the device, and feeds that are already there."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex, final

import numpy as np

from ._acl.memory import DeviceBlock
from ._bridge.offload import wait_future
from ._device.device import Device
from .errors import ClosedError

__all__ = ["Tensor", "block_of", "device_of"]


@final
class Tensor:
    """Memory on a device, with shape and type.

    Made by ``infer(..., out_array=False)`` and ``to_device``, never directly. It can be a feed of any session on its
    device. The memory is freed by :meth:`close` or when the tensor is collected; it stays valid after the session
    that made the tensor is closed. Requests in flight that use the memory keep it until they are done. Memory of an
    output goes back to the set of buffers that it came from, if that lacks a buffer for this output; else it is freed.

    A tensor cannot be copied or pickled.
    """

    __slots__ = ("__weakref__", "_block", "_device", "_dtype", "_hang_timeout", "_shape")

    def __init__(
        self,
        device: Device,
        block: DeviceBlock,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        hang_timeout: float | None,
    ) -> None:
        self._device = device
        self._block: DeviceBlock | None = block
        self._shape = shape
        self._dtype = dtype
        self._hang_timeout = hang_timeout
        live_tensors.add(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """Dims."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type, as a NumPy dtype."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the packed elements."""
        count = self._dtype.itemsize
        for dim in self._shape:
            count *= dim
        return count

    @property
    def device_id(self) -> int:
        """Id of the device that has the memory."""
        return self._device.id

    @property
    def closed(self) -> bool:
        """Whether the tensor is closed."""
        return self._block is None

    async def to_host(self) -> np.ndarray:
        """Copy the tensor to a new array, owned by the caller.

        Works on any event loop. If the await is cancelled, the copy still finishes and its result is dropped.

        Raises
        ------
        ClosedError
            The tensor is closed.
        AclError
            The copy failed.
        DeviceHangError
            The copy was not done within the ``hang_timeout`` of the session that made the tensor. This does not break
            any session.
        """
        device = self._device
        device.process.check_fork()
        how = self._shape, self._dtype, self._hang_timeout
        # The copy and its block have no name here: the traceback of an error holds this frame.
        return await wait_future(device.worker.submit(partial(device.transfers.download, block_of(self), *how)))

    def close(self) -> None:
        """Release the memory; idempotent, never blocks."""
        self._block = None

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse to be copied or pickled: two objects would release the same memory."""
        raise TypeError(
            f"{self!r} cannot be copied or pickled: its memory is on a device and has one owner; "
            "pass the tensor itself within this process, or copy its data with await tensor.to_host()"
        )

    if not TYPE_CHECKING:  # for type checkers a tensor is not array-like

        def __array__(self, dtype: Any = None, copy: bool | None = None) -> NoReturn:
            """Refuse: NumPy would make an object array with one element."""
            raise TypeError(f"{self!r} is not in host memory: use await tensor.to_host()")

    def __repr__(self) -> str:
        state = " closed" if self._block is None else ""
        return f"<Tensor{state} {self._dtype.name}{list(self._shape)} on device {self._device.id}>"


def block_of(tensor: Tensor) -> DeviceBlock:
    """Return the memory of a tensor; for the library's own use. Raises ``ClosedError`` if the tensor is closed."""
    if tensor._block is None:
        raise ClosedError(f"{tensor!r} is closed: its device memory was released; make a new one with to_device()")
    return tensor._block


def device_of(tensor: Tensor) -> Device:
    """Return the opened device of a tensor; for the library's own use."""
    return tensor._device


live_tensors: weakref.WeakSet[Tensor] = weakref.WeakSet()
"""All tensors that are not collected yet; ``finalize`` closes them."""
