"""``aioais devices``: the devices that a session can be opened on."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

import aioais

from .checks import run_checks, why_not
from .console import clear_errors, format_bytes, output_console
from .host import Host

__all__ = ["devices"]


def devices() -> None:
    """List the devices that can be opened, and say why there is no NPU or no CPU device."""
    with clear_errors("devices"):
        found = aioais.devices()
    console = output_console()
    if found:
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
        console.print(table)
    for line in _remarks({device.platform for device in found}, Host()):
        console.print(Text(line), soft_wrap=True)


def _remarks(platforms: set[str], host: Host) -> Iterator[str]:
    """Yield a line about each platform: why it is missing, or what its memory is."""
    if "cpu" in platforms:
        available, total = host.memory()
        if total:
            yield (
                "The CPU devices share the memory of this machine: "
                f"{format_bytes(available)} of {format_bytes(total)} available."
            )
    missing = [name for name in ("ascend", "cpu") if name not in platforms]
    if not missing:
        return
    checks = run_checks(host, is_started=False)
    for name in missing:
        label = "NPU" if name == "ascend" else "CPU device"
        yield f"No {label}: {why_not(checks, name) or 'its software is installed, and finds no device'}"
    yield "aioais doctor checks everything and says how to fix it."


def _memory(count: int) -> str:
    return format_bytes(count) if count else "unknown"
