"""The service of examples/ray on emulated NPUs: placement, throughput, limits, and what happens when a part dies."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from examples.ray import serve_app
from ray import serve
from tests.ray import dials
from tests.ray.load import IMAGES, Load, by_handle, by_http, expected_digits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]

CLIENTS = 16
MOST_KILLS = 5
WAITING = 12
"""Requests under way for each replica: so many that a device has work while another program has the cores."""
BODY = IMAGES[0].astype(np.uint8).tobytes()


@pytest.fixture(autouse=True)
def fresh(serving: int) -> Iterator[None]:
    yield
    for name in serve.status().applications:
        serve.delete(name)


def start(name: str = "default", model: str | None = None, replicas: int = 1, devices: int = 1, **dialled: Any) -> Any:
    """Start the example with its devices dialled; returns its handle."""
    plain = serve_app.deployment({"replicas": replicas, "devices": devices})
    variables = {"runtime_env": {"env_vars": dials.environment(**dialled)}}
    made = plain.options(func_or_class=dials.Digits, ray_actor_options=plain.ray_actor_options | variables)
    return serve.run(made.bind(model), name=name, route_prefix=f"/{name}")


@asynccontextmanager
async def http(port: int) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://127.0.0.1:{port}/default"
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60, limits=limits) as client:
        yield client


async def processes(port: int) -> dict[int, list[str]]:
    """Return the devices of each replica, by the id of its process."""
    found: dict[int, list[str]] = {}
    async with http(port) as client:
        for _ in range(8):
            answers = await asyncio.gather(*(client.post("/", content=BODY) for _ in range(16)))
            found |= {answer.json()["pid"]: answer.json()["devices"] for answer in answers}
    return found


def running() -> int:
    """Return how many replicas take requests, as Serve's status tells any monitor."""
    replicas = serve.status().applications["default"].deployments["Digits"].replica_states
    return int(replicas.get("RUNNING", 0))


async def recovery(replicas: int) -> tuple[float, float]:
    """Return the seconds until readiness tells of a death, and until the replicas are complete again."""
    begin = time.perf_counter()
    while await asyncio.to_thread(running) == replicas:
        await asyncio.sleep(0.05)
    told = time.perf_counter() - begin
    while await asyncio.to_thread(running) != replicas:
        await asyncio.sleep(0.05)
    return told, time.perf_counter() - begin


def recovered(load: Load, told: float, complete: float) -> str:
    return f"{len(load.retried)} of {load.asked} retried; told after {told:.1f} s, complete after {complete:.1f} s"


def check_nothing_is_lost(load: Load, expected: list[int]) -> None:
    assert not load.lost
    assert not load.wrong(expected)


async def test_each_replica_has_a_device_of_its_own(serving: int) -> None:
    start(replicas=2, execute_ms=5)
    first, second = (await processes(serving)).values()
    assert len(first) == len(second) == 1
    assert first != second


async def test_two_replicas_do_twice_the_work_of_one() -> None:
    """Each request is a full batch of 16, for which the device takes 20 ms; in turns, as the machine may be busy."""
    full = np.concatenate(IMAGES[:16])
    rates: dict[int, list[float]] = {1: [], 2: []}
    loads: dict[int, Load] = {}
    for replicas in rates:
        handle = start(f"app-{replicas}", replicas=replicas, execute_ms=20)

        async def ask(k: int, handle: Any = handle) -> int:
            return int((await handle.infer.remote(full))[k % 16].argmax())

        loads[replicas] = Load(ask)
        await loads[replicas].run(WAITING * replicas, 20 * replicas)
    for _ in range(7):
        for replicas, load in loads.items():
            rates[replicas].append(await load.run(WAITING * replicas, 60 * replicas))
            assert not load.retried
    ratio = statistics.median(two / one for one, two in zip(rates[1], rates[2], strict=True))
    rounds = {replicas: [f"{rate:.1f}" for rate in some] for replicas, some in rates.items()}
    print(f"requests/s, executions of 20 ms: {rounds}; median of the rounds {ratio:.2f} x")
    assert ratio >= 1.9


@pytest.mark.parametrize("way", ["handle", "http"])
async def test_a_killed_replica_loses_no_request_that_is_retried_once(serving: int, way: str) -> None:
    """It is killed again until a request was under way in it, which it is nearly always, as executions are long."""
    handle = start(replicas=2, execute_ms=200)
    kills = 0
    async with http(serving) as client:
        load = Load(by_http(client) if way == "http" else by_handle(handle))
        going = asyncio.create_task(load.run_until(CLIENTS, stop := asyncio.Event()))
        while not load.retried and kills < MOST_KILLS:
            kills += 1
            await load.until_answered(len(load.answers) + 50)
            victim = next(iter(await processes(serving)))
            os.kill(victim, signal.SIGKILL)
            told, complete = await recovery(2)
            assert victim not in await processes(serving)
            print(f"killed, {way}: {recovered(load, told, complete)}")
        await load.until_answered(len(load.answers) + 50)
        stop.set()
        await going
    check_nothing_is_lost(load, await expected_digits())
    assert load.retried, f"nothing was under way in {kills} replicas that died"


async def test_a_replica_whose_device_dies_is_replaced(serving: int, tmp_path: Path) -> None:
    handle = start(replicas=2, execute_ms=50, dies_after=60, marker=tmp_path / "died")
    load = Load(by_handle(handle))
    going = asyncio.create_task(load.run_until(CLIENTS, stop := asyncio.Event()))
    told, complete = await recovery(2)
    await load.until_answered(len(load.answers) + 100)
    stop.set()
    await going
    check_nothing_is_lost(load, await expected_digits())
    print(f"a device died: {recovered(load, told, complete)}")


async def test_a_replica_with_two_devices_outlives_one(serving: int, tmp_path: Path) -> None:
    handle = start(devices=2, execute_ms=20, dies_after=30, times=1, marker=tmp_path / "died")
    ((process, devices),) = (await processes(serving)).items()
    assert devices == ["0", "1"]
    load = Load(by_handle(handle))
    await load.run(CLIENTS, 400)
    check_nothing_is_lost(load, await expected_digits())
    assert not load.retried, "no client notices"
    assert (await processes(serving)).keys() == {process}


async def test_wrong_requests_fail_alone(serving: int) -> None:
    handle = start(replicas=2)
    async with http(serving) as client:
        for body in (b"", BODY[:-1], b"\x11" * 64):
            refused = await client.post("/", content=body)
            assert refused.status_code == 400
            assert "expected 64" in refused.json()["detail"]
    with pytest.raises(ValueError, match="expected"):  # a FeedError of the session
        await handle.infer.remote(np.zeros((1, 8, 8), np.float32))
    load = Load(by_handle(handle))
    await load.run(CLIENTS, 100)
    check_nothing_is_lost(load, await expected_digits())
    assert not load.retried


async def test_requests_beyond_the_limits_are_refused_at_once(serving: int) -> None:
    """One replica takes 64 requests and 256 wait in the proxy; the device is so slow that few are done by then."""
    start(execute_ms=1000)
    async with http(serving) as client:
        answers = await asyncio.gather(*(client.post("/", content=BODY) for _ in range(500)))
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 503}
    assert codes.count(200) >= 64 + 256


async def test_models_by_name(serving: int, tmp_path: Path) -> None:
    """One replica holds two of three models; each request gets the model that it names."""
    from onnx import TensorProto, helper, save

    for factor in (2, 3, 5):
        value = helper.make_tensor_value_info
        weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [factor])
        node = helper.make_node("Mul", ["x", "w"], ["y"])
        x, y = value("x", TensorProto.FLOAT, [1, 4]), value("y", TensorProto.FLOAT, [1, 4])
        graph = helper.make_graph([node], "times", [x], [y], [weight])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        save(model, str(tmp_path / f"times{factor}.onnx"))
    actor = {"num_cpus": 1, "resources": {"NPU": 1}}
    handle = serve.run(serve.deployment(serve_app.Models).options(ray_actor_options=actor).bind(str(tmp_path)))
    ones = np.ones((1, 4), np.float32)
    for factor in (2, 3, 5, 2, 5, 3):
        (result,) = await handle.options(multiplexed_model_id=f"times{factor}").infer.remote([ones])
        assert result.tolist() == [[factor] * 4]
    with pytest.raises(ValueError, match="expected one of times2, times3, times5"):
        await handle.options(multiplexed_model_id="other").infer.remote([ones])
