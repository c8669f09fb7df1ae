"""Every check of the project; CI calls these sessions and nothing else.

``nox`` alone runs the everyday ones, ``nox --list`` shows the rest.
"""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "types", "tests-3.11"]

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
# 3.10 is kept for hosts with CANN 8.0 to 8.2. A Python that is not installed is skipped, except on CI.
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
LOOPS = ["asyncio", "uvloop"]
EXTRAS = "cpu,cli"


def group(*names: str) -> list[str]:
    """Return the requirements of dependency groups."""
    return list(nox.project.dependency_groups(PYPROJECT, *names))


def floors(requirements: Iterable[str]) -> list[str]:
    """Return ``name==X`` for each ``name>=X``."""
    pins = [re.sub(r">=([^,;\s]+)[^;]*", r"==\1", requirement) for requirement in requirements]
    assert all("==" in pin for pin in pins), f"a requirement without a floor: {pins}"
    return pins


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting and spelling."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")
    session.run("yamllint", "--strict", "examples")


@nox.session
def types(session: nox.Session) -> None:
    """Types, by mypy and pyright."""
    session.install("-e", f".[{EXTRAS}]", *group("typing"), "nox")
    python = session.run("python", "-c", "import sys; print(sys.executable)", silent=True)
    session.run("mypy")
    # pyright would look at the first `python` of PATH, which need not be the session's.
    session.run("pyright", "--pythonpath", str(python).strip())


@nox.session(python="3.11")
def docs(session: nox.Session) -> None:
    """Build the site, with warnings as errors and without the network; arguments go to sphinx-build."""
    session.install("-e", f".[{EXTRAS},testing]", *group("docs"))
    site = Path(session.create_tmp()).resolve() / "site"
    session.run("python", "-m", "sphinx", "-W", "--keep-going", "-n", "-b", "html", *session.posargs, "docs", str(site))
    session.log(f"open {site / 'index.html'}")


@nox.session(python=PYTHONS)
@nox.parametrize("loop", LOOPS, ids=LOOPS)
def tests(session: nox.Session, loop: str) -> None:
    """Run the full suite on one Python and one event loop."""
    session.install("-e", f".[{EXTRAS}]", *group("test"))
    session.run("pytest", "--full", "-n", "2", f"--loop={loop}", *session.posargs)


@nox.session(python="3.11", default=False)
def stress(session: nox.Session) -> None:
    """Run the long forms: each call of ACL fails at many places, onnx's own suite, fuzzers, storms, made-up lives."""
    session.install("-e", f".[{EXTRAS}]", *group("test"))
    units = ("faults_everywhere", "multi_faults_everywhere", "session_machine")
    tests = (*(f"tests/unit/test_{name}.py" for name in units), "tests/stress")
    session.run("pytest", "--long", "--timeout=3600", "-rP", *tests, *session.posargs)


@nox.session(python="3.11")
def coverage(session: nox.Session) -> None:
    """Run the full suite and see that it takes nearly all branches; the programs that it starts count too."""
    session.install("-e", f".[{EXTRAS}]", *group("test"))
    data = Path(session.create_tmp()).resolve()
    env = {"COVERAGE_FILE": str(data / ".coverage")}
    session.run("coverage", "erase", env=env)
    session.run("coverage", "run", "-m", "pytest", "--full", *session.posargs, env=env)
    session.run("coverage", "combine", env=env)
    session.run("coverage", "report", env=env)


@nox.session
def audit(session: nox.Session) -> None:
    """Look for known weaknesses in the newest versions of what users install: dependencies and extras."""
    session.install(*group("audit"))
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        wanted += extra
    listed = Path(session.create_tmp()) / "requirements.txt"
    listed.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    # Strict: what could not be looked up is no good news.
    session.run("pip-audit", "--strict", "--progress-spinner", "off", "--requirement", str(listed))


@nox.session(python="3.11", default=False)
def bench(session: nox.Session) -> None:
    """Measure; arguments go to ``python -m benchmarks``."""
    session.install("-e", f".[{EXTRAS}]", *group("test"))
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(python=PYTHONS[0])
def tests_oldest(session: nox.Session) -> None:
    """Run the full suite with the lowest versions that pyproject.toml allows."""
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"]]
    for extra in EXTRAS.split(","):
        wanted += project["optional-dependencies"][extra]
    session.install("-e", f".[{EXTRAS}]", *floors(wanted), *group("test"))
    session.run("pytest", "--full", "-n", "2", *session.posargs)


@nox.session(python="3.11", default=False)
def ray(session: nox.Session) -> None:
    """Run the examples on Ray, with emulated NPUs, replicas that are killed and devices that die; 490 MB to install."""
    session.install("-e", f".[{EXTRAS}]", *group("ray"))
    session.run("pytest", "--full", "-rP", "--show-capture=stdout", "tests/ray", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Run every example but those on Ray as a user would: from the installed package, each in its own process."""
    session.install(f".[{EXTRAS}]", *group("serving", "notebook"))
    # What needs Ray is run by `nox -s ray`.
    scripts = sorted(path for path in (ROOT / "examples").rglob("*.py") if path.parent.name != "ray")
    assert scripts, "no examples found"
    session.chdir(session.create_tmp())
    for script in scripts:
        session.run("python", str(script))
    for notebook in sorted((ROOT / "examples").rglob("*.ipynb")):
        session.run("jupyter", "execute", str(notebook))


@nox.session
def build(session: nox.Session) -> None:
    """Build wheel and sdist, look into both, and run the full suite against the wheel from an empty folder."""
    session.install("build")
    dist = Path(session.create_tmp()).resolve() / "dist"
    for old in dist.glob("*"):
        old.unlink()
    # The wheel comes out of the sdist, so the sdist is complete.
    session.run("python", "-m", "build", "--outdir", str(dist), str(ROOT))
    wheel, sdist = one(dist, "*.whl"), one(dist, "*.tar.gz")
    check_contents(wheel, sdist)
    session.install(f"{wheel}[{EXTRAS}]", *group("test"))
    # In an environment that is used again the version is the same, the content is not.
    session.install("--force-reinstall", "--no-deps", str(wheel))
    session.chdir(session.create_tmp())
    session.run(
        "pytest", "-c", str(ROOT / "pyproject.toml"), "--full", "-n", "2", str(ROOT / "tests"), *session.posargs
    )


def one(folder: Path, pattern: str) -> Path:
    """Return the only match."""
    found = list(folder.glob(pattern))
    assert len(found) == 1, f"{pattern}: expected one file, found {found}"
    return found[0]


def check_contents(wheel: Path, sdist: Path) -> None:
    """Compare the archives with the source tree: nothing missing, nothing that does not belong."""
    package = ROOT / "src" / "aioais"
    wanted = {
        path.relative_to(package.parent).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "aioais/py.typed" in wanted
    wanted.add("aioais_pytest.py")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == wanted, f"wheel: missing {wanted - names}, unexpected {names - wanted}"
    with tarfile.open(sdist) as archive:
        inside = {member.name.partition("/")[2] for member in archive if member.isfile()}
    must = {f"src/{name}" for name in wanted}
    must |= {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "noxfile.py", "tests/conftest.py"}
    assert must <= inside, f"sdist: missing {must - inside}"
