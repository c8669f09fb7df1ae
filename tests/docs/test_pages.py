"""The pages as a whole: links lead somewhere, public names and commands are described, the table of contents is full.

``nox -s docs`` builds the site itself, with warnings as errors; ``--full`` does so here.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    page
    for page in (*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md"))
    if "_build" not in page.parts
]
LATER: set[str] = set()
"""Pages that are linked to before they are written."""

LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
CODE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text("utf-8")), re.MULTILINE)
    texts = [re.sub(r"[^\w\- ]", "", re.sub(r"^\d+\. ", "", heading).strip().lower()) for heading in headings]
    numbered = [re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in headings]
    return {text.replace(" ", "-") for text in (*texts, *numbered)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    lost = []
    for match in LINK.finditer(CODE.sub("", page.read_text("utf-8"))):
        target = match["target"]
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        to = (page.parent / name).resolve() if name else page
        if to.stem in LATER and not to.exists():
            continue
        if not to.exists() or (anchor and to.suffix == ".md" and anchor not in anchors(to)):
            lost.append(target)
    assert not lost


def is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False


def entries() -> set[str]:
    """Return the names that the reference has an entry for."""
    directive = re.compile(r"^\.\. auto(?:class|exception|function|data|module):: (\S+)$", re.MULTILINE)
    return {name for page in (DOCS / "reference").glob("*.md") for name in directive.findall(page.read_text("utf-8"))}


MODULES = [
    name
    for name in (
        "aioais",
        "aioais.blame",
        "aioais.compat",
        "aioais.compat.ais_bench",
        "aioais.demo_data",
        "aioais.emulator",
        "aioais.serving",
        "aioais.telemetry",
        "aioais.testing",
        "aioais_pytest",
    )
    if is_there(name)
]
"""The public modules; some come later, and need entries then."""


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_an_entry(module: str) -> None:
    public = {f"{module}.{name}" for name in importlib.import_module(module).__all__}
    assert public - entries() == set()


def test_the_reference_names_nothing_else() -> None:
    for name in entries():
        module, _, attribute = name.rpartition(".")
        if is_there(name):  # a module
            continue
        assert attribute in importlib.import_module(module).__all__, name


def test_every_command_and_option_is_described() -> None:
    typer = pytest.importorskip("typer")
    from aioais.cli.app import app

    text = (DOCS / "reference" / "command_line.md").read_text("utf-8")
    missing = []
    for name, command in typer.main.get_command(app).commands.items():
        _, _, section = text.partition(f"\n## aioais {name}")
        section = section.partition("\n## ")[0]
        if not section:
            missing.append(name)
        for parameter in command.params:
            options = [option for option in parameter.opts if option.startswith("--") and option != "--help"]
            if options and f"`{options[0]}`" not in section:
                missing.append(f"{name} {options[0]}")
    assert not missing


def names_of_classes() -> dict[str, set[str]]:
    """Return for each class of the source the names that its code mentions."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).update(re.findall(r"\w+", ast.unparse(node)))
    return found


def test_what_the_design_names_is_in_the_source() -> None:
    page = (ROOT / "docs" / "design.md").read_text("utf-8")
    files = {path.name for folder in ("src", "tests", "benchmarks", "tools") for path in (ROOT / folder).rglob("*.py")}
    assert set(re.findall(r"\b\w+\.py\b", page)) <= files
    classes = names_of_classes()
    named = [(name, member) for name, member in re.findall(r"`([A-Z]\w+)\.(\w+)", page) if name in classes]
    assert len(named) > 10
    assert not [f"{name}.{member}" for name, member in named if member not in classes[name]]


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set()
    for index in (DOCS / "index.md", DOCS / "reference" / "index.md"):
        for block in re.findall(r"```\{toctree\}\n(.*?)```", index.read_text("utf-8"), re.DOTALL):
            names = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {(index.parent / f"{name}.md").relative_to(DOCS).as_posix() for name in names}
    there = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md") if "_build" not in page.parts}
    assert there == (listed | {"index.md"}) - {f"{name}.md" for name in LATER if f"{name}.md" not in there}


def test_the_page_of_codes_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "generate_codes.py", "--check"], stdin=subprocess.DEVNULL, timeout=60
    )
    assert done.returncode == 0, "run python tools/generate_codes.py"


def test_the_frequent_codes_are_explained() -> None:
    from tests.inside import CODES

    text = (DOCS / "troubleshooting.md").read_text("utf-8").partition("## By error code")[2]
    explained: set[int] = set()
    for row in re.findall(r"^\| ([0-9][0-9, to]*) \|", text, re.MULTILINE):
        for part in row.split(", "):
            low, _, high = part.partition(" to ")
            explained |= set(range(int(low), int(high or low) + 1))
    assert explained & set(CODES) >= {100002, 107002, 107003, 207001, 500002, 507008, 507011, *range(507033, 507047)}
    assert not {code for code in explained if code not in CODES}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for module in ("sphinx", "furo", "myst_parser", "sphinx_copybutton"):
        pytest.importorskip(module)
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", DOCS, tmp_path / "site"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").is_file()
