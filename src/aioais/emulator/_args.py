"""Entry points: argument parsing as pyACL does it, call counting, fault injection.

pyACL's functions take positional arguments only (``METH_VARARGS``) and parse them with CPython's
format characters; whatever fails to parse becomes ``TypeError("acl.rt.malloc args parse failed")``.
Facts: pyACL's C extension source and CPython's documentation of ``PyArg_ParseTuple``.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any, TypeVar

from . import faults
from ._state import state

__all__ = ["DIMS", "ENTRIES", "NONE", "RET", "SINGLE", "VALUE", "entry"]

F = TypeVar("F", bound=Callable[..., Any])

ENTRIES: dict[str, Callable[..., Any]] = {}
"""Every public function of the emulated module by its full name."""


def RET(code: int) -> Any:
    """Answer of a call that only acts."""
    return code


def VALUE(code: int) -> Any:
    """Answer of a call that gives one number."""
    return 0, code


def DIMS(code: int) -> Any:
    """Answer of a call that gives a dictionary."""
    return {}, code


def NONE(code: int) -> Any:
    """Answer of a call whose value is preset to ``None``."""
    return None, code


def SINGLE(code: int) -> Any:
    """Answer of a creator or accessor without a return code."""
    return 0


_RANGES = {
    "k": (0, 2**64 - 1),
    "K": (0, 2**64 - 1),
    "I": (0, 2**32 - 1),
    "i": (-(2**31), 2**31 - 1),
    "b": (0, 255),
    "B": (0, 255),
    "h": (-(2**15), 2**15 - 1),
    "H": (0, 2**16 - 1),
}


def _integer(kind: str, value: Any) -> int:
    if kind in "kK":
        if not isinstance(value, int):
            raise TypeError
        return value & (2**64 - 1)  # wraps silently, and bool is an int
    number = operator.index(value)
    low, high = _RANGES[kind]
    if kind in "IBH":
        return number & high
    if not low <= number <= high:
        raise OverflowError
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise TypeError
    value.encode()  # lone surrogates have no UTF-8 form
    return value


def parse(text: str, formats: str, optional: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Convert arguments by format characters.

    Parameters
    ----------
    text : str
        Message of the ``TypeError``.
    formats : str
        One character for each argument; ``O`` takes any object, ``f`` a float.
    optional : int
        How many arguments at the end may be missing.
    args : tuple
        What the caller passed.

    Returns
    -------
    tuple
        Converted arguments.

    Raises
    ------
    TypeError
        The arguments do not fit.
    """
    if not len(formats) - optional <= len(args) <= len(formats):
        raise TypeError(text)
    try:
        return tuple(
            value
            if kind == "O"
            else _text(value)
            if kind == "s"
            else float(value)
            if kind == "f"
            else _integer(kind, value)
            for kind, value in zip(formats, args)  # noqa: B905 - optional ones may be missing
        )
    except (TypeError, ValueError, OverflowError):
        raise TypeError(text) from None


_TEMPLATE = """\
def {function}(*args):
    counts[{name!r}] += 1
    if armed:
        stop, result = intercept({name!r}, answer)
        if stop:
            return result
    {unpack}
    if not ({fits}):
        {targets} = parse({text!r}, {formats!r}, 0, args)
    return body({arguments})
"""


def _compile(name: str, formats: str, text: str, namespace: dict[str, Any]) -> Callable[..., Any]:
    """Write the checker of one entry point, as ``namedtuple`` writes its constructor.

    The usual arguments are plain ints in range: that is one inline test each, which keeps
    a call at about a microsecond; anything else goes through :func:`parse`.
    """
    names = [f"a{i}" for i in range(len(formats))]
    tests = []
    for variable, kind in zip(names, formats, strict=True):
        if kind == "s":
            tests.append("False")  # always parsed: no hot call takes a string
        elif kind == "f":
            tests.append(f"type({variable}) is float")
        elif kind != "O":
            low, high = _RANGES[kind]
            tests.append(f"type({variable}) is int and {low} <= {variable} <= {high}")
    targets = ", ".join(names) + ","
    source = _TEMPLATE.format(
        function=name.rpartition(".")[2],
        name=name,
        text=text,
        formats=formats,
        fits=" and ".join(tests) or "True",
        targets=targets,
        arguments=", ".join(names),
        unpack=f"if len(args) != {len(names)}:\n        raise TypeError({text!r})\n    {targets} = args",
    )
    exec(source, namespace)  # noqa: S102 - our own template
    function: Callable[..., Any] = namespace[name.rpartition(".")[2]]
    return function


def entry(
    name: str,
    formats: str = "",
    *,
    answer: Callable[[int], Any] = RET,
    optional: int = 0,
    hot: bool = False,
) -> Callable[[F], F]:
    """Make a function an entry point of the emulated module.

    Parameters
    ----------
    name : str
        Full name, such as ``acl.rt.malloc``.
    formats : str
        Format characters of the arguments.
    answer : callable
        Builds the result of an injected failure from its code.
    optional : int
        How many arguments at the end may be missing.
    hot : bool
        Called for every request: write a checker of its own, which takes longer once and less each time.

    Returns
    -------
    callable
        The decorator; the decorated function itself stays callable without any checks.
    """
    message = f"{name} args parse failed"

    def decorate(body: F) -> F:
        state.counts.setdefault(name, 0)
        namespace: dict[str, Any] = {
            "counts": state.counts,
            "armed": state.armed,
            "intercept": faults.intercept,
            "answer": answer,
            "parse": parse,
            "body": body,
        }

        def plain(*args: Any) -> Any:
            state.counts[name] += 1
            if state.armed:
                stop, result = faults.intercept(name, answer)
                if stop:
                    return result
            # a function that takes nothing ignores surplus arguments
            return body(*parse(message, formats, optional, args)) if formats else body()

        call = _compile(name, formats, message, namespace) if hot else plain
        call.__name__ = call.__qualname__ = name.rpartition(".")[2]
        call.__module__ = name.rpartition(".")[0]
        call.__doc__ = inspect.getdoc(body)
        ENTRIES[name] = call
        return body

    return decorate
