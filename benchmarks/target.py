"""The ``acl`` under measurement, and how to set its times: the emulator, or a C stub of AscendCL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from aioais import emulator

__all__ = ["GIL_MODES", "dialled", "find_acl", "gil_mode"]

GIL_MODES = ("real", "hold", "release")


def find_acl(path: str) -> Any:
    """Return the ``acl`` that a session on this model uses."""
    if path.endswith(".om"):
        import acl

        return acl
    return emulator.acl


@contextlib.contextmanager
def gil_mode(acl: Any, mode: str | None) -> Iterator[None]:
    """Let the calls of the emulator, or of a C stub, hold or release the GIL inside the block."""
    if mode is None:
        yield
    elif acl is emulator.acl:
        with emulator.configure(gil=mode):
            yield
    else:
        acl.stub.gil(mode)
        yield


@contextlib.contextmanager
def dialled(acl: Any, stages: tuple[float, float, float]) -> Iterator[None]:
    """Set the milliseconds of H2D, execute and D2H inside the block.

    A C stub of AscendCL has the control functions in ``acl.stub``.
    """
    h2d, execute, d2h = stages
    if acl is emulator.acl:
        with emulator.configure(h2d_ms=h2d, execute_ms=execute, d2h_ms=d2h):
            yield
        return
    for key, ms in (("h2d_us", h2d), ("exec_us", execute), ("d2h_us", d2h)):
        acl.stub.set(key, ms * 1e3)
    yield
    for key, us in (("h2d_us", 0), ("exec_us", -1), ("d2h_us", 0)):
        acl.stub.set(key, us)
