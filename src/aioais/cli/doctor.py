"""``aioais doctor``: what this machine has, what is missing, and the command that fixes it."""

from __future__ import annotations

from typing import Annotated

import typer

from .checks import run_doctor

__all__ = ["doctor"]


def doctor(
    is_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    platform: Annotated[
        str | None, typer.Option("--platform", help="ascend or cpu: the platform that must be ready; any by default.")
    ] = None,
) -> None:
    """Check this machine: Python, the CPU device, and everything that an NPU needs.

    The exit code is 0 if the platform is ready, or any one if none is named, and 1 otherwise.
    """
    if platform not in (None, "ascend", "cpu"):
        raise typer.BadParameter(f"got --platform {platform!r}; expected ascend or cpu")
    raise typer.Exit(run_doctor(is_json, platform))
