"""Exceptions: misuse that real hardware answers with undefined behaviour, failures on the device."""

from __future__ import annotations

__all__ = ["CodedError", "DeviceError", "EmulatorError", "NotEmulatedError"]


class EmulatorError(RuntimeError):
    """A program did what AscendCL leaves undefined: a stale handle, freed memory, a data race.

    Where the real library documents a return code the emulator returns it; where it would crash
    or corrupt memory silently, the emulator raises this error and says what was misused.
    """


class NotEmulatedError(EmulatorError, AttributeError):
    """A program uses a name of pyACL that the emulator does not have."""


class CodedError(Exception):
    """A failure that a call returns as a code.

    Parameters
    ----------
    code
        What the call returns.
    text
        The reason, for people.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class DeviceError(CodedError):
    """The model fails on the device; the synchronise call returns the code."""
