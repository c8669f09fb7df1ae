"""``aioais devices``: what a session can be opened on."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

import aioais

from .console import clear_errors, format_bytes, output_console

__all__ = ["devices"]


def devices() -> None:
    """List the devices that can be opened."""
    with clear_errors("devices"):
        found = aioais.devices()
    table = Table()
    for column in ("platform", "id", "name", "memory", "free"):
        table.add_column(column, justify="right" if column in {"id", "memory", "free"} else "left")
    for device in found:
        table.add_row(
            device.platform,
            str(device.id),
            Text(device.name),
            _memory(device.total_memory),
            _memory(device.free_memory),
        )
    output_console().print(table)


def _memory(count: int) -> str:
    return format_bytes(count) if count else "unknown"
