"""ATC's options that are not about shapes: passed on to ``atc``, and ignored or refused on the CPU device.

Source: the list of options of the ATC documentation (CANN 8.0 to 9.1).
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from ..errors import ConvertError

__all__ = ["check_for_atc", "check_for_cpu", "read_arguments"]

_log = logging.getLogger("aioais")

_ONNX: Final = "5"

OWN_OPTIONS: Final = (
    "model",
    "output",
    "soc_version",
    "input_format",
    "input_shape",
    "dynamic_batch_size",
    "dynamic_image_size",
    "dynamic_dims",
    "input_shape_range",
)
"""Options that are parameters of ``convert`` themselves."""

COMPILATION_ONLY: Final = frozenset(
    (
        "ac_parallel_enable",
        "aicore_num",
        "atomic_clean_policy",
        "auto_tune_mode",
        "buffer_optimize",
        "cluster_config",
        "check_report",
        "compress_weight_conf",
        "compression_optimize_conf",
        "core_type",
        "customize_dtypes",
        "debug_dir",
        "deterministic",
        "disable_reuse_memory",
        "display_model_info",
        "dump_mode",
        "enable_compress_weight",
        "enable_graph_parallel",
        "enable_scope_fusion_passes",
        "enable_single_stream",
        "enable_small_channel",
        "external_weight",
        "fusion_switch_file",
        "graph_parallel_option_path",
        "host_env_cpu",
        "host_env_os",
        "input_hint_shape",
        "keep_dtype",
        "log",
        "mdl_bank_path",
        "modify_mixlist",
        "oo_constant_folding",
        "oo_dead_code_elimination",
        "oo_level",
        "op_bank_path",
        "op_compiler_cache_dir",
        "op_compiler_cache_mode",
        "op_debug_config",
        "op_debug_level",
        "op_name_map",
        "op_precision_mode",
        "op_select_implmode",
        "optypelist_for_implmode",
        "precision_mode",
        "precision_mode_v2",
        "quant_dumpable",
        "save_original_model",
        "shape_generalized_build_mode",
        "sparsity",
        "status_check",
        "tiling_schedule_optimize",
        "virtual_type",
    )
)
"""They change how the model is compiled for an NPU, not its inputs and outputs."""

CHANGES_THE_MODEL: Final[Mapping[str, str]] = MappingProxyType(
    {
        "insert_op_conf": "do the preprocessing (AIPP) on the host, or add it to the ONNX model",
        "input_fp16_nodes": "export the model with float16 inputs",
        "is_input_adjust_hw_layout": "leave it out",
        "is_output_adjust_hw_layout": "leave it out",
        "json": "leave it out",
        "mode": "leave it out: the only mode is 0, which converts a model",
        "om": "give an ONNX model",
        "out_nodes": "export the model with these outputs (onnx.utils.extract_model does it)",
        "output_type": "export the model with outputs of that type",
        "singleop": "give an ONNX model",
        "weight": "leave it out: an ONNX model refers to its weights itself",
    }
)
"""They change inputs, outputs or the kind of conversion; what to do instead on the CPU device."""


def read_arguments(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Split the arguments of a command line into files and options.

    Parameters
    ----------
    arguments
        Such as ``["in.onnx", "--log=error", "--precision_mode", "force_fp16"]``: each option has a value, in the
        same word or in the next one.

    Returns
    -------
    files
        The arguments that are not options.
    options
        Values by name, names without dashes in front and with underscores inside.

    Raises
    ------
    ConvertError
        An option has no value, or is given twice.
    """
    files: list[str] = []
    options: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            files.append(word)
            continue
        name, has_value, value = word.partition("=")
        if not has_value:
            value = next(words, "--")
            if value.startswith("--"):
                raise ConvertError(f"got {word} without a value; expected {word}=VALUE, as atc has it")
        key = name.lstrip("-").replace("-", "_")
        if not name.startswith("--") or not key:
            raise ConvertError(f"got {word}; expected options of atc, which begin with two dashes")
        if key in options:
            raise ConvertError(f"got --{key} twice; expected each option once: drop one of the two")
        options[key] = value
    return files, options


def check_for_atc(options: Mapping[str, str]) -> Iterator[str]:
    """Yield the options as arguments of ``atc``.

    An option that is not in the list of this module is passed on too, as a newer ``atc`` may have it.

    Raises
    ------
    ConvertError
        An option is not about ONNX, or seems to be misspelt.
    """
    _check_framework(options)
    for name, value in options.items():
        if name == "framework":
            continue
        if name not in COMPILATION_ONLY and name not in CHANGES_THE_MODEL and (meant := _meant(name)):
            raise ConvertError(f"got --{name}, which atc does not have; did you mean --{meant}?")
        yield f"--{name}={value}"


def check_for_cpu(options: Mapping[str, str]) -> None:
    """Check the options for the CPU device, and log those that have no effect there.

    Raises
    ------
    ConvertError
        An option changes the inputs or outputs of the model, is not about ONNX, or is unknown.
    """
    _check_framework(options)
    ignored = []
    for name, value in options.items():
        if name == "framework" or (name == "mode" and value == "0"):
            continue
        if name in CHANGES_THE_MODEL:
            raise ConvertError(
                f"got --{name}={value}, which the CPU device does not have; expected options for shapes: "
                f"{CHANGES_THE_MODEL[name]}"
            )
        if name not in COMPILATION_ONLY:
            meant = _meant(name)
            advice = f"did you mean --{meant}?" if meant else "leave it out for the CPU device"
            raise ConvertError(f"got --{name}, which is not a known option of atc; {advice}")
        ignored.append(f"--{name}={value}")
    if ignored:
        _log.warning(
            "%s: ignored, as it affects only the compilation for an NPU; the CPU device computes as the ONNX file says",
            " ".join(ignored),
        )


def _check_framework(options: Mapping[str, str]) -> None:
    framework = options.get("framework", _ONNX)
    if str(framework) != _ONNX:
        raise ConvertError(
            f"got --framework={framework}; expected --framework={_ONNX}, which is ONNX: "
            "export the model to ONNX first (tf2onnx for TensorFlow), or call atc itself"
        )


def _meant(name: str) -> str | None:
    """Return the option that a misspelt one resembles."""
    known = [*OWN_OPTIONS, "framework", *CHANGES_THE_MODEL, *sorted(COMPILATION_ONLY)]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
    return close[0] if close else None
