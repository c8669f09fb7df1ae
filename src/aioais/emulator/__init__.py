"""The CPU device: a strict implementation of Huawei's ``acl`` module that computes with ONNX Runtime.

>>> from aioais import emulator
>>> emulator.acl.rt.get_device_count()[1]
0

``install()`` puts it where ``import acl`` finds it; ``python -m aioais.emulator script.py`` runs a
program written for pyACL on it, with ONNX files as models. Importing this package does not import
``onnxruntime``; the first model that is loaded does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._tree import acl, install
    from .control import (
        configure,
        copied,
        counts,
        disarm,
        fail,
        forget_config,
        gate,
        kill,
        leaks,
        live,
        pending,
        reset,
        reset_counts,
        settings,
    )
    from .errors import EmulatorError, NotEmulatedError
    from .faults import Gate
    from .model_desc import count_optional_inputs
    from .ort_library import preload

__all__ = [
    "EmulatorError",
    "Gate",
    "NotEmulatedError",
    "acl",
    "configure",
    "copied",
    "count_optional_inputs",
    "counts",
    "disarm",
    "fail",
    "forget_config",
    "gate",
    "install",
    "kill",
    "leaks",
    "live",
    "pending",
    "preload",
    "reset",
    "reset_counts",
    "settings",
]


def __getattr__(name: str) -> Any:
    """Import the emulator on first use: importing only the gear tables of this package must stay cheap."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import _tree, control, errors, faults, model_desc, ort

    for module in (_tree, control, errors, faults, model_desc, ort):
        for public in __all__:
            if public in vars(module):
                globals()[public] = vars(module)[public]
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
