"""How many threads ONNX Runtime computes a model with."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["Weights", "cores", "is_brief", "weigh"]

_BRIEF = ((256 << 10, 256 << 10), (4 << 20, 8 << 10))
"""Bytes of a model file, and those of its inputs and outputs together, up to which one thread is enough.

Waking a second one takes longer than such a run: few weights are used, or each of them a few times."""

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


class Weights(NamedTuple):
    """What is known of the weights of a model that is not large."""

    nbytes: int
    """Of its file."""
    has_convolutions: bool


def weigh(source: str | bytes) -> Weights | None:
    """Look at the weights of an ONNX model.

    Parameters
    ----------
    source
        Path or content.

    Returns
    -------
    Weights or None
        ``None`` where no run of it is brief: the model is large, or has weights in other files.
    """
    largest = max(nbytes for nbytes, _ in _BRIEF)
    if isinstance(source, str):
        if os.path.getsize(source) > largest:
            return None
        source = Path(source).read_bytes()
    if len(source) > largest or b"location" in source:  # the key of external weights
        return None
    return Weights(len(source), b"Conv" in source)


def is_brief(weights: Weights, shapes: Sequence[Sequence[int]], nbytes: int) -> bool:
    """Whether a run is so brief that one thread is enough.

    Parameters
    ----------
    weights
        Of the model.
    shapes
        Of its inputs, all dims known.
    nbytes
        Of its inputs and outputs, as far as they are known.
    """
    if not any(weights.nbytes <= most and nbytes <= io for most, io in _BRIEF):
        return False
    if not weights.has_convolutions:
        return True
    # A convolution uses its weights at every position of an image, so a few of them can keep a core busy for long.
    # Channels may come first or last; they are the fewest.
    images = [shape for shape in shapes if len(shape) > 3 and all(shape)]
    positions = max((math.prod(shape) // min(shape[1:]) for shape in images), default=0)
    return weights.nbytes // 4 * positions < _MUCH_WORK
