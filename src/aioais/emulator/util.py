"""``acl.util``: bytes, arrays and threads.

Facts: pyACL's C extension source (error texts, what is a copy and what a view).
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
import traceback
import warnings
from typing import Any

import numpy as np

from ._args import NONE, SINGLE, VALUE, entry
from .lent import check_host, lend
from .memory import address_of

__all__: list[str] = []

_as_string = ctypes.pythonapi.PyBytes_AsString
_as_string.argtypes = [ctypes.py_object]
_as_string.restype = ctypes.c_void_p

_to_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize  # ctypes.string_at takes a 32-bit size
_to_bytes.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t]
_to_bytes.restype = ctypes.py_object

_NUMPY_TYPES = {
    0: "bool",
    1: "int8",
    2: "uint8",
    3: "int16",
    4: "uint16",
    5: "int32",
    6: "uint32",
    7: "int64",
    8: "uint64",
    11: "float32",
    12: "float64",
    23: "float16",
}


def _deprecated(name: str) -> None:
    warnings.warn(f"acl.util.{name} is deprecated: use bytes_to_ptr and ptr_to_bytes", Warning, stacklevel=4)


def _lend_array(array: np.ndarray[Any, Any]) -> int:
    """Note whose memory the program gets: that of the array at the end of the views."""
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    if owner.flags.owndata:
        lend(owner, address_of(owner), owner.nbytes)
    else:
        lend(array, address_of(array), 0)  # what is behind it may be larger than the array
    return address_of(array)


@entry("acl.util.bytes_to_ptr", "O", answer=SINGLE)
def bytes_to_ptr(value: Any) -> int:
    """Return the address inside a ``bytes`` object, which must be kept alive."""
    if not isinstance(value, bytes):
        raise ValueError("needs an byte as argument")
    return lend(value, int(_as_string(value)), len(value))


@entry("acl.util.ptr_to_bytes", "kk", answer=NONE)
def ptr_to_bytes(pointer: int, size: int) -> bytes:
    """Copy host memory."""
    if size >= 2**63 - 64:
        raise ValueError("size is negative or absurd")
    if pointer == 0:
        return bytes(size)
    if size >= 2**47:
        raise MemoryError  # more than a process can address
    check_host("ptr_to_bytes", pointer, size)
    copied: bytes = _to_bytes(pointer, size)
    return copied


@entry("acl.util.numpy_to_ptr", "O", answer=SINGLE)
def numpy_to_ptr(array: Any) -> int:
    """Return the address of an array's data, which must be kept alive."""
    if not isinstance(array, np.ndarray):
        raise TypeError("acl.util.numpy_to_ptr args parse failed")
    _deprecated("numpy_to_ptr")
    if not array.flags.c_contiguous:
        warnings.warn("the array is not C-contiguous", Warning, stacklevel=3)
    return _lend_array(array)


@entry("acl.util.numpy_contiguous_to_ptr", "O", answer=lambda code: (0, None))
def numpy_contiguous_to_ptr(array: Any) -> tuple[int, Any]:
    """Return address and array, contiguous."""
    if not isinstance(array, np.ndarray):
        raise TypeError("acl.util.numpy_contiguous_to_ptr args parse failed")
    _deprecated("numpy_contiguous_to_ptr")
    contiguous = np.ascontiguousarray(array) if array.ndim else array
    return _lend_array(contiguous), contiguous


@entry("acl.util.ptr_to_numpy", "kOi", answer=lambda code: None)
def ptr_to_numpy(pointer: int, shape: Any, number: int) -> Any:
    """Return a view of host memory; ``number`` is NumPy's type number, not ACL's."""
    _deprecated("ptr_to_numpy")
    if not isinstance(shape, tuple):
        raise ValueError("shape is empty")
    if not all(isinstance(dim, int) for dim in shape):
        raise TypeError("acl.util.ptr_to_numpy args parse failed")
    name = _NUMPY_TYPES.get(number)
    if name is None:
        raise TypeError("acl.util.ptr_to_numpy args parse failed")
    dtype = np.dtype(name)
    if pointer == 0:
        return np.empty(shape, dtype)
    size = math.prod(shape) * dtype.itemsize
    check_host("ptr_to_numpy", pointer, size)
    memory = memoryview((ctypes.c_char * size).from_address(pointer)).cast("B")
    return np.frombuffer(memory, dtype).reshape(shape)


_threads: dict[int, tuple[threading.Thread, list[BaseException]]] = {}


@entry("acl.util.start_thread", "OO", answer=VALUE, text="function takes exactly 2 arguments ({count} given)")
def start_thread(function: Any, argument: Any) -> tuple[int, int]:
    """Start a thread that runs ``function(argument)``, or ``function()`` for ``None``."""
    if not callable(function):
        raise TypeError("parameter must be callable")
    escaped: list[BaseException] = []

    def work() -> None:
        try:
            if argument is None:
                function()
            else:
                function(argument)
        except BaseException as exc:  # noqa: BLE001 - SystemExit too: stop_thread tells the caller
            traceback.print_exc(file=sys.stderr)
            escaped.append(exc)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert thread.ident is not None
    _threads[thread.ident] = (thread, escaped)
    return thread.ident, 0


@entry("acl.util.stop_thread", "K")
def stop_thread(thread_id: int) -> int:
    """Wait for a thread's end; raise what escaped it."""
    found = _threads.pop(thread_id, None)
    if found is None:
        return 3  # ESRCH
    thread, escaped = found
    thread.join()
    if escaped:
        raise RuntimeError(f"exception={type(escaped[0]).__name__},msg=thread call failed;")
    return 0
