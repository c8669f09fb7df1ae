"""Loading a model from a list of options: ``load_with_config``.

Facts: pyACL's C extension source (type of the value by attribute), ``acl_mdl.h`` for the numbers.
"""

from __future__ import annotations

import ctypes
from typing import Any

from .._cann.codes import AclCode
from ._args import SINGLE, VALUE, entry
from ._registry import handles, table
from ._state import report
from .errors import EmulatorError
from .lent import check_host
from .model import load, model_bytes

__all__ = ["LoadConfig"]

_PRIORITY, _LOAD_TYPE, _PATH, _MEM_ADDR, _MEM_SIZE, _WEIGHT_PATH = 0, 1, 2, 3, 4, 14
_POINTERS = (_MEM_ADDR, 5, 7, _WEIGHT_PATH)
_LAST = 29
_TEXT = "acl.mdl.set_config_opt args parse failed"


class LoadConfig:
    """Options of a load."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}


load_configs: dict[int, LoadConfig] = table("others")


def _find(handle: int) -> LoadConfig | None:
    config = load_configs.get(handle)
    if handle and config is None:
        raise EmulatorError(f"{handle:#x} is not a load configuration: destroyed, or never created")
    return config


@entry("acl.mdl.create_config_handle", answer=SINGLE)
def create_config_handle() -> int:
    """Create an empty load configuration."""
    handle = next(handles)
    load_configs[handle] = LoadConfig()
    return handle


@entry("acl.mdl.set_config_opt", "kiO")
def set_config_opt(handle: int, attribute: int, value: Any) -> int:
    """Set an option; the attribute decides the type of the value."""
    config = _find(handle)
    if attribute == _PATH:
        if not isinstance(value, str):
            raise TypeError(_TEXT)
        if config is None:
            return report(AclCode.INVALID_PARAM, "set_config_opt of 0")
        config.values[_PATH] = value
        return 0
    if not isinstance(value, int):
        raise TypeError(_TEXT)
    if config is None or not 0 <= attribute <= _LAST:
        return report(AclCode.INVALID_PARAM, f"set_config_opt({handle:#x}, {attribute})")
    if attribute == _PRIORITY and not 0 <= value <= 7:
        return report(AclCode.INVALID_PARAM, f"set_config_opt: priority {value}")
    if attribute in _POINTERS and value == 0:
        return report(AclCode.INVALID_PARAM, f"set_config_opt: attribute {attribute} is a null address")
    if attribute == _WEIGHT_PATH:
        check_host("set_config_opt", value, 1)
    config.values[attribute] = ctypes.string_at(value).decode() if attribute == _WEIGHT_PATH else value
    return 0


@entry("acl.mdl.load_with_config", "k", answer=VALUE)
def load_with_config(handle: int) -> tuple[int, int]:
    """Load a model as the options say."""
    config = _find(handle)
    if config is None:
        return 0, report(AclCode.INVALID_PARAM, "load_with_config of 0")
    values = config.values
    kind = values.get(_LOAD_TYPE)
    required = (_PATH,) if kind in (1, 2) else (_MEM_ADDR, _MEM_SIZE)
    if kind not in (1, 2, 3, 4) or any(attribute not in values for attribute in required):
        return 0, report(AclCode.INVALID_PARAM, f"load_with_config: type {kind} or an attribute is missing")
    if kind in (1, 2):
        return load(values[_PATH])
    content = model_bytes(values[_MEM_ADDR], values[_MEM_SIZE], "load_with_config")
    return (0, content) if isinstance(content, int) else load(content)


@entry("acl.mdl.destroy_config_handle", "k")
def destroy_config_handle(handle: int) -> int:
    """Destroy a load configuration."""
    if _find(handle) is None:
        return report(AclCode.INVALID_PARAM, "destroy_config_handle of 0")
    del load_configs[handle]
    return 0
