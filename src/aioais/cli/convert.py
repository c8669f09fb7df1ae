"""``aioais convert``: convert an ONNX file to a model with fixed shapes, gears or dynamic shapes."""

from __future__ import annotations

from typing import Annotated

import typer

import aioais

from .._atc.other_options import read_arguments
from .console import clear_errors

__all__ = ["convert"]


def convert(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [OUTPUT]",
            help="The ONNX file and the file to write; further options of atc, such as --precision_mode=VALUE.",
        ),
    ] = None,
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
    """Convert an ONNX model. Names, syntax and rules of the options are those of atc.

    Other options of atc, such as --insert_op_conf=aipp.cfg, are passed on to it for an NPU. On the CPU device those
    that affect only the compilation are ignored, and those that change inputs or outputs are refused.
    """
    with clear_errors("convert"):
        files, atc_options = read_arguments(arguments or [])
    source = _one_of("MODEL", files[0] if files else None, model)
    target = _one_of("OUTPUT", files[1] if len(files) > 1 else None, output)
    if len(files) > 2:
        raise typer.BadParameter(f"got {len(files)} files; expected MODEL and OUTPUT")
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
            **atc_options,
        )
    print(f"wrote {written}")


def _one_of(name: str, argument: str | None, option: str | None) -> str:
    """Return the value that was given in one of the two ways."""
    if (argument is None) == (option is None):
        raise typer.BadParameter(f"give {name}, or --{name.lower()}, and not both")
    return argument if option is None else option  # type: ignore[return-value]  # one of them is there
