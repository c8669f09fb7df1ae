"""The files around the code: the two READMEs are in step, workflows and templates are valid, versions agree."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aioais

yaml = pytest.importorskip("yaml")

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
ENGLISH = (ROOT / "README.md").read_text("utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text("utf-8")
YAML = sorted(
    [
        *ROOT.glob(".*.yaml"),
        *(ROOT / ".github").rglob("*.yml"),
        *(ROOT / "examples").rglob("*.yaml"),
        ROOT / "CITATION.cff",
    ]
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


# --- README ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_readme_is_short(text: str) -> None:
    assert text.count("\n") <= 150


def headings(text: str) -> list[int]:
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [len(marks) for marks in re.findall(r"^(#+) ", outside, re.MULTILINE)]


def blocks(text: str) -> list[str]:
    return re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL)


def figures(text: str) -> list[list[str]]:
    """Return value and command of each row of the table of figures."""
    table = text.partition("<!-- figures: begin -->")[2].partition("<!-- figures: end -->")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in row[1:]] for row in rows]


def links(text: str) -> list[str]:
    both = {"README.md", "README.zh-CN.md"}
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if target not in both]


def test_the_readmes_are_in_step() -> None:
    assert headings(ENGLISH) == headings(CHINESE)
    assert blocks(ENGLISH) == blocks(CHINESE)
    assert figures(ENGLISH) == figures(CHINESE)
    assert links(ENGLISH) == links(CHINESE)


def test_there_are_six_figures_with_one_number_each() -> None:
    values = [row[0] for row in figures(ENGLISH)]
    assert len(values) == 6
    assert all(len(re.findall(r"[\d.,]*\d", value)) == 1 for value in values)


def test_ci_finds_the_two_commands() -> None:
    inside = "\n".join(blocks(ENGLISH)).splitlines()
    demo = next(line for line in inside if re.search(r"(^|[ /])aioais demo", line))
    tests = next(line for line in inside if re.search(r"(^|[ /])pytest( |$)", line))
    assert demo.startswith("python3 -m venv")
    assert demo.endswith("aioais demo")
    assert tests.endswith("/pytest -n 2")


# --- workflows and templates ----------------------------------------------------------------------


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_yaml_is_valid(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text("utf-8")), dict)


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for name, job in yaml.safe_load(path.read_text("utf-8"))["jobs"].items():
            yield f"{path.stem}.{name}", job


@pytest.mark.parametrize(("name", "job"), [pytest.param(*pair, id=pair[0]) for pair in jobs()])
def test_a_job_is_bounded_and_complete(name: str, job: dict[str, Any]) -> None:
    assert job["timeout-minutes"] <= 30
    assert job["runs-on"]
    for step in job["steps"]:
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[\w./]+", step["uses"])


def test_the_workflow_runs_sessions_that_exist() -> None:
    ci = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    text = (ROOT / "noxfile.py").read_text("utf-8")
    sessions = set(re.findall(r"^def (\w+)\(session: nox", text, re.MULTILINE))
    used = {row["session"].partition("-")[0] for row in ci["jobs"]["nox"]["strategy"]["matrix"]["include"]}
    assert used <= sessions
    assert {"lint", "types", "docs", "coverage", "build", "examples"} <= used


def test_a_release_is_tested_on_both_processors_and_needs_no_token() -> None:
    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8"))
    assert release["jobs"]["test"]["strategy"]["matrix"]["runner"] == ["ubuntu-latest", "ubuntu-24.04-arm"]
    publish = release["jobs"]["publish"]
    assert publish["permissions"]["id-token"] == "write"
    assert set(publish["needs"]) == {"build", "test"}
    assert "secrets." not in (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda p: p.stem)
def test_an_issue_form_has_what_github_asks_for(path: Path) -> None:
    form = yaml.safe_load(path.read_text("utf-8"))
    assert {"name", "description", "body"} <= set(form)
    for part in form["body"]:
        assert part["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert part["attributes"].get("label") or part["type"] == "markdown"
    names = [part["id"] for part in form["body"] if "id" in part]
    assert len(names) == len(set(names))


# --- versions -------------------------------------------------------------------------------------


def test_the_same_pythons_everywhere() -> None:
    listed = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", text)}
    (line,) = re.findall(r"^PYTHONS = (.*)$", (ROOT / "noxfile.py").read_text("utf-8"), re.MULTILINE)
    nox = set(re.findall(r"3\.\d+", line))
    ci = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    assert listed == nox == set(re.findall(r"session: tests-(3\.\d+)", ci)) == {f"3.{k}" for k in range(10, 15)}


def test_the_citation_has_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == aioais.__version__
    assert citation["license"] == PROJECT["license"]


def test_the_project_has_its_addresses() -> None:
    assert {"Documentation", "Source", "Issues", "Changelog"} <= set(PROJECT["urls"])
