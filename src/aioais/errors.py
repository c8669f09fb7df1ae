"""The exceptions of aioais.

::

    AioaisError
    ├─ ArgumentError (ValueError)     an argument is out of its range: mode, depth, loop, …
    ├─ FeedError (ValueError)         a feed does not fit the model
    ├─ ModelError                     a model file is missing, damaged or built for another device
    ├─ ConvertError (ValueError)      the options of ``convert`` break a rule
    ├─ DeviceError (ValueError)       there is no such device
    ├─ ClosedError                    the session or tensor is closed, or not open yet
    ├─ WrongLoopError (RuntimeError)  used from another event loop than the one that opened it
    ├─ ForkError (RuntimeError)       used in a child that was forked after ACL started
    ├─ QueueFullError                 a batching session has no room for a request
    ├─ DeadlineExceededError (TimeoutError) a request did not reach the device in time
    ├─ BrokenSessionError             a failure ended the session: a hung or lost device, a bug
    ├─ AclNotFoundError (ImportError) the software that runs this kind of model is not installed
    └─ AclError (RuntimeError)        a call to ACL failed: .call .code .name .hint .message
       ├─ AclUsageError               1xxxxx: the caller or the environment
       ├─ AclResourceError            2xxxxx: a resource ran out, or the hardware does not match
       │  └─ AclMemoryError (MemoryError)
       ├─ AclServiceError             3xxxxx: a condition of the service, such as a full queue
       └─ AclInternalError            5xxxxx: ACL, the driver or the device failed
          └─ DeviceHangError          the device did not finish within ``hang_timeout``
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AclError",
    "AclInternalError",
    "AclMemoryError",
    "AclNotFoundError",
    "AclResourceError",
    "AclServiceError",
    "AclUsageError",
    "AioaisError",
    "ArgumentError",
    "BrokenSessionError",
    "ClosedError",
    "ConvertError",
    "DeadlineExceededError",
    "DeviceError",
    "DeviceHangError",
    "FeedError",
    "ForkError",
    "ModelError",
    "QueueFullError",
    "WrongLoopError",
]


class AioaisError(Exception):
    """Base class of all exceptions that this library raises on purpose."""


class ArgumentError(AioaisError, ValueError):
    """An argument is out of its range for every model; raised before any device work."""


class FeedError(AioaisError, ValueError):
    """A feed does not fit the model; raised before any device work.

    The message names the input and says what it got, what the model expects (with its legal gears) and what to do.
    """


class ModelError(AioaisError):
    """A model file cannot be used: it is missing, empty, damaged, or built for another device."""


class ConvertError(AioaisError, ValueError):
    """The options of ``convert`` break a rule of ATC or do not fit the model."""


class DeviceError(AioaisError, ValueError):
    """The device id does not exist; the message lists the ids that do."""


class ClosedError(AioaisError):
    """The session or tensor is closed, or the session is not open yet."""


class WrongLoopError(AioaisError, RuntimeError):
    """The session is used from another event loop than the one that opened it."""


class ForkError(AioaisError, RuntimeError):
    """ACL was started in the parent of this process; a forked child cannot use it."""


class QueueFullError(AioaisError):
    """A ``BatchingSession`` with ``on_full="raise"`` has no room for the rows of a request; nothing has run."""


class DeadlineExceededError(AioaisError, TimeoutError):
    """A request of a ``BatchingSession`` did not reach the device within its ``timeout``, and was not run."""


class BrokenSessionError(AioaisError):
    """A failure ended the session; ``__cause__`` is the first error.

    The device hung or was lost, or a bug stopped one of the session's threads. Close the session and open another.
    """


class AclNotFoundError(AioaisError, ImportError):
    """The software that runs this kind of model is not installed or not set up."""


class AclError(AioaisError, RuntimeError):
    """A call into ACL failed.

    Parameters
    ----------
    call
        Name of the call, such as ``acl.rt.malloc``.
    code
        ACL's return code.
    name
        The code's name in ACL's headers, ``""`` if it is unknown.
    hint
        What usually helps, ``""`` if that is unknown.
    message
        ACL's own last message for the calling thread, ``""`` if there is none.
    """

    def __init__(self, call: str, code: int, name: str = "", hint: str = "", message: str = "") -> None:
        self.call = call
        self.code = code
        self.name = name
        self.hint = hint
        self.message = message
        text = f"{call} failed with {code}"
        if name:
            text += f" ({name})"
        if message:
            text += f": {message.strip()}"
        if hint:
            text += f" [{hint}]"
        super().__init__(text)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.call, self.code, self.name, self.hint, self.message)


class AclUsageError(AclError):
    """Codes 1xxxxx: the calling code or the environment is at fault."""


class AclResourceError(AclError):
    """Codes 2xxxxx: a resource ran out, or the hardware does not match."""


class AclMemoryError(AclResourceError, MemoryError):
    """Memory of the device or of the host ran out."""


class AclServiceError(AclError):
    """Codes 3xxxxx: a condition of the service, such as a full queue."""


class AclInternalError(AclError):
    """Codes 5xxxxx: ACL, the driver or the device itself failed."""


class DeviceHangError(AclInternalError):
    """The device did not finish within the session's ``hang_timeout``; the work may still be running."""


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an error (PEP 678), also on Python 3.10; for the library's own use."""
    notes: list[str] = getattr(error, "__notes__", [])
    error.__notes__ = [*notes, note]  # type: ignore[attr-defined,unused-ignore]


def open_error(what: str, error: BaseException) -> BaseException:
    """Return the error of what could not be opened, where no thread could be started; for the library's own use."""
    if type(error) is not RuntimeError or "start new thread" not in str(error):
        return error
    made = BrokenSessionError(
        f"{what} could not be opened: the system has no thread left; raise the limit of processes (ulimit -u, or "
        "pids.max of the container), or open fewer sessions"
    )
    made.__cause__ = error
    return made


def install_hint(extra: str) -> str:
    """Return the command that installs an extra, from a package index and from a clone; for the library's own use."""
    return f'pip install "aioais[{extra}]" (in a clone of aioais: pip install -e ".[{extra}]")'
