"""Starting and stopping the library, messages, versions.

Facts: pyACL reference, Huawei's pages of ``aclInit`` and ``aclFinalize`` and the open runtime
source (reference count, 100002, 100037, a second configuration with other content).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from aioais._acl.codes import AclCode
from aioais.emulator import faults
from aioais.emulator._args import NONE, VALUE, entry
from aioais.emulator._state import local, report, state
from aioais.emulator.config import ConfigError, read
from aioais.emulator.timeline import pause

if TYPE_CHECKING:
    from aioais.emulator.dump import Dump
    from aioais.emulator.profiler import Profiler

__all__ = ["log"]

log = logging.getLogger("aioais.emulator")

_VERSION = (1, 14, 0)
_LEVELS = {0: logging.DEBUG, 1: logging.INFO, 2: logging.WARNING, 3: logging.ERROR}


@entry("acl.init", "s", optional=1)
def init(path: str = "") -> int:
    """Start the library; the path of a configuration file is optional."""
    if not state.initialised:
        # Without the lock: a closed gate is to hold up this call only.
        if state.gates:
            faults.pass_gates("init", None)
        pause(state.settings.init_ms * 1e-3, state.settings.gil != "release")
    with state.lock:
        if state.initialised:
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
            profiler, dump = _observers(content)
        except ConfigError as exc:
            return report(exc.code, exc.text)
        state.first_config = normal
        state.config = content
        state.profiler, state.dump = profiler, dump
        state.message_per_process = content.get("err_msg_mode") == "1"
        default = content.get("defaultDevice")
        state.default_device = int(default.get("default_device", "0")) if default else None
        state.initialised = True
        state.finalised = False
        state.references = 1
    return 0


def _observers(config: dict[str, Any]) -> tuple[Profiler | None, Dump | None]:
    """Prepare what the configuration asks to write: a trace, a dump."""
    if "dump" not in config and "profiler" not in config:
        return None, None
    from aioais.emulator.dump import open_dump
    from aioais.emulator.profiler import open_profiler

    dump = open_dump(config)
    return open_profiler(config), dump


def _finalize() -> int:
    from aioais.emulator.control import leaks

    left = leaks()
    if left:
        listed = ", ".join(f"{number} {name}" for name, number in sorted(left.items()))
        log.warning("not released before acl.finalize: %s", listed)
    state.initialised = False
    state.finalised = True
    state.references = 0
    state.default_device = None
    if state.profiler is not None:
        state.profiler.close()
    state.profiler = state.dump = None
    state.lost.clear()
    return 0


@entry("acl.finalize")
def finalize() -> int:
    """Stop the library whatever the init count; what is not released yet is logged."""
    with state.lock:
        if state.finalised:
            return report(AclCode.REPEAT_FINALIZE, "acl.finalize again")
        return _finalize()


@entry("acl.finalize_reference", answer=VALUE)
def finalize_reference() -> tuple[int, int]:
    """Take one init back; the last one stops the library."""
    with state.lock:
        if state.references == 0:
            return 0, report(AclCode.REPEAT_FINALIZE, "acl.finalize_reference without acl.init")
        state.references -= 1
        if state.references == 0:
            _finalize()
        return state.references, 0


@entry("acl.get_recent_err_msg", answer=lambda code: None)
def get_recent_err_msg() -> str | None:
    """Give the message of the last failure and clear it; ``None`` when there is nothing.

    In a thread without a current context the message stays and comes back on the next read.
    """
    context = local.context
    keep = context is None or not context.alive
    if state.message_per_process:
        message = state.process_message
        if not keep:
            state.process_message = None
        return message
    message = local.message
    if not keep:
        local.message = None
    return message


@entry("acl.get_version", answer=lambda code: (0, 0, 0, code))
def get_version() -> tuple[int, int, int, int]:
    """Give the version of the interface."""
    return (*_VERSION, 0)


@entry("acl.get_version_str", "s", answer=lambda code: ("", code))
def get_version_str(package: str) -> tuple[str, int]:
    """Give the version of a package."""
    return ".".join(map(str, _VERSION)), 0


@entry("acl.get_cann_version", "i", answer=NONE)
def get_cann_version(package: int) -> tuple[dict[str, object], int]:
    """Give the version of a CANN package; the emulator contains none."""
    return {}, report(AclCode.API_NOT_SUPPORT, "the emulator contains no CANN package")


@entry("acl.get_soc_name", answer=lambda code: None)
def get_soc_name() -> str | None:
    """Give the name of the chip; works before ``init``."""
    return state.settings.soc_name


@entry("acl.get_cann_attribute", "i", answer=VALUE)
def get_cann_attribute(attribute: int) -> tuple[int, int]:
    """Give a CANN attribute; the emulator has none."""
    return 0, report(AclCode.API_NOT_SUPPORT, "get_cann_attribute is not supported here")


@entry("acl.get_device_capability", "Ii", answer=VALUE)
def get_device_capability(device: int, information: int) -> tuple[int, int]:
    """Give a device's capability; the emulator has none of those asked for."""
    return 0, report(AclCode.API_NOT_SUPPORT, "get_device_capability is not supported here")


@entry("acl.app_log", "is", answer=lambda code: None)
def app_log(level: int, text: str) -> None:
    """Write to the log: 0 debug … 3 error."""
    log.log(_LEVELS.get(level, logging.INFO), "%s", text)
