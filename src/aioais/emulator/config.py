"""The configuration file of ``acl.init``: reading and checking it.

Facts: Huawei's pages of ``aclInit`` and of the dump and profiling configuration.
"""

from __future__ import annotations

import json
from typing import Any

from .._cann.codes import AclCode
from .errors import CodedError

__all__ = ["ConfigError", "read"]

_DEEPEST = 10
_LARGEST = 10 << 20
_SCENES = ("aic_err_brief_dump", "aic_err_norm_dump", "aic_err_detail_dump", "lite_exception", "watcher")
_DUMP = {
    "dump_mode": ("input", "output", "all"),
    "dump_op_switch": ("on", "off"),
    "dump_data": ("tensor", "stats"),
    "dump_level": ("op", "kernel", "all"),
    "dump_debug": ("on", "off"),
    "dump_scene": _SCENES,
}


class ConfigError(CodedError):
    """The configuration file cannot be used; ``acl.init`` returns the code."""


def read(path: str) -> tuple[str, dict[str, Any]]:
    """Read a configuration file.

    Parameters
    ----------
    path
        Relative paths are relative to the working directory.

    Returns
    -------
    str, dict
        The content in a normal form, for comparison, and the content itself.

    Raises
    ------
    ConfigError
        The file is missing, too large, not a JSON object, nested too deeply, or its dump or
        profiler part is wrong.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(_LARGEST + 1)
    except OSError as exc:
        raise ConfigError(AclCode.INVALID_FILE, f"cannot read {path}: {exc.strerror or exc}") from exc
    if not raw or len(raw) > _LARGEST:
        raise ConfigError(AclCode.INVALID_FILE_SIZE, f"{path} has {len(raw)} bytes")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(AclCode.PARSE_FILE, f"{path} is not JSON: {exc}") from exc
    if not isinstance(content, dict):
        raise ConfigError(AclCode.PARSE_FILE, f"{path} does not contain a JSON object")
    if _depth(content) > _DEEPEST:
        raise ConfigError(AclCode.PARSE_FILE, f"{path} is nested deeper than {_DEEPEST} levels")
    _check_dump(content.get("dump"))
    _check_profiler(content.get("profiler"))
    _check_rest(content)
    return json.dumps(content, sort_keys=True), content


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


def _check_dump(dump: Any) -> None:
    if dump is None:
        return
    code = AclCode.INVALID_DUMP_CONFIG
    if not isinstance(dump, dict):
        raise ConfigError(code, '"dump" is not an object')
    for key, allowed in _DUMP.items():
        if key in dump and dump[key] not in allowed:
            raise ConfigError(code, f'"{key}" is {dump[key]!r}, not one of {", ".join(allowed)}')
    models = dump.get("dump_list", [])
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise ConfigError(code, '"dump_list" is not a list of objects')
    for model in models:
        for key in ("layer", "watcher_nodes"):
            names = model.get(key, [])
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ConfigError(code, f'"{key}" is not a list of names')
        if not isinstance(model.get("model_name", ""), str):
            raise ConfigError(code, '"model_name" is not a string')
    exclusive = "dump_scene" in dump or dump.get("dump_debug") == "on"
    if exclusive and (models or dump.get("dump_op_switch") == "on"):
        raise ConfigError(code, "exception and overflow dump exclude model and operator dump")
    is_enabled = "dump_list" in dump or dump.get("dump_op_switch") == "on" or dump.get("dump_debug") == "on"
    if dump and not is_enabled and "dump_scene" not in dump:
        raise ConfigError(code, '"dump_list" is missing; an empty list asks for every model')
    if is_enabled and not (isinstance(dump.get("dump_path"), str) and dump["dump_path"]):
        raise ConfigError(code, '"dump_path" is missing')


def _check_profiler(profiler: Any) -> None:
    if profiler is None:
        return
    code = AclCode.INVALID_PROFILING_CONFIG
    if not isinstance(profiler, dict):
        raise ConfigError(code, '"profiler" is not an object')
    if profiler.get("switch") != "on":
        return
    for key in ("output", "storage_limit", "aic_metrics"):
        if not isinstance(profiler.get(key, ""), str):
            raise ConfigError(code, f'"{key}" is {profiler[key]!r}, not a string')
    for key in ("ascendcl", "runtime_api", "task_time", "aicpu", "l2", "hccl"):
        if not isinstance(profiler.get(key, "on"), str):
            raise ConfigError(code, f'"{key}" is {profiler[key]!r}, not "on" or "off"')


def _check_rest(content: dict[str, Any]) -> None:
    limit = content.get("max_opqueue_num")
    if limit is not None and not (isinstance(limit, str) and limit.isdecimal() and int(limit) > 0):
        text = f'"max_opqueue_num" is {limit!r}, not a string with a positive number'
        raise ConfigError(AclCode.INVALID_MAX_OPQUEUE_NUM_CONFIG, text)
    mode = content.get("err_msg_mode", "0")
    if mode not in ("0", "1"):
        raise ConfigError(AclCode.INVALID_PARAM, f'"err_msg_mode" is {mode!r}, not "0" or "1"')
    device = content.get("defaultDevice", {})
    number = device.get("default_device", "0") if isinstance(device, dict) else None
    if not (isinstance(number, str) and number.isdecimal()):
        raise ConfigError(AclCode.INVALID_PARAM, '"defaultDevice" is invalid; expected {"default_device": "0"}')
