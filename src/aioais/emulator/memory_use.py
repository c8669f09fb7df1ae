"""Executions of different models that use the same device memory: one that writes it must not overlap another.

Executions of one model are ordered among themselves, so a model with memory of its own, the usual case, costs
nothing here: only uses that conflict with another model's are checked, its rivals.
"""

from __future__ import annotations

from threading import Lock
from typing import NamedTuple

from .memory import Block
from .ordering import Executions, Queue

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
        Those of the model.
    ranges
        The memory.
    """

    __slots__ = ("is_retired", "last", "last_queue", "owner", "parts", "rivals")

    def __init__(self, owner: Executions, ranges: list[Range]) -> None:
        self.owner: Executions = owner
        self.last: int = 0
        """The number of the last execution that used it."""
        self.last_queue: Queue | None = None
        self.is_retired: bool = False
        """The model will not execute in this way again."""
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
        """Return whether nothing has to run behind it any more."""
        return self.is_retired and self.is_finished()

    def is_finished(self) -> bool:
        """Return whether the host knows that its last execution is finished."""
        return self.owner.known >= self.last or self.last > self.owner.last

    def _conflicts(self, other: Use) -> bool:
        return self.owner is not other.owner and any(
            (mine[2] or theirs[2]) and mine[0] < theirs[1] and theirs[0] < mine[1]
            for mine in self.parts
            for theirs in other.parts
        )
