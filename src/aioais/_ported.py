"""What a program ported from ais_bench still calls: each old name says what takes its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

__all__ = ["OldNames"]

_MODE: Final = 'give the mode to each call, such as infer(feeds, mode="dymbatch")'
_STEPS: Final = "use await session.infer_iteration(feeds, in_out_list, iteration_times)"
_AIPP: Final = "convert the model with static AIPP (--insert_op_conf)"

INSTEAD: Final = {
    "run": "use await session.infer(feeds, out_array=False)",
    "run_pipeline": "use async for over session.infer_pipeline(feeds_list), and read the files in its source",
    "first_inner_run": _STEPS,
    "inner_run": _STEPS,
    "set_staticbatch": _MODE,
    "set_dynamic_batchsize": _MODE,
    "set_dynamic_hw": _MODE,
    "set_dynamic_dims": _MODE,
    "set_dynamic_shape": _MODE,
    "set_custom_outsize": "give custom_sizes to each call",
    "set_loop_count": "give loop to the constructor",
    "get_max_dym_batchsize": "aioais inspect shows the gears of a model",
    "create_tensor_from_arrays_to_device": "use await session.to_device(array)",
    "create_tensor_from_fileslist": "use await session.to_device(numpy.fromfile(path, dtype))",
    "convert_tensors_to_host": "use await tensor.to_host() for each tensor, which returns an array",
    "convert_tensors_to_arrays": "use await tensor.to_host() for each tensor, which returns an array",
    "outputs_names": "use [desc.name for desc in session.get_outputs()]",
    "intensors_desc": "use session.get_inputs()",
    "outtensors_desc": "use session.get_outputs()",
    "infer_mode_switch": _MODE,
    "sumary": "use session.summary()",
    "reset_sumaryinfo": "use session.reset_summaryinfo()",
    "get_dym_aipp_input_exist": _AIPP,
    "check_dym_aipp_input_exist": _AIPP,
    "load_aipp_config_file": _AIPP,
}
"""Members of ais_bench's ``InferSession``, and what to write instead."""


class OldNames:
    """Names the successor of a member that only ais_bench has, where Python would say that there is none."""

    if not TYPE_CHECKING:  # for type checkers the member does not exist

        def __getattr__(self, name: str) -> NoReturn:
            text = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in INSTEAD:
                text = f"{type(self).__name__}.{name} of ais_bench is not in aioais: {INSTEAD[name]}"
            raise AttributeError(text, name=name, obj=self)
