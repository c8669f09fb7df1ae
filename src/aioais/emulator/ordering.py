"""Which executions run behind which: by their streams, by events, or because the host has waited.

Two executions of one model must not overlap on a device: it has one argument table and one set of work memory.
Nor must an execution write memory that another one uses. A program keeps them apart by queueing both on one
stream, by letting the second stream wait for an event recorded behind the first execution, or by waiting on the
host in between. The emulator refuses what is not ordered in one of these ways, whatever order the work happens
to run in here.

The executions of a model are numbered, and each is checked to run behind the one before. So one number for each
model says enough: a stream keeps what runs before its next operation (``behind``), the model what the host knows
to be finished (``known``). A record of an event refers to the ``behind`` of its stream; a wait for the event merges
it into that of the waiting stream; a wait on the host turns it into what is known.

The dictionaries are replaced, never changed. Other threads may replace them at the same time: everything between
a look at ``behind`` and its replacement is free of calls and loops, or looks again. CPython switches threads at
calls and loops only.
"""

from __future__ import annotations

__all__ = ["Behind", "Executions", "Queue", "is_ordered", "note_finished", "note_wait"]


class Executions:
    """The executions of a model, which run one behind the other.

    An object of its own: records of events refer to it, and must not keep a model that is unloaded.

    Parameters
    ----------
    model
        Id of the model.
    """

    __slots__ = ("dropped", "known", "last", "last_queue", "model", "submitted")

    def __init__(self, model: int) -> None:
        self.model: int = model
        self.submitted: int = 0
        """The number of the newest execution."""
        self.last: int = 0
        """The number of the newest execution that was not dropped."""
        self.last_queue: Queue | None = None
        """Where it was queued; ``None`` for a synchronous one."""
        self.known: int = 0
        """The host knows that the execution of this number, and with it all before, are finished."""
        self.dropped: set[int] = set()
        """Executions that were dropped while a later one was queued."""

    def drop(self, number: int) -> None:
        """Note that an execution will not run: nothing has to run behind it."""
        self.dropped.add(number)
        while self.last in self.dropped:
            self.dropped.remove(self.last)
            self.last -= 1

    def __str__(self) -> str:
        return f"model {self.model}"


Behind = dict[Executions, int]
"""For each model the number of an execution: this one and all before run first."""

_NOTHING: Behind = {}


class Queue:
    """Work that runs in order: a stream."""

    __slots__ = ("behind",)

    def __init__(self) -> None:
        self.behind: Behind = _NOTHING
        """What runs before the next operation of this queue."""


def note_wait(queue: Queue, behind: Behind) -> None:
    """Note that the next operations of a queue run behind what an event was recorded behind."""
    while True:
        mine = queue.behind
        if mine:
            merged = {each: number for each, number in mine.items() if number > each.known}
            for each, number in behind.items():
                if number > merged.get(each, each.known):
                    merged[each] = number
        else:
            merged = behind
        if queue.behind is mine:
            queue.behind = merged
            return


def note_finished(queue: Queue, behind: Behind) -> None:
    """Note that the host has seen a queue get past this point."""
    for each, number in behind.items():
        if each.known < number:
            each.known = number
    if queue.behind is behind:
        queue.behind = _NOTHING


def is_ordered(executions: Executions, number: int, queue: Queue) -> bool:
    """Return whether the next operation of a queue runs behind an execution."""
    return executions.known >= number or queue.behind.get(executions, 0) >= number
