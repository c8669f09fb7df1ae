"""An implementation of ``acl``: how to find it, which calls it has, and how their codes become exceptions."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from ..errors import (
    AclError,
    AclInternalError,
    AclMemoryError,
    AclNotFoundError,
    AclResourceError,
    AclServiceError,
    AclUsageError,
    DeviceHangError,
    install_hint,
)
from .slow import SlowCalls

if TYPE_CHECKING:
    from .api import Acl

__all__ = ["Library", "Platform", "find_library", "is_installed"]

Platform = Literal["ascend", "cpu"]

_BY_FIRST_DIGIT: Final[dict[int, type[AclError]]] = {
    1: AclUsageError,
    2: AclResourceError,
    3: AclServiceError,
    5: AclInternalError,
}
_OUT_OF_MEMORY: Final = frozenset({200000, 207001, 207018, 245000, 245001, 245002})
_TIMED_OUT: Final = frozenset({507046, 507047})
"""The wait for a stream or an event timed out."""


class Library:
    """An implementation of ``acl`` and what this library knows of it.

    Attributes
    ----------
    acl
        The module, or an emulation of it.
    platform
        ``"ascend"`` or ``"cpu"``.
    slow
        The calls that may block for long.
    has_event_ex
        Whether events exist that may be recorded again without a reset.
    has_stream_timeout
        Whether the wait for a stream can be bounded.
    has_dims_range
        Whether the shape ranges of a dynamic-shape model can be asked for.
    count_optional_inputs
        Tells how many inputs of a described model have a default; ``None`` for CANN, where no input has one.
    forget_config
        Lets ACL start with another configuration after it was finalised; ``None`` where ACL keeps the first one for
        the life of the process, as CANN does.
    tells_times
        False after the first time stamp that ACL could not read.
    """

    def __init__(
        self,
        acl: Acl,
        platform: Platform,
        forget_config: Callable[[], None] | None = None,
        count_optional_inputs: Callable[[int], int] | None = None,
    ) -> None:
        self.acl = acl
        self.platform: Platform = platform
        self.slow: SlowCalls = SlowCalls(acl)
        self.has_event_ex: bool = hasattr(acl.rt, "create_event_ex_with_flag")
        self.has_stream_timeout: bool = hasattr(acl.rt, "synchronize_stream_with_timeout")
        self.has_dims_range: bool = hasattr(acl.mdl, "get_input_dims_range")
        self.tells_times = True
        self.forget_config = forget_config
        self.count_optional_inputs = count_optional_inputs
        self.has_dims_v2: bool = hasattr(acl.mdl, "get_input_dims_v2")
        self._named: dict[int, tuple[str, Any]] = {}  # by identity, as functions of ctypes have no hash

    def named(self, name: str, function: Callable[..., int]) -> Callable[..., int]:
        """Return a function of ACL whose calls are recorded; :meth:`call_error` knows its name from now on."""
        self._named[id(function)] = name, function
        return function

    def call_error(self, function: Callable[..., int], code: int) -> AclError:
        """Return the exception for a failed call of such a function, as :meth:`error` does."""
        return self.error(self._named[id(function)][0], code)

    def error(self, call: str, code: int) -> AclError:
        """Return the exception for a failed call. Call it in the thread of the failed call.

        ACL keeps its last message per thread and drops it when it is read.
        """
        from .._cann.codes import CODES  # a long table, which is needed only when a call fails

        message = self.acl.get_recent_err_msg() or ""
        info = CODES.get(code)
        kind = _BY_FIRST_DIGIT.get(code // 100_000, AclError)
        if code in _OUT_OF_MEMORY:
            kind = AclMemoryError
        elif code in _TIMED_OUT:
            kind = DeviceHangError
        return kind(call, code, info.name if info else "", info.hint if info else "", message)

    def check(self, call: str, code: int) -> None:
        """Raise unless ``code`` is 0: for calls that return the bare code."""
        if code:
            raise self.error(call, code)

    def value(self, call: str, result: tuple[int, int]) -> int:
        """Unpack ``(value, code)``, raising unless the code is 0."""
        value, code = result
        if code:
            raise self.error(call, code)
        return value

    def handle(self, call: str, handle: int) -> int:
        """Check a handle that comes without a code: 0 means the creator failed."""
        if not handle:
            raise self.error(call, 500000)
        return handle


_found: dict[str, Library] = {}


def is_installed(platform: Platform) -> bool:
    """Return whether the software of a platform is installed, without importing it."""
    name = "acl" if platform == "ascend" else "onnxruntime"
    if name in sys.modules:  # a stand-in that a program put there may have no spec
        return sys.modules[name] is not None
    return importlib.util.find_spec(name) is not None


def find_library(platform: Platform) -> Library:
    """Return the implementation of a platform; blocks while modules are imported.

    Raises
    ------
    AclNotFoundError
        CANN's ``acl`` or ONNX Runtime is not installed; the message says how to install it.
    """
    library = _found.get(platform)
    if library is None:
        made = Library(_import_acl(), platform) if platform == "ascend" else _import_emulator()
        library = _found.setdefault(platform, made)
    return library


def _import_acl() -> Acl:
    try:
        module = importlib.import_module("acl")
    except ImportError as exc:
        raise AclNotFoundError(
            f"a .om model needs the module 'acl' of the CANN toolkit, which cannot be imported ({exc}): "
            "install CANN and run 'source /usr/local/Ascend/ascend-toolkit/set_env.sh' (from CANN 8.5: "
            "'source /usr/local/Ascend/cann/set_env.sh'); to run a model on the CPU device pass an .onnx file; "
            "'aioais doctor' says what is missing",
            name="acl",
        ) from exc
    if not hasattr(module, "rt") or not hasattr(module, "mdl"):
        raise AclNotFoundError(
            f"the module 'acl' at {getattr(module, '__file__', '?')} is not Ascend's: it has no acl.rt and "
            "acl.mdl; remove it from sys.path and source CANN's set_env.sh",
            name="acl",
        )
    return cast("Acl", module)


def _import_emulator() -> Library:
    if not is_installed("cpu"):
        raise AclNotFoundError(
            "an .onnx model runs on the CPU device, which needs ONNX Runtime, and that is not installed: "
            f"{install_hint('cpu')}",
            name="onnxruntime",
        )
    emulator = importlib.import_module("aioais.emulator")
    emulator.preload()
    return Library(emulator.acl, "cpu", emulator.forget_config, emulator.count_optional_inputs)
