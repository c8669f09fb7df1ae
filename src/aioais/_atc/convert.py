"""The door of conversion: which platform, which files; the work is in the other modules of this folder."""

from __future__ import annotations

import os
from pathlib import Path

from aioais.errors import ConvertError, ModelError

__all__ = ["convert"]

_PLATFORM_OF = {".onnx": "cpu", ".om": "ascend"}


def convert(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    platform: str | None = None,
    soc_version: str | None = None,
    input_format: str | None = None,
    input_shape: str | None = None,
    dynamic_batch_size: str | None = None,
    dynamic_image_size: str | None = None,
    dynamic_dims: str | None = None,
    input_shape_range: str | None = None,
) -> str:
    """Give an ONNX model ATC's shapes: as an ONNX file for the CPU device, or as a ``.om`` made by ``atc``.

    The option names, their syntax and their rules are those of ATC (ATC documentation, the pages of the
    options). Without any of them the CPU model is static where all dims of the model are fixed, and of
    dynamic shape otherwise.

    Parameters
    ----------
    model : str or os.PathLike
        The ONNX model. Never changed.
    output : str or os.PathLike
        The file to write. An existing one is replaced, once the new one is complete. Tensors that the model
        keeps in other files are copied to ``<output>.data`` beside it.
    platform : {"cpu", "ascend"}, optional
        By default ``cpu`` for an output that ends in ``.onnx``, ``ascend`` for ``.om``.
    soc_version : str, optional
        The chip, such as ``"Ascend310P3"``. Needed for ``ascend``, of no use for ``cpu``.
    input_format : {"NCHW", "NHWC", "ND"}, optional
        Layout of the inputs of four dims. By default NCHW, for ``dynamic_dims`` ND.
    input_shape : str, optional
        ``"input1:1,3,32,32;input2:-1,4"``. A shape without -1 is fixed; -1 is for the gears of one of the
        dynamic options, and without one of these it is, like a range ``1~8``, for a dynamic-shape model. Its
        order is that of the values of ``dynamic_dims``. Inputs that are fixed in the model may be left out.
    dynamic_batch_size : str, optional
        ``"1,2,4,8"``: batch sizes for the inputs whose first dim is -1.
    dynamic_image_size : str, optional
        ``"416,416;832,832"``: heights and widths for the inputs that have -1 there.
    dynamic_dims : str, optional
        ``"1,224;8,448"``: one value for each -1.
    input_shape_range : str, optional
        ``"input1:[1~4,3,32~64,-1]"``: bounds of a dynamic-shape model, in place of ``input_shape``.

    Returns
    -------
    str
        Path of the file written. ``atc`` may have added the system and the processor to the name.

    Raises
    ------
    ConvertError
        The options break a rule, do not fit the model, or ``atc`` failed. It is also a ``ValueError``.
    ModelError
        The model cannot be read, or does not run with the shapes asked for.
    AclNotFoundError
        ``onnx`` or ``atc`` is not installed; the message has the command that mends it.

    Examples
    --------
    Four batch sizes, for the CPU device::

        aioais.convert(
            "add.onnx",
            "add_dymbatch.onnx",
            input_shape="input1:-1,3,32,32;input2:-1,3,32,32",
            dynamic_batch_size="1,2,4,8",
        )
    """
    # The parser and the writer take longer to import than the rest of the library.
    from aioais._atc.options import parse_options

    source, target = Path(os.fsdecode(model)), Path(os.fsdecode(output))
    chosen = _platform(target, platform)
    options = parse_options(
        input_format=input_format,
        input_shape=input_shape,
        dynamic_batch_size=dynamic_batch_size,
        dynamic_image_size=dynamic_image_size,
        dynamic_dims=dynamic_dims,
        input_shape_range=input_shape_range,
    )
    if source.suffix == ".om":
        raise ModelError(f"the model {str(source)!r} is a .om already: give the ONNX model that it was made from")
    if target.is_dir():
        raise ConvertError(f"output={str(target)!r} is a folder: want the path of a file; add a name to it")
    if target.exists() and source.exists() and target.samefile(source):
        raise ConvertError(f"output={str(target)!r} is the model itself, which is never overwritten; give another path")
    if chosen == "ascend":
        from aioais._atc.atc import run_atc

        return str(run_atc(source, target, soc_version, options))
    from aioais._atc.onnx_convert import convert_onnx

    convert_onnx(source, target, options)
    return str(target)


def _platform(target: Path, platform: str | None) -> str:
    by_name = _PLATFORM_OF.get(target.suffix)
    if platform is None:
        if by_name is None:
            raise ConvertError(
                f"output={str(target)!r} ends neither in .onnx (CPU device) nor in .om (Ascend): "
                'pass platform="cpu" or platform="ascend", or give it one of these endings'
            )
        return by_name
    if platform not in _PLATFORM_OF.values():
        raise ConvertError(f'platform={platform!r}: want "cpu" or "ascend"; leave it out to go by the output name')
    if by_name not in (None, platform):
        ending = ".om" if platform == "ascend" else ".onnx"
        raise ConvertError(
            f"output={str(target)!r} has the ending of another platform than platform={platform!r}: "
            f"want one that ends in {ending}; change either"
        )
    return platform
