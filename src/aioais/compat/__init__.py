"""Programs for ais_bench, unchanged: its blocking interface over this library's engine.

>>> import aioais.compat
>>> aioais.compat.install()
>>> from ais_bench.infer.interface import InferSession

``python -m aioais.compat script.py [args]`` runs a program with that done. ``session.aio`` is the awaitable session
behind a blocking one, so that a program moves to ``await`` step by step; ``docs/ais_bench.md`` shows the steps.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._install import install as install

if TYPE_CHECKING:
    from . import aclruntime as aclruntime
    from . import ais_bench as ais_bench

__all__ = ["aclruntime", "ais_bench", "install"]


def __getattr__(name: str) -> Any:
    """Import ``ais_bench`` and ``aclruntime`` at first use."""
    if name in ("ais_bench", "aclruntime"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
