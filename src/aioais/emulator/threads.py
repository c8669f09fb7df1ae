"""How many threads ONNX Runtime computes a model with."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

__all__ = ["SMALL", "convolves_much", "cores", "is_small_file"]

SMALL = 256 << 10
"""Bytes of a model file, or of its inputs and outputs together, up to which one thread is enough.

Waking a second one takes longer than such a model."""

_MUCH_WORK = 50_000_000
"""Products of a weight and a position, at most as many as multiplications, from which a second thread helps."""


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


def convolves_much(source: str | bytes, shapes: Sequence[Sequence[int]]) -> bool:
    """Whether a small model has convolutions that are worth a second thread.

    A convolution uses its weights at every position of an image, so a few of them can keep a core busy for long.

    Parameters
    ----------
    source
        Path or content.
    shapes
        Shapes of the inputs, all dims known.
    """
    content = Path(source).read_bytes() if isinstance(source, str) else source
    if b"Conv" not in content:
        return False
    # Channels may come first or last; they are the fewest.
    positions = max(
        (math.prod(shape) // min(shape[1:]) for shape in shapes if len(shape) > 2 and all(shape)), default=0
    )
    return len(content) // 4 * positions >= _MUCH_WORK
