"""The errors of failed devices as text, and the error of a stream that has no device left."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import AclError, BrokenSessionError, ClosedError, add_note

__all__ = ["describe", "no_device_left", "root"]


def root(error: Exception) -> Exception:
    """Return what broke a session, where an error says that it is broken."""
    cause = error.__cause__
    if isinstance(error, BrokenSessionError) and isinstance(cause, Exception) and not isinstance(cause, ClosedError):
        return cause
    return error


def describe(error: BaseException) -> str:
    """Return an error as one line, as the last line of its traceback has it."""
    return f"{type(error).__name__}: {error}"


def no_device_left(causes: Mapping[int, BaseException]) -> BaseException:
    """Return the error of a stream whose devices have all failed.

    Where all failed for the same reason, and the devices are not at fault (the file is missing, say), it is that
    error; else a ``BrokenSessionError`` caused by the first. Each device's cause is in the text or the notes.
    """
    first = next(iter(causes.values()))
    lines = [f"device {device_id}: {describe(error)}" for device_id, error in causes.items()]
    if not isinstance(first, AclError) and len({type(error) for error in causes.values()}) == 1:
        error: BaseException = first
    else:
        error = BrokenSessionError(f"no device is left of {len(lines)}: {'; '.join(lines)}")
        error.__cause__ = first
    for line in lines:
        add_note(error, line)
    return error
