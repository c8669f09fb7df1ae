"""Idle memory of a device: given back after a time, and at once where an allocation fails."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from .._acl.block_pool import BlockPool
from .._acl.library import Library
from .._acl.memory import DeviceMemory, free_and_total
from .._acl.release import run_all
from ..errors import AclMemoryError

__all__ = ["IdleMemory", "Tenant"]

_log = logging.getLogger("aioais")

_T = TypeVar("_T")


class Tenant(Protocol):
    """A session, seen as a holder of device memory."""

    path: str
    """Its model."""

    @property
    def nbytes(self) -> int:
        """Device memory of its buffers."""
        ...

    def reclaim(self) -> None:
        """Free what is idle."""
        ...

    def sweep(self) -> None:
        """Free what has been idle since the sweep before."""
        ...


class IdleMemory:
    """Frees idle memory: what has been idle for long, and all of it when an allocation fails.

    Parameters
    ----------
    finish_posted
        Waits until memory that was released already is free.
    """

    def __init__(self, library: Library, device_id: int, finish_posted: Callable[[], None]) -> None:
        self._library = library
        self._device_id = device_id
        self._finish_posted = finish_posted
        self._memory: DeviceMemory | None = None
        self._pools: list[BlockPool] = []
        self._tenants: list[Tenant] = []
        self._lock = threading.Lock()  # guards the list
        self._turn = threading.Lock()  # what one thread is about to free is not there for another to find

    def watch(self, memory: DeviceMemory, pools: list[BlockPool]) -> None:
        """Take the memory of the device, which needs this object to be made; the pool of pinned memory is the first."""
        self._memory, self._pools = memory, pools

    def enter(self, tenant: Tenant) -> None:
        """Know of a session."""
        with self._lock:
            self._tenants.append(tenant)

    def leave(self, tenant: Tenant) -> None:
        """Forget a session; idempotent."""
        with self._lock:
            if tenant in self._tenants:
                self._tenants.remove(tenant)

    def overcome(self, what: str, attempt: Callable[[], _T]) -> _T:
        """Free what is idle on the device and try once more; in a thread that has its context.

        Parameters
        ----------
        what
            What the failed attempt allocates, for the message.
        attempt
            Repeats the attempt.

        Raises
        ------
        AclMemoryError
            It still fails; the message says what was needed, what is free, and what holds the rest.
        """
        self._run([self._finish_posted])  # not in turn: the control thread may wait for its own
        with self._turn:
            self._reclaim()
            try:
                return attempt()
            except AclMemoryError as exc:
                call, code, name, message = exc.call, exc.code, exc.name, exc.message
        raise AclMemoryError(call, code, name, self._account(what), message)

    def sweep(self) -> None:
        """Free what has been idle since the sweep before; in a thread that has the device's context."""
        with self._turn:
            self._run([*(tenant.sweep for tenant in self._list()), *(pool.sweep for pool in self._pools)])

    def _reclaim(self) -> None:
        # The pools come last: slots leave their memory to them.
        self._run([*(tenant.reclaim for tenant in self._list()), *(pool.trim for pool in self._pools)])

    def _list(self) -> list[Tenant]:
        with self._lock:
            return list(self._tenants)

    def _run(self, steps: list[Callable[[], None]]) -> None:
        try:
            run_all(steps)
        except Exception as exc:  # noqa: BLE001 - the lack of memory is the error to tell
            _log.warning("device %d: idle memory could not be freed: %s", self._device_id, repr(exc))

    def _account(self, what: str) -> str:
        assert self._memory is not None
        free, total = free_and_total(self._library)
        shares = [(tenant.path, tenant.nbytes) for tenant in self._list()]
        nbytes = self._memory.nbytes + sum(pool.nbytes for pool in self._pools if pool.is_device)
        others = max(0, nbytes - sum(nbytes for _, nbytes in shares))
        held = [f"{nbytes} bytes in buffers of the session of {path!r}" for path, nbytes in shares]
        held.append(f"{others} bytes in device tensors and buffers being made")
        held.append(f"{self._pools[0].nbytes} bytes of pinned host memory")
        state = f"{free} of {total} bytes are free" if total else "ACL does not say what is free"
        return (
            f"needed {what}, with nothing idle left to free; on device {self._device_id} {state}; this process "
            f"holds {', '.join(held)}, and the models themselves; close sessions or tensors, lower depth or "
            "custom_sizes, or use smaller inputs"
        )
