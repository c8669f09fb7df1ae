"""``aioais convert``: convert an ONNX file to a model with fixed shapes, gears or dynamic shapes."""

from __future__ import annotations

from typing import Annotated

import typer

import aioais

from .console import clear_errors

__all__ = ["convert"]


def convert(
    model_file: Annotated[str | None, typer.Argument(metavar="MODEL", help="The ONNX file to convert.")] = None,
    output_file: Annotated[str | None, typer.Argument(metavar="OUTPUT", help="The file to write.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="The ONNX file, as ATC has it.")] = None,
    output: Annotated[str | None, typer.Option("--output", help="The file to write, as ATC has it.")] = None,
    platform: Annotated[str | None, typer.Option("--platform", help="ascend (runs atc, writes a .om) or cpu.")] = None,
    soc_version: Annotated[
        str | None, typer.Option("--soc_version", "--soc-version", help="The chip, such as Ascend310P3; ascend only.")
    ] = None,
    input_format: Annotated[
        str | None, typer.Option("--input_format", "--input-format", help="NCHW, NHWC or ND.")
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option("--input_shape", "--input-shape", help='Such as "image:-1,3,32,32;mask:-1,1".')
    ] = None,
    dynamic_batch_size: Annotated[
        str | None,
        typer.Option("--dynamic_batch_size", "--dynamic-batch-size", help='Gears of the batch, such as "1,2,4,8".'),
    ] = None,
    dynamic_image_size: Annotated[
        str | None,
        typer.Option("--dynamic_image_size", "--dynamic-image-size", help='Gears of H,W, such as "32,32;64,64".'),
    ] = None,
    dynamic_dims: Annotated[
        str | None, typer.Option("--dynamic_dims", "--dynamic-dims", help='Gears of any dims, such as "1,32;4,64".')
    ] = None,
    input_shape_range: Annotated[
        str | None, typer.Option("--input_shape_range", "--input-shape-range", help='Such as "image:[1~4,3,32~64,-1]".')
    ] = None,
) -> None:
    """Convert an ONNX model; option names, syntax and rules are those of ATC."""
    source, target = _one_of("MODEL", model_file, model), _one_of("OUTPUT", output_file, output)
    with clear_errors("convert"):
        written = aioais.convert(
            source,
            target,
            platform=platform,
            soc_version=soc_version,
            input_format=input_format,
            input_shape=input_shape,
            dynamic_batch_size=dynamic_batch_size,
            dynamic_image_size=dynamic_image_size,
            dynamic_dims=dynamic_dims,
            input_shape_range=input_shape_range,
        )
    print(f"wrote {written}")


def _one_of(name: str, argument: str | None, option: str | None) -> str:
    """Return the value that was given in one of the two ways."""
    if (argument is None) == (option is None):
        raise typer.BadParameter(f"give {name}, or --{name.lower()}, and not both")
    return argument if option is None else option  # type: ignore[return-value]  # one of them is there
