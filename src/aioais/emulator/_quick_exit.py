"""Ending a process without the destructors of ONNX Runtime, where they would hang or abort.

They join threads. In a forked child these threads do not exist (ONNX Runtime 1.31 starts one at import), so the child
would wait for ever; and a model that still runs when the process ends aborts it ("terminate called without an active
exception"), by the destructors or when its thread comes back to Python. What Python itself does at the end, and
flushing the streams of C, are done before.
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_for_good", "rest_instead_of_abort", "skip_destructors", "skip_destructors_in_children"]

_is_registered = False


def skip_destructors() -> None:
    """End this process, when it ends, by ``_exit`` with its status; nothing happens where libc cannot do that."""
    try:
        libc = ctypes.CDLL(None)
        on_exit, on_end, leave, flush = libc.on_exit, libc.__cxa_atexit, libc._exit, libc.fcloseall
    except (OSError, AttributeError, TypeError):  # neither glibc nor like it
        return
    # The last registered runs first: before the destructors, which were registered when the library was loaded.
    on_exit(ctypes.cast(leave, ctypes.c_void_p), None)
    on_end(ctypes.cast(flush, ctypes.c_void_p), None, None)


def rest_instead_of_abort() -> None:
    """Have a thread that would abort the process from now on rest instead, until the process ends.

    Before 3.14 Python ends a daemon thread that comes back to it while Python itself ends, by unwinding its stack. A
    frame of C++ that must not be unwound, as ONNX Runtime has, aborts the process then.
    """
    try:
        set_handler = ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE
        pause = ctypes.CDLL(None).pause
    except (OSError, AttributeError, TypeError):
        return
    set_handler(ctypes.cast(pause, ctypes.c_void_p))


def skip_destructors_in_children() -> None:
    """Do so in every child that is forked from now on."""
    global _is_registered
    if not _is_registered and hasattr(os, "register_at_fork"):
        _is_registered = True
        os.register_at_fork(after_in_child=skip_destructors)


def keep_for_good(thing: object) -> None:
    """Keep an object from being destroyed while Python ends: a thread without the interpreter lock still uses it."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
