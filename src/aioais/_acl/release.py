"""Giving things back: every step is taken, whatever the others do."""

from __future__ import annotations

from collections.abc import Callable, Iterable

__all__ = ["run_all"]


def run_all(steps: Iterable[Callable[[], object]]) -> None:
    """Run every step in order, then raise the first failure if there was one."""
    failures: list[BaseException] = []
    for step in steps:
        try:
            step()
        except BaseException as exc:  # noqa: BLE001 - the rest must be freed all the same
            failures.append(exc)
    if failures:
        del failures[1:]
        raise failures.pop()  # out of the list: its traceback holds this frame
