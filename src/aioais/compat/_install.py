"""``install``: where ``import ais_bench`` and ``import aclruntime`` find this library."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final, Literal

from ._models import set_platform

__all__ = ["install"]

_IMPLEMENTED_BY: Final[dict[str, str | None]] = {
    "ais_bench": None,
    "ais_bench.infer": None,
    "ais_bench.infer.interface": "aioais.compat.ais_bench",
    "aclruntime": "aioais.compat.aclruntime",
}
"""Modules that programs import, and which of ours has their names; packages have none."""

_INSTEAD: Final = {
    "ais_bench.__main__": "the command line is that of aioais: see `aioais bench --help`, and docs/ais_bench.md",
    "ais_bench.infer.benchmark_process": "the command line is that of aioais: see `aioais bench --help`",
    "ais_bench.infer.summary": "session.summary() has the times",
}


def install(platform: Literal["ascend", "cpu"] | None = None) -> None:
    """Have ``import ais_bench.infer.interface`` and ``import aclruntime`` find this library; idempotent.

    Call it before the first of these imports, also where the real packages are installed: they are not used then.

    Parameters
    ----------
    platform
        Where all models run. ``None`` goes by the environment variable ``AIOAIS_COMPAT_PLATFORM``, or else by the
        name of each file: ``.om`` on an Ascend NPU, ``.onnx`` on the CPU device. With ``"cpu"`` a path ``x.om``
        stands for ``x.onnx`` beside it, so that a program that names ``.om`` files runs without an NPU. Nothing of
        this happens unless it is asked for.

    Raises
    ------
    ImportError
        The real ``ais_bench`` or ``aclruntime`` is imported already.
    ArgumentError
        There is no such platform.
    """
    for name in ("ais_bench", "aclruntime"):
        present = sys.modules.get(name)
        if present is not None and not isinstance(present, _Module):
            raise ImportError(
                f"{name!r} is imported already, from {getattr(present, '__file__', None)!r}: call "
                "aioais.compat.install() before anything imports it"
            )
    if platform is not None:
        set_platform(platform)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Module(ModuleType):
    """A module that stands for one of ais_bench's."""


class _Finder(MetaPathFinder, Loader):
    """Finds the modules of ``_IMPLEMENTED_BY``, and says what there is where another one is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of one of our modules; ``None`` for what is not of ais_bench."""
        if fullname in _IMPLEMENTED_BY:
            # Every module is treated as a package: then this is asked for names that are imported and not there, too.
            return ModuleSpec(fullname, self, is_package=True)
        if fullname.partition(".")[0] in ("ais_bench", "aclruntime"):
            raise ImportError(_missing(fullname), name=fullname)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Make the module that stands for another."""
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Copy the names of our module into it."""
        source = _IMPLEMENTED_BY[module.__name__]
        if source is None:
            return
        ours = importlib.import_module(source)
        names: list[str] = list(ours.__all__)
        module.__doc__ = ours.__doc__
        module.__dict__.update({name: getattr(ours, name) for name in names}, __all__=names)
        if hasattr(ours, "__getattr__"):
            module.__dict__["__getattr__"] = ours.__getattr__


def _missing(fullname: str) -> str:
    parent, _, name = fullname.rpartition(".")
    source = _IMPLEMENTED_BY.get(parent)
    if source is not None:
        names = ", ".join(sorted(importlib.import_module(source).__all__))
        text = f"cannot import {name!r} from {parent!r}, which is aioais.compat here and has {names}"
    else:
        text = f"no module {fullname!r}: of ais_bench, aioais.compat has {', '.join(_IMPLEMENTED_BY)}"
    instead = _INSTEAD.get(fullname)
    return f"{text}; {instead or 'docs/ais_bench.md says what to use instead'}"
