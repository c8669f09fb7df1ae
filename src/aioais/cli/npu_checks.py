"""Checks of what an NPU needs: driver, device files, permissions, CANN and its module ``acl``.

Sources: CANN's installation guides from 8.0 to 9.1 (paths, ``set_env.sh``, ``ascend_toolkit_install.info``), the guide
of the driver (``/dev/davinci*``, group HwHiAiUser), and the page of ``ASCEND_RT_VISIBLE_DEVICES``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from .host import Check, Host, Status, first_value

__all__ = ["npu_checks"]

_INSTALL_CANN: Final = "install the CANN toolkit and the operator package of your chip (https://www.hiascend.com/cann)"
_INSTALL_DRIVER: Final = "install the NPU driver and firmware (https://www.hiascend.com/hardware/firmware-drivers)"
_MANAGERS: Final = ("davinci_manager", "devmm_svm", "hisi_hdc")
"""Device files that every program on an NPU opens besides that of the NPU itself."""
_PROBE_TIMEOUT_S: Final = 120
_HOMES: Final = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_NNRT_HOME", "ASCEND_NNAE_HOME")
"""Variables that the ``set_env.sh`` of CANN's packages sets."""

_PROBE: Final = """
import json
found = {}
try:
    import acl
    found["file"] = str(getattr(acl, "__file__", None))
    found["is_ascend"] = hasattr(acl, "rt") and hasattr(acl, "mdl")
    if found["is_ascend"]:
        found["init"] = acl.init()
        found["count"], found["code"] = acl.rt.get_device_count()
        found["soc"] = acl.get_soc_name()
except BaseException as exc:
    found["error"] = f"{type(exc).__name__}: {exc}"
print("\\n" + json.dumps(found), flush=True)
import os
os._exit(0)
"""
"""Runs in a process of its own: ACL starts once per process, and its logs stay out of the output."""


def npu_checks(host: Host, *, is_started: bool = True) -> list[Check]:
    """Run the checks.

    Parameters
    ----------
    host
        The machine.
    is_started
        Whether to import ``acl`` and start ACL, in a process of its own. That takes seconds on an NPU host.
    """
    home = _cann_home(host)
    before = [_driver(host), _devices(host), *_permissions(host), _visible(host), _cann(host, home)]
    module = _module(host, home, is_started)
    if is_started and module.status == "ok":
        # ACL runs and finds devices, so what the other checks miss is not needed here.
        before = [replace(check, status="note") if check.is_problem else check for check in before]
    return [*before, module, *_other_programs(host), _atc(host, home)]


def _check(name: str, status: Status, found: str, fix: str = "") -> Check:
    return Check(name, status, found, fix, "ascend")


def _npus(host: Host) -> list[Path]:
    """Return the device files of NPUs, by number."""
    found = [path for path in host.path("/dev").glob("davinci*") if re.fullmatch(r"davinci\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("davinci")))


def _driver(host: Host) -> Check:
    folder = first_value(host.path("/etc/ascend_install.info"), "driver_install_path_param") or "/usr/local/Ascend"
    path = host.path(folder) / "driver" / "version.info"
    version = first_value(path, "version")
    if version is not None:
        return _check("driver", "ok", f"{version} ({host.shown(path)})")
    fix = _INSTALL_DRIVER
    if host.is_container:
        folder = "/usr/local/Ascend/driver"
        fix = f"install the driver on the host and start the container with -v {folder}:{folder}:ro"
    # Boards have no such file: the driver is part of their system image.
    return _check("driver", "note" if _npus(host) else "missing", f"no {host.shown(path)}", "" if _npus(host) else fix)


def _devices(host: Host) -> Check:
    npus = _npus(host)
    if not npus:
        fix = f"{_INSTALL_DRIVER}; npu-smi info then shows the NPUs"
        if host.is_container:
            managers = " ".join(f"--device=/dev/{name}" for name in _MANAGERS)
            fix = f"install the driver on the host and start the container with --device=/dev/davinci0 {managers}"
        return _check("device files", "missing", "no /dev/davinci0, /dev/davinci1, …", fix)
    shown = ", ".join(host.shown(path) for path in npus)
    lost = [f"/dev/{name}" for name in _MANAGERS if not host.path(f"/dev/{name}").exists()]
    if lost:
        fix = _INSTALL_DRIVER
        if host.is_container:
            fix = "start the container with " + " ".join(f"--device={name}" for name in lost)
        # Boards do not have all of these.
        return _check("device files", "note", f"{shown}; without {', '.join(lost)}", fix)
    return _check("device files", "ok", shown)


def _permissions(host: Host) -> Iterator[Check]:
    files = [*_npus(host), *(host.path(f"/dev/{name}") for name in _MANAGERS)]
    files = [path for path in files if path.exists()]
    if not files:
        return
    refused = [path for path in files if not host.can_use(path)]
    if not refused:
        yield _check("permissions", "ok", "the device files can be read and written")
        return
    group = _group_name(refused[0])
    yield _check(
        "permissions",
        "wrong",
        f"user {host.user} cannot read and write {', '.join(host.shown(path) for path in refused)}",
        f'sudo usermod -aG {group} "$USER", then log in again (in a container: --group-add {group})',
    )


def _group_name(path: Path) -> str:
    try:
        return path.group()
    except (KeyError, OSError, NotImplementedError):
        return "HwHiAiUser"


def _visible(host: Host) -> Check:
    name = "visible devices"
    text = host.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    if text is None:
        return _check(name, "ok", "all (ASCEND_RT_VISIBLE_DEVICES is not set)")
    shown = f"ASCEND_RT_VISIBLE_DEVICES={text!r}"
    fix = "export ASCEND_RT_VISIBLE_DEVICES=0,1 with the ids that npu-smi info lists, or unset it"
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        return _check(name, "wrong", f"got {shown}; expected device ids with commas between them", fix)
    ids = [int(word) for word in words]
    if len(set(ids)) < len(ids):
        return _check(name, "wrong", f"got {shown}; expected each device id once", fix)
    count = len(_npus(host))
    beyond = [number for number in ids if number >= count]
    # A container may see /dev/davinci5 alone, as device 0.
    if count and beyond:
        return _check(name, "wrong", f"got {shown}; expected ids from 0 to {count - 1}", fix)
    mapping = ", ".join(f"device_id {k} is NPU {number}" for k, number in enumerate(ids))
    return _check(name, "ok", f"{shown}: {mapping}")


def _cann_home(host: Host) -> Path | None:
    """Return the folder of CANN: that of the environment, or the newest at the usual places."""
    for name in _HOMES:
        value = host.environ.get(name)
        if value and host.path(value).is_dir():
            return host.path(value)
    tops = [host.path("/usr/local/Ascend")]
    if host.environ.get("HOME"):
        tops.append(host.path(host.environ["HOME"]) / "Ascend")
    for top in tops:
        for place in ("cann", "ascend-toolkit/latest", "nnrt/latest", "nnae/latest"):
            if (top / place).is_dir():
                return top / place
        found = sorted(path for path in top.glob("cann-*") if path.is_dir())
        if found:
            return found[-1]
    return None


def _cann_version(home: Path) -> str | None:
    infos = [*home.glob("ascend_*_install.info"), *home.glob("*-linux/ascend_*_install.info")]
    # The operator package has a file of its own, with the same version as a rule.
    infos.sort(key=lambda path: ("toolkit" not in path.name, path.name))
    for path in [*infos, home / "version.cfg", home / "compiler" / "version.info", home / "runtime" / "version.info"]:
        version = first_value(path, "version")
        if version:
            return version
    return None


def _set_env(host: Host, home: Path | None) -> str:
    """Return the command that sets up the environment of CANN."""
    if home is None:
        return _INSTALL_CANN
    for path in (home / "set_env.sh", home.parent / "set_env.sh"):
        if path.is_file():
            return f"source {host.shown(path)}"
    return f"source set_env.sh of the CANN in {host.shown(home)}"


def _cann(host: Host, home: Path | None) -> Check:
    if home is None:
        return _check("CANN", "missing", "not in /usr/local/Ascend or ~/Ascend", _INSTALL_CANN)
    found = f"{_cann_version(home) or 'unknown version'} ({host.shown(home)})"
    if not any(host.environ.get(name) for name in _HOMES):
        return _check("CANN", "wrong", f"{found}; its environment is not set up", _set_env(host, home))
    return _check("CANN", "ok", found)


def _module(host: Host, home: Path | None, is_started: bool) -> Check:
    name, fix = "module acl", _set_env(host, home)
    if not host.has_module("acl"):
        return _check(name, "missing", "Python does not find the module acl, which CANN contains", fix)
    if not is_started:
        return _check(name, "ok", "Python finds it")
    found = _probe(host)
    if "error" in found:
        return _check(name, "wrong", f"import acl fails: {found['error']}", fix)
    if not found["is_ascend"]:
        return _check(
            name,
            "wrong",
            f"{found['file']} is another module acl: it has no acl.rt and acl.mdl",
            f"remove {found['file']} from sys.path, then {fix}",
        )
    if found["init"]:
        return _check(
            name, "wrong", f"acl.init fails with {found['init']}", "see the logs of CANN in ~/ascend/log/debug/plog"
        )
    if found["code"] or not found["count"]:
        return _check(
            name,
            "wrong",
            f"ACL finds no device ({found['count']} devices, code {found['code']})",
            "npu-smi info shows whether the driver sees the NPUs; ASCEND_RT_VISIBLE_DEVICES may hide them",
        )
    return _check(name, "ok", f"{found['count']} devices, {found['soc']} ({found['file']})")


def _probe(host: Host) -> dict[str, Any]:
    """Import ``acl`` and start ACL in a process of its own."""
    environ = {**host.environ, "PYTHONPATH": os.pathsep.join(host.search)}
    try:
        done = subprocess.run(  # noqa: S603 - Python itself, with a constant program
            [sys.executable, "-c", _PROBE],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"ACL did not start within {_PROBE_TIMEOUT_S} s"}
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    try:
        found: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        return {"error": f"the process that imported it ended with exit code {done.returncode}"}
    return found


def _other_programs(host: Host) -> Iterator[Check]:
    started = [name for name in ("acl", "torch_npu", "acllite") if name in sys.modules]
    if started:
        yield _check(
            "ACL in this process",
            "note",
            f"{', '.join(started)} imported by other code, which may have started ACL: sessions use it and leave it "
            "running; acl_json_path has no effect then",
        )
    holders = [(process, path) for process, path in host.holders("/dev", "davinci") if process != os.getpid()]
    holders = [(process, path) for process, path in holders if path != "/dev/davinci_manager"]
    if holders:
        shown = ", ".join(f"{path} by process {process}" for process, path in holders)
        yield _check("devices in use", "note", f"{shown}; sessions share a device with these")


def _atc(host: Host, home: Path | None) -> Check:
    folders = host.environ.get("PATH", "").split(os.pathsep)
    for folder in folders:
        if folder and (host.path(folder) / "atc").is_file():
            return _check("atc", "ok", f"{folder}/atc")
    fix = "" if home is None else _set_env(host, home)
    return _check("atc", "note", "not on the PATH; aioais.convert needs it to write .om files", fix)
