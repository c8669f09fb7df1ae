"""The module tree ``acl``, ``acl.rt``, ``acl.mdl``, …, built from the entry points.

Facts: pyACL's C extension source: submodules are module objects registered in ``sys.modules``
and set as attributes, and there are no constants.
"""

from __future__ import annotations

import difflib
import sys
from types import ModuleType
from typing import Any

from . import (
    aipp,
    bundle,
    callback,
    context,
    dataset,
    device_calls,
    event,
    execute,
    gears,
    load_config,
    memory_calls,
    model,
    model_desc,
    stream_calls,
    synchronize,
    system,
    tensor_desc,
    transfer,
    util,
)

from . import shortcuts  # isort: skip - behind the entry points that it stands in front of
from ._args import ENTRIES
from .device import build_devices
from .errors import NotEmulatedError

__all__ = ["ENTRIES", "MODULES", "acl", "install"]

_DEFINING = (
    aipp,
    bundle,
    callback,
    context,
    dataset,
    device_calls,
    event,
    execute,
    gears,
    load_config,
    memory_calls,
    model,
    model_desc,
    stream_calls,
    synchronize,
    system,
    tensor_desc,
    transfer,
    util,
    shortcuts,
)
"""The modules whose import defines the entry points."""


class _Module(ModuleType):
    """A module of pyACL; names that it does not have say so."""

    def __getattr__(self, name: str) -> Any:
        full = f"{self.__name__}.{name}"
        if name.startswith("__"):  # what Python itself looks for
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        near = difflib.get_close_matches(full, [*ENTRIES, *MODULES], 1, 0.85)
        similar = f"; did you mean {near[0]}?" if near else ""
        raise NotEmulatedError(
            f"{full} is not emulated on the CPU device{similar}; docs/emulated_calls.md and 'python -m aioais.emulator "
            "--list' say which calls are"
        )


_NAMES = ("acl", *(f"acl.{name}" for name in ("rt", "mdl", "util", "op", "prof", "media", "himpi", "blas", "fv")))
MODULES = {name: _Module(name, "Part of pyACL, emulated on the CPU.") for name in _NAMES}

acl: ModuleType = MODULES["acl"]
"""The emulated ``acl`` module."""

for _name, _module in MODULES.items():
    if _name != "acl":
        setattr(acl, _name.partition(".")[2], _module)
for _name, _function in ENTRIES.items():
    _owner, _, _short = _name.rpartition(".")
    setattr(MODULES[_owner], _short, _function)


build_devices()


def install() -> ModuleType:
    """Put the emulated modules where ``import acl`` finds them.

    Returns
    -------
    module
        ``acl``.

    Raises
    ------
    ImportError
        Another ``acl`` is imported already.
    """
    present = sys.modules.get("acl")
    if present is not None and present is not acl:
        raise ImportError(f"another acl module is imported already: {present!r}")
    sys.modules.update(MODULES)
    return acl
