"""Who may import whom: the house rules of docs/design.md, read off the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

SRC = Path(__file__).parents[2] / "src" / "aioais"

# --- the tables: change these, not the code below -------------------------------------------------

MAY_IMPORT: dict[str, set[str]] = {
    # A layer is a top-level module or folder of the package. What it may import of ours, itself
    # apart. `a.b` allows one module of a layer. Layers that are not listed may import any.
    "errors": set(),
    "types": set(),
    "blame": {"errors"},  # all others ask it
    "_machine": set(),
    "_version": set(),
    "_cann": set(),
    "_acl": {"blame", "errors", "types", "_cann"},
    "_bridge": {"errors"},
    "_device": {"errors", "summary", "_cann", "_acl", "_bridge"},
    "tensor": {"errors", "_acl", "_bridge", "_device"},
    "_feeds": {"errors", "types", "tensor", "_acl", "_device"},
    "_buffers": {"errors", "tensor", "_cann", "_acl", "_device", "_feeds"},
    "_engine": {
        "blame",
        "errors",
        "types",
        "summary",
        "timing",
        "tensor",
        "_cann",
        "_acl",
        "_bridge",
        "_device",
        "_feeds",
        "_buffers",
    },
    "_sources": {"errors", "_engine"},
    "timing": {"errors"},
    "trace": {"timing", "_bridge"},
    "_multi": {
        "blame",
        "errors",
        "types",
        "_acl.library",
        "_acl.process",  # to count the devices
        "_bridge",
        "_engine.core",  # one for each device
        "_engine.options",
        "_engine.request",
        "_sources",
    },
    # Programs for ais_bench: blocking calls over the public classes, and over what is behind a session.
    "compat": {
        "errors",
        "types",
        "summary",
        "tensor",
        "session",
        "multi_device",
        "_acl.library",
        "_acl.model",
        "_engine.core",
        "_engine.iteration",
        "_engine.options",
        "_engine.request",
    },
    "_batching": {
        "blame",
        "errors",
        "tensor",  # to refuse those that are on a device
        "_acl.model",  # what the model takes
        "_bridge",
        "_feeds",
        "_engine.core",  # one of them per device
        "_engine.request",
        "_multi",  # the sessions of several devices
    },
    "_atc": {"errors", "emulator.metadata"},
    # The checks of an `acl` know what the engine calls (its Protocols), and nothing of the engine; the rest of the kit
    # steers the emulator. Only the command line looks for an installed `acl`.
    "testing": {"_acl.api", "_cann", "_acl.library", "types", "emulator"},
    "emulator": {"_machine", "_cann"},  # a fake must not be built from the code it checks
}

NEVER: dict[str, set[str]] = {
    # Foreign modules that a layer may not import, not even inside a function.
    "errors": {"asyncio", "anyio", "uvloop"},
    "types": {"asyncio", "anyio", "uvloop"},
    "_acl": {"asyncio", "anyio", "uvloop"},  # plain blocking calls, for whatever thread calls
    # Per request its primitives cost too much; it is for structure between sessions.
    "_device": {"anyio", "asyncio"},
    "_feeds": {"anyio", "asyncio"},
    "_buffers": {"anyio", "asyncio"},
    "_engine": {"anyio"},
    "_sources": {"anyio"},
    "_batching": {"anyio"},  # as above
    "_bridge": {"numpy", "anyio"},  # it knows threads and loops, no data and no device
    "_atc": {"errors", "emulator.metadata"},
    "emulator": {"asyncio", "anyio", "uvloop"},
}

ONLY_IN: dict[str, set[str]] = {
    # Foreign modules that only these layers may import, not even inside a function.
    "acl": {"_acl", "emulator"},
    "typer": {"cli"},
    "rich": {"cli"},
    "pytest": set(),  # the plugin stands outside of the package
}

ONLY_LAZILY = {"onnx", "onnxruntime", "torch"}
"""Optional or slow to import: inside a function or under TYPE_CHECKING only."""

CONFORMANCE_MAY_IMPORT = {"_acl.api", "_cann.codes", "_cann.constants", "types"}
"""What ``testing.conformance`` may import of ours: it must not know the emulator, which it checks like any other."""

MAX_LINES = 400
HARD_MAX_LINES = 500
LONG_FILES: dict[str, str] = {
    # path: why it may have more than MAX_LINES; none may have more than HARD_MAX_LINES.
    "session.py": "the public door: two thirds of it are docstrings",
    "multi_device.py": "the public door: half of it are docstrings",
}
GENERATED_MARK = "do not edit"
"""Files with these words in the first lines are written by a tool and may be of any length."""


# --- reading the tree -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    target: str
    """Dotted name of what is imported; of our modules without the leading `aioais.`."""
    ours: bool
    lazy: bool
    """Not executed when the module is: inside a function, or for type checkers only."""
    line: int


@dataclass(frozen=True)
class Module:
    path: Path
    name: str
    """Dotted, without the leading `aioais.`; the package itself is ``""``."""
    tree: ast.Module
    imports: tuple[Import, ...]

    @property
    def layer(self) -> str:
        return self.name.partition(".")[0]

    def where(self, line: int) -> str:
        return f"{self.path.relative_to(SRC.parent)}:{line}"


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.If) -> bool:
    return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def import_nodes(node: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, lazy
        elif isinstance(child, ast.If) and is_type_checking(child):
            for statement in child.body:
                yield from import_nodes(ast.Module([statement], []), True)
            for statement in child.orelse:
                yield from import_nodes(ast.Module([statement], []), lazy)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from import_nodes(child, lazy or function)


@cache
def exists(name: str) -> bool:
    """Whether this dotted name is a module of ours."""
    path = SRC.joinpath(*name.split(".")) if name else SRC
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def read_import(node: ast.Import | ast.ImportFrom, name: str, is_package: bool, lazy: bool) -> Iterator[Import]:
    def make(target: str) -> Import:
        root, _, rest = target.partition(".")
        ours = root == "aioais"
        return Import(rest if ours else target, ours, lazy, node.lineno)

    if isinstance(node, ast.Import):
        yield from (make(alias.name) for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        here = ["aioais", *filter(None, name.split("."))]
        up = node.level - is_package
        base = ".".join([*here[: len(here) - up], *filter(None, base.split("."))])
    for alias in node.names:
        # `from package import module` imports the module, `from module import name` only that module.
        full = f"{base}.{alias.name}"
        root, _, rest = full.partition(".")
        yield make(full if root == "aioais" and exists(rest) else base)


def parse(path: Path) -> Module:
    name = module_name(path)
    tree = ast.parse(path.read_text("utf-8"), str(path))
    imports = dict.fromkeys(  # each once, in order
        found
        for node, lazy in import_nodes(tree)
        for found in read_import(node, name, path.name == "__init__.py", lazy)
    )
    return Module(path, name, tree, tuple(imports))


MODULES = [parse(path) for path in sorted(SRC.rglob("*.py"))]


def root_of(target: str) -> str:
    return target.partition(".")[0]


def report(wrong: list[str]) -> str:
    return "\n".join(["against the house rules:", *wrong])


# --- the rules ------------------------------------------------------------------------------------


def test_the_tree_was_found() -> None:
    assert {"", "errors", "types"} <= {module.name for module in MODULES}


def test_a_layer_imports_only_what_it_may() -> None:
    wrong = []
    for module in MODULES:
        if module.layer not in MAY_IMPORT:
            continue
        allowed = MAY_IMPORT[module.layer] | {module.layer}
        wrong += [
            f"{module.where(found.line)} imports {found.target or 'aioais'}, may import {sorted(allowed)}"
            for found in module.imports
            if found.ours and root_of(found.target) not in allowed and found.target not in allowed
        ]
    assert not wrong, report(wrong)


def test_the_checks_of_an_acl_know_neither_engine_nor_emulator() -> None:
    wrong = [
        f"{module.where(found.line)} imports {found.target or 'aioais'}"
        for module in MODULES
        if module.name.startswith("testing.conformance")
        for found in module.imports
        if found.ours and found.target not in CONFORMANCE_MAY_IMPORT and root_of(found.target) != "testing"
    ]
    wrong += [
        f"{module.where(found.line)} imports the library of the engine"
        for module in MODULES
        if module.layer == "testing" and module.name != "testing.__main__"
        for found in module.imports
        if found.ours and found.target == "_acl.library"
    ]
    assert not wrong, report(wrong)


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Give the modules of a circle of imports, empty without one."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [str(name) for name in error.args[1]]
    return []


def test_no_imports_in_a_circle() -> None:
    """Lazy ones and those for type checkers count too: who reads a module reads what it names."""
    graph = {
        module.name: {found.target for found in module.imports if found.ours and found.target != module.name}
        for module in MODULES
    }
    circle = circle_in(graph)
    assert not circle, report([" -> ".join(name or "aioais" for name in circle)])


def test_foreign_modules_stay_where_they_belong() -> None:
    wrong = []
    for module in MODULES:
        for found in module.imports:
            root = root_of(found.target)
            if found.ours:
                continue
            if root in NEVER.get(module.layer, ()):
                wrong.append(f"{module.where(found.line)}: {module.layer} never imports {root}")
            if root in ONLY_IN and module.layer not in ONLY_IN[root]:
                wrong.append(f"{module.where(found.line)}: only {sorted(ONLY_IN[root])} may import {root}")
            if root in ONLY_LAZILY and not found.lazy:
                wrong.append(f"{module.where(found.line)}: {root} is imported inside functions only")
    assert not wrong, report(wrong)


def test_only_the_acl_layer_opens_acl() -> None:
    wrong = []
    for module in MODULES:
        if module.layer in ONLY_IN["acl"]:
            continue
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).rpartition(".")[2]
            names_acl = any(isinstance(arg, ast.Constant) and arg.value == "acl" for arg in node.args[:1])
            if name in ("CDLL", "PyDLL", "LoadLibrary"):
                wrong.append(f"{module.where(node.lineno)} opens a shared library")
            if name in ("import_module", "__import__") and names_acl:
                wrong.append(f"{module.where(node.lineno)} imports acl by name")
    assert not wrong, report(wrong)


def test_a_file_has_one_subject() -> None:
    wrong = []
    for module in MODULES:
        text = module.path.read_text("utf-8")
        if GENERATED_MARK in text[:500].lower():
            continue
        lines = text.count("\n")
        argued = module.path.relative_to(SRC).as_posix() in LONG_FILES
        if lines > HARD_MAX_LINES:
            wrong.append(f"{module.where(lines)}: more than {HARD_MAX_LINES} lines, find the second subject")
        elif lines > MAX_LINES and not argued:
            wrong.append(f"{module.where(lines)}: more than {MAX_LINES} lines, split it or argue it in LONG_FILES")
    assert not wrong, report(wrong)


def test_the_tables_name_what_exists() -> None:
    layers = {module.layer for module in MODULES}
    gone = [f"LONG_FILES: {name}" for name in LONG_FILES if not (SRC / name).is_file()]
    gone += [f"MAY_IMPORT: {name}" for name in MAY_IMPORT if name not in layers]
    gone += [f"NEVER: {name}" for name in NEVER if name not in layers]
    assert not gone, report(gone)


# --- the reader itself: a checker that sees nothing finds nothing -----------------------------------


def read(code: str, name: str, is_package: bool = False) -> set[tuple[str, bool, bool]]:
    nodes = import_nodes(ast.parse(code))
    found = (item for node, lazy in nodes for item in read_import(node, name, is_package, lazy))
    return {(item.target, item.ours, item.lazy) for item in found}


def test_imports_are_read() -> None:
    assert read("import acl.rt, numpy as np", "session") == {
        ("acl.rt", False, False),
        ("numpy", False, False),
    }
    assert read("from .constants import X", "_cann.codes") == {("_cann.constants", True, False)}
    assert read("from . import constants", "_cann.codes") == {("_cann.constants", True, False)}
    assert read("from .. import errors", "_acl.model") == {("errors", True, False)}
    assert read("from .._cann.constants import X", "_bridge", True) == {("_cann.constants", True, False)}
    assert read("from .types import X", "", True) == {("types", True, False)}
    assert read("import aioais._cann.constants", "cli") == {("_cann.constants", True, False)}
    assert read("from aioais import types, nothing", "cli") == {("types", True, False), ("", True, False)}


def test_a_circle_is_found() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


def test_lazy_imports_are_told_apart() -> None:
    assert read("def f():\n    import onnx", "session") == {("onnx", False, True)}
    assert read("class C:\n    import onnx", "session") == {("onnx", False, False)}
    assert read("try:\n    import onnx\nexcept ImportError: pass", "session") == {("onnx", False, False)}
    code = "if TYPE_CHECKING:\n    import onnx\nelse:\n    import torch"
    assert read(code, "session") == {("onnx", False, True), ("torch", False, False)}
