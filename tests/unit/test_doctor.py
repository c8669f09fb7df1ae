"""``aioais doctor``: what it finds on machines that are described by a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.inside import remarks_on_devices as _remarks

from aioais.cli.checks import ready_platforms, report_json, report_lines, run_checks, run_doctor, why_not
from aioais.cli.host import Check, Host, version_tuple

SITE = "/site"
HOME = "/usr/local/Ascend/cann"
ACL = """
class rt:
    @staticmethod
    def get_device_count(): return COUNT, 0
class mdl: pass
def init(): return 0
def get_soc_name(): return "Ascend310P3"
"""


def write(root: Path, path: str, text: str = "") -> Path:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def package(root: Path, name: str, version: str) -> None:
    write(
        root,
        f"{SITE}/{name}-{version}.dist-info/METADATA",
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
    )


@pytest.fixture
def bare(tmp_path: Path) -> Host:
    """A machine with Python and NumPy only."""
    package(tmp_path, "numpy", "2.1.0")
    write(tmp_path, "/proc/meminfo", "MemTotal:       25165824 kB\nMemAvailable:   12582912 kB\n")
    return Host(tmp_path, {"PATH": "/usr/bin"}, (str(tmp_path / "site"),), 1000, frozenset({1000}))


@pytest.fixture
def npu(bare: Host) -> Host:
    """A host with two NPUs and CANN, all of it set up."""
    for name in ("davinci0", "davinci1", "davinci_manager", "devmm_svm", "hisi_hdc"):
        write(bare.root, f"/dev/{name}").chmod(0o666)
    write(bare.root, "/usr/local/Ascend/driver/version.info", "Version=24.1.0\n")
    write(bare.root, f"{HOME}/x86_64-linux/ascend_toolkit_install.info", "package_name=toolkit\nversion=8.5.0\n")
    write(bare.root, f"{HOME}/x86_64-linux/ascend_ops_install.info", "version=8.5.1\n")
    write(bare.root, f"{HOME}/set_env.sh")
    write(bare.root, f"{HOME}/bin/atc")
    write(bare.root, f"{SITE}/acl.py", ACL.replace("COUNT", "2"))
    return replace(bare, environ={"PATH": f"/usr/bin:{HOME}/bin", "ASCEND_HOME_PATH": HOME})


def check(host: Host, name: str, **options: bool) -> Check:
    (found,) = [check for check in run_checks(host, **options) if check.name == name]
    return found


def test_a_machine_with_nothing(bare: Host) -> None:
    checks = run_checks(bare)
    assert ready_platforms(checks) == {"ascend": False, "cpu": False}
    missing = {check.name for check in checks if check.status == "missing"}
    assert missing == {"onnxruntime", "driver", "device files", "CANN", "module acl"}
    assert all(check.fix for check in checks if check.is_problem)
    assert run_doctor(False, None, bare) == 1


def test_the_cpu_device(bare: Host) -> None:
    package(bare.root, "onnxruntime", "1.21.1")
    assert ready_platforms(run_checks(bare)) == {"ascend": False, "cpu": True}
    assert check(bare, "onnx").status == check(bare, "ml_dtypes").status == "note"
    assert "aioais.convert" in check(bare, "onnx").found
    assert run_doctor(False, None, bare) == run_doctor(False, "cpu", bare) == 0
    assert run_doctor(False, "ascend", bare) == 1


@pytest.mark.parametrize("version", ["1.20.2", "0.9"])
def test_a_package_that_is_too_old(bare: Host, version: str) -> None:
    package(bare.root, "onnxruntime", version)
    found = check(bare, "onnxruntime")
    assert (found.status, found.found) == ("wrong", f"got {version}; expected 1.21 or newer")
    assert 'pip install "aioais[cpu]" (in a clone of aioais: pip install -e ".[cpu]")' in found.fix


def test_without_numpy(tmp_path: Path) -> None:
    package(tmp_path, "onnxruntime", "1.21.1")
    checks = run_checks(Host(tmp_path, {}, (str(tmp_path / "site"),)))
    assert ready_platforms(checks) == {"ascend": False, "cpu": False}


def test_memory_and_the_limit_of_a_container(bare: Host) -> None:
    assert check(bare, "memory").found == "12.0 of 24.0 GiB available"
    write(bare.root, "/sys/fs/cgroup/memory.max", f"{8 << 30}\n")
    write(bare.root, "/sys/fs/cgroup/memory.current", f"{2 << 30}\n")
    assert check(bare, "memory").found == "6.0 of 8.0 GiB available"
    write(bare.root, "/sys/fs/cgroup/cpu.max", "150000 100000\n")
    assert "the container may use 1.5" in check(bare, "cores").found


def test_an_npu_host(npu: Host) -> None:
    checks = run_checks(npu)
    assert ready_platforms(checks) == {"ascend": True, "cpu": False}
    found = {check.name: check.found for check in checks if check.platform == "ascend"}
    assert found == {
        "driver": "24.1.0 (/usr/local/Ascend/driver/version.info)",
        "device files": "/dev/davinci0, /dev/davinci1",
        "permissions": "the device files can be read and written",
        "visible devices": "all (ASCEND_RT_VISIBLE_DEVICES is not set)",
        "CANN": "8.5.0 (/usr/local/Ascend/cann)",
        "module acl": f"2 devices, Ascend310P3 ({npu.root}/site/acl.py)",
        "atc": f"{HOME}/bin/atc",
    }
    assert run_doctor(True, "ascend", npu) == 0


def test_an_environment_that_is_not_set_up(npu: Host) -> None:
    (npu.root / "site/acl.py").unlink()
    host = replace(npu, environ={"PATH": "/usr/bin"})
    for name in ("CANN", "module acl"):
        assert check(host, name).is_problem
        assert check(host, name).fix == f"source {HOME}/set_env.sh"
    assert check(host, "CANN").found == "8.5.0 (/usr/local/Ascend/cann); its environment is not set up"
    assert check(host, "atc").fix == f"source {HOME}/set_env.sh"


@pytest.mark.parametrize(
    ("place", "info", "script"),
    [
        (
            "/usr/local/Ascend/ascend-toolkit/latest",
            "aarch64-linux/ascend_toolkit_install.info",
            "/usr/local/Ascend/ascend-toolkit/set_env.sh",
        ),
        ("/usr/local/Ascend/nnrt/latest", "version.cfg", "/usr/local/Ascend/nnrt/set_env.sh"),
        ("/usr/local/Ascend/cann-9.0.0", "ascend_nnae_install.info", "/usr/local/Ascend/cann-9.0.0/set_env.sh"),
        ("/home/me/Ascend/cann", "x86_64-linux/ascend_toolkit_install.info", "/home/me/Ascend/cann/set_env.sh"),
    ],
)
def test_places_of_cann(bare: Host, place: str, info: str, script: str) -> None:
    write(bare.root, f"{place}/{info}", "version=8.0.RC3\n")
    write(bare.root, script)
    found = check(replace(bare, environ={"HOME": "/home/me"}), "CANN")
    assert found.found.startswith(f"8.0.RC3 ({place})")
    assert found.fix == f"source {script}"


@pytest.mark.parametrize(
    ("module", "found", "fix"),
    [
        (
            "raise ImportError('libascendcl.so: cannot open')",
            "import acl fails: ImportError: libascendcl.so",
            "source ",
        ),
        ("x = 1", "is another module acl", "remove "),
        ("import os; os._exit(7)", "ended with exit code 7", "source "),
        (ACL.replace("return 0", "return 500000").replace("COUNT", "1"), "acl.init fails with 500000", "plog"),
        (ACL.replace("COUNT", "0"), "ACL finds no device (0 devices, code 0)", "npu-smi"),
        ("raise SystemExit(3)", "import acl fails: SystemExit", "source "),
    ],
)
def test_a_module_acl_that_does_not_work(npu: Host, module: str, found: str, fix: str) -> None:
    write(npu.root, f"{SITE}/acl.py", module)
    result = check(npu, "module acl")
    assert result.status == "wrong"
    assert found in result.found
    assert fix in result.fix
    assert not ready_platforms(run_checks(npu))["ascend"]


def test_acl_that_finds_devices_is_enough(npu: Host) -> None:
    (npu.root / "usr/local/Ascend/driver/version.info").unlink()
    for file in (npu.root / "dev").iterdir():
        file.unlink()
    checks = run_checks(npu)
    assert ready_platforms(checks)["ascend"], "a board, or a stub of ACL"
    assert check(npu, "driver").status == check(npu, "device files").status == "note"
    assert check(npu, "driver", is_started=False).status == "missing"


def test_permissions(npu: Host) -> None:
    file = npu.root / "dev/davinci1"
    file.chmod(0o660)
    owner = file.stat()
    assert check(replace(npu, user=owner.st_uid), "permissions").status == "ok"
    assert check(replace(npu, user=owner.st_uid + 7, groups=frozenset({owner.st_gid})), "permissions").status == "ok"
    assert check(replace(npu, user=0), "permissions").status == "ok"
    file.chmod(0o600)
    host = replace(npu, user=owner.st_uid + 7, groups=frozenset({owner.st_gid}))
    found = check(host, "permissions", is_started=False)
    assert found.status == "wrong"
    assert found.found == f"user {host.user} cannot read and write /dev/davinci1"
    assert found.fix.startswith("sudo usermod -aG ")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,0", "device_id 0 is NPU 1, device_id 1 is NPU 0"),
        ("1", "device_id 0 is NPU 1"),
        ("", "expected device ids"),
        ("0,x", "expected device ids"),
        ("0,0", "expected each device id once"),
        ("0,2", "expected ids from 0 to 1"),
    ],
)
def test_visible_devices(npu: Host, text: str, found: str) -> None:
    host = replace(npu, environ={**npu.environ, "ASCEND_RT_VISIBLE_DEVICES": text})
    result = check(host, "visible devices", is_started=False)
    assert found in result.found
    assert result.is_problem == ("expected" in found)
    assert bool(result.fix) == result.is_problem


def test_devices_in_use(npu: Host) -> None:
    for process, target in ((77, "/dev/davinci1"), (78, "/dev/davinci_manager"), (os.getpid(), "/dev/davinci0")):
        folder = npu.root / f"proc/{process}/fd"
        folder.mkdir(parents=True)
        (folder / "3").symlink_to(target)
    assert check(npu, "devices in use").found == "/dev/davinci1 by process 77; sessions share a device with these"


def test_a_container(bare: Host) -> None:
    write(bare.root, "/.dockerenv")
    assert "--device=/dev/davinci0 --device=/dev/davinci_manager" in check(bare, "device files").fix
    assert "-v /usr/local/Ascend/driver" in check(bare, "driver").fix
    write(bare.root, "/dev/davinci3")
    assert check(bare, "device files").fix.startswith("start the container with --device=/dev/davinci_manager")


def test_the_report(npu: Host) -> None:
    checks = run_checks(npu)
    lines = list(report_lines(checks))
    assert lines[0] == "Python and machine"
    assert lines[-1] == "CPU device: not ready. NPU: ready."
    assert any(line.split()[:2] == ["onnxruntime", "MISSING"] for line in lines)
    assert any("→ pip install" in line for line in lines)
    data = json.loads(json.dumps(report_json(checks)))
    assert data["ready"] == {"ascend": True, "cpu": False}
    assert {"name", "status", "found", "fix", "platform", "is_problem"} == set(data["checks"][0])


def test_why_a_platform_is_not_ready(bare: Host, npu: Host) -> None:
    assert why_not(run_checks(npu), "ascend") == ""
    checks = run_checks(npu)
    assert why_not(checks, "cpu").startswith("onnxruntime: not installed → pip install")


def test_devices_says_why_there_is_no_npu(bare: Host) -> None:
    lines = list(_remarks({"cpu"}, bare))
    assert lines[0] == "The CPU devices share the memory of this machine: 12.0 GiB of 24.0 GiB available."
    assert lines[1].startswith(
        "No NPU: driver: no /usr/local/Ascend/driver/version.info; device files: no /dev/davinci0"
    )
    assert lines[2].startswith("aioais doctor")
    lines = list(_remarks(set(), bare))
    assert lines[1].startswith("No CPU device: onnxruntime: not installed → pip install")


def test_devices_says_nothing_where_both_are_there(npu: Host) -> None:
    assert len(list(_remarks({"ascend", "cpu"}, npu))) == 1
    assert list(_remarks({"cpu"}, npu))[1] == "No NPU: its software is installed, and finds no device"


@pytest.mark.parametrize(
    ("text", "numbers"), [("1.20.1", (1, 20, 1)), ("2.0rc1", (2, 0)), ("1.24.dev0", (1, 24)), ("x", ())]
)
def test_versions(text: str, numbers: tuple[int, ...]) -> None:
    assert version_tuple(text) == numbers


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str]]:
    from aioais.cli import main

    def run(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["aioais", "doctor", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        return exit_.value.code, capsys.readouterr().out

    return run


def test_the_command(doctor: Callable[..., tuple[object, str]]) -> None:
    code, out = doctor("--json")
    data = json.loads(out)
    assert code == 0
    assert data["ready"]["cpu"]
    code, out = doctor("--platform", "cpu")
    assert code == 0
    assert "CPU device: ready." in out
    assert doctor("--platform", "gpu")[0] == 2


def test_the_command_without_typer() -> None:
    code = "import sys; sys.modules['typer'] = None; from aioais.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--platform", "cpu"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "CPU device: ready." in done.stdout
