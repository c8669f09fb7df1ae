"""The shared library of ONNX Runtime, loaded without the GIL.

``onnxruntime`` is imported when the first model is loaded. Its import blocks the interpreter while
its shared library is loaded, so :func:`preload` loads that first without the GIL.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
from pathlib import Path

from ._quick_exit import skip_destructors_in_children

__all__ = ["preload"]

_preload_lock = threading.Lock()
_preloaded = False


def preload() -> bool:
    """Load ONNX Runtime's shared library without holding the GIL.

    May be called in any thread before the first load; the import that follows is then short.

    Returns
    -------
    bool
        Whether ``onnxruntime`` is installed at all.
    """
    global _preloaded
    skip_destructors_in_children()
    if "onnxruntime" in sys.modules:
        return True
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return False
    with _preload_lock:
        if _preloaded:
            return True
        libraries = sorted((Path(spec.origin).parent / "capi").glob("onnxruntime_pybind11_state*.so"))
        try:
            dlopen = ctypes.CDLL(None).dlopen  # a foreign call releases the GIL
        except (AttributeError, OSError, TypeError):
            return True
        dlopen.argtypes = [ctypes.c_char_p, ctypes.c_int]
        dlopen.restype = ctypes.c_void_p
        for library in libraries:
            dlopen(os.fsencode(library), sys.getdlopenflags())
        _preloaded = True
    return True
