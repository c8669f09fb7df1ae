"""Runs the checks: start-up, one after the other, end."""

from __future__ import annotations

import os
import threading
from typing import Any

from ..._cann.codes import AclCode
from . import check_gears, check_memory, check_model, check_objects, check_process, check_shapes, check_streams
from .bench import Bench, Check, Mismatch, Skip
from .report import CheckResult, Report, Status

__all__ = ["CHECKS", "check_acl"]

CHECKS: tuple[Check, ...] = (
    *check_process.CHECKS,
    *check_objects.CHECKS,
    *check_memory.CHECKS,
    *check_streams.CHECKS,
    *check_model.CHECKS,
    *check_gears.CHECKS,
    *check_shapes.CHECKS,
)
"""Every check, in order."""


def check_acl(acl: Any, model_path: str | os.PathLike[str] | None = None, *, device_id: int = 0) -> Report:
    """Check that an ``acl`` module behaves as the engine of this library needs it.

    Parameters
    ----------
    acl
        The module to check: pyACL, :data:`aioais.emulator.acl`, or anything else of that shape.
    model_path
        A model that it can load (a ``.om`` file for pyACL, an ONNX file for the emulator); without one the checks
        that need a model are skipped. It is fed with small numbers, never with random bytes. Which of the checks
        apply depends on the model's kind, so a thorough run passes one of each: static, with gears, of dynamic
        shape.
    device_id
        The device to work on.

    Returns
    -------
    Report
        One result for each check, whatever happens. An exception that escapes the module is a failed check.

    Notes
    -----
    Blocks for as long as the device needs. All checks run in a thread of their own, so the caller's current context
    stays. If ACL is not initialised it is initialised and finalised here; if it is, the checks that would disturb
    others (counted devices, a second start) are skipped, and nothing is finalised. What the checks make they
    release. No check passes stale handles, wild addresses or undersized buffers, for which ACL may end the process.
    """
    results: list[CheckResult] = []
    path = None if model_path is None else os.fspath(model_path)
    thread = threading.Thread(
        target=lambda: _Suite(acl, device_id, path, results).run(), name="aioais-check", daemon=True
    )
    thread.start()
    thread.join()
    return Report(tuple(results))


class _Suite:
    """One run, in its own thread."""

    def __init__(self, acl: Any, device: int, path: str | None, results: list[CheckResult]) -> None:
        self._acl = acl
        self._device = device
        self._path = path
        self._results = results
        self._context = 0

    def run(self) -> None:
        missing = check_process.missing_names(self._acl)
        if missing:
            first, *others = CHECKS
            self._note(first, "failed", f"there is no {', '.join(missing)}")
            for check in others:
                self._note(check, "skipped", "the module lacks names")
            return
        acl = self._acl
        code = _call(lambda: acl.init())
        repeated = code == AclCode.REPEAT_INITIALIZE
        problem = "" if code == 0 or repeated else f"acl.init: {code!r}"
        bench = Bench(acl, self._device, self._path, not repeated)
        for check in CHECKS:
            if not check.needs_context:
                self._one(check, bench, problem)
        if not problem:
            problem = self._enter()
        for check in CHECKS:
            if check.needs_context:
                self._one(check, Bench(acl, self._device, self._path, not repeated, self._context), problem)
        end = self._leave(repeated) if code == 0 or repeated else ""
        rule = "context, device and ACL start, and are released in reverse"
        trouble = problem or end
        self._results.append(CheckResult("process.life", rule, "failed" if trouble else "passed", trouble))

    def _enter(self) -> str:
        acl = self._acl
        code = _call(lambda: acl.rt.set_device(self._device))
        if code != 0:
            return f"acl.rt.set_device({self._device}): {code!r}"
        answer = _call(lambda: acl.rt.create_context(self._device))
        if not isinstance(answer, tuple) or len(answer) != 2 or answer[1] != 0:
            _call(lambda: acl.rt.reset_device(self._device))
            return f"acl.rt.create_context({self._device}): {answer!r}"
        self._context = answer[0]
        return ""

    def _leave(self, repeated: bool) -> str:
        acl = self._acl
        steps = []
        if self._context:
            steps.append(("destroy_context", _call(lambda: acl.rt.destroy_context(self._context))))
            steps.append(("reset_device", _call(lambda: acl.rt.reset_device(self._device))))
        if not repeated:
            steps.append(("finalize", _call(lambda: acl.finalize())))
        elif hasattr(acl, "finalize_reference"):
            # A repeated init raised the count of the code that started ACL: undo it.
            answer = _call(lambda: acl.finalize_reference())
            steps.append(("finalize_reference", answer[-1] if isinstance(answer, tuple) else answer))
        return "; ".join(f"{name}: {code!r}" for name, code in steps if code != 0)

    def _one(self, check: Check, bench: Bench, problem: str) -> None:
        if problem:
            self._note(check, "skipped", f"start-up failed: {problem}")
            return
        if check.needs_model and bench.path is None:
            self._note(check, "skipped", "no model was given")
            return
        status: Status = "passed"
        detail = ""
        try:
            check.run(bench)
        except Skip as exc:
            status, detail = "skipped", str(exc)
        except Exception as exc:  # noqa: BLE001 - any exception from the module is a finding
            status, detail = "failed", _text(exc)
        if bench.context:
            _call(lambda: self._acl.rt.set_context(bench.context))
        try:
            bench.close()
        except Exception as exc:  # noqa: BLE001 - as above
            detail = f"{detail}; cleaning up: {_text(exc)}" if detail else f"cleaning up: {_text(exc)}"
            status = "failed"
        _call(lambda: self._acl.get_recent_err_msg())  # the next check reads its own message only
        self._note(check, status, detail)

    def _note(self, check: Check, status: Status, detail: str) -> None:
        self._results.append(CheckResult(check.name, check.rule, status, detail))


def _text(exc: Exception) -> str:
    return str(exc) if isinstance(exc, Mismatch) else f"{type(exc).__name__}: {exc}"


def _call(function: Any) -> Any:
    """Call into the module at start and end."""
    try:
        return function()
    except Exception as exc:  # noqa: BLE001 - an exception is a result too
        return exc
