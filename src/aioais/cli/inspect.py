"""``aioais inspect``: inputs, outputs and gears of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.table import Table
from rich.text import Text

import aioais

from ..session import core_of
from .console import clear_errors, format_bytes, output_console, print_facts

if TYPE_CHECKING:
    from .._acl.library import Platform
    from .._acl.model import ModelInfo, TensorInfo

__all__ = ["inspect"]


def inspect(
    model: Annotated[str, typer.Argument(help="A .om or .onnx file.")],
    device: Annotated[int, typer.Option("--device", "-d", help="Id of the device to load it on.")] = 0,
    platform: Annotated[
        str | None, typer.Option("--platform", help="ascend or cpu; decided by the file's name if not given.")
    ] = None,
) -> None:
    """Show the inputs, outputs and gears of a model."""
    with clear_errors("inspect"):
        info = aioais.run(_load, model, device, platform)
    facts = {"model": info.path, "mode": info.mode}
    if info.gears:
        facts["gears"] = "; ".join(",".join(map(str, gear)) for gear in info.gears.values)

    tensors = Table()
    for column in ("", "name", "dtype", "format", "shape"):
        tensors.add_column(column)
    tensors.add_column("size", justify="right")
    for kind, items in (("input", info.inputs), ("optional input", info.optional), ("output", info.outputs)):
        for item in items:
            size = format_bytes(item.size) if item.size else "open"
            # As Text, so that a [ in the model's names is not taken for markup.
            tensors.add_row(kind, Text(item.name), item.datatype.name, item.format.name, _shape(item), size)
    console = output_console()
    print_facts(console, facts)
    console.print(tensors)


async def _load(model: str, device: int, platform: str | None) -> ModelInfo:
    # The session checks the platform.
    async with aioais.InferSession(device, model, platform=cast("Platform | None", platform)) as session:
        return core_of(session).opened().info


def _shape(item: TensorInfo) -> str:
    # If the rank of an input is unknown, so are its ranges.
    ranges = item.ranges if item.ranges and len(item.ranges) == len(item.shape) else [(-1, -1)] * len(item.shape)
    return ",".join(
        f"{low}~{high}" if dim < 0 and high >= 0 else str(dim)
        for dim, (low, high) in zip(item.shape, ranges, strict=True)
    )
