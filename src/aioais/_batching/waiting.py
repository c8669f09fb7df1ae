"""Waiting: the callers whose rows wait for a batch, by priority, and those that wait for room to wait."""

from __future__ import annotations

import heapq
from collections.abc import Hashable

from .caller import Caller, State
from .layout import Kind

__all__ = ["Group", "Waiting"]


class Group:
    """Callers whose rows may share a batch; a caller that runs alone has a group of its own.

    Attributes
    ----------
    kind
        What their rows have in common.
    rows
        Rows that wait.
    """

    __slots__ = ("_heap", "key", "kind", "rows")

    def __init__(self, key: Hashable, kind: Kind) -> None:
        self.key = key
        self.kind = kind
        self.rows = 0
        self._heap: list[Caller] = []

    def push(self, caller: Caller) -> None:
        """Add a caller."""
        heapq.heappush(self._heap, caller)
        self.rows += caller.left

    def first(self) -> Caller | None:
        """Return the caller whose turn it is; those that have left are dropped."""
        heap = self._heap
        while heap and heap[0].state is not State.WAITING:
            heapq.heappop(heap)
        return heap[0] if heap else None

    def take(self, most: int) -> list[tuple[Caller, int, int]]:
        """Take rows: callers with the first row and the number of rows of each; the last one may be cut."""
        taken: list[tuple[Caller, int, int]] = []
        while most and (caller := self.first()) is not None:
            count = min(most, caller.left)
            taken.append((caller, caller.taken, count))
            caller.taken += count
            self.rows -= count
            most -= count
            if not caller.left:
                caller.state = State.PLACED
                heapq.heappop(self._heap)
        return taken

    def oldest(self) -> float:
        """Return when the caller whose turn it is arrived."""
        caller = self.first()
        return caller.entered_at if caller is not None else 0.0


class Waiting:
    """All callers that wait.

    Parameters
    ----------
    most_rows
        Rows that may wait; ``None`` for no limit.
    """

    def __init__(self, most_rows: int | None) -> None:
        self.rows = 0
        self._most = most_rows
        self._groups: dict[Hashable, Group] = {}
        self._outside: list[Caller] = []

    def has_room(self, rows: int) -> bool:
        """Whether so many rows may wait; more than the limit may where no others do."""
        return self._most is None or not self.rows or self.rows + rows <= self._most

    def enter(self, caller: Caller) -> None:
        """Have a caller wait for a batch."""
        caller.state = State.WAITING
        key: Hashable = (caller.kind.shapes, caller.content) if not caller.is_alone else ("alone", caller.number)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(key, caller.kind)
        group.push(caller)
        self.rows += caller.left

    def wait_outside(self, caller: Caller) -> None:
        """Have a caller wait for room in the queue."""
        heapq.heappush(self._outside, caller)

    @property
    def has_outside(self) -> bool:
        """Whether callers wait for room."""
        while self._outside and self._outside[0].state is not State.OUTSIDE:
            heapq.heappop(self._outside)
        return bool(self._outside)

    def let_in(self) -> None:
        """Admit the callers for which there is room now."""
        while self.has_outside and self.has_room(self._outside[0].rows):
            self.enter(heapq.heappop(self._outside))

    def leave(self, caller: Caller) -> None:
        """Take out a caller that waits, or that waits for room; its state says which."""
        if caller.state is State.WAITING:
            self.rows -= caller.left
            key: Hashable = (caller.kind.shapes, caller.content) if not caller.is_alone else ("alone", caller.number)
            self._groups[key].rows -= caller.left

    def take(self, group: Group, most: int) -> list[tuple[Caller, int, int]]:
        """Take rows of a group for a batch."""
        before = group.rows
        taken = group.take(most)
        self.rows -= before - group.rows
        return taken

    def in_order(self) -> list[Group]:
        """Return the groups that have callers, the one whose turn it is first; empty ones are dropped."""
        groups = self._groups
        if len(groups) == 1:
            group = next(iter(groups.values()))
            if group.first() is not None:
                return [group]
            groups.clear()
            return []
        found: list[tuple[Caller, Group]] = []
        for key, group in [*groups.items()]:
            first = group.first()
            if first is None:
                del groups[key]
            else:
                found.append((first, group))
        found.sort(key=lambda item: item[0])
        return [group for _, group in found]

    def all(self) -> list[Caller]:
        """Return every caller that waits, and those that wait for room."""
        inside = [caller for group in self._groups.values() for caller in group._heap]
        return [c for c in (*inside, *self._outside) if c.state in (State.WAITING, State.OUTSIDE)]
