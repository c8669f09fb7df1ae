"""What every check works with: an ``acl`` under test, and handles that are released after the check."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..._cann.codes import AclCode
from ..._cann.constants import EventFlag, MallocPolicy, MemcpyKind

__all__ = ["EVENT", "NULL", "Bench", "Check", "Mismatch", "Skip", "checks_of"]

T = TypeVar("T")

EVENT = int(EventFlag.SYNC | EventFlag.TIME_LINE)
"""Flags of an event that streams wait for and that keeps its time, as the engine makes them."""

NULL = (AclCode.INVALID_PARAM, AclCode.RT_PARAM_INVALID)
"""Codes for a null handle: ACL's own check, or that of the runtime below it."""


class Mismatch(Exception):
    """The module does not behave as expected."""


class Skip(Exception):
    """The check does not apply here."""


@dataclass(frozen=True)
class Check:
    """A check and its needs."""

    name: str
    rule: str
    run: Callable[[Bench], None]
    needs_context: bool
    needs_model: bool


Register = Callable[[str], Callable[[Callable[["Bench"], None]], Callable[["Bench"], None]]]
"""A decorator that takes the rule of a check, and collects it."""


def checks_of(subject: str, found: list[Check], *, context: bool = True, model: bool = False) -> Register:
    """Make the decorator that collects the checks of one subject.

    Parameters
    ----------
    subject
        First half of the checks' names.
    found
        Where they are collected.
    context, model
        Whether the checks need a current context, and a model file.
    """

    def with_rule(rule: str) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
        def collect(run: Callable[[Bench], None]) -> Callable[[Bench], None]:
            found.append(Check(f"{subject}.{run.__name__}", rule, run, context, model))
            return run

        return collect

    return with_rule


class Bench:
    """The ``acl`` under test, for one check.

    Parameters
    ----------
    acl
        The module.
    device
        The device to work on.
    path
        A model file, if there is one.
    owns_acl
        ACL was started for the checks: nothing else of the process uses it.
    context
        The context that is current in the thread of the checks; 0 before there is one.

    Notes
    -----
    Handles made through it are released by ``close`` in reverse, in the thread that made them.
    """

    def __init__(self, acl: Any, device: int, path: str | None, owns_acl: bool, context: int = 0) -> None:
        self.acl = acl
        self.device = device
        self.path = path
        self.owns_acl = owns_acl
        self.context = context
        self._undo = contextlib.ExitStack()

    def close(self) -> None:
        """Release what the check made; raises :class:`Mismatch` if a release fails."""
        self._undo.close()

    def same(self, what: str, got: Any, expected: Any) -> None:
        """Raise unless the two are equal, and of one type (True is not 1, a tuple no list)."""
        if type(got) is not type(expected) or got != expected:
            raise Mismatch(f"{what}: got {got!r}, expected {expected!r}")

    def one_of(self, what: str, got: Any, *expected: Any) -> None:
        """Raise unless the first equals one of the others: releases differ."""
        if got not in expected:
            raise Mismatch(f"{what}: got {got!r}, expected one of {', '.join(map(repr, expected))}")

    def true(self, what: str, condition: bool) -> None:
        """Raise unless a condition holds."""
        if not condition:
            raise Mismatch(what)

    def fails(self, what: str, code: Any) -> None:
        """Raise unless this is a code other than 0."""
        if type(code) is not int or code == 0:
            raise Mismatch(f"{what}: got {code!r}, expected a code other than 0")

    def ok(self, what: str, code: Any) -> None:
        """Raise unless a call that only acts returned the bare 0."""
        if type(code) is not int or code != 0:
            raise Mismatch(f"{what}: got {code!r}, expected 0{self._message()}")

    def value(self, what: str, answer: Any, count: int = 1) -> Any:
        """Unpack ``(value, …, 0)``: values first, the code last; a single value comes bare."""
        if not isinstance(answer, tuple) or len(answer) != count + 1 or type(answer[-1]) is not int or answer[-1]:
            raise Mismatch(f"{what}: got {answer!r}, expected {count} value(s) and the code 0{self._message()}")
        return answer[0] if count == 1 else answer[:-1]

    def refuses(self, what: str, call: Callable[[], object]) -> None:
        """Raise unless a call refuses its arguments with ``TypeError``."""
        try:
            got = call()
        except TypeError:
            return
        raise Mismatch(f"{what}: got {got!r}, expected a TypeError")

    def later(self, what: str, release: Callable[[], object], expected: object = 0) -> None:
        """Release something at the end of the check, and check the result."""

        def step() -> None:
            got = release()
            if got != expected:
                raise Mismatch(f"{what} at the end: got {got!r}, expected {expected!r}")

        self._undo.callback(step)

    def memory(self, nbytes: int) -> int:
        """Allocate device memory."""
        address: int = self.value("malloc", self.acl.rt.malloc(nbytes, int(MallocPolicy.HUGE_FIRST)))
        self.later("free", lambda: self.acl.rt.free(address))
        return address

    def pinned(self, nbytes: int) -> int:
        """Allocate pinned host memory."""
        address: int = self.value("malloc_host", self.acl.rt.malloc_host(nbytes))
        self.later("free_host", lambda: self.acl.rt.free_host(address))
        return address

    def stream(self) -> int:
        """Make a stream."""
        stream: int = self.value("create_stream", self.acl.rt.create_stream())
        self.later("destroy_stream", lambda: self.acl.rt.destroy_stream(stream))
        return stream

    def event(self, again: bool = False) -> int:
        """Make an event; ``again``: one that may be recorded again without a reset."""
        rt = self.acl.rt
        create = rt.create_event_ex_with_flag if again else rt.create_event_with_flag
        event: int = self.value("create_event", create(EVENT))
        self.later("destroy_event", lambda: rt.destroy_event(event))
        return event

    def put(self, address: int, content: bytes) -> None:
        """Write host memory."""
        ctypes.memmove(address, content, len(content))

    def get(self, address: int, nbytes: int) -> bytes:
        """Read host memory."""
        return ctypes.string_at(address, nbytes)

    def copy(self, target: int, source: int, nbytes: int, kind: MemcpyKind, stream: int) -> None:
        """Queue a copy."""
        code = self.acl.rt.memcpy_async(target, nbytes, source, nbytes, int(kind), stream)
        self.ok(f"memcpy_async of kind {int(kind)}", code)

    def wait(self, stream: int) -> None:
        """Wait for a stream."""
        self.ok("synchronize_stream", self.acl.rt.synchronize_stream(stream))

    def in_thread(self, function: Callable[[], T]) -> T:
        """Run a function in a new thread, which has no context, and return its result."""
        results: list[T] = []
        errors: list[BaseException] = []

        def body() -> None:
            try:
                results.append(function())
            except BaseException as exc:  # noqa: BLE001 - raised again below, in the thread that asked
                errors.append(exc)

        thread = threading.Thread(target=body, name="aioais-check")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def _message(self) -> str:
        text = self.acl.get_recent_err_msg()
        return f" ({text.strip()})" if text else ""
