"""Write docs/_inventories: the names of Python's and NumPy's documentation that the site links to.

Sphinx would fetch the whole inventories at each build; these few lines make a build work without the network. Add a
name here when Sphinx says that a reference was not found, then run ``python docs/make_inventories.py``.
"""

from __future__ import annotations

import zlib
from pathlib import Path

FOLDER = Path(__file__).parent / "_inventories"

PYTHON = {
    "library/functions.html": "class:bool class:float class:int class:object",
    "library/stdtypes.html": "class:bytes class:dict class:frozenset class:list class:set class:str class:tuple",
    "library/exceptions.html": (
        "exception:AssertionError exception:AttributeError exception:BaseException exception:Exception "
        "exception:FileExistsError exception:FileNotFoundError exception:ImportError exception:MemoryError "
        "exception:OSError exception:PermissionError exception:ResourceWarning exception:RuntimeError "
        "exception:TimeoutError exception:TypeError exception:ValueError"
    ),
    "library/constants.html": "data:None data:NotImplemented",
    "library/typing.html": (
        "data:typing.Any data:typing.Literal data:typing.NoReturn data:typing.Self class:typing.NamedTuple"
    ),
    "library/types.html": "class:types.ModuleType class:types.TracebackType",
    "library/collections.abc.html": (
        "class:collections.abc.AsyncGenerator class:collections.abc.AsyncIterable class:collections.abc.Awaitable "
        "class:collections.abc.Callable class:collections.abc.Coroutine class:collections.abc.Iterable "
        "class:collections.abc.Iterator class:collections.abc.Mapping class:collections.abc.Sequence"
    ),
    "library/contextlib.html": "class:contextlib.AbstractContextManager",
    "library/enum.html": "class:enum.IntEnum",
    "library/os.html": "class:os.PathLike",
    "library/pathlib.html": "class:pathlib.Path",
    "library/asyncio-runner.html": "function:asyncio.run",
    "library/asyncio-task.html": "function:asyncio.timeout function:asyncio.to_thread",
}
NUMPY = {
    "reference/generated/numpy.ndarray.html": "class:numpy.ndarray",
    "reference/generated/numpy.dtype.html": "class:numpy.dtype",
    "reference/arrays.scalars.html": "class:numpy.float32 class:numpy.uint8",
}


def inventory(project: str, version: str, pages: dict[str, str]) -> bytes:
    """Return an inventory in Sphinx's format 2: a header, and compressed lines ``name kind priority place -``."""
    lines = []
    for page, names in pages.items():
        for entry in names.split():
            kind, _, name = entry.partition(":")
            lines.append(f"{name} py:{kind} 1 {page}#{'$' if '#' not in page else ''} -\n")
    header = (
        "# Sphinx inventory version 2\n"
        f"# Project: {project}\n# Version: {version}\n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    return header.encode() + zlib.compress("".join(sorted(lines)).encode(), 9)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "python.inv").write_bytes(inventory("Python", "3", PYTHON))
    (FOLDER / "numpy.inv").write_bytes(inventory("NumPy", "2", NUMPY))


if __name__ == "__main__":
    main()
