"""Unloading, and bundles: several models loaded as one.

Facts: pyACL reference, Huawei's bundle pages; a model of a bundle is not unloaded by itself.
"""

from __future__ import annotations

from .._cann.codes import AclCode
from ._args import VALUE, entry
from ._registry import table
from ._state import report
from .model import load, load_from_mem, model_ids, unload

__all__ = ["unload_model"]


bundles: dict[int, list[int]] = table("others")
"""The models of each bundle."""


@entry("acl.mdl.unload", "I")
def unload_model(handle: int) -> int:
    """Unload a model."""
    if any(handle in members for members in list(bundles.values())):
        return report(AclCode.INVALID_PARAM, f"model {handle} belongs to a bundle: bundle_unload")
    return unload(handle)


def _bundle(loaded: tuple[int, int]) -> tuple[int, int]:
    model_id, code = loaded
    if code:
        return 0, code
    handle = next(model_ids)
    bundles[handle] = [model_id]
    return handle, 0


@entry("acl.mdl.bundle_load_from_file", "s", answer=VALUE)
def bundle_load_from_file(path: str) -> tuple[int, int]:
    """Load a bundle; an ONNX file is a bundle of one model."""
    return _bundle(load(path))


@entry("acl.mdl.bundle_load_from_mem", "kk", answer=VALUE)
def bundle_load_from_mem(pointer: int, size: int) -> tuple[int, int]:
    """Load a bundle from memory."""
    return _bundle(load_from_mem(pointer, size))


@entry("acl.mdl.bundle_get_model_num", "I", answer=VALUE)
def bundle_get_model_num(handle: int) -> tuple[int, int]:
    """Count the models of a bundle."""
    members = bundles.get(handle)
    if members is None:
        return 0, report(AclCode.INVALID_BUNDLE_MODEL_ID, f"there is no bundle {handle}")
    return len(members), 0


@entry("acl.mdl.bundle_get_model_id", "Ik", answer=VALUE)
def bundle_get_model_id(handle: int, index: int) -> tuple[int, int]:
    """Return the id of a model of a bundle."""
    members = bundles.get(handle)
    if members is None:
        return 0, report(AclCode.INVALID_BUNDLE_MODEL_ID, f"there is no bundle {handle}")
    if index >= len(members):
        return 0, report(AclCode.INVALID_PARAM, f"bundle {handle} has {len(members)} models, not {index + 1}")
    return members[index], 0


@entry("acl.mdl.bundle_unload", "I")
def bundleunload(handle: int) -> int:
    """Unload a bundle."""
    members = bundles.get(handle)
    if members is None:
        return report(AclCode.INVALID_BUNDLE_MODEL_ID, f"there is no bundle {handle}")
    for member in members:
        if code := unload(member):
            return code
    del bundles[handle]
    return 0
