"""The list of the emulated calls, for ``--list`` and for ``docs/emulated_calls.md``."""

from __future__ import annotations

import inspect
import sys

from ._tree import ENTRIES, MODULES

__all__ = ["PAGE", "calls", "page"]

PAGE = "docs/emulated_calls.md"

_HEAD = """\
# Emulated calls

The CPU device implements these calls of pyACL: names, order of arguments, results and codes are those of the C
extension. Any other name of the modules raises `NotEmulatedError`, which is an `AttributeError` and an
`EmulatorError`, says "not emulated", and names this page. `hasattr` is false for it.

`python -m aioais.emulator --list` prints the names; this page is made by
`python -m aioais.emulator.listing > docs/emulated_calls.md`.
"""

_NOTES = {
    "acl.op": "Single operators are not emulated: a model of one operator does the same.",
    "acl.prof": 'Not emulated: `acl.init` with an `acl.json` that has `"profiler"` writes a trace.',
    "acl.media": "Images and videos are not emulated: decode and resize them with NumPy, Pillow or OpenCV.",
    "acl.himpi": "Images and videos are not emulated: decode and resize them with NumPy, Pillow or OpenCV.",
    "acl.blas": "Not emulated: a model with a `Gemm` or `MatMul` does the same.",
    "acl.fv": "The search for feature vectors is not emulated.",
}


def calls() -> list[str]:
    """Return the full names of all emulated calls, in order."""
    return sorted(ENTRIES)


def _first_sentence(text: str | None) -> str:
    return (text or "").partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def page() -> str:
    """Return the page of the documentation."""
    parts = [_HEAD]
    for module in MODULES:
        own = [name for name in calls() if name.rpartition(".")[0] == module]
        parts.append(f"\n## `{module}`\n\n")
        if module in _NOTES:
            parts.append(f"{_NOTES[module]}\n")
        if own:
            parts.append("| call | what it does |\n|---|---|\n")
            parts += [
                f"| `{name.rpartition('.')[2]}` | {_first_sentence(inspect.getdoc(ENTRIES[name]))} |\n" for name in own
            ]
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
