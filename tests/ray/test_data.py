"""The batch job of examples/ray on emulated NPUs: each item once, whatever dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray
from examples.ray import data_app
from tests.ray import dials

from aioais.demo_data import DIGITS_MODEL, load_digits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]

RayWith = Callable[[dict[str, str]], None]

TIMES = 4


@pytest.fixture(autouse=True)
def dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_app, "Reader", dials.Reader)


def check(target: Path, labels: dict[str, int]) -> None:
    """See that each item is there once: its digit, or the reason why there is none."""
    table = data_app.read_target(str(target))
    assert table.keys() == labels.keys()
    assert all((digit is None) == (reason is not None) for digit, reason in table.values())
    bad = {name for name, (digit, _) in table.items() if digit is None}
    assert bad == {name for name in labels if int(name.partition("-")[2]) % 100 == 7}
    right = sum(digit == labels[name] for name, (digit, _) in table.items())
    assert right / (len(table) - len(bad)) >= 0.97


def has_committed(done: Path) -> bool:
    """Whether a file of the output will be kept: Ray first notes it as pending, and writes those again."""
    return done.exists() and any(not path.name.endswith(".pending.parquet") for path in done.glob("*.parquet"))


def test_a_device_that_dies_costs_no_item(ray_with: RayWith, tmp_path: Path) -> None:
    ray_with(dials.environment(execute_ms=2, dies_after=700, marker=tmp_path / "died"))
    source = str(tmp_path / "digits.parquet")
    labels = data_app.write_source(source, TIMES)
    begin = time.perf_counter()
    data_app.run(source, str(tmp_path), str(DIGITS_MODEL), actors=2)
    print(f"{len(labels)} items, a device that dies: {time.perf_counter() - begin:.1f} s")
    assert (tmp_path / "died").exists()
    check(tmp_path, labels)


def test_a_run_goes_on_where_it_was_stopped(ray_with: RayWith, tmp_path: Path) -> None:
    """The driver is killed when some of the output is there; what is there then stays."""
    ray_with(dials.environment(execute_ms=2))
    source = str(tmp_path / "digits.parquet")
    labels = data_app.write_source(source, TIMES)
    environment = {**os.environ, **dials.environment(), "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    driver = subprocess.Popen([sys.executable, data_app.__file__, source, str(tmp_path)], env=environment)
    while driver.poll() is None and not has_committed(tmp_path / "done"):
        time.sleep(0.02)
    assert driver.poll() is None, "it ended before it could be stopped"
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    data_app.run(source, str(tmp_path), str(DIGITS_MODEL), actors=2)
    check(tmp_path, labels)
    kept = [path for path, at in written.items() if path.exists() and path.stat().st_mtime_ns == at]
    print(f"stopped after {len(written)} files, of which {len(kept)} are kept")
    assert kept


def test_a_folder_of_files(ray_with: RayWith, tmp_path: Path) -> None:
    ray_with(dials.environment())
    images, labels = load_digits()
    folder = tmp_path / "in"
    folder.mkdir()
    for k in range(50):
        (folder / f"{k:03d}.raw").write_bytes(images[k].astype(np.uint8).tobytes())
    (folder / "bad.raw").write_bytes(bytes(63))
    data_app.run(str(folder), str(tmp_path), str(DIGITS_MODEL), actors=1)
    table = {Path(name).stem: found for name, found in data_app.read_target(str(tmp_path)).items()}
    assert table.pop("bad") == (None, "got 63 bytes; expected 64, each of 0 to 16")
    assert len(table) == 50
    assert sum(digit == labels[int(name)] for name, (digit, _) in table.items()) >= 47
