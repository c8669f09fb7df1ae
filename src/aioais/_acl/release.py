"""Release of resources: every step runs, even if earlier ones fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable

__all__ = ["run_all"]


def run_all(steps: Iterable[Callable[[], object]]) -> None:
    """Run every step in order, then raise the first failure, if any."""
    failures: list[BaseException] = []
    for step in steps:
        try:
            step()
        except BaseException as exc:  # noqa: BLE001 - the remaining steps must still run
            failures.append(exc)
    if failures:
        del failures[1:]
        raise failures.pop()  # popped, as its traceback refers to this frame and so to the list
