"""What ais_bench's ``InferSession`` has and ours does not, and what to do instead."""

from __future__ import annotations

from typing import Final

__all__ = ["AIPP", "GONE"]

AIPP: Final = "aioais takes no dynamic AIPP; build the model with static AIPP, or without"
GONE: Final = {
    "run_pipeline": "a part of the command line; infer_pipeline() takes arrays, and `aioais bench` measures",
    "create_tensor_from_fileslist": "use create_tensor_from_arrays_to_device(numpy.fromfile(...))",
    "load_aipp_config_file": AIPP,
    **{
        f"aipp_set_{name}": AIPP
        for name in (
            "input_format",
            "src_image_size",
            "rbuv_swap_switch",
            "ax_swap_switch",
            "csc_params",
            "crop_params",
            "padding_params",
            "dtc_pixel_mean",
            "dtc_pixel_min",
            "pixel_var_reci",
        )
    },
}
"""Members of ais_bench's class that are not here, and what to do instead."""
