"""Copies outside of any request: from arrays to device tensors and back, in the order in which they were asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .._acl.block_pool import BlockPool
from .._acl.library import Library
from .._acl.memory import DeviceBlock, view
from .._acl.release import run_all
from .._acl.stream import Stream
from .._cann.constants import MemcpyKind
from ..errors import AclError, DeviceHangError
from ..summary import MemorySummary

__all__ = ["Transfers"]

_LOOK_S: Final = 0.001
"""How long to check whether an abandoned copy has ended after all."""


@dataclass
class _Bounded:
    """A copy that may be given up, and what the device may still use for it then."""

    stream: Stream
    block: DeviceBlock
    address: int
    nbytes: int
    hang_timeout: float
    is_upload: bool


class Transfers:
    """Moves what belongs to no request; everything on the control thread of its device.

    A copy that takes longer than its ``hang_timeout`` is given up. The stream that it hangs in, and the memory of both
    sides, are set aside until the device is done; copies after it go by another stream.
    """

    def __init__(self, library: Library, alloc: Callable[[int], DeviceBlock], pinned: BlockPool) -> None:
        self._library = library
        self._alloc = alloc
        self._pinned = pinned
        self._stream: Stream | None = None
        self._hung: list[_Bounded] = []

    def open(self) -> None:
        """Make the stream, so that a device without room for one cannot be opened."""
        self._stream = Stream(self._library)

    def upload(self, array: np.ndarray, hang_timeout: float | None) -> DeviceBlock:
        """Copy a C-contiguous array to fresh device memory."""
        block = self._alloc(array.nbytes)
        if not array.nbytes:
            return block
        if self._pinned.is_device:
            np.copyto(view(block.address, array.shape, array.dtype), array)
            return block
        address = self._pinned.acquire(array.nbytes)
        try:
            np.copyto(view(address, array.shape, array.dtype), array)
            self._copy(block, address, array.nbytes, MemcpyKind.HOST_TO_DEVICE, hang_timeout)
        finally:
            self._release(address, array.nbytes)
        return block

    def download(
        self, block: DeviceBlock, shape: tuple[int, ...], dtype: np.dtype[Any], hang_timeout: float | None
    ) -> np.ndarray:
        """Copy device memory to a fresh array."""
        array = np.empty(shape, dtype)
        if not array.nbytes:
            return array
        if self._pinned.is_device:
            np.copyto(array, view(block.address, shape, dtype))
            return array
        address = self._pinned.acquire(array.nbytes)
        try:
            self._copy(block, address, array.nbytes, MemcpyKind.DEVICE_TO_HOST, hang_timeout)
            np.copyto(array, view(address, shape, dtype))
        finally:
            self._release(address, array.nbytes)
        return array

    def reap(self, seconds: float = _LOOK_S) -> None:
        """Release what was set aside, if the device is done with it by now.

        Parameters
        ----------
        seconds
            How long to wait for each at most; never longer than its copy was waited for.
        """
        hung, self._hung = self._hung, []
        for one in hung:
            try:
                one.stream.synchronize_within(min(seconds, one.hang_timeout))
            except DeviceHangError:
                self._hung.append(one)
                continue
            except AclError:
                pass  # the failure of an abandoned copy, for which no caller waits; the stream is done with it
            self._pinned.release(one.address, one.nbytes)
            # What was to be uploaded has no tensor; the rest is that of a tensor, which may be alive.
            run_all([one.block.close, one.stream.close] if one.is_upload else [one.stream.close])

    def close(self) -> None:
        """Destroy the stream; nothing may be set aside."""
        if self._stream is not None:
            self._stream.close()

    def _copy(
        self, block: DeviceBlock, address: int, nbytes: int, kind: MemcpyKind, hang_timeout: float | None
    ) -> None:
        if self._stream is None:  # the one before hangs
            self.open()
        stream = self._stream
        assert stream is not None
        ends = (block.address, address) if kind is MemcpyKind.HOST_TO_DEVICE else (address, block.address)
        started = time.perf_counter()
        stream.copy(ends[0], nbytes, ends[1], nbytes, kind)
        if hang_timeout is None:
            stream.synchronize()
        else:
            self._wait(_Bounded(stream, block, address, nbytes, hang_timeout, kind is MemcpyKind.HOST_TO_DEVICE))
        MemorySummary.record((time.perf_counter() - started) * 1e3, kind is MemcpyKind.HOST_TO_DEVICE)

    def _wait(self, copy: _Bounded) -> None:
        """Wait for a copy; set it aside where it hangs."""
        try:
            copy.stream.synchronize_within(copy.hang_timeout)
        except DeviceHangError:
            self._hung.append(copy)
            self._stream = None
            raise

    def _release(self, address: int, nbytes: int) -> None:
        if not any(one.address == address for one in self._hung):
            self._pinned.release(address, nbytes)
