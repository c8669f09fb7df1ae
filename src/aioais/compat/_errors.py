"""The exceptions of aioais as old programs catch them: each one is a ``RuntimeError`` too."""

from __future__ import annotations

from typing import Final

from ..errors import (
    AclNotFoundError,
    AioaisError,
    ArgumentError,
    BrokenSessionError,
    ClosedError,
    DeviceError,
    FeedError,
    ModelError,
    add_note,
)

__all__ = ["CLASSES", "as_runtime_error"]


class RuntimeArgumentError(ArgumentError, RuntimeError):
    """:class:`aioais.ArgumentError`, raised by a blocking call."""


class RuntimeFeedError(FeedError, RuntimeError):
    """:class:`aioais.FeedError`, raised by a blocking call."""


class RuntimeModelError(ModelError, RuntimeError):
    """:class:`aioais.ModelError`, raised by a blocking call."""


class RuntimeDeviceError(DeviceError, RuntimeError):
    """:class:`aioais.DeviceError`, raised by a blocking call."""


class RuntimeClosedError(ClosedError, RuntimeError):
    """:class:`aioais.ClosedError`, raised by a blocking call."""


class RuntimeBrokenSessionError(BrokenSessionError, RuntimeError):
    """:class:`aioais.BrokenSessionError`, raised by a blocking call."""


class RuntimeAclNotFoundError(AclNotFoundError, RuntimeError):
    """:class:`aioais.AclNotFoundError`, raised by a blocking call."""


class RuntimeAioaisError(AioaisError, RuntimeError):
    """Any other :class:`aioais.AioaisError`, raised by a blocking call."""


CLASSES: Final[tuple[type[AioaisError], ...]] = (
    RuntimeArgumentError,
    RuntimeFeedError,
    RuntimeModelError,
    RuntimeDeviceError,
    RuntimeClosedError,
    RuntimeBrokenSessionError,
    RuntimeAclNotFoundError,
    RuntimeAioaisError,
)
"""The most special ones first."""


def as_runtime_error(error: BaseException) -> BaseException:
    """Return an error of this library as one that ``except RuntimeError`` catches; any other as it is.

    The text, the notes, the cause and the traceback are kept. ``AclError``, ``ForkError`` and ``WrongLoopError`` are
    ``RuntimeError`` already.
    """
    if not isinstance(error, AioaisError) or isinstance(error, RuntimeError):
        return error
    kind = next(found for found in CLASSES if isinstance(error, found.__bases__[0]))
    made = kind(*error.args)
    made.__cause__ = error.__cause__
    for note in getattr(error, "__notes__", ()):
        add_note(made, note)
    return made.with_traceback(error.__traceback__)
