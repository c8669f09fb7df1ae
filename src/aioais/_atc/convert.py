"""The public function ``convert``: it selects platform and files; the work is in the other modules of this folder."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConvertError, ModelError

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
    **atc_options: str,
) -> str:
    """Convert an ONNX model with ATC's shape options: to an ONNX file for the CPU device, or to a ``.om`` with ``atc``.

    The names, syntax and rules of the options are those of ATC. Without any of them a model for the CPU device is
    static if all its dims are fixed, and a dynamic-shape model otherwise.

    Parameters
    ----------
    model : str or os.PathLike
        The ONNX model. It is never changed.
    output : str or os.PathLike
        The file to write. An existing one is replaced once the new one is complete. Tensors that the model keeps in
        other files are copied to ``<output>.data`` beside it.
    platform : {"cpu", "ascend"}, optional
        By default ``cpu`` for an output that ends in ``.onnx``, ``ascend`` for ``.om``, and ``ascend`` for a name
        with another ending if there is a ``soc_version``, as in a command line of ``atc``.
    soc_version : str, optional
        The chip, such as ``"Ascend310P3"``. Required for ``ascend``, ignored for ``cpu``.
    input_format : {"NCHW", "NHWC", "ND"}, optional
        Layout of the inputs with four dims. By default NCHW; for ``dynamic_dims`` ND.
    input_shape : str, optional
        ``"input1:1,3,32,32;input2:-1,4"``. A shape without -1 is fixed. With one of the dynamic options, -1 marks the
        dims that the gears set. Without them, -1 or a range such as ``1~8`` makes a dynamic-shape model. The values
        of ``dynamic_dims`` have the order of this option. Inputs that are fixed in the model may be left out.
    dynamic_batch_size : str, optional
        ``"1,2,4,8"``: batch sizes for the inputs whose first dim is -1.
    dynamic_image_size : str, optional
        ``"416,416;832,832"``: heights and widths for the inputs that have -1 there.
    dynamic_dims : str, optional
        ``"1,224;8,448"``: one value for each -1.
    input_shape_range : str, optional
        ``"input1:[1~4,3,32~64,-1]"``: bounds of a dynamic-shape model, instead of ``input_shape``.
    **atc_options : str
        Other options of ATC, such as ``precision_mode="force_fp16"`` or ``insert_op_conf="aipp.cfg"``. For ``ascend``
        they are passed on to ``atc``. For ``cpu`` those that affect only the compilation are ignored, with a warning
        in the log, and those that change inputs or outputs are refused.

    Returns
    -------
    str
        Path of the file written. ``atc`` may add the system and the processor to the name.

    Raises
    ------
    ConvertError
        The options break a rule or do not fit the model, or ``atc`` failed. It is also a ``ValueError``.
    ModelError
        The model cannot be read, or does not run with the given shapes.
    AclNotFoundError
        ``onnx`` or ``atc`` is not installed; the message names the command that installs it.

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
    # Imported here, as the parser and the writer take longer to import than the rest of the library.
    from .options import parse_options
    from .other_options import check_for_atc, check_for_cpu

    source, target = Path(os.fsdecode(model)), Path(os.fsdecode(output))
    chosen = _platform(target, platform, soc_version)
    options = parse_options(
        input_format=input_format,
        input_shape=input_shape,
        dynamic_batch_size=dynamic_batch_size,
        dynamic_image_size=dynamic_image_size,
        dynamic_dims=dynamic_dims,
        input_shape_range=input_shape_range,
    )
    if source.suffix == ".om":
        raise ModelError(f"the model {str(source)!r} is already a .om; expected an ONNX model: give the original one")
    if target.is_dir():
        raise ConvertError(f"output={str(target)!r} is a folder; expected the path of a file: add a name to it")
    if target.exists() and source.exists() and target.samefile(source):
        raise ConvertError(f"output={str(target)!r} is the model itself, which is never overwritten: give another path")
    if chosen == "ascend":
        from .atc import run_atc

        flags = [*options.atc_flags(), *check_for_atc(atc_options)]
        return str(run_atc(source, target, soc_version, flags))
    check_for_cpu(atc_options)
    from .onnx_convert import convert_onnx

    convert_onnx(source, target, options)
    return str(target)


def _platform(target: Path, platform: str | None, soc_version: str | None) -> str:
    by_name = _PLATFORM_OF.get(target.suffix)
    if platform is None:
        if by_name is None and soc_version:
            return "ascend"
        if by_name is None:
            raise ConvertError(
                f"got output={str(target)!r}; expected a name that ends in .onnx (CPU device) or .om (Ascend): "
                'use one of these endings, or pass platform="cpu", platform="ascend" or a soc_version'
            )
        return by_name
    if platform not in _PLATFORM_OF.values():
        raise ConvertError(
            f'got platform={platform!r}; expected "cpu" or "ascend": leave it out to decide by the output name'
        )
    if by_name not in (None, platform):
        ending = ".om" if platform == "ascend" else ".onnx"
        raise ConvertError(
            f"got output={str(target)!r}, which has the ending of another platform than platform={platform!r}; "
            f"expected a name that ends in {ending}: change one of the two"
        )
    return platform
