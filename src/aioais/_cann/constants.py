"""Constants of the AscendCL interface, which pyACL does not export.

The values are those of the C headers ``acl/acl_base_rt.h``, ``acl/acl_rt.h`` and ``acl/acl_mdl.h``.
"""

from enum import IntEnum, IntFlag

__all__ = [
    "AIPP_INPUT_NAME",
    "DYNAMIC_INPUT_NAME",
    "MAX_DIMS",
    "SUCCESS",
    "EventFlag",
    "MallocPolicy",
    "MemAttr",
    "MemcpyKind",
    "RunMode",
]

SUCCESS = 0
"""``ACL_SUCCESS``."""

DYNAMIC_INPUT_NAME = "ascend_mbatch_shape_data"
"""``ACL_DYNAMIC_TENSOR_NAME``: the hidden input that carries the chosen gear."""

AIPP_INPUT_NAME = "ascend_dynamic_aipp_data"
"""``ACL_DYNAMIC_AIPP_NAME``: the hidden input of dynamic AIPP; further ones have suffixes."""

MAX_DIMS = 128
"""``ACL_MAX_DIM_CNT``."""


class MemcpyKind(IntEnum):
    """``aclrtMemcpyKind``."""

    HOST_TO_HOST = 0
    HOST_TO_DEVICE = 1
    DEVICE_TO_HOST = 2
    DEVICE_TO_DEVICE = 3


class MallocPolicy(IntEnum):
    """``aclrtMemMallocPolicy``."""

    HUGE_FIRST = 0
    HUGE_ONLY = 1
    NORMAL_ONLY = 2


class MemAttr(IntEnum):
    """``aclrtMemAttr``: which memory ``get_mem_info`` reports."""

    DDR = 0
    HBM = 1


class RunMode(IntEnum):
    """``aclrtRunMode``: where the program runs."""

    DEVICE = 0
    """On the SoC itself (an RC board): host and device share their memory."""
    HOST = 1
    """On a host with an accelerator card (EP)."""


class EventFlag(IntFlag):
    """Flags of ``create_event_with_flag`` and ``create_event_ex_with_flag``."""

    SYNC = 1
    """The event may be waited for by a stream and reset."""
    CAPTURE_STREAM_PROGRESS = 2
    TIME_LINE = 8
    """The event keeps a time stamp."""
