"""Settings, counters and faults of the emulated library: one of each per process, as there is one AscendCL."""

from __future__ import annotations

import threading
from typing import Any

from ._settings import Settings

__all__ = ["Messages", "State", "messages", "report", "state"]


class Messages(threading.local):
    """The last failure of each thread."""

    message: str | None = None
    code: int = 0
    """Code of the last failure, for ``peek_at_last_error``."""


class State:
    """Everything that is not an object with a handle."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.overrides: dict[int, dict[str, float]] = {}
        """Settings of single devices."""
        self.counts: dict[str, int] = {}
        """Calls by name; filled with zeros as the entry points are defined."""
        self.armed: dict[str, list[Any]] = {}
        """Faults by call name; any entry sends every call through the slow check."""
        self.device_faults: dict[str, list[Any]] = {}
        self.dead: dict[int, int] = {}
        """Codes of the devices that have died."""
        self.gates: list[Any] = []
        self.copied = {"h2d": 0, "d2h": 0, "d2d": 0, "h2h": 0, "pageable": 0}
        self.lock = threading.RLock()
        """Guards initialisation, devices and contexts: nothing on the hot path."""
        self.clear()

    def clear(self) -> None:
        """Forget everything but the settings."""
        for table in (self.armed, self.device_faults, self.dead):
            table.clear()
        self.gates.clear()
        for name in self.counts:
            self.counts[name] = 0
        for name in self.copied:
            self.copied[name] = 0
        self.is_initialised = False
        self.is_finalised = False
        self.references = 0
        self.first_config: str | None = None
        self.default_device: int | None = None
        self.has_process_message = False
        """Messages of failures are per process, not per thread."""
        self.process_message: str | None = None
        self.is_leaving = False
        """The interpreter is exiting: no further model runs."""
        self.is_forked = False
        """This is a child of a process that used the library: every call fails."""
        messages.message = None
        messages.code = 0


messages = Messages()
state = State()


def report(code: int, text: str) -> int:
    """Note why a call fails, for ``get_recent_err_msg``.

    Parameters
    ----------
    code
        Return code of the call.
    text
        The reason, for people.

    Returns
    -------
    int
        The code.
    """
    message = f"[emulator] {text} ({code})"
    messages.code = int(code)
    if state.has_process_message:
        state.process_message = message
    else:
        messages.message = message
    return code
