"""The real thing beside ``benchmarks.cluster``: what a request costs each process of Ray, and the rate of replicas.

The service is that of examples/ray, on emulated devices whose executions take a set time; each request is a full batch,
so that an execution belongs to one request.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
import ray
from examples.ray import serve_app
from ray import serve

from aioais import BatchingSession, InferSession, emulator
from aioais.demo_data import load_digits

Ask = Callable[[], Awaitable[object]]

BATCH = np.concatenate(load_digits()[0][:16])
BODY = BATCH.astype(np.uint8).tobytes()


class Timed(serve_app.Digits):
    """The replica of the example on a device whose executions take a set time."""

    async def __init__(self, device_ms: float) -> None:  # type: ignore[misc]
        emulator.configure(execute_ms=device_ms)
        await super().__init__()


class Sample(NamedTuple):
    """A measurement of some seconds."""

    rate: float
    """Requests per second."""
    latency_ms: float
    """Median."""
    cpu_s: dict[str, float]
    """Processor seconds of each part."""
    seconds: float
    cores: float
    """Cores that other programs left."""


def _kind(process: psutil.Process) -> str:
    name = " ".join(process.cmdline()[:1])
    kinds = {"ray::ServeReplica": "replica", "ray::ProxyActor": "proxy", "ray::ServeController": "controller"}
    return next((kind for word, kind in kinds.items() if name.startswith(word)), "rest")


def cpu_s() -> dict[str, float]:
    """Return the processor seconds so far of this process and of Ray's."""
    own = psutil.Process()
    times = own.cpu_times()
    found = {"caller": times.user + times.system, "proxy": 0.0, "replica": 0.0, "controller": 0.0, "rest": 0.0}
    for process in own.children(recursive=True):
        try:
            times = process.cpu_times()
            found[_kind(process)] += times.user + times.system
        except psutil.Error:  # it has ended
            continue
    return found


@contextmanager
def ray_here() -> Iterator[int]:
    """Start Ray and Serve on this machine, with four emulated NPUs; give the port of the proxy."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    ray.init(
        num_cpus=6,
        resources={"NPU": 4},
        object_store_memory=100 << 20,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield port
    finally:
        serve.shutdown()
        ray.shutdown()


def start(replicas: int, device_ms: float) -> Any:
    """Start the service; returns its handle."""
    deployment = serve_app.deployment({"replicas": replicas}).options(func_or_class=Timed)
    return serve.run(deployment.bind(device_ms))


@asynccontextmanager
async def ways(handle: Any, port: int) -> AsyncIterator[dict[str, Ask]]:
    """Give the two ways to ask."""
    limits = httpx.Limits(max_connections=None)
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60, limits=limits) as client:

        async def by_http() -> None:
            (await client.post("/", content=BODY)).raise_for_status()

        async def by_handle() -> None:
            await handle.infer.remote(BATCH)

        yield {"handle": by_handle, "http": by_http}


async def closed_loop(ask: Ask, clients: int, seconds: float) -> Sample:
    """Keep this many requests under way; the first fifth of the time does not count."""
    latency: list[float] = []
    is_over = False

    async def client() -> None:
        while not is_over:
            begin = time.perf_counter()
            await ask()
            latency.append((time.perf_counter() - begin) * 1e3)

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    await asyncio.sleep(seconds / 5)
    latency.clear()
    begin, before, machine = time.perf_counter(), cpu_s(), psutil.cpu_times()
    await asyncio.sleep(seconds)
    took, after, machine_after = time.perf_counter() - begin, cpu_s(), psutil.cpu_times()
    done = latency.copy()
    is_over = True
    await asyncio.gather(*tasks)
    spent = {part: after[part] - before[part] for part in after}
    busy = sum(machine_after[:3]) - sum(machine[:3])  # user, nice, system
    others = max(0.0, busy - sum(spent.values()))
    cores = (os.cpu_count() or 1) - others / took
    return Sample(len(done) / took, statistics.median(done), spent, took, cores)


async def idle(seconds: float) -> dict[str, float]:
    """Return the cores that each part takes while nothing is asked."""
    begin, before = time.perf_counter(), cpu_s()
    await asyncio.sleep(seconds)
    took, after = time.perf_counter() - begin, cpu_s()
    return {part: (after[part] - before[part]) / took for part in after}


async def without_ray(device_ms: float, seconds: float) -> Sample:
    """Ask the same session in this process, one request at a time."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder, emulator.configure(execute_ms=device_ms):
        async with InferSession(0, serve_app.with_gears(folder)) as session, BatchingSession(session) as batching:
            return await closed_loop(lambda: batching.infer([BATCH]), 1, seconds)
