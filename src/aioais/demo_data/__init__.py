"""Models and images of ``aioais demo`` and the examples: handwritten digits, and an addition.

The images are the UCI test digits that were not used to train the network. ``LICENSE.md`` in this folder names their
source. ``tools/train_digits.py`` and ``tools/make_add_model.py`` in the repository made the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["ADD_MODEL", "DIGITS_MODEL", "load_digits"]

ADD_MODEL: Final = Path(__file__).with_name("add.onnx")
"""An ONNX file that computes ``output = input1 + input2``, float32 of shape (n, 3, h, w) with n, h and w open."""

DIGITS_MODEL: Final = Path(__file__).with_name("digits.onnx")
"""An ONNX file. Input ``image``: float32 of shape (1, 1, 8, 8), pixels of 0 to 16; output ``logits``: (1, 10)."""


def load_digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Load the digits that were not used to train the network.

    Returns
    -------
    images
        float32 of shape (797, 1, 1, 8, 8): each item is a feed of the model, pixels of 0 (paper) to 16 (ink).
    labels
        uint8 of shape (797,): the digit that each image shows.
    """
    with np.load(Path(__file__).with_name("digits.npz")) as data:
        return data["images"].astype(np.float32)[:, None, None], data["labels"]
