"""Host memory of Python objects that a program handed the address of, and whether the host can touch an address.

``acl.util.bytes_to_ptr(array.tobytes())`` gives the address of an object that nothing else holds. On a device such a
program mostly works, as memory that was just freed mostly keeps its content. Here it works because the emulator
holds the objects for a while: those of the last calls, and no more bytes than ``_MOST_BYTES``. An object that the
program holds itself stays known for as long as that: it costs no memory, and no access goes past its end unseen.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections import OrderedDict
from threading import Lock
from typing import Any

from ._registry import register
from .errors import EmulatorError
from .memory import Places, device_memory, host_memory, is_device_address

__all__ = ["check_host", "check_pageable", "lend"]

_LATEST = 16
"""So many objects are held whatever their size."""

_MOST = 4096
"""Objects known at once, from which the list is cleaned up."""

_MOST_BYTES = 64 << 20
"""Bytes of objects that only the emulator holds."""


class _Lent:
    """An object whose address the program has.

    Parameters
    ----------
    address, size
        Where its bytes are; a size of 0 if that is not known.
    value
        The object.
    """

    __slots__ = ("address", "size", "value")

    def __init__(self, address: int, size: int, value: Any) -> None:
        self.address = address
        self.size = size
        self.value = value

    def is_alone(self) -> bool:
        """Return whether nothing but the emulator holds the object."""
        return sys.getrefcount(self.value) <= 2


class _Table:
    """The objects that were lent, oldest first."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: OrderedDict[int, _Lent] = OrderedDict()
        """By the id of the object."""
        self._places: Places[_Lent] = Places()
        self._bytes = 0
        self._next_sweep = _MOST_BYTES

    def add(self, lent: _Lent) -> None:
        with self._lock:
            key = id(lent.value)
            known = self._known.get(key)
            if known is not None and (known.address, known.size) == (lent.address, lent.size):
                self._known.move_to_end(key)
                return
            if known is not None:
                self._forget(key)
            self._known[key] = lent
            self._bytes += lent.size
            if lent.size:
                self._places.add(lent)
            if self._bytes > self._next_sweep or len(self._known) > _MOST:
                self._sweep()

    def find(self, address: int) -> _Lent | None:
        with self._lock:
            return self._places.around(address)

    def clear(self) -> None:
        with self._lock:
            self._known.clear()
            self._places.clear()
            self._bytes, self._next_sweep = 0, _MOST_BYTES

    def _forget(self, key: int) -> None:
        lent = self._known.pop(key)
        self._bytes -= lent.size
        if lent.size:
            self._places.pop(lent.address)

    def _sweep(self) -> None:
        """Let objects go that only the emulator holds, the oldest first."""
        alone = [(key, lent.size) for key, lent in list(self._known.items())[:-_LATEST] if lent.is_alone()]
        left = sum(size for _, size in alone)
        for number, (key, size) in enumerate(alone):
            if left <= _MOST_BYTES // 2 and len(alone) - number <= _MOST // 2:
                break
            self._forget(key)
            left -= size
        while len(self._known) > 4 * _MOST:  # the program holds them: an access past their end goes unseen
            self._forget(next(iter(self._known)))
        self._next_sweep = self._bytes + _MOST_BYTES // 2


_table = _Table()
register(_table.clear)


def lend(value: Any, address: int, size: int) -> int:
    """Note that a program gets the address of an object; returns the address.

    Parameters
    ----------
    value
        The object that owns the memory.
    address, size
        Where its bytes are; a size of 0 if that is not known.
    """
    _table.add(_Lent(address, size, value))
    return address


def check_pageable(call: str, address: int, size: int) -> None:
    """Check host memory that ACL did not allocate.

    Raises
    ------
    EmulatorError
        It goes past the end of an object whose address the program got here, or the process has no such memory.
    """
    lent = _table.find(address)
    if lent is None:
        if not _is_mapped(address, size):
            raise EmulatorError(
                f"{call}: {size} bytes at {address:#x} are not memory of this process: freed, or never allocated; "
                "keep what an address was taken of"
            )
        return
    room = lent.address + lent.size - address
    if size > room:
        raise EmulatorError(
            f"{call}: {size} bytes at {address:#x} go past the end of {_describe(lent)}, which has {room} from there"
        )


def check_host(call: str, address: int, size: int) -> None:
    """Check memory that the host reads or writes directly.

    Raises
    ------
    EmulatorError
        It is memory of a device, was freed, or goes past the end of its block.
    """
    block = device_memory.find(address)
    if is_device_address(address) or (block is not None and block.address != block.pointer):
        raise EmulatorError(f"{call}: {address:#x} is device memory, which the host cannot touch")
    heap = host_memory if block is None else device_memory
    block = block or host_memory.find(address)
    if block is None:
        past = host_memory.explain(address) or device_memory.explain(address)
        if past is not None:
            raise EmulatorError(f"{call}: {size} bytes at {address:#x} are {past}")
        check_pageable(call, address, size)
    elif address + size > block.address + block.size:
        raise EmulatorError(
            f"{call}: {size} bytes at {address:#x} go past the end of {heap.what} {block.address:#x} "
            f"of {block.size} bytes (offset {address - block.address})"
        )


def _describe(lent: _Lent) -> str:
    return f"the {type(lent.value).__name__} object at {lent.address:#x} of {lent.size} bytes"


def _find_mincore() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        found = ctypes.CDLL(None, use_errno=False).mincore
    except (OSError, AttributeError):
        return None
    found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    found.restype = ctypes.c_int
    return found


_mincore = _find_mincore()
_vector = ctypes.create_string_buffer(4096)
_STRIDE = len(_vector) * mmap.PAGESIZE


def _is_mapped(address: int, size: int) -> bool:
    """Return whether the process has memory at all these addresses; ``True`` where the system does not say."""
    if _mincore is None or size == 0:
        return True
    start = address // mmap.PAGESIZE * mmap.PAGESIZE
    stop = address + size
    if stop > 1 << 63:
        return False
    # The content of the vector is of no interest, so threads may share it.
    return all(_mincore(at, min(_STRIDE, stop - at), _vector) == 0 for at in range(start, stop, _STRIDE))
