"""Device tensors: results that stay on the device, and feeds that are there already."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NoReturn, final

import numpy as np

from ._acl.memory import DeviceBlock
from ._bridge.offload import wait_future
from ._device.device import Device
from .errors import ClosedError

__all__ = ["Tensor"]


@final
class Tensor:
    """Memory on a device, with shape and type.

    Made by ``infer(..., out_array=False)`` and ``to_device``, never directly. It can feed any
    session on its device, and keeps its memory for as long as it lives, past the session that
    made it. The memory is freed on :meth:`close` or when the tensor is collected; requests in
    flight that use it keep it until they are done.
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
        """Element type, as NumPy's."""
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
        """The device that has the memory."""
        return self._device.id

    @property
    def closed(self) -> bool:
        """Whether the memory was given up."""
        return self._block is None

    async def to_host(self) -> np.ndarray:
        """Copy the tensor to a fresh array, owned by the caller.

        Works on any event loop. Cancelled: the copy ends unseen.

        Raises
        ------
        ClosedError
            The tensor is closed.
        AclError
            The copy failed.
        DeviceHangError
            It was not done within the ``hang_timeout`` of the session that made the tensor. No session breaks of it.
        """
        device, block = self._device, self.block
        device.process.check_fork()

        def copy() -> np.ndarray:
            return device.transfers.download(block, self._shape, self._dtype, self._hang_timeout)

        return await wait_future(device.worker.submit(copy))

    def close(self) -> None:
        """Give the memory up; idempotent, never blocks."""
        self._block = None

    @property
    def block(self) -> DeviceBlock:
        """The memory itself, for the library's own use; raises ``ClosedError`` when closed."""
        if self._block is None:
            raise ClosedError(f"{self!r} is closed: its device memory was given up; make a new one with to_device()")
        return self._block

    @property
    def device(self) -> Device:
        """The opened device, for the library's own use."""
        return self._device

    if not TYPE_CHECKING:  # type checkers are not to take it for something that NumPy takes

        def __array__(self, dtype: Any = None, copy: bool | None = None) -> NoReturn:
            """Refuse: NumPy would make an array of one object of it."""
            raise TypeError(f"{self!r} is no array in host memory: use await tensor.to_host()")

    def __repr__(self) -> str:
        state = " closed" if self._block is None else ""
        return f"<Tensor{state} {self._dtype.name}{list(self._shape)} on device {self._device.id}>"


live_tensors: weakref.WeakSet[Tensor] = weakref.WeakSet()
"""Every tensor that was not collected yet; ``finalize`` closes them."""
