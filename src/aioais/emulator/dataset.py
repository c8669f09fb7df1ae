"""Data buffers and datasets: which memory a model reads and writes.

Facts: pyACL reference, Huawei's dataset pages. Both are plain objects; a dataset keeps copies of
the tensor descriptions given to it and, for gear models, the gear last set on it.
"""

from __future__ import annotations

from .._cann.codes import AclCode
from ._args import SINGLE, VALUE, entry
from ._registry import handles, table
from ._state import report
from .errors import EmulatorError
from .tensor_desc import TensorDesc, tensor_descs
from .tensor_desc import find as find_tensor_desc

__all__ = ["DataBuffer", "Dataset", "data_buffers", "datasets", "find", "find_buffer"]


class DataBuffer:
    """An address and a size.

    Parameters
    ----------
    address, size
        The memory; both may be 0.
    """

    __slots__ = ("address", "datasets", "handle", "is_alive", "size")

    def __init__(self, address: int, size: int) -> None:
        self.address: int = address
        self.size: int = size
        self.is_alive: bool = True
        self.datasets: list[Dataset] = []
        self.handle: int = next(handles)
        data_buffers[self.handle] = self

    def point(self, address: int, size: int) -> None:
        """Point to other memory."""
        self.address = address
        self.size = size
        for dataset in self.datasets:
            dataset.version += 1


class Dataset:
    """An ordered list of data buffers."""

    __slots__ = ("buffers", "descs", "gear", "handle", "version")

    def __init__(self) -> None:
        self.buffers: list[DataBuffer] = []
        self.descs: dict[int, TensorDesc] = {}
        self.gear: tuple[int, ...] | None = None
        self.version: int = 0
        """Changes with everything that affects an execution."""
        self.handle: int = next(handles)
        datasets[self.handle] = self

    def describe(self, index: int, desc: TensorDesc | None) -> None:
        """Replace the dataset's own description of one buffer."""
        old = self.descs.pop(index, None)
        if old is not None:
            tensor_descs.pop(old.handle, None)
        if desc is not None:
            self.descs[index] = desc


data_buffers: dict[int, DataBuffer] = table("data_buffers")
datasets: dict[int, Dataset] = table("datasets")


def find_buffer(handle: int) -> DataBuffer | None:
    """Return a data buffer by handle; ``None`` for 0.

    Raises
    ------
    EmulatorError
        The handle is stale or was never valid.
    """
    buffer = data_buffers.get(handle)
    if buffer is None and handle != 0:
        raise EmulatorError(f"{handle:#x} is not a data buffer: destroyed, or never created")
    return buffer


def find(handle: int) -> Dataset | None:
    """Return a dataset by handle; ``None`` for 0.

    Raises
    ------
    EmulatorError
        The handle is stale or was never valid.
    """
    dataset = datasets.get(handle)
    if dataset is None and handle != 0:
        raise EmulatorError(f"{handle:#x} is not a dataset: destroyed, or never created")
    return dataset


@entry("acl.create_data_buffer", "kk", answer=SINGLE)
def create_data_buffer(address: int, size: int) -> int:
    """Create a data buffer; it only records the pair."""
    return DataBuffer(address, size).handle


@entry("acl.get_data_buffer_addr", "k", answer=SINGLE, hot=True)
def get_data_buffer_addr(handle: int) -> int:
    """Return the address."""
    buffer = data_buffers.get(handle) or find_buffer(handle)
    return 0 if buffer is None else buffer.address


@entry("acl.get_data_buffer_size_v2", "k", answer=SINGLE, hot=True)
def get_data_buffer_size_v2(handle: int) -> int:
    """Return the size."""
    buffer = data_buffers.get(handle) or find_buffer(handle)
    return 0 if buffer is None else buffer.size


@entry("acl.get_data_buffer_size", "k", answer=SINGLE)
def get_data_buffer_size(handle: int) -> int:
    """Return the size in 32 bits."""
    buffer = find_buffer(handle)
    return 0 if buffer is None else buffer.size & 0xFFFFFFFF


@entry("acl.update_data_buffer", "kkk", hot=True)
def update_data_buffer(handle: int, address: int, size: int) -> int:
    """Point a data buffer to other memory."""
    buffer = find_buffer(handle)
    if buffer is None:
        return report(AclCode.INVALID_PARAM, "update_data_buffer of 0")
    buffer.point(address, size)
    return 0


@entry("acl.destroy_data_buffer", "k")
def destroy_data_buffer(handle: int) -> int:
    """Destroy a data buffer, not its memory."""
    buffer = find_buffer(handle)
    if buffer is None:
        return report(AclCode.INVALID_PARAM, "destroy_data_buffer of 0")
    buffer.is_alive = False
    for dataset in buffer.datasets:
        dataset.version += 1
    del data_buffers[handle]
    return 0


@entry("acl.mdl.create_dataset", answer=SINGLE)
def create_dataset() -> int:
    """Create an empty dataset."""
    return Dataset().handle


@entry("acl.mdl.add_dataset_buffer", "kk", answer=VALUE)
def add_dataset_buffer(handle: int, buffer_handle: int) -> tuple[int, int]:
    """Append a data buffer; the dataset is returned before the code."""
    dataset = find(handle)
    buffer = find_buffer(buffer_handle)
    if dataset is None or buffer is None:
        return handle, report(AclCode.INVALID_PARAM, "add_dataset_buffer: null dataset or data buffer")
    dataset.buffers.append(buffer)
    dataset.version += 1
    buffer.datasets.append(dataset)
    return handle, 0


@entry("acl.mdl.get_dataset_num_buffers", "k", answer=SINGLE)
def get_dataset_num_buffers(handle: int) -> int:
    """Count the data buffers."""
    dataset = find(handle)
    return 0 if dataset is None else len(dataset.buffers)


@entry("acl.mdl.get_dataset_buffer", "kk", answer=SINGLE)
def get_dataset_buffer(handle: int, index: int) -> int:
    """Return a data buffer by index."""
    dataset = find(handle)
    return 0 if dataset is None or index >= len(dataset.buffers) else dataset.buffers[index].handle


@entry("acl.mdl.destroy_dataset", "k")
def destroy_dataset(handle: int) -> int:
    """Destroy a dataset and its tensor descriptions, neither buffers nor memory."""
    dataset = find(handle)
    if dataset is None:
        return report(AclCode.INVALID_PARAM, "destroy_dataset of 0")
    for index in list(dataset.descs):
        dataset.describe(index, None)
    for buffer in dataset.buffers:
        if dataset in buffer.datasets:
            buffer.datasets.remove(dataset)
    dataset.version += 1  # plans must not find it valid any more
    del datasets[handle]
    return 0


@entry("acl.mdl.set_dataset_tensor_desc", "kkk", answer=VALUE, hot=True)
def set_dataset_tensor_desc(handle: int, desc_handle: int, index: int) -> tuple[int, int]:
    """Copy a tensor description to one buffer of a dataset; 0 clears it."""
    dataset = find(handle)
    if dataset is None:
        return handle, report(AclCode.INVALID_PARAM, "set_dataset_tensor_desc: null dataset")
    desc = find_tensor_desc(desc_handle)
    if index >= len(dataset.buffers):
        text = f"set_dataset_tensor_desc: index {index} of {len(dataset.buffers)} buffers"
        return handle, report(AclCode.INVALID_PARAM, text)
    copied = None if desc is None else TensorDesc(desc.dtype, desc.dims, desc.fmt, owned=True)
    dataset.describe(index, copied)
    dataset.version += 1
    return handle, 0


@entry("acl.mdl.get_dataset_tensor_desc", "kk", answer=SINGLE, hot=True)
def get_dataset_tensor_desc(handle: int, index: int) -> int:
    """Return the dataset's own description of one buffer; the dataset keeps it."""
    dataset = find(handle)
    desc = None if dataset is None else dataset.descs.get(index)
    return 0 if desc is None else desc.handle
