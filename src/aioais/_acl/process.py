"""The state of ACL in this process: initialised once, each device set once, finalised last."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
from pathlib import Path
from typing import Any, Final

from .._cann.constants import RunMode
from ..errors import ArgumentError, DeviceError, ForkError, WrongLoopError
from .library import Library

__all__ = ["AclProcess", "live_processes", "process_of"]

_INVALID_PARAM: Final = 100000
_REPEATED_INIT: Final = 100002
_REPEATED_FINALIZE: Final = 100037
_LARGEST_CONFIG: Final = 10 << 20


class AclProcess:
    """The process-wide state of one :class:`Library`.

    Every method blocks and is safe to call from any thread.

    Attributes
    ----------
    adopted
        Other code of this process, such as torch_npu, initialised ACL first, and finalises it.
    is_forked
        This process is a child that was forked after ACL had started.
    is_finalize_requested
        ACL is to be finalised once no device is in use.
    """

    def __init__(self, library: Library) -> None:
        self.library = library
        self.adopted: bool = False
        self.is_finalize_requested: bool = False
        self._lock = threading.Condition()  # guards everything below; held while ACL starts and ends
        self.is_forked: bool = False
        self._pid: int | None = None
        self._config: Any = None
        self._has_started = False
        self._first: tuple[str, Any] = "", None
        """Path and content of the first configuration that ACL was started with."""
        self._is_unfinished = False
        """Whether ``acl.finalize`` failed."""
        self._failure: BaseException | None = None
        """Of the last :meth:`finalize`, until it is taken."""
        self._devices: set[int] = set()
        self._setting: set[int] = set()

    @property
    def is_initialised(self) -> bool:
        """Whether ACL runs on behalf of this library."""
        return self._pid == os.getpid()

    def check_fork(self) -> None:
        """Raise in a child that was forked after ACL had started (CANN does not support it)."""
        if self.is_forked:
            raise ForkError(
                f"this process {os.getpid()} was forked from process {self._pid}, which had started ACL; ACL does "
                "not survive a fork: open sessions after forking, or use the 'spawn' start method"
            )

    def init(self, config_path: str | None) -> None:
        """Initialise ACL, or check that it runs with the same configuration.

        Parameters
        ----------
        config_path
            Path of an ``acl.json`` for profiling and dump, or ``None``.
        """
        self.check_fork()
        _check_threads()
        config = None if config_path is None else _read_config(config_path)
        with self._lock:
            self.is_finalize_requested = False
            self._failure = None
            if self._pid is not None:
                if config is not None and config != self._config:
                    if self._config is not None:
                        raise ArgumentError(
                            f"acl_json_path={config_path!r} differs from the configuration that ACL was started with; "
                            "ACL takes one per process: pass the same file, or use another process"
                        )
                    raise ArgumentError(_too_late(config_path, self.adopted))
                return
            code = self.library.slow.init(config_path or "")
            if code == _INVALID_PARAM and self._has_started and config is None:
                # ACL keeps the first configuration for the life of the process; without a path any one will do.
                (path, config) = self._first
                code = self.library.slow.init(path)
            if code == _REPEATED_INIT and self._is_unfinished:
                # It is still the ACL that this library started, which counts once.
                if self.library.slow.finalize_reference is not None:
                    self.library.slow.finalize_reference()
            elif code == _REPEATED_INIT:
                if config is not None:
                    raise ArgumentError(_too_late(config_path, True))
                self.adopted = True
            elif code == _INVALID_PARAM and self._has_started:
                error = self.library.error("acl.init", code)
                raise ArgumentError(
                    f"acl_json_path={config_path!r} differs from the configuration that ACL was started with before, "
                    f"and ACL keeps the first for the life of the process ({error}); use another process for it"
                ) from error
            else:
                self.library.check("acl.init", code)
            if not self._has_started:
                self._has_started = True
                self._first = config_path or "", config
            self._config = config
            self._pid = os.getpid()

    def count_devices(self) -> int:
        """Return the number of visible devices."""
        return self.library.value("acl.rt.get_device_count", self.library.acl.rt.get_device_count())

    def set_device(self, device_id: int) -> None:
        """Set up a device for this process; the first time can take seconds.

        Raises
        ------
        DeviceError
            There is no such device; the message lists the visible ones.
        """
        with self._lock:
            self._lock.wait_for(lambda: device_id not in self._setting)
            if device_id in self._devices:
                return
            count = self.count_devices()
            if device_id >= count:
                legal = f"0 to {count - 1}" if count else "none"
                raise DeviceError(
                    f"device_id={device_id} does not exist on platform {self.library.platform!r}: the visible devices "
                    f"are {legal}; aioais.devices() lists them"
                )
            self._setting.add(device_id)
        code = -1
        try:
            code = self.library.slow.set_device(device_id)  # without the lock, so that devices start in parallel
            self.library.check("acl.rt.set_device", code)
        finally:
            with self._lock:
                self._setting.discard(device_id)
                if code == 0:
                    self._devices.add(device_id)
                self._lock.notify_all()

    def run_mode(self) -> RunMode:
        """Return whether the program runs on a host with a card or on the SoC itself."""
        mode = self.library.value("acl.rt.get_run_mode", self.library.acl.rt.get_run_mode())
        return RunMode(mode)

    def finalize(self) -> None:
        """Reset the devices, and release ACL: it ends if no other code uses it. It can be initialised again later.

        Does nothing if a device was opened after ``is_finalize_requested`` was set.
        """
        with self._lock:
            self._lock.wait_for(lambda: not self._setting)
            if self._pid != os.getpid() or not self.is_finalize_requested:
                return
            try:
                self._end()
            except BaseException as exc:
                self._failure = exc
                raise

    def take_failure(self) -> BaseException | None:
        """Return the failure of the last :meth:`finalize`, once: the control thread of a device may have called it."""
        with self._lock:
            failure, self._failure = self._failure, None
            return failure

    def _end(self) -> None:
        library, failure = self.library, None
        for device_id in sorted(self._devices):
            code = library.slow.reset_device(device_id)
            if code and failure is None:
                failure = library.error("acl.rt.reset_device", code)
        self._devices.clear()
        is_over, call, code = self._give_back()
        if code and failure is None:
            failure = library.error(call, code)
        self._is_unfinished = bool(code) and not self.adopted
        if is_over and not code and library.forget_config is not None:
            library.forget_config()
            self._has_started = False
        self._pid, self._config, self.adopted = None, None, False
        self.is_finalize_requested = False
        if failure is not None:
            raise failure

    def _give_back(self) -> tuple[bool, str, int]:
        """Undo the one ``acl.init`` of this library; return whether ACL has ended, the last call, and its code.

        ACL counts how often it was started. ``acl.finalize`` would end it for other code too, and only the
        call that lowers the count tells it: so one more ``acl.init`` raises it first.
        """
        slow = self.library.slow
        if slow.finalize_reference is None:  # no release of ACL that counts
            return (False, "", 0) if self.adopted else (True, "acl.finalize", slow.finalize())
        if not self.adopted:
            if slow.init("") != _REPEATED_INIT:
                return True, "acl.finalize", slow.finalize()
            count, code = slow.finalize_reference()
            if code or count <= 1:
                return True, "acl.finalize", slow.finalize()
        count, code = slow.finalize_reference()
        if code == _REPEATED_FINALIZE:  # other code has ended it already
            code = 0
        return count == 0, "acl.finalize_reference", code


def _check_threads() -> None:
    """Raise where gevent has replaced threads or queues: the waits of this library would stop all of its greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return
    replaced = [name for name in ("threading", "queue") if monkey.is_module_patched(name)]
    if replaced:
        raise WrongLoopError(
            f"gevent has replaced Python's {' and '.join(replaced)}, which sessions need as they are; leave out "
            "monkey.patch_all(), call monkey.patch_all(thread=False, queue=False), or use another process for inference"
        )


def _too_late(config_path: str | None, adopted: bool) -> str:
    if adopted:
        what = "initialised by other code of this process; open a session with acl_json_path before that code runs"
    else:
        what = (
            "started without one, by devices() or an earlier session; open the session with acl_json_path before these"
        )
    return f"acl_json_path={config_path!r} cannot take effect: ACL was {what}, or leave acl_json_path out"


def _read_config(path: str) -> Any:
    """Parse ``acl.json``: the errors raised here are clearer than those of ACL."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            kind = "a folder"
        elif not stat.S_ISREG(status.st_mode):
            kind = "a special file"
        elif status.st_size > _LARGEST_CONFIG:
            kind = f"a file of {status.st_size} bytes"
        else:
            kind = ""
        if kind:
            raise ArgumentError(
                f"acl_json_path={path!r}: got {kind}; expected a regular file of at most {_LARGEST_CONFIG} bytes"
            )
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ArgumentError:
        raise
    except OSError as exc:
        raise ArgumentError(f"acl_json_path={path!r} cannot be read: {exc.strerror}; expected a JSON file") from exc
    except (ValueError, RecursionError) as exc:  # a RecursionError means that it is nested too deep for the parser
        raise ArgumentError(
            f"acl_json_path={path!r} is not valid JSON: {exc}; expected a file such as the acl.json of CANN's guides"
        ) from exc


_processes: dict[int, AclProcess] = {}


def process_of(library: Library) -> AclProcess:
    """Return the process state of an ``acl``; both platforms share it where the emulator is installed as ``acl``."""
    key = id(library.acl)  # libraries are never collected, so ids are unique
    process = _processes.get(key)
    if process is None:
        process = _processes.setdefault(key, AclProcess(library))
    return process


def _note_fork() -> None:
    for process in live_processes():
        process.is_forked = process._pid is not None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def live_processes() -> list[AclProcess]:
    """Return all process states."""
    return list(_processes.values())
