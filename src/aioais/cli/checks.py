"""The checks of ``aioais doctor``: what this machine has, what is missing, and the command that fixes it.

Uses the standard library only, so that it works where the packages to check for are missing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Literal

from .._version import __version__
from ..errors import install_hint
from .host import Check, Host, read_text, version_tuple
from .npu_checks import npu_checks

__all__ = ["ready_platforms", "report_json", "report_lines", "run_checks", "run_doctor", "why_not"]

_MARKS = {"ok": "ok", "missing": "MISSING", "wrong": "WRONG", "note": "note"}


def run_checks(host: Host | None = None, *, is_started: bool = True) -> list[Check]:
    """Run all checks.

    Parameters
    ----------
    host
        The machine; this one by default.
    is_started
        Whether to start ACL, in a process of its own, to see whether it finds devices.
    """
    host = Host() if host is None else host
    return [*_python(host), *_machine(host), *_cpu_device(host), *npu_checks(host, is_started=is_started)]


def ready_platforms(checks: Sequence[Check]) -> dict[str, bool]:
    """Return for each platform whether sessions can be opened on it."""
    return {
        name: not any(check.is_problem and check.platform in ("all", name) for check in checks)
        for name in ("ascend", "cpu")
    }


def why_not(checks: Sequence[Check], name: str) -> str:
    """Return why a platform is not ready, with the fix if it is a single one; empty if no check failed."""
    problems = [check for check in checks if check.is_problem and check.platform in ("all", name)]
    if not problems:
        return ""
    found = "; ".join(f"{check.name}: {check.found}" for check in problems)
    return f"{found} → {problems[0].fix}" if len(problems) == 1 and problems[0].fix else found


def report_lines(checks: Sequence[Check]) -> Iterator[str]:
    """Yield the lines of the report."""
    width = max(len(check.name) for check in checks)
    for title, name in (("Python and machine", "all"), ("CPU device (.onnx)", "cpu"), ("NPU (.om)", "ascend")):
        yield title
        for check in checks:
            if check.platform == name:
                yield f"  {check.name:<{width}}  {_MARKS[check.status]:<7}  {check.found}"
                if check.fix and check.status != "ok":
                    yield f"  {'':<{width}}  {'':<7}  → {check.fix}"
        yield ""
    ready = ready_platforms(checks)
    yield f"CPU device: {_verdict(ready['cpu'])}. NPU: {_verdict(ready['ascend'])}."


def report_json(checks: Sequence[Check]) -> dict[str, Any]:
    """Return the report as JSON data."""
    return {
        "aioais": __version__,
        "ready": ready_platforms(checks),
        "checks": [{**asdict(check), "is_problem": check.is_problem} for check in checks],
    }


def run_doctor(is_json: bool, required: str | None, host: Host | None = None) -> int:
    """Print the report.

    Parameters
    ----------
    is_json
        Whether to print JSON.
    required
        The platform that must be ready; ``None`` if any one is enough.
    host
        The machine; this one by default.

    Returns
    -------
    int
        The exit code: 0 if the platform is ready, otherwise 1.
    """
    checks = run_checks(host)
    if is_json:
        print(json.dumps(report_json(checks), indent=1, ensure_ascii=False))
    else:
        for line in report_lines(checks):
            _print(line)
    ready = ready_platforms(checks)
    return 0 if (ready[required] if required else any(ready.values())) else 1


def main(argv: Sequence[str]) -> int:
    """Run ``aioais doctor`` without typer and rich, for installations that lack the extra ``cli``."""
    parser = argparse.ArgumentParser(prog="aioais doctor", description="Check this machine.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--platform", choices=("ascend", "cpu"), help="the platform that must be ready")
    arguments = parser.parse_args(argv)
    return run_doctor(arguments.json, arguments.platform)


def _print(line: str) -> None:
    try:
        print(line)
    except UnicodeEncodeError:  # a terminal without the arrow
        print(line.encode("ascii", "replace").decode())


def _verdict(is_ready: bool) -> str:
    return "ready" if is_ready else "not ready"


def _python(host: Host) -> Iterator[Check]:
    version = platform.python_version()
    shown = f"{platform.python_implementation()} {version} ({sys.executable})"
    yield Check("Python", "ok", shown)
    yield Check("aioais", "ok", f"{__version__} ({os.path.dirname(os.path.dirname(__file__))})")
    yield _package(host, "numpy", "1.24", "all", 'pip install "numpy>=1.24"')
    yield _event_loop(host)


def _package(host: Host, name: str, floor: str, needed_by: Literal["all", "cpu"], fix: str) -> Check:
    version = host.version(name)
    if version is None:
        return Check(name, "missing", "not installed", fix, needed_by)
    if version_tuple(version) < version_tuple(floor):
        return Check(name, "wrong", f"got {version}; expected {floor} or newer", fix, needed_by)
    return Check(name, "ok", version, "", needed_by)


def _event_loop(host: Host) -> Check:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # policies are deprecated from Python 3.14 on
        policy = asyncio.get_event_loop_policy()
    shown = f"policy {type(policy).__module__}.{type(policy).__qualname__}"
    version = host.version("uvloop")
    if version is None:
        found = f"{shown}; uvloop is not installed, which aioais.run() needs"
        return Check("event loop", "note", found, "pip install uvloop")
    return Check("event loop", "ok", f"{shown}; aioais.run() uses uvloop {version}")


def _machine(host: Host) -> Iterator[Check]:
    yield Check("system", "ok", f"{platform.platform()}{', in a container' if host.is_container else ''}")
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    found = f"{cores}" if usable == cores else f"{cores}, of which this process may use {usable}"
    quota = read_text(host.path("/sys/fs/cgroup/cpu.max")).split()
    if len(quota) == 2 and quota[0].isdecimal() and quota[1].isdecimal() and int(quota[1]):
        found += f"; the container may use {int(quota[0]) / int(quota[1]):g}"
    yield Check("cores", "ok", found)
    available, total = host.memory()
    if total:
        yield Check("memory", "ok", f"{available / 2**30:.1f} of {total / 2**30:.1f} GiB available")
    else:
        yield Check("memory", "note", "unknown")


def _cpu_device(host: Host) -> Iterator[Check]:
    fix = install_hint("cpu")
    yield _package(host, "onnxruntime", "1.21", "cpu", fix)
    onnx = _package(host, "onnx", "1.17", "cpu", fix)
    ml_dtypes = _package(host, "ml_dtypes", "0.5", "cpu", fix)
    # Models without bfloat16 run without these two.
    for check, use in ((onnx, "aioais.convert"), (ml_dtypes, "bfloat16 and float8 arrays")):
        if check.is_problem:
            yield Check(check.name, "note", f"{check.found}; only {use} needs it", fix, "cpu")
        else:
            yield check
