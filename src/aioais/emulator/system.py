"""Starting and stopping the library, messages, versions.

Facts: pyACL reference, Huawei's pages of ``aclInit`` and ``aclFinalize`` and the open runtime
source (reference count, 100002, 100037, a second configuration with other content).
"""

from __future__ import annotations

import logging
import os
from typing import Any

from .._cann.codes import AclCode
from . import faults
from ._args import NONE, VALUE, entry
from ._observers import observers
from ._registry import leaks, lost
from ._state import messages, report, state
from .config import ConfigError, read
from .context import local
from .device import devices
from .timeline import pause

__all__ = ["log"]

log: logging.Logger = logging.getLogger("aioais.emulator")

_VERSION = (1, 14, 0)
_LEVELS = {0: logging.DEBUG, 1: logging.INFO, 2: logging.WARNING, 3: logging.ERROR}


@entry("acl.init", "s", optional=1)
def init(path: str = "") -> int:
    """Start the library; the path of a configuration file is optional."""
    if not state.is_initialised:
        # Without the lock: a closed gate blocks this call only.
        if state.gates:
            faults.pass_gates("init", None)
        pause(state.settings.init_ms * 1e-3, state.settings.gil != "release")
    with state.lock:
        if state.is_initialised:
            state.references += 1
            return report(AclCode.REPEAT_INITIALIZE, "acl.init again: harmless")
        normal = "{}"
        content: dict[str, Any] = {}
        if path:
            try:
                normal, content = read(path)
            except ConfigError as exc:
                return report(exc.code, exc.text)
        if state.first_config is not None and state.first_config != normal:
            text = "acl.init with another configuration than the first one of this process"
            return report(AclCode.INVALID_PARAM, text)
        try:
            _observe(content)
        except ConfigError as exc:
            return report(exc.code, exc.text)
        state.first_config = normal
        state.has_process_message = content.get("err_msg_mode") == "1"
        default = content.get("defaultDevice")
        state.default_device = int(default.get("default_device", "0")) if default else None
        state.is_initialised = True
        state.is_finalised = False
        state.references = 1
    return 0


def _observe(config: dict[str, Any]) -> None:
    """Open the trace and the dump that the configuration asks for."""
    if "dump" not in config and "profiler" not in config:
        return
    from .dump import open_dump
    from .profiler import open_profiler

    dump = open_dump(config)
    observers.profiler, observers.dump = open_profiler(config), dump


def _after_fork() -> None:
    """Make every call of a child process fail: the driver's state does not survive a fork."""
    if state.is_initialised or any(device.count for device in devices):
        state.is_forked = True
        state.armed[""] = []
        observers.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _finalize() -> int:
    left = leaks()
    if left:
        listed = ", ".join(f"{number} {name}" for name, number in sorted(left.items()))
        log.warning("not released before acl.finalize: %s", listed)
    state.is_initialised = False
    state.is_finalised = True
    state.references = 0
    state.default_device = None
    observers.close()
    lost.clear()
    return 0


@entry("acl.finalize")
def finalize() -> int:
    """Stop the library, whatever the init count; log what is not released."""
    with state.lock:
        if state.is_finalised:
            return report(AclCode.REPEAT_FINALIZE, "acl.finalize again")
        return _finalize()


@entry("acl.finalize_reference", answer=VALUE)
def finalize_reference() -> tuple[int, int]:
    """Undo one init; the last one stops the library."""
    with state.lock:
        if state.references == 0:
            return 0, report(AclCode.REPEAT_FINALIZE, "acl.finalize_reference without acl.init")
        state.references -= 1
        if state.references == 0:
            _finalize()
        return state.references, 0


@entry("acl.get_recent_err_msg", answer=lambda code: None)
def get_recent_err_msg() -> str | None:
    """Return the message of the last failure and clear it; ``None`` when there is nothing.

    In a thread without a current context the message stays and comes back on the next read.
    """
    context = local.context
    keep = context is None or not context.is_alive
    if state.has_process_message:
        message = state.process_message
        if not keep:
            state.process_message = None
        return message
    message = messages.message
    if not keep:
        messages.message = None
    return message


_THREAD_LEVEL = 0
"""``ACL_RT_THREAD_LEVEL``, the only level."""


@entry("acl.rt.peek_at_last_error", "i")
def peek_at_last_error(level: int) -> int:
    """Return the code of this thread's last failure; 0 if there is none."""
    return int(AclCode.RT_PARAM_INVALID) if level != _THREAD_LEVEL else messages.code


@entry("acl.rt.get_last_error", "i")
def get_last_error(level: int) -> int:
    """Return the code of this thread's last failure, and forget it."""
    code = peek_at_last_error(level)
    if level == _THREAD_LEVEL:
        messages.code = 0
    return code


@entry("acl.get_version", answer=lambda code: (0, 0, 0, code))
def get_version() -> tuple[int, int, int, int]:
    """Return the version of the interface."""
    return (*_VERSION, 0)


@entry("acl.get_version_str", "s", answer=lambda code: ("", code))
def get_version_str(package: str) -> tuple[str, int]:
    """Return the version of a package."""
    return ".".join(map(str, _VERSION)), 0


@entry("acl.get_cann_version", "i", answer=NONE)
def get_cann_version(package: int) -> tuple[dict[str, object], int]:
    """Return the version of a CANN package; the emulator contains none."""
    return {}, report(AclCode.API_NOT_SUPPORT, "the emulator contains no CANN package")


@entry("acl.get_soc_name", answer=lambda code: None)
def get_soc_name() -> str | None:
    """Return the name of the chip; works before ``init``."""
    return state.settings.soc_name


@entry("acl.get_cann_attribute", "i", answer=VALUE)
def get_cann_attribute(attribute: int) -> tuple[int, int]:
    """Return a CANN attribute; the emulator has none."""
    return 0, report(AclCode.API_NOT_SUPPORT, "get_cann_attribute is not supported here")


@entry("acl.get_device_capability", "Ii", answer=VALUE)
def get_device_capability(device: int, information: int) -> tuple[int, int]:
    """Return a device's capability; the emulator has none of those asked for."""
    return 0, report(AclCode.API_NOT_SUPPORT, "get_device_capability is not supported here")


@entry("acl.app_log", "is", answer=lambda code: None)
def app_log(level: int, text: str) -> None:
    """Write to the log: 0 debug … 3 error."""
    log.log(_LEVELS.get(level, logging.INFO), "%s", text)
