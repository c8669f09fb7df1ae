"""Datasets: the buffers that a model reads from and writes to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from ..types import DataType, Format
from .library import Library
from .release import run_all

__all__ = ["Dataset"]

_UNKNOWN_RANK = 128
"""``ACL_MAX_DIM_CNT``: no tensor has more dims, so a larger answer means that the rank is unknown."""


class Dataset:
    """A dataset with one data buffer per tensor, in the model's index order.

    It owns the descriptors, not the memory that they point to.

    Parameters
    ----------
    library
        The ACL in use.
    buffers
        ``(address, nbytes)`` of each tensor; ``(0, 0)`` leaves an output for ACL to allocate in a
        synchronous execute.
    on_change
        Called each time one of them has changed.

    Attributes
    ----------
    gear
        Of an input dataset: the gear that was set last, ``None`` if that is unknown.
    """

    __slots__ = ("_bound", "_buffers", "_library", "_on_change", "gear", "handle")

    def __init__(self, library: Library, buffers: Iterable[tuple[int, int]], on_change: Callable[[], None]) -> None:
        acl = library.acl
        self._library = library
        self._buffers: list[int] = []
        self._bound: list[tuple[int, int]] = []
        self._on_change = on_change
        self.gear: tuple[int, ...] | None = None
        self.handle: int = library.handle("acl.mdl.create_dataset", acl.mdl.create_dataset())
        try:
            for address, nbytes in buffers:
                buffer = library.handle("acl.create_data_buffer", acl.create_data_buffer(address, nbytes))
                self._buffers.append(buffer)
                self._bound.append((address, nbytes))
                library.value("acl.mdl.add_dataset_buffer", acl.mdl.add_dataset_buffer(self.handle, buffer))
        except BaseException:
            self.close()
            raise

    @property
    def bound(self) -> tuple[tuple[int, int], ...]:
        """Address and size of the memory of each tensor."""
        return tuple(self._bound)

    def bind(self, index: int, address: int, nbytes: int) -> None:
        """Point tensor ``index`` to other memory; makes no call if the memory is the same."""
        if self._bound[index] == (address, nbytes):
            return
        library = self._library
        library.check(
            "acl.update_data_buffer",
            library.acl.update_data_buffer(self._buffers[index], address, nbytes),
        )
        self._bound[index] = (address, nbytes)
        self._on_change()

    def allocated(self, index: int) -> tuple[int, int]:
        """Return address and size of the memory that ACL allocated for a ``(0, 0)`` output."""
        acl, buffer = self._library.acl, self._buffers[index]
        bound = acl.get_data_buffer_addr(buffer), acl.get_data_buffer_size_v2(buffer)
        self._bound[index] = bound
        self._on_change()
        return bound

    def describe(self, index: int, dtype: DataType, fmt: Format, shape: Sequence[int]) -> None:
        """Set the shape of input ``index`` for a dynamic-shape model (ACL copies the description)."""
        library, acl = self._library, self._library.acl
        desc = library.handle("acl.create_tensor_desc", acl.create_tensor_desc(int(dtype), list(shape), int(fmt)))
        try:
            library.value(
                "acl.mdl.set_dataset_tensor_desc",
                acl.mdl.set_dataset_tensor_desc(self.handle, desc, index),
            )
        finally:
            acl.destroy_tensor_desc(desc)

    def shape(self, index: int) -> tuple[int, ...] | None:
        """Return the shape that a dynamic-shape run gave output ``index``; ``None`` if ACL reports none."""
        library, acl = self._library, self._library.acl
        desc = acl.mdl.get_dataset_tensor_desc(self.handle, index)
        if not desc:
            return None
        rank = acl.get_tensor_desc_num_dims(desc)
        if rank > _UNKNOWN_RANK:
            return None
        dims = []
        for i in range(rank):
            dim, code = acl.get_tensor_desc_dim_v2(desc, i)
            if code:
                raise library.error("acl.get_tensor_desc_dim_v2", code)
            if dim < 0:
                return None
            dims.append(dim)
        return tuple(dims)

    def close(self) -> None:
        """Destroy descriptors and dataset; idempotent."""
        acl = self._library.acl
        buffers, self._buffers = self._buffers, []
        handle, self.handle = self.handle, 0
        steps = [partial(self._destroy, "acl.destroy_data_buffer", acl.destroy_data_buffer, b) for b in buffers]
        if handle:
            steps.append(partial(self._destroy, "acl.mdl.destroy_dataset", acl.mdl.destroy_dataset, handle))
        run_all(steps)

    def _destroy(self, call: str, function: Callable[[int], int], handle: int) -> None:
        self._library.check(call, function(handle))
