"""What the emulated devices of Ray's processes do, told by an environment variable: their times, and one that dies."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from examples.ray import data_app, serve_app

from aioais import emulator

VARIABLE = "AIOAIS_TEST_DIALS"
LOST_HEARTBEAT = 507010


def environment(
    *, execute_ms: float = 0.0, dies_after: int | None = None, times: int = 1_000_000, marker: Path | None = None
) -> dict[str, str]:
    """Return the variables for Ray's processes.

    Parameters
    ----------
    execute_ms
        Of each execution.
    dies_after
        Executions after which a device is lost, for the first process that makes the marker.
    times
        Executions that fail then.
    marker
        A file that is not there yet.
    """
    dials = {"execute_ms": execute_ms, "dies_after": dies_after, "times": times, "marker": str(marker)}
    return {VARIABLE: json.dumps(dials)}


def turn() -> None:
    """Set the devices of this process as the variable says."""
    dials = json.loads(os.environ[VARIABLE])
    emulator.configure(execute_ms=dials["execute_ms"])
    if dials["dies_after"] is not None:
        try:
            Path(dials["marker"]).touch(exist_ok=False)
        except FileExistsError:
            return  # another process has the device that dies
        emulator.fail("acl.mdl.execute_async", LOST_HEARTBEAT, after=dials["dies_after"], times=dials["times"])


class Digits(serve_app.Digits):
    """The replica of the example on such devices."""

    async def __init__(self, *arguments: Any) -> None:  # type: ignore[misc]
        turn()
        await super().__init__(*arguments)


class Reader(data_app.Reader):
    """The actor of the example on such devices."""

    def __init__(self, *arguments: Any) -> None:
        turn()
        super().__init__(*arguments)

    async def __call__(self, batch: data_app.Table) -> AsyncIterator[data_app.Table]:
        async for table in super().__call__(batch):
            yield table
