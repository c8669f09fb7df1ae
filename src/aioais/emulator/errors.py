"""The exception for misuse that real hardware would answer with undefined behaviour."""

from __future__ import annotations

__all__ = ["EmulatorError"]


class EmulatorError(RuntimeError):
    """A program did what AscendCL leaves undefined: a stale handle, freed memory, a data race.

    Where the real library documents a return code the emulator returns it; where it would crash
    or corrupt memory silently, the emulator raises this error and says what was misused.
    """
