"""AIPP, image processing inside a model: its setters, for models that have none here.

The calls parse and check their arguments; no ONNX model has AIPP, so attaching one is refused.
Facts: pyACL's C extension source (formats of the arguments), Huawei's AIPP pages.
"""

from __future__ import annotations

from typing import Any

from .._cann.codes import AclCode
from ._args import NONE, SINGLE, VALUE, entry
from ._registry import handles, table
from ._state import report
from .errors import EmulatorError
from .model import find as find_model

__all__ = ["Aipp"]

_HEADER, _PER_BATCH = 96, 96
"""Bytes of the parameters, as ``get_aipp_data_size`` reports them."""


class Aipp:
    """AIPP parameters of one input.

    Parameters
    ----------
    batch
        Number of images.
    """

    __slots__ = ("batch", "values")

    def __init__(self, batch: int) -> None:
        self.batch: int = batch
        self.values: dict[str, tuple[Any, ...]] = {}


aipps: dict[int, Aipp] = table("others")


def _find(handle: int) -> Aipp | None:
    aipp = aipps.get(handle)
    if handle and aipp is None:
        raise EmulatorError(f"{handle:#x} are no AIPP parameters: destroyed, or never created")
    return aipp


@entry("acl.mdl.create_aipp", "K", answer=SINGLE)
def create_aipp(batch: int) -> int:
    """Make AIPP parameters."""
    if batch == 0:
        report(AclCode.INVALID_PARAM, "create_aipp: batch 0")
        return 0
    handle = next(handles)
    aipps[handle] = Aipp(batch)
    return handle


@entry("acl.mdl.destroy_aipp", "k")
def destroy_aipp(handle: int) -> int:
    """Destroy AIPP parameters."""
    if _find(handle) is None:
        return report(AclCode.INVALID_PARAM, "destroy_aipp of 0")
    del aipps[handle]
    return 0


def _define(name: str, formats: str, per_batch: bool) -> None:
    """Define a setter; setters of one image take its index last."""

    @entry(f"acl.mdl.set_aipp_{name}", "k" + formats)
    def setter(handle: int, *values: Any) -> int:
        """Set AIPP parameters."""
        aipp = _find(handle)
        if aipp is None:
            return report(AclCode.INVALID_PARAM, f"set_aipp_{name}: AIPP parameters 0")
        if per_batch and values[-1] >= aipp.batch:
            return report(AclCode.INVALID_PARAM, f"set_aipp_{name}: image {values[-1]} of {aipp.batch}")
        aipp.values[name] = values
        return 0


for _name, _formats, _per_batch in (
    ("input_format", "i", False),
    ("src_image_size", "ii", False),
    ("csc_params", "b" + "h" * 9 + "B" * 6, False),
    ("rbuv_swap_switch", "b", False),
    ("ax_swap_switch", "b", False),
    ("crop_params", "biiiiK", True),
    ("padding_params", "biiiiK", True),
    ("dtc_pixel_mean", "hhhhK", True),
    ("dtc_pixel_min", "ffffK", True),
    ("pixel_var_reci", "ffffK", True),
):
    _define(_name, _formats, _per_batch)


def _attach(call: str, model_id: int, dataset: int, index: int, handle: int) -> int:
    if find_model(model_id) is None:
        return AclCode.GE_EXEC_MODEL_ID_INVALID
    if _find(handle) is None or dataset == 0:
        return report(AclCode.INVALID_PARAM, f"{call}: null dataset or AIPP parameters")
    return report(AclCode.API_NOT_SUPPORT, f"{call}: models of the CPU device have no AIPP (input {index})")


@entry("acl.mdl.set_input_aipp", "Ikkk")
def set_input_aipp(model_id: int, dataset: int, index: int, handle: int) -> int:
    """Attach AIPP parameters to the hidden input; not supported here."""
    return _attach("set_input_aipp", model_id, dataset, index, handle)


@entry("acl.mdl.set_aipp_by_input_index", "Ikkk")
def set_aipp_by_input_index(model_id: int, dataset: int, index: int, handle: int) -> int:
    """Attach AIPP parameters to a real input; not supported here."""
    return _attach("set_aipp_by_input_index", model_id, dataset, index, handle)


@entry("acl.mdl.get_aipp_type", "Ik", answer=lambda code: (0, 0, code))
def get_aipp_type(model_id: int, index: int) -> tuple[int, int, int]:
    """Return the kind of AIPP of an input: none."""
    model = find_model(model_id)
    if model is None:
        return 0, 0, AclCode.GE_EXEC_MODEL_ID_INVALID
    if index >= len(model.info.inputs):
        return 0, 0, report(AclCode.INVALID_PARAM, f"input {index} of {len(model.info.inputs)}")
    return 0, 0xFFFFFFFF, 0


@entry("acl.mdl.get_first_aipp_info", "Ik", answer=NONE)
def get_first_aipp_info(model_id: int, index: int) -> tuple[None, int]:
    """Return the static AIPP of an input: there is none."""
    if find_model(model_id) is None:
        return None, AclCode.GE_EXEC_MODEL_ID_INVALID
    return None, report(AclCode.GE_AIPP_NOT_EXIST, f"input {index} has no AIPP")


@entry("acl.mdl.get_aipp_data_size", "K", answer=VALUE)
def get_aipp_data_size(batch: int) -> tuple[int, int]:
    """Return the bytes that AIPP parameters take."""
    if batch == 0:
        return 0, report(AclCode.INVALID_PARAM, "get_aipp_data_size: batch 0")
    return _HEADER + _PER_BATCH * batch, 0
