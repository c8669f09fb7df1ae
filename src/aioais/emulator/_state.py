"""The one state of the emulated library: tables of live objects, counters, thread locals.

There is one per process, as there is one AscendCL per process. Tables are emptied in place by
``reset``, never replaced, so that the hot paths may hold on to them.
"""

from __future__ import annotations

import itertools
import os
import threading
from typing import TYPE_CHECKING, Any

from aioais.emulator._settings import Settings

if TYPE_CHECKING:
    from aioais.emulator.context import Context
    from aioais.emulator.dataset import DataBuffer, Dataset
    from aioais.emulator.device import Device
    from aioais.emulator.dump import Dump
    from aioais.emulator.event import Event
    from aioais.emulator.model import Model
    from aioais.emulator.model_desc import ModelDesc
    from aioais.emulator.profiler import Profiler
    from aioais.emulator.stream import Stream
    from aioais.emulator.tensor_desc import TensorDesc

__all__ = ["Local", "State", "local", "report", "state"]


class Local(threading.local):
    """What AscendCL keeps per thread."""

    context: Context | None = None
    message: str | None = None


class State:
    """Tables and counters of the emulated library."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.overrides: dict[int, dict[str, float]] = {}
        """Settings of single devices."""
        self.counts: dict[str, int] = {}
        """Calls by name; filled with zeros as the entry points are defined."""
        self.armed: dict[str, list[Any]] = {}
        """Faults by call name; anything here sends every call through the slow check."""
        self.device_faults: dict[str, list[Any]] = {}
        self.dead: dict[int, int] = {}
        """Codes of the devices that have died."""
        self.gates: list[Any] = []
        self.copied = {"h2d": 0, "d2h": 0, "d2d": 0, "h2h": 0, "pageable": 0}
        self.devices: list[Device] = []
        self.contexts: dict[int, Context] = {}
        self.streams: dict[int, Stream] = {}
        self.events: dict[int, Event] = {}
        self.models: dict[int, Model] = {}
        self.descs: dict[int, ModelDesc] = {}
        self.datasets: dict[int, Dataset] = {}
        self.data_buffers: dict[int, DataBuffer] = {}
        self.tensor_descs: dict[int, TensorDesc] = {}
        self.others: dict[int, Any] = {}
        """AIPP descriptions and configuration handles."""
        self.reporters: dict[int, Any] = {}
        """Threads subscribed to callbacks, by thread id."""
        self.lock = threading.RLock()
        """Guards initialisation, devices and contexts: nothing on the hot path."""
        self.handles = itertools.count(0x5A00_0000_0010, 16)
        """Handles are never used twice, so a stale one is always noticed."""
        self.model_ids = itertools.count(1)
        self.clear()

    def clear(self) -> None:
        """Forget everything but the settings and the objects that ``reset`` rebuilds."""
        for context in self.contexts.values():
            context.alive = False
        for table in (
            self.contexts,
            self.streams,
            self.events,
            self.models,
            self.descs,
            self.datasets,
            self.data_buffers,
            self.tensor_descs,
            self.others,
            self.reporters,
            self.armed,
            self.device_faults,
            self.dead,
        ):
            table.clear()
        self.gates.clear()
        for name in self.counts:
            self.counts[name] = 0
        for name in self.copied:
            self.copied[name] = 0
        self.initialised = False
        self.references = 0
        self.finalised = False
        self.first_config: str | None = None
        self.config: dict[str, Any] = {}
        """The parsed configuration file of the running initialisation."""
        self.profiler: Profiler | None = None
        self.dump: Dump | None = None
        self.message_per_process = False
        self.process_message: str | None = None
        self.default_device: int | None = None
        self.leaving = False
        """The interpreter exits: no model is run any more."""
        self.lost: dict[str, int] = {}
        """What a device reset took away from under the program."""
        self.forked = False
        local.context = None
        local.message = None

    def after_fork(self) -> None:
        """Make every call of a child process fail: the driver's state does not survive a fork."""
        if self.initialised or any(device.count for device in self.devices):
            self.forked = True
            self.armed[""] = []
            if self.profiler is not None:
                self.profiler.abandon()
                self.profiler = None


local = Local()
state = State()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=state.after_fork)


def report(code: int, text: str) -> int:
    """Note why a call fails, for ``get_recent_err_msg``.

    Parameters
    ----------
    code : int
        Return code of the call.
    text : str
        What went wrong, for humans.

    Returns
    -------
    int
        The code.
    """
    message = f"[emulator] {text} ({code})"
    if state.message_per_process:
        state.process_message = message
    else:
        local.message = message
    return code
