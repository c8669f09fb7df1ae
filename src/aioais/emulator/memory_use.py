"""Executions of different models that use the same device memory: one that writes it must not overlap another.

Executions of one model are ordered among themselves, so a model that has its memory to itself, as nearly all do,
costs nothing here: only ways to execute that conflict with one of another model know each other as rivals.
"""

from __future__ import annotations

from threading import Lock
from typing import NamedTuple

from .memory import Block
from .ordering import Ordered, has_finished

__all__ = ["Range", "Use"]

_lock = Lock()
"""Guards the uses of blocks, and the rivals of uses."""


class Range(NamedTuple):
    """A part of a block that an execution reads or writes."""

    block: Block
    start: int
    stop: int
    is_written: bool


class Use:
    """The memory that one way to execute a model uses.

    Parameters
    ----------
    owner
        Id of the model.
    ranges
        The memory.
    """

    __slots__ = ("is_retired", "last", "owner", "parts", "rivals")

    def __init__(self, owner: int, ranges: list[Range]) -> None:
        self.owner: int = owner
        self.last: tuple[Ordered, int] | None = None
        """The last execution."""
        self.is_retired: bool = False
        """The model is executed in this way no more."""
        self.rivals: list[Use] = []
        # Addresses only: blocks know their uses, and a circle would keep their memory.
        self.parts: list[tuple[int, int, bool]] = [(part.start, part.stop, part.is_written) for part in ranges]
        with _lock:
            for block in {id(part.block): part.block for part in ranges}.values():
                others = [use for use in block.uses if not use.is_over()]
                for other in others:
                    if other not in self.rivals and self._conflicts(other):
                        self.rivals.append(other)
                        other.rivals = [*(use for use in other.rivals if not use.is_over()), self]
                block.uses = [*others, self]

    def is_over(self) -> bool:
        """Whether there is nothing left to be ordered behind."""
        return self.is_retired and has_finished(self.last)

    def _conflicts(self, other: Use) -> bool:
        return self.owner != other.owner and any(
            (mine[2] or theirs[2]) and mine[0] < theirs[1] and theirs[0] < mine[1]
            for mine in self.parts
            for theirs in other.parts
        )
