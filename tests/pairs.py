"""Pairs in place of products: few rows of a table that still have every two values which occur together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations

__all__ = ["cover"]


def cover(rows: Sequence[Sequence[Hashable]]) -> list[int]:
    """Return the indices of rows that have each pair of values that any row has; the same for the same rows.

    Parameters
    ----------
    rows
        Equally long; the values of a column are those of one parameter. Rows that cannot apply are not there, and
        what is returned are rows of the table.
    """
    pairs = [set(combinations(enumerate(row), 2)) or {((0, value), (0, value)) for value in row} for row in rows]
    missing = set().union(*pairs)
    chosen: list[int] = []
    while missing:
        best = max(range(len(rows)), key=lambda k: (len(pairs[k] & missing), -k))
        chosen.append(best)
        missing -= pairs[best]
    return sorted(chosen)
