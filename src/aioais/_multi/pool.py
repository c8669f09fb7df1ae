"""One warm session per device: opened at first use, closed when the device fails, all closed in the end."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import operator
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .._acl.library import find_library
from .._acl.process import process_of
from .._bridge.offload import run_in_thread
from .._engine.core import SessionCore
from .._engine.options import Options
from ..errors import (
    AclError,
    ArgumentError,
    BrokenSessionError,
    ClosedError,
    DeviceError,
    WrongLoopError,
    add_note,
    open_error,
)
from ..types import DeviceStatistics
from .failures import describe

__all__ = ["DeviceState", "SessionPool"]

_log = logging.getLogger("aioais")


@dataclass
class DeviceState:
    """What is known of one device."""

    session: SessionCore | None = None
    """Open and warm."""
    opening: asyncio.Task[SessionCore] | None = None
    waiters: int = 0
    """Number of calls that wait for ``opening``."""
    opened: int = 0
    streamed: int = 0
    rerun: int = 0
    failure: str | None = None
    """Its last failure as text: the error itself would hold frames, and the frames buffers."""


class SessionPool:
    """The sessions of a ``MultiDeviceSession``, and the calls that run on them.

    Everything is called on the thread of the one event loop that used it first.

    Parameters
    ----------
    options
        Checked arguments of the sessions; ``device_id`` is not used.
    """

    def __init__(self, options: Options) -> None:
        self.is_closed: bool = False
        self.options = options
        self._loop: asyncio.AbstractEventLoop | None = None
        self._count: int | None = None
        self._states: dict[int, DeviceState] = {}
        self._retired: weakref.WeakKeyDictionary[SessionCore, str] = weakref.WeakKeyDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls: dict[Callable[[], None], bool] = {}
        """How to cut each call under way short, and whether closing waits for it."""
        self._has_left = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Bind to the running loop, or say why the pool cannot be used here."""
        if self.is_closed:
            raise ClosedError(f"{self!r} is closed: make a new one")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        self.check_loop()

    def check_loop(self) -> None:
        """Raise on another loop than the pool's."""
        if self._loop is not None and asyncio.get_running_loop() is not self._loop:
            raise WrongLoopError(f"{self!r} was used in another event loop first; make one per loop")

    # ------------------------------------------------------------------------- devices
    async def resolve(self, device_ids: object) -> list[int]:
        """Check device ids; ``None`` and ``"all"`` are those that exist.

        Raises
        ------
        DeviceError
            An id does not exist or comes twice; the message lists those that exist.
        ArgumentError
            It is no collection of ids, or an empty one.
        """
        is_all = device_ids is None or (isinstance(device_ids, str) and device_ids == "all")
        ids = None if is_all else _as_ids(device_ids)
        if self._count is None:
            try:
                self._count = await run_in_thread("aioais-count", self._count_devices, uses_acl=True)
            except RuntimeError as exc:
                raise open_error(repr(self), exc)  # noqa: B904 - it has its cause
        count = self._count
        what = f"the visible devices of platform {self.options.platform!r} are " + (
            f"0 to {count - 1}" if count else "none"
        )
        if ids is None:
            if not count:
                raise DeviceError(f"there is no device to run on: {what}")
            return list(range(count))
        for device_id in ids:
            if not 0 <= device_id < count:
                raise DeviceError(f"device {device_id} does not exist: {what}; aioais.devices() lists them")
        if len(set(ids)) != len(ids):
            raise DeviceError(f"device_ids={ids!r}: a device comes twice; name each once: {what}")
        return ids

    def _count_devices(self) -> int:
        process = process_of(find_library(self.options.platform))
        process.check_fork()
        process.init(self.options.acl_json_path)
        return process.count_devices()

    def state(self, device_id: int) -> DeviceState:
        """What is known of a device."""
        return self._states.setdefault(device_id, DeviceState())

    async def session(self, device_id: int, is_awaited: bool) -> SessionCore:
        """Return a device's session, opened if it is not yet; concurrent calls wait for the same one.

        Once the pool is closed, only calls that closing waits for (``is_awaited``) may still open one.
        Cancelled: the opening goes on, and its session is kept for the next call.
        """
        state = self.state(device_id)
        session = state.session
        if session is not None:
            pipeline = session.pipeline
            cause = None if pipeline is None else pipeline.failure.cause
            if cause is not None:
                self.retire(device_id, session, cause)  # by a request whose caller has stopped waiting
            elif pipeline is None or not pipeline.closed.done():
                return session
            state.session = None  # InferSession.finalize() may have ended it
        if self.is_closed and not is_awaited:
            raise ClosedError(f"{self!r} is closed: make a new one")
        state.waiters += 1
        try:
            task = state.opening
            if task is None:
                task = asyncio.ensure_future(self._open(device_id, state))
                task.add_done_callback(_see)
                if not task.done():  # an eager task may have failed already
                    state.opening = task
            return await asyncio.shield(task)
        finally:
            state.waiters -= 1

    async def _open(self, device_id: int, state: DeviceState) -> SessionCore:
        session = SessionCore(dataclasses.replace(self.options, device_id=device_id))
        try:
            await session.open()
        except Exception as exc:
            state.failure = describe(exc)
            if not state.waiters:  # they were cancelled: no caller reports it
                _log.warning("device %d could not be opened: %s", device_id, state.failure)
            raise
        finally:
            state.opening = None
        state.opened += 1
        state.session = session
        return session

    def retire(self, device_id: int, session: SessionCore | None, error: BaseException) -> None:
        """Take a device out of service after a fatal error: the next call that needs it opens it again."""
        state = self.state(device_id)
        if session is not None:
            if session in self._retired:
                return
            self._retired[session] = describe(error)
            if state.session is session:
                state.session = None
            task = asyncio.ensure_future(_close_broken(device_id, session))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        state.failure = describe(error)
        _log.warning("device %d is taken out of service: %s", device_id, state.failure)

    def explain(self, device_id: int, session: SessionCore | None, error: Exception) -> Exception:
        """Return the real error of a request whose session was closed because its device failed."""
        if not isinstance(error, ClosedError) or session is None or session not in self._retired:
            return error
        broken = BrokenSessionError(
            f"device {device_id} was taken out of service while it was in use ({self._retired[session]}); call again: "
            "it is opened again"
        )
        broken.__cause__ = error
        return broken

    def statistics(self) -> dict[int, DeviceStatistics]:
        """Return the counters of each device used so far."""
        return {device_id: _statistics(device_id, state) for device_id, state in sorted(self._states.items())}

    # --------------------------------------------------------------------------- calls
    @contextmanager
    def call(self, cut_short: Callable[[], None], is_awaited: bool) -> Iterator[None]:
        """Note a call under way.

        Parameters
        ----------
        cut_short
            Called when the pool is closed and is not to wait for it.
        is_awaited
            Closing waits for it; it does not wait for what goes at the pace of a consumer.
        """
        self._calls[cut_short] = is_awaited
        try:
            yield
        finally:
            del self._calls[cut_short]
            self._has_left.set()

    async def close(self, cancel: bool) -> None:
        """Close all sessions; idempotent. See ``MultiDeviceSession.aclose``."""
        self.check_loop()
        self.is_closed = True
        if cancel:
            for cut_short in list(self._calls):
                cut_short()
            for state in self._states.values():
                if state.opening is not None:
                    state.opening.cancel()
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
            self._closing.add_done_callback(_see)
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        while any(self._calls.values()):
            self._has_left.clear()
            await self._has_left.wait()
        openings = [state.opening for state in self._states.values() if state.opening is not None]
        await asyncio.gather(*openings, return_exceptions=True)
        sessions = {device_id: s.session for device_id, s in self._states.items() if s.session is not None}
        closings = [session.aclose() for session in sessions.values()]
        outcomes = await asyncio.gather(*closings, return_exceptions=True)
        await asyncio.gather(*self._tasks)
        for state in self._states.values():
            state.session = None
        failures = [(device_id, e) for device_id, e in zip(sessions, outcomes, strict=True) if e is not None]
        if failures:
            first = failures[0][1]
            for device_id, error in failures:
                add_note(first, f"device {device_id}: {describe(error)}")
            raise first

    def abandon(self) -> list[int]:
        """Drop what was never closed, in a finaliser; returns the devices that were open."""
        left = []
        for device_id, state in self._states.items():
            session, state.session = state.session, None
            if session is not None and session.abandon():
                left.append(device_id)
        return left

    def __repr__(self) -> str:
        o = self.options
        return f"<MultiDeviceSession {o.model_path!r} on {o.platform}, {'closed' if self.is_closed else 'open'}>"


def _as_ids(device_ids: object) -> list[int]:
    message = f"device_ids={device_ids!r}: expected 'all' or a list of device ids such as [0, 1]"
    if isinstance(device_ids, (str, bytes)) or not isinstance(device_ids, Iterable):
        raise ArgumentError(message)
    items: list[Any] = list(device_ids)
    if not items:
        raise ArgumentError(message)
    for item in items:
        if isinstance(item, bool) or not hasattr(item, "__index__"):
            raise DeviceError(f"device {item!r}: expected an int from 0; aioais.devices() lists what there is")
    return [operator.index(item) for item in items]


def _statistics(device_id: int, state: DeviceState) -> DeviceStatistics:
    session = state.session
    return DeviceStatistics(
        device_id=device_id,
        is_open=session is not None,
        opened=state.opened,
        streamed=state.streamed,
        rerun=state.rerun,
        failure=state.failure,
        session=None if session is None else session.known().statistics(),
    )


async def _close_broken(device_id: int, session: SessionCore) -> None:
    try:
        await session.aclose()
    except AclError as exc:
        _log.warning("device %d: freeing what it held failed: %s", device_id, describe(exc))


def _see(task: asyncio.Task[Any]) -> None:
    """Retrieve the error of a task whose callers may have stopped waiting."""
    if not task.cancelled():
        task.exception()
