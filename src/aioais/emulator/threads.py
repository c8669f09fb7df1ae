"""How many threads ONNX Runtime computes a model with."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

__all__ = ["SMALL", "cores", "is_small_file"]

SMALL = 256 << 10
"""Bytes of a model file, or of its inputs and outputs together, up to which one thread is enough.

Waking a second one takes longer than such a model."""


@cache
def cores() -> int:
    """Count the physical cores that this process may use.

    ONNX Runtime's own default counts them too, but it also pins one thread to each: those of several
    devices would then share cores while others are idle.
    """
    try:
        usable = os.sched_getaffinity(0)
    except AttributeError:  # not on this system
        return os.cpu_count() or 1
    places = set()
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            places.add(siblings.read_text(encoding="ascii"))
        except OSError:
            return len(usable)
    return len(places)


def is_small_file(source: str | bytes) -> bool:
    """Whether an ONNX model, with its weights, is small.

    Parameters
    ----------
    source
        Path or content.
    """
    if isinstance(source, str):
        if os.path.getsize(source) > SMALL:
            return False
        source = Path(source).read_bytes()
    return len(source) <= SMALL and b"location" not in source  # the key of external weights
