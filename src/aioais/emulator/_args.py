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

__all__ = ["DIMS", "ENTRIES", "NONE", "RET", "SINGLE", "VALUE", "entry", "shortcut"]

F = TypeVar("F", bound=Callable[..., Any])

ENTRIES: dict[str, Callable[..., Any]] = {}
"""Every public function of the emulated module by its full name."""


def RET(code: int) -> Any:
    """Result of a call that returns only its code."""
    return code


def VALUE(code: int) -> Any:
    """Result of a call that returns one number."""
    return 0, code


def DIMS(code: int) -> Any:
    """Result of a call that returns a dictionary."""
    return {}, code


def NONE(code: int) -> Any:
    """Result of a call whose value is ``None`` on failure."""
    return None, code


def SINGLE(code: int) -> Any:
    """Result of a creator or accessor without a return code."""
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
        return value & (2**64 - 1)  # wraps silently; bool is an int
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
    text
        Message of the ``TypeError``.
    formats
        One character for each argument; ``O`` takes any object, ``f`` a float.
    optional
        How many arguments at the end may be missing.
    args
        The arguments of the caller.

    Returns
    -------
    tuple
        Converted arguments.

    Raises
    ------
    TypeError
        The arguments do not match the formats.
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

    Plain ints in range are the usual arguments and cost one inline test each; anything else goes
    through :func:`parse`.
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
    text: str = "",
) -> Callable[[F], F]:
    """Make a function an entry point of the emulated module.

    Parameters
    ----------
    name
        Full name, such as ``acl.rt.malloc``.
    formats
        Format characters of the arguments.
    answer
        Builds the result of an injected failure from its code.
    optional
        How many arguments at the end may be missing.
    hot
        Called for every request: generate a checker for it, slower to define and faster to call.
    text
        The message for a wrong number of arguments, where pyACL lets CPython's own through.

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
            if text and len(args) != len(formats):
                raise TypeError(text.format(count=len(args)))
            # a function without parameters ignores surplus arguments
            return body(*parse(message, formats, optional, args)) if formats else body()

        call = _compile(name, formats, message, namespace) if hot else plain
        call.__name__ = call.__qualname__ = name.rpartition(".")[2]
        call.__module__ = name.rpartition(".")[0]
        call.__doc__ = inspect.getdoc(body)
        ENTRIES[name] = call
        return body

    return decorate


def shortcut(name: str) -> Callable[[F], F]:
    """Put a function for the usual case in front of an entry point that is called several times a request.

    The function takes the arguments as they come, checks and counts by itself, and calls the entry point of before
    for anything unusual.
    """

    def decorate(function: F) -> F:
        checked = ENTRIES[name]
        function.__name__ = function.__qualname__ = checked.__name__
        function.__module__, function.__doc__ = checked.__module__, checked.__doc__
        ENTRIES[name] = function
        return function

    return decorate
