"""A device of this process: its context, its control thread, and what still needs it."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Final

from .._acl.block_pool import BlockPool
from .._acl.library import Library
from .._acl.memory import DeviceBlock, DeviceMemory
from .._acl.process import AclProcess, process_of
from .._acl.release import run_all
from .._bridge.worker import Worker
from .._cann.constants import RunMode
from .idle_memory import IdleMemory
from .transfers import Transfers

__all__ = ["Device", "acquire_device", "live_devices"]

_PATIENCE_S: Final = 1.0
"""How long to wait for what the control thread has to free; it may be busy with a copy that hangs."""
_KEEP_S: Final = 10.0
"""Memory that has been idle for so long is given back, at the latest after twice that."""


class Device:
    """One opened device, shared by the sessions and tensors on it.

    It has one context for all threads that work on it, and one control thread, which opens it, moves free-standing
    tensors, frees what finalisers hand it, and gives idle memory back. Once no session, tensor or leased array is left,
    the context is destroyed and the thread ends; the device stays set for the process until ACL is finalised, as the
    first use of a device can take seconds.
    """

    def __init__(self, process: AclProcess, device_id: int) -> None:
        self.process = process
        self.library: Library = process.library
        self.id = device_id
        self.sessions: int = 0  # guarded by _lock of this module
        self.context: int = 0
        self.is_board: bool = False
        """Host and device have one memory (an RC board): nothing is copied between them."""
        self.idle_memory: IdleMemory = IdleMemory(self.library, device_id, self._finish_posted)
        spare = self.idle_memory.overcome
        self.memory: DeviceMemory = DeviceMemory(self.library, self.post, spare)
        self.pinned: BlockPool = BlockPool(self.library, self.post, spare, is_device=False)
        self.pool: BlockPool = BlockPool(self.library, self.post, spare, is_device=True, limit=math.inf)
        """Device memory for requests of any shape. Where the host has the same memory it is ``pinned``."""
        self._pools = [self.pinned, self.pool]
        self.idle_memory.watch(self.memory, self._pools)
        self.worker: Worker = Worker(f"aioais-ctl-{device_id}", self.idle_memory.sweep, _KEEP_S)
        self.transfers: Transfers = Transfers(self.library, self.alloc, self.pinned)
        self._is_open = False
        self._is_retired = False

    @property
    def nbytes(self) -> int:
        """Bytes of device memory not freed yet."""
        return self.memory.nbytes + self.pool.nbytes

    @property
    def is_used(self) -> bool:
        """Whether blocks of its memory are in use."""
        return bool(self.memory.blocks or any(pool.leased for pool in self._pools))

    def post(self, function: Callable[[], None]) -> None:
        """Run a clean-up step on the control thread, then look whether the device is still needed."""

        def step() -> None:
            try:
                function()
            finally:
                self._close_if_unused()

        self.worker.post(step)

    def open(self, config_path: str | None) -> None:
        """Start ACL, take the device and make the context; on the control thread."""
        self.process.init(config_path)
        if self._is_open:
            return
        self.process.set_device(self.id)
        library = self.library
        self.is_board = self.pinned.is_device = self.process.run_mode() is RunMode.DEVICE
        if self.is_board:
            self.pool = self.pinned
            del self._pools[1:]
        if not self.context:  # made by an open that failed after it
            self.context = library.value("acl.rt.create_context", library.slow.create_context(self.id))
        self.transfers.open()
        self._is_open = True

    def enter(self) -> None:
        """Make the device's context current in the calling thread."""
        self.library.check("acl.rt.set_context", self.library.acl.rt.set_context(self.context))

    def alloc(self, nbytes: int) -> DeviceBlock:
        """Allocate memory that a model reads or writes; in a thread with the context.

        Where the host has the same memory it comes from the pool, as arrays lease it.
        """
        return self.alloc_for_request(nbytes) if self.is_board else self.memory.alloc(nbytes)

    def alloc_for_request(self, nbytes: int) -> DeviceBlock:
        """Take memory for a request of any shape from the pool; in a thread with the context."""
        return self.pool.block(max(nbytes, 1))

    def release_session(self) -> None:
        """Note that a session of this device has freed all it had; from any thread."""
        with _lock:
            self.sessions -= 1
            self.pinned.is_draining = self.pool.is_draining = self.sessions == 0
        self.post(_nothing)

    def give_up(self) -> None:
        """Have the next session on the device make a new context: this one may not work any more.

        Sessions that have it open keep it; it ends with the last of them. From any thread.
        """
        with _lock:
            if _devices.get((self.process, self.id)) is self:
                del _devices[self.process, self.id]
                _given_up.append(self)

    def _finish_posted(self) -> None:
        """Wait, for a bounded time, until the control thread has freed what was handed to it."""
        if threading.current_thread() is not self.worker.thread:
            with contextlib.suppress(FutureTimeoutError):
                self.worker.submit(_nothing).result(_PATIENCE_S)

    def _close_if_unused(self) -> None:
        if self._is_retired:
            return
        self.transfers.reap()
        if self.sessions:
            return
        while not self._is_retired:
            run_all(pool.trim for pool in self._pools)
            with _lock:
                if self.sessions or self.is_used:
                    return
                if any(pool.idle for pool in self._pools):  # returned since
                    continue
                self._is_retired = True
                _retiring.append(self)
                if self in _given_up:
                    _given_up.remove(self)
                elif _devices.get((self.process, self.id)) is self:
                    del _devices[self.process, self.id]
        self.worker.stop()  # first: what is submitted from here on would find no context
        run_all([self.transfers.close, self._destroy_context, self._leave])

    def _destroy_context(self) -> None:
        if self.context:
            self.library.check("acl.rt.destroy_context", self.library.slow.destroy_context(self.context))

    def _leave(self) -> None:
        """Finalise ACL after the last device, if that was requested; no other code may do so before."""
        with _lock:
            _retiring.remove(self)
            is_last = not any(device.process is self.process for device in _live())
        if is_last:
            self.process.finalize()


_lock = threading.Lock()
"""Guards the lists of devices and their session counts; never held across a call into ACL."""
_devices: dict[tuple[AclProcess, int], Device] = {}
_given_up: list[Device] = []
"""Devices whose context may not work any more; opening one again makes a new ``Device``."""
_retiring: list[Device] = []
"""Devices that cannot be opened any more, and that still destroy what they made."""


def acquire_device(library: Library, device_id: int, config_path: str | None) -> Device:
    """Open a device, or share one that is open; blocks. Balance with ``release_session``."""
    process = process_of(library)
    process.check_fork()
    with _lock:
        key = process, device_id
        device = _devices.get(key)
        if device is None:
            device = _devices[key] = Device(process, device_id)
        device.sessions += 1
        device.pinned.is_draining = device.pool.is_draining = False
    try:
        device.worker.submit(lambda: device.open(config_path)).result()
    except BaseException:
        device.release_session()
        raise
    return device


def live_devices() -> list[Device]:
    """List the devices whose control thread lives."""
    with _lock:
        return _live()


def _live() -> list[Device]:
    return [*_devices.values(), *_given_up, *_retiring]


def _nothing() -> None:
    """Do nothing: only the check that follows every clean-up step is needed."""
