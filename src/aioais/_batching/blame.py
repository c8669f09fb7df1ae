"""Blame: what a failed batch means for the callers in it."""

from __future__ import annotations

import copy
from typing import Final

from ..errors import AclError, AclMemoryError, BrokenSessionError, DeviceHangError, FeedError, blames_device

__all__ = ["for_each", "is_of_device", "may_be_of_data"]

_OF_DATA: Final = frozenset({507011, 507015, 507018, 507035})
"""The model failed on the device: of itself, in the AI core, the AI CPU or the vector core. The first of these is how
a release reports an index out of range, say; the rest of 507xxx concerns the device or its context."""


def may_be_of_data(error: BaseException) -> bool:
    """Whether the data of one caller can be the reason, so that the others deserve to be run without it."""
    if isinstance(error, FeedError):
        return True
    if not isinstance(error, AclError) or isinstance(error, (AclMemoryError, DeviceHangError)):
        return False
    return not blames_device(error) or error.code in _OF_DATA


def is_of_device(error: BaseException) -> bool:
    """Whether the device is at fault, so that the same rows can run on another one."""
    if isinstance(error, (BrokenSessionError, DeviceHangError)):
        return True
    return blames_device(error) and isinstance(error, AclError) and error.code not in _OF_DATA


def for_each(error: BaseException) -> BaseException:
    """Return the error for one of several callers: each raises an exception of its own where that can be copied."""
    try:
        own = copy.copy(error)
    except Exception:  # noqa: BLE001 - an exception with a constructor of its own kind
        return error
    if type(own) is not type(error) or str(own) != str(error):
        return error
    own.__cause__ = error.__cause__
    notes = getattr(error, "__notes__", None)
    if notes:
        own.__notes__ = [*notes]  # type: ignore[attr-defined,unused-ignore]
    return own
