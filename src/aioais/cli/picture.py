"""Small grey images as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["PICTURE_WIDTH", "draw"]

PICTURE_WIDTH: Final = 16
"""Columns for an image 8 pixels wide: two per pixel, as a character is about twice as high as wide."""

_BLOCKS: Final = " ░▒▓█"
_ASCII: Final = " .+#@"


def draw(image: npt.NDArray[Any], *, ascii_only: bool = False) -> list[str]:
    """Return an image as text, one line per row of pixels.

    Parameters
    ----------
    image
        Shape (rows, columns), pixels of 0 (paper) to 16 (ink).
    ascii_only
        Whether the terminal lacks the block characters.

    Returns
    -------
    list of str
        One per row, two characters per pixel.
    """
    shades = _ASCII if ascii_only else _BLOCKS
    steps = (image / 16 * (len(shades) - 1)).round().astype(int)
    return ["".join(shades[step] * 2 for step in row) for row in steps]
