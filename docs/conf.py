"""Settings of the documentation site: ``nox -s docs`` builds it, without the network."""

from __future__ import annotations

import re
from typing import Any

from aioais import __version__

REPOSITORY = "https://github.com/aioais/aioais"

project = "aioais"
author = "The aioais authors"
project_copyright = "The aioais authors"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_inventories"]

# --- references ---------------------------------------------------------------------------------

nitpicky = True
nitpick_ignore_regex = [
    # Words of docstrings that stand where a type does.
    ("py:class", r"context manager|module|optional|\{.*|.*\}|\"\w+\""),
    # Parts of the packages that are not public.
    (
        "py:class",
        r"aioais\.(compat\.)?_.*|PipelineRun|aioais\.timing\.Recorded|aioais\.emulator\.faults\.Fault|_pytest\..*|.*\._T",
    ),
    # As programs for ais_bench know it, and as the source of its module writes it.
    ("py:class", r"aclruntime\.Tensor|np\.generic"),
]
# Kept in the repository, so that a build needs no network; docs/make_inventories.py writes them.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", "_inventories/python.inv"),
    "numpy": ("https://numpy.org/doc/stable", "_inventories/numpy.inv"),
}

# --- Markdown -----------------------------------------------------------------------------------

myst_heading_anchors = 3
# Blocks of other languages than Python are commands and what they print.
highlight_language = "none"

# --- docstrings ---------------------------------------------------------------------------------

napoleon_google_docstring = False
napoleon_use_rtype = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_type_aliases = {name: f"aioais.{name}" for name in ("Check", "Feeds", "Mode")}
python_maximum_signature_line_length = 100

# --- the look -----------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"aioais {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
    "footer_icons": [],
}
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp, .go"


def prepare(app: Any, docname: str, source: list[str]) -> None:
    """Point relative links that leave docs/ at the repository: they work on GitHub and on the site."""
    if docname != "changelog":
        source[0] = re.sub(r"\]\(\.\./([^)\s]*)\)", rf"]({REPOSITORY}/blob/main/\1)", source[0])


NOT_CALLED = {
    "aioais.DeviceInfo",
    "aioais.DeviceStatistics",
    "aioais.InferSummary",
    "aioais.PipelineOutput",
    "aioais.Recording",
    "aioais.RequestTiming",
    "aioais.SessionStatistics",
    "aioais.Span",
    "aioais.StageTime",
    "aioais.StreamOutput",
    "aioais.Tensor",
    "aioais.TensorDesc",
    "aioais.Trace",
}
"""Classes that programs get and do not make: their parameters are no part of the reference."""


def name_aliases(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Write a type alias by its name where Sphinx writes its parts, as it does inside other types."""
    if what == "class" and name in NOT_CALLED:
        return "", None
    if signature:
        signature = re.sub(r"TypeAliasForwardRef\('aioais\.(\w+)'\)|aioais\.(?=Check|Feeds|Mode)", r"\1", signature)
        signature = re.sub(
            r"(~?collections\.abc\.)?Sequence\[(~?typing\.)?Any\] \| [\w.~]*Mapping\[str, [\w.~]*Any\]",
            "Feeds",
            signature,
        )
    return signature, returns


def setup(app: Any) -> None:
    app.connect("autodoc-process-signature", name_aliases)
    app.connect("source-read", prepare)
