"""The devices of this machine, and a runner for the event loop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ._acl.library import Library, Platform, find_library, is_installed
from ._acl.memory import free_and_total
from ._acl.process import process_of
from .errors import AclError, AclNotFoundError
from .types import DeviceInfo

__all__ = ["devices", "run"]

_log = logging.getLogger("aioais")

_T = TypeVar("_T")
_PLATFORMS: tuple[Platform, ...] = ("ascend", "cpu")


def devices() -> list[DeviceInfo]:
    """Return the devices that a session can be opened on.

    This starts ACL, so the first call can take seconds: call it before the event loop runs, or through
    ``asyncio.to_thread``. ACL is started without an ``acl.json``, and takes one configuration per process: open a
    session with ``acl_json_path`` first. A platform whose software is not installed has no devices;
    ``aioais doctor`` says what is missing.

    Returns
    -------
    list of DeviceInfo
        Ascend devices first, then CPU devices. If a device fails to report its memory, its memory is 0 and the
        failure is logged.
    """
    found: list[DeviceInfo] = []
    for platform in _PLATFORMS:
        if not is_installed(platform):
            continue
        try:
            library = find_library(platform)
            # This makes a device current in its thread. The caller's thread may have another one current.
            with ThreadPoolExecutor(1, "aioais-devices") as thread:
                found += thread.submit(_devices_of, library).result()
        except AclNotFoundError:
            continue  # the module of this name is not the platform, or not all of it
    return found


def _devices_of(library: Library) -> list[DeviceInfo]:
    process = process_of(library)
    process.check_fork()
    process.init(None)
    name = library.acl.get_soc_name() or library.platform
    infos = []
    for device_id in range(process.count_devices()):
        try:
            free, total = _memory(library, device_id)
        except AclError as exc:
            _log.warning("device %d (platform %s) does not report its memory: %s", device_id, library.platform, exc)
            free = total = 0
        infos.append(DeviceInfo(library.platform, device_id, name, total, free))
    return infos


def _memory(library: Library, device_id: int) -> tuple[int, int]:
    """Return free and total bytes of a device."""
    process_of(library).set_device(device_id)
    library.check("acl.rt.set_device", library.slow.set_device(device_id))
    try:
        return free_and_total(library)
    finally:
        code = library.slow.reset_device(device_id)
        if code:
            raise library.error("acl.rt.reset_device", code)


def run(main: Callable[..., Coroutine[Any, Any, _T]] | Coroutine[Any, Any, _T], *args: Any) -> _T:
    """Run a coroutine on uvloop and return its result: ``asyncio.run`` on a faster loop.

    Parameters
    ----------
    main
        A coroutine function, or a coroutine.
    args
        Arguments for a coroutine function.

    Returns
    -------
    object
        The result of the coroutine.

    Raises
    ------
    RuntimeError
        An event loop is already running in this thread.

    Notes
    -----
    On Windows, where uvloop is not available, the loop is asyncio's own.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError("aioais.run() was called from a running event loop; await the coroutine there instead")
    coroutine = main if isinstance(main, Coroutine) else main(*args)
    if os.name == "nt":
        return asyncio.run(coroutine)
    import uvloop

    return uvloop.run(coroutine)
