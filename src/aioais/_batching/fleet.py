"""Fleet: the sessions that a batching session runs on, and what happens when a device of several fails."""

from __future__ import annotations

import asyncio

from .._engine.core import SessionCore
from .._multi.failures import no_device_left, root
from .._multi.pool import SessionPool
from ..blame import Often, blame
from ..errors import ClosedError
from .batcher import Batcher
from .runner import Runner

__all__ = ["Fleet"]


class Fleet:
    """One session, or those of a ``MultiDeviceSession``.

    A device that fails is taken out: its rows run on the others, or wait while none is open. It is opened again in the
    background, once; after that when no device is left and a request comes.

    Parameters
    ----------
    core
        The one session, or ``None``.
    pool
        The sessions of all devices, or ``None``.
    """

    def __init__(self, core: SessionCore | None, pool: SessionPool | None) -> None:
        self._core = core
        self._pool = pool
        self._batcher: Batcher | None = None
        self._opening: dict[int, asyncio.Task[None]] = {}
        self._causes: dict[int, BaseException] = {}
        self._device_ids: list[int] = []
        self._is_closed = False

    async def open(self) -> list[Runner]:
        """Open the sessions that are to be opened here; returns one runner for each.

        Raises
        ------
        ClosedError, WrongLoopError, ForkError
            The session cannot be used here.
        BrokenSessionError, ModelError, AclError
            No device can be opened.
        """
        pool = self._pool
        if pool is None:
            assert self._core is not None
            pipeline = self._core.opened()
            pipeline.admission.check()
            return [Runner(pipeline.device.id, self._core)]
        pool.check()
        self._device_ids = await pool.resolve(None)
        found = await asyncio.gather(
            *[pool.session(device_id, is_awaited=False) for device_id in self._device_ids], return_exceptions=True
        )
        runners = []
        for device_id, session in zip(self._device_ids, found, strict=True):
            if isinstance(session, SessionCore):
                runners.append(Runner(device_id, session))
            else:
                self._causes[device_id] = session
        if not runners:
            raise no_device_left(self._causes)
        for device_id, cause in self._causes.items():
            pool.retire(device_id, None, cause)
        return runners

    def use(self, batcher: Batcher) -> None:
        """Take the batcher, whose runners follow the devices from now on."""
        self._batcher = batcher

    def lose(self, runner: Runner, error: Exception, often: Often) -> bool:
        """Take a device out if an error is its own; returns whether its rows can run on another one, or later."""
        pool, batcher = self._pool, self._batcher
        if pool is None or batcher is None or self._is_closed:
            return False
        explained = pool.explain(runner.device_id, runner.core, error)
        if not blame(explained, often=often).takes_device_out:
            return False
        if runner not in batcher.runners and runner.device_id not in self._causes:
            return True  # opened again already
        if runner in batcher.runners:
            batcher.runners.remove(runner)
            self._causes[runner.device_id] = root(error)
            pool.retire(runner.device_id, runner.core, root(error))
            if runner.done:
                self._open_again(runner.device_id)
        return bool(batcher.runners or self._opening)

    def revive(self) -> None:
        """Open all devices again where none is left."""
        batcher = self._batcher
        if self._pool is not None and batcher is not None and not batcher.runners and not self._opening:
            for device_id in self._device_ids:
                self._open_again(device_id)

    def close(self) -> None:
        """Open nothing any more."""
        self._is_closed = True
        for task in [*self._opening.values()]:
            task.cancel()

    def _open_again(self, device_id: int) -> None:
        if device_id not in self._opening and not self._is_closed:
            task = self._opening[device_id] = asyncio.ensure_future(self._reopen(device_id))
            task.add_done_callback(lambda _: self._opened(device_id))

    async def _reopen(self, device_id: int) -> None:
        pool, batcher = self._pool, self._batcher
        assert pool is not None
        assert batcher is not None
        try:
            core = await pool.session(device_id, is_awaited=False)
        except Exception as exc:  # noqa: BLE001 - told to the callers where it was the last device
            self._causes[device_id] = exc
            if not isinstance(exc, ClosedError):
                pool.retire(device_id, None, exc)
        else:
            self._causes.pop(device_id, None)
            batcher.runners.append(Runner(device_id, core))
            batcher.pump()

    def _opened(self, device_id: int) -> None:
        self._opening.pop(device_id, None)
        batcher = self._batcher
        if batcher is not None and not batcher.runners and not self._opening and self._causes:
            batcher.fail_waiting(no_device_left(self._causes))
