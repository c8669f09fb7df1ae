"""Ray for one test: on this machine alone, with emulated NPUs; without Ray installed, nothing here is collected.

``nox -s ray`` runs these tests.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import socket
import warnings
from collections.abc import Callable, Iterator

import pytest

IS_INSTALLED = importlib.util.find_spec("ray") is not None
collect_ignore_glob = [] if IS_INSTALLED else ["test_*.py"]

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # a cluster on the loopback address alone
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))  # else Ray writes one to the home folder

if IS_INSTALLED:
    with warnings.catch_warnings():  # what Ray's modules warn of while they are imported
        warnings.simplefilter("ignore")
        import ray
        from ray import data as data
        from ray import serve


def start_ray(npus: int, variables: dict[str, str] | None = None) -> None:
    """Start Ray; the number of CPUs only says what may be placed."""
    # It asks `acl` for the name of the chip.
    logging.getLogger("ray._private.accelerators.npu").disabled = True
    ray.init(
        num_cpus=6,
        resources={"NPU": npus},
        object_store_memory=100 << 20,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": variables or {}},
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def serving() -> Iterator[int]:
    """Start Ray with three NPUs, and Serve; give the port of its proxy."""
    port = free_port()
    start_ray(3)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()
    ray.shutdown()


@pytest.fixture
def ray_with() -> Iterator[Callable[[dict[str, str]], None]]:
    """Give a function that starts Ray with two NPUs and these variables in its workers."""
    yield lambda variables: start_ray(2, variables)
    ray.shutdown()
