"""Call: a call of ACL that is recorded once and made again and again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial

if sys.version_info >= (3, 11):
    from operator import call as _make
else:

    def _make(call: Callable[[], int]) -> int:
        return call()


__all__ = ["Call", "make_calls"]


class Call(partial[int]):
    """A function of ACL that returns a code, with its arguments.

    Attributes
    ----------
    name
        The function's, for errors.
    """

    name: str

    def __new__(cls, name: str, function: Callable[..., int], *arguments: int) -> Call:  # noqa: PYI034
        call = super().__new__(cls, function, *arguments)
        call.name = name
        return call


def make_calls(calls: Iterator[Call]) -> int:
    """Make calls up to the first that fails, in one go; returns its code, or 0. What is left was not made."""
    return next(filter(None, map(_make, calls)), 0)
