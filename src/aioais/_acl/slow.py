"""The calls that can block for long, made without the GIL where that is possible.

pyACL holds the GIL in all calls but the synchronise calls (seen in the source of its extension), so a model load or
``set_device`` through it stops every Python thread, the event loop's included. The same C functions of
``libascendcl.so``, called through :mod:`ctypes`, release the GIL. Handles and addresses are plain numbers in both, so
calls of the two kinds can be mixed.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import logging
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from typing import TYPE_CHECKING, Any, cast

from .._cann.constants import MAX_DIMS

if TYPE_CHECKING:
    from .api import Acl

__all__ = ["SlowCalls"]

_log = logging.getLogger("aioais")
_CDLL_NAME = "libascendcl.so"


class _IODims(ctypes.Structure):
    """``aclmdlIODims`` of ``acl/acl_mdl.h``."""

    _fields_ = [
        ("name", ctypes.c_char * 128),
        ("dim_count", c_size_t),
        ("dims", ctypes.c_int64 * MAX_DIMS),
    ]


class SlowCalls:
    """The blocking calls, each with pyACL's own signature and order of results.

    Parameters
    ----------
    acl
        The module to use if the C library cannot be opened.
    """

    def __init__(self, acl: Acl) -> None:
        rt, mdl = acl.rt, acl.mdl
        self.init: Callable[[str], int] = acl.init
        self.finalize: Callable[[], int] = acl.finalize
        # Older releases lack it: they do not count how often ACL was started.
        self.finalize_reference: Callable[[], tuple[int, int]] | None = getattr(acl, "finalize_reference", None)
        self.set_device: Callable[[int], int] = rt.set_device
        self.reset_device: Callable[[int], int] = rt.reset_device
        self.create_context: Callable[[int], tuple[int, int]] = rt.create_context
        self.destroy_context: Callable[[int], int] = rt.destroy_context
        self.destroy_stream: Callable[[int], int] = rt.destroy_stream
        self.synchronize_stream: Callable[[int], int] = rt.synchronize_stream
        # Older releases lack it: see ``Library.has_stream_timeout``.
        self.synchronize_stream_with_timeout: Callable[[int, int], int] = getattr(
            rt, "synchronize_stream_with_timeout", _missing
        )
        self.malloc: Callable[[int, int], tuple[int, int]] = rt.malloc
        self.free: Callable[[int], int] = rt.free
        self.malloc_host: Callable[[int], tuple[int, int]] = rt.malloc_host
        self.free_host: Callable[[int], int] = rt.free_host
        self.load_from_file: Callable[[str], tuple[int, int]] = mdl.load_from_file
        self.unload: Callable[[int], int] = mdl.unload
        self.execute: Callable[[int, int, int], int] = mdl.execute
        self.execute_async: Callable[[int, int, int, int], int] = mdl.execute_async
        self.set_dynamic_batch_size: Callable[[int, int, int, int], int] = mdl.set_dynamic_batch_size
        self.set_dynamic_hw_size: Callable[[int, int, int, int, int], int] = mdl.set_dynamic_hw_size
        self.set_input_dynamic_dims: Callable[[int, int, int, dict[str, Any]], int] = mdl.set_input_dynamic_dims
        file = _extension_file(acl)
        if file is None:
            return
        failures = []
        for name in (_CDLL_NAME, file):  # opening the module also searches the libraries that it is linked with
            try:
                self._use(ctypes.CDLL(name))
            except (OSError, AttributeError) as exc:
                failures.append(str(exc))
            else:
                return
        _log.warning(
            "%s cannot be used (%s): model loads, device start-up and waits go through pyACL, which holds the GIL and "
            "may stop the event loop; source CANN's set_env.sh to fix it",
            _CDLL_NAME,
            "; ".join(failures),
        )

    def _use(self, lib: ctypes.CDLL) -> None:  # pragma: no cover - only tests/rig has the library of a CANN
        """Replace the calls by those of the C library; argument types are those of its public headers."""

        def simple(name: str, *types: Any) -> Callable[..., int]:
            function = getattr(lib, name)
            function.argtypes = types
            function.restype = c_int32
            return cast("Callable[..., int]", function)

        self.finalize = simple("aclFinalize")
        if self.finalize_reference is not None:
            release = simple("aclFinalizeReference", POINTER(c_uint64))

            def finalize_reference() -> tuple[int, int]:
                left = c_uint64()
                ret = release(byref(left))
                return left.value, ret

            self.finalize_reference = finalize_reference
        self.set_device = simple("aclrtSetDevice", c_int32)
        self.reset_device = simple("aclrtResetDevice", c_int32)
        self.destroy_context = simple("aclrtDestroyContext", c_void_p)
        self.destroy_stream = simple("aclrtDestroyStream", c_void_p)
        self.synchronize_stream = simple("aclrtSynchronizeStream", c_void_p)
        if self.synchronize_stream_with_timeout is not _missing:
            self.synchronize_stream_with_timeout = simple("aclrtSynchronizeStreamWithTimeout", c_void_p, c_int32)
        self.free = simple("aclrtFree", c_void_p)
        self.free_host = simple("aclrtFreeHost", c_void_p)
        self.unload = simple("aclmdlUnload", c_uint32)
        self.execute = simple("aclmdlExecute", c_uint32, c_void_p, c_void_p)
        self.execute_async = simple("aclmdlExecuteAsync", c_uint32, c_void_p, c_void_p, c_void_p)
        self.set_dynamic_batch_size = simple("aclmdlSetDynamicBatchSize", c_uint32, c_void_p, c_size_t, c_uint64)
        self.set_dynamic_hw_size = simple("aclmdlSetDynamicHWSize", c_uint32, c_void_p, c_size_t, c_uint64, c_uint64)

        init = simple("aclInit", c_char_p)

        def start(config: str) -> int:
            return init(config.encode() or None)

        self.init = start

        create_context = simple("aclrtCreateContext", POINTER(c_void_p), c_int32)

        def new_context(device: int) -> tuple[int, int]:
            handle = c_void_p()
            ret = create_context(byref(handle), device)
            return handle.value or 0, ret

        self.create_context = new_context

        malloc = simple("aclrtMalloc", POINTER(c_void_p), c_size_t, c_int32)

        def new_device_memory(size: int, policy: int) -> tuple[int, int]:
            address = c_void_p()
            ret = malloc(byref(address), size, policy)
            return address.value or 0, ret

        self.malloc = new_device_memory

        malloc_host = simple("aclrtMallocHost", POINTER(c_void_p), c_size_t)

        def new_host_memory(size: int) -> tuple[int, int]:
            address = c_void_p()
            ret = malloc_host(byref(address), size)
            return address.value or 0, ret

        self.malloc_host = new_host_memory

        load = simple("aclmdlLoadFromFile", c_char_p, POINTER(c_uint32))

        def load_model(path: str) -> tuple[int, int]:
            model = c_uint32()
            ret = load(path.encode(), byref(model))
            return model.value, ret

        self.load_from_file = load_model

        set_dims = simple("aclmdlSetInputDynamicDims", c_uint32, c_void_p, c_size_t, POINTER(_IODims))

        def set_input_dims(model: int, dataset: int, index: int, dims: dict[str, Any]) -> int:
            values = dims["dims"]
            record = _IODims(dim_count=len(values), dims=(ctypes.c_int64 * MAX_DIMS)(*values))
            return set_dims(model, dataset, index, byref(record))

        self.set_input_dynamic_dims = set_input_dims


def _missing(stream: int, milliseconds: int) -> int:
    raise NotImplementedError("this release of ACL has no acl.rt.synchronize_stream_with_timeout")


def _extension_file(acl: Acl) -> str | None:
    """Return the file of CANN's extension module; ``None`` for an emulation in Python.

    Handles of an emulation must not be passed to ``libascendcl.so``, which may be installed on the same machine.
    """
    file = getattr(acl, "__file__", None) or ""
    return file if file.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES)) else None
