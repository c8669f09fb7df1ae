"""The services of examples/serving where it gets rough: too many, too late, gone, failing, cancelled."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from aioais import AclError, MultiDeviceSession
from aioais.blame import MOST_IN_A_ROW
from aioais.demo_data import DIGITS_MODEL, load_digits
from aioais.emulator import Gate
from aioais.testing import EmulatedDevices, Fault

aiohttp = pytest.importorskip("aiohttp")
httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")

from examples.serving import aiohttp_app, consumer, fastapi_app  # noqa: E402 - what they need is there

pytestmark = pytest.mark.usefixtures("aioais_no_leaks")

IMAGES, LABELS = load_digits()
BODY = IMAGES[0].astype(np.uint8).tobytes()
DIGIT = int(LABELS[0])


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(0.001)


async def reached(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.wait_reached)


# --- FastAPI ------------------------------------------------------------------------------------


@asynccontextmanager
async def fastapi_client(**options: Any) -> AsyncIterator[tuple[Any, fastapi_app.Service]]:
    app = fastapi_app.make_app(**options)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://app") as client,
    ):
        yield client, app.state.service


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (BODY, "application/octet-stream", 200),
        (b"", "", 400),
        (BODY[:-1], "", 400),
        (BODY[:-8], "", 400),
        (b"\x11" * 64, "", 400),
        (BODY * 64, "", 400),
        (BODY * 65, "", 413),
        (b'{"pixels": [[0, 1], [2]]}', "application/json", 400),
        (b'{"pixels": [[NaN]]}', "application/json", 400),
        (b'{"pixels": [[17]]}', "application/json", 400),
        (b'{"pixels": []}', "application/json", 400),
        (b"\xff", "application/json; charset=utf-8", 400),
    ],
)
async def test_fastapi_checks_what_comes(body: bytes, kind: str, status: int) -> None:
    async with fastapi_client() as (client, service):
        response = await client.post("/infer", content=body, headers={"content-type": kind})
        assert response.status_code == status
        if status != 200:
            assert response.json()["detail"]
        assert service.pending == 0


async def test_fastapi_refuses_when_too_many_wait(aioais_devices: EmulatedDevices) -> None:
    async with fastapi_client(max_pending=2) as (client, service):
        with aioais_devices.gate("execute"):
            waiting = [asyncio.create_task(client.post("/infer", content=BODY)) for _ in range(2)]
            await until(lambda: service.pending == 2)
            refused = await client.post("/infer", content=BODY)
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert (await client.get("/healthz")).status_code == 200
        assert [(await task).json()["digit"] for task in waiting] == [DIGIT] * 2
        assert (await client.post("/infer", content=BODY)).status_code == 200


async def test_fastapi_keeps_the_deadline(aioais_devices: EmulatedDevices) -> None:
    async with fastapi_client(deadline_s=0.05) as (client, service):
        with aioais_devices.gate("execute"):
            assert (await client.post("/infer", content=BODY)).status_code == 504
            assert service.pending == 0
        await until(lambda: service.batching.statistics().cancelled == 1)


async def test_fastapi_cancels_what_its_client_has_left(aioais_devices: EmulatedDevices) -> None:
    hung_up = asyncio.Event()
    body: list[dict[str, Any]] = [{"type": "http.request", "body": BODY, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if body:
            return body.pop()
        await hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/infer", "headers": [], "query_string": b"", "root_path": ""}
    async with fastapi_client() as (client, service):
        with aioais_devices.gate("execute") as gate:
            call = asyncio.create_task(client._transport.app(scope, receive, send))
            await reached(gate)
            hung_up.set()
            await call
            assert sent[0]["status"] == 499
            assert service.pending == 0
        assert (await client.post("/infer", content=BODY)).json()["digit"] == DIGIT


async def test_fastapi_tells_that_its_device_failed(aioais_devices: EmulatedDevices) -> None:
    async with fastapi_client(hang_timeout=0.2) as (client, _):
        assert (await client.get("/healthz")).json() == {"ready": True, "failure": None}
        with aioais_devices.gate("execute"):
            assert (await client.post("/infer", content=BODY)).status_code == 503  # it hangs
            assert (await client.post("/infer", content=BODY)).status_code == 503  # the session is broken
            health = await client.get("/healthz")
            assert health.status_code == 503
            assert "507046" in health.json()["failure"]
            assert (await client.get("/metrics")).json()["failed"] == 2


async def test_fastapi_survives_a_request_that_fails(aioais_devices: EmulatedDevices) -> None:
    async with fastapi_client() as (client, _):
        aioais_devices.script(Fault("acl.rt.malloc", 207001, times=2))
        assert (await client.post("/infer", content=BODY)).status_code == 503
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.post("/infer", content=BODY)).status_code == 200


@pytest.mark.parametrize(
    ("code", "times", "is_ready"),
    [(500002, 1, True), (507011, 1, True), (507018, 3, True), (507899, 1, False), (507010, 1, False)],
)
async def test_fastapi_is_ready_after_bad_data(
    aioais_devices: EmulatedDevices, code: int, times: int, is_ready: bool
) -> None:
    async with fastapi_client() as (client, _):
        aioais_devices.script(Fault("acl.mdl.execute_async", code, times=times, device_side=True))
        for _ in range(times):
            with pytest.raises(AclError):
                await client.post("/infer", content=BODY)
        assert (await client.get("/healthz")).status_code == (200 if is_ready else 503)


async def test_fastapi_is_not_ready_after_many_failures_in_a_row(aioais_devices: EmulatedDevices) -> None:
    async with fastapi_client() as (client, _):
        aioais_devices.script(Fault("acl.mdl.execute_async", 507015, times=MOST_IN_A_ROW, device_side=True))
        for _ in range(MOST_IN_A_ROW):
            assert (await client.get("/healthz")).status_code == 200
            with pytest.raises(AclError):
                await client.post("/infer", content=BODY)
        assert (await client.post("/infer", content=BODY)).status_code == 503  # the session is broken
        assert (await client.get("/healthz")).status_code == 503


async def test_the_smallest_service_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
    names: dict[str, Any] = {}
    exec(compile(page.partition("```python\n")[2].partition("```")[0], "serving.md", "exec"), names)
    app = names["app"]
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://app") as client,
    ):
        assert (await client.post("/infer", json=IMAGES[0].reshape(8, 8).tolist())).json() == {"digit": DIGIT}
        for wrong in ([[0.0] * 8] * 7, [[1.0], [1.0, 2.0]], []):
            refused = await client.post("/infer", json=wrong)
            assert refused.status_code == 400
            assert refused.json()["detail"]


# --- aiohttp ------------------------------------------------------------------------------------


@pytest.fixture
def one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiohttp_app, "MAX_PENDING", 1)


@pytest.mark.usefixtures("one_place")
async def test_aiohttp_cancels_what_its_client_has_left(aioais_devices: EmulatedDevices) -> None:
    app = aiohttp_app.make_app()
    async with aiohttp_app.serve(app) as url, aiohttp.ClientSession(url) as client:
        with aioais_devices.gate("execute") as gate:
            gone = asyncio.create_task(client.post("/infer", data=BODY))
            await reached(gate)
            async with client.post("/infer", data=BODY) as refused:
                assert refused.status == 503
            gone.cancel()
            await until(lambda: not app[aiohttp_app.PLACES].locked())
        async with client.post("/infer", data=BODY) as response:
            assert (await response.json())["digit"] == DIGIT


async def test_aiohttp_keeps_the_deadline(aioais_devices: EmulatedDevices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiohttp_app, "DEADLINE_S", 0.05)
    async with aiohttp_app.serve(aiohttp_app.make_app()) as url, aiohttp.ClientSession(url) as client:
        with aioais_devices.gate("execute"):
            async with client.post("/infer", data=BODY) as response:
                assert response.status == 504


# --- batches ------------------------------------------------------------------------------------


async def test_fastapi_runs_requests_in_batches_on_a_real_server() -> None:
    uvicorn = pytest.importorskip("uvicorn")
    app = fastapi_app.make_app()
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="on"))
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started or serving.done())
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        limits = httpx.Limits(max_connections=32)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, trust_env=False) as client:

            async def read(k: int) -> int:
                response = await client.post("/infer", content=IMAGES[k].astype(np.uint8).tobytes())
                return int(response.raise_for_status().json()["digit"])

            digits = await asyncio.gather(*[read(k) for k in range(64)])
            assert np.mean(np.array(digits) == LABELS[:64]) >= 0.97
            figures = (await client.get("/metrics")).json()
            assert figures["done"] == 64
            assert sum(batches for batches, _, _ in figures["batches"].values()) < 64
            refused = await client.post("/infer", content=b"1" * 8)
            assert refused.status_code == 400
    finally:
        server.should_exit = True
        await serving


async def test_aiohttp_runs_requests_in_batches() -> None:
    async with aiohttp_app.serve(aiohttp_app.make_app()) as url, aiohttp.ClientSession(url) as client:

        async def read(k: int) -> int:
            async with client.post("/infer", data=IMAGES[k].astype(np.uint8).tobytes()) as response:
                return int((await response.json())["digit"])

        digits = await asyncio.gather(*[read(k) for k in range(32)])
        assert np.mean(np.array(digits) == LABELS[:32]) >= 0.9
        async with client.get("/metrics") as response:
            figures = await response.json()
        assert sum(batches for batches, _, _ in figures["batches"].values()) < 32


# --- the consumer -------------------------------------------------------------------------------


class BoundedBroker(consumer.Broker):
    """Checks at each answer that not too much was taken, and stops the polling at the 200th."""

    def __init__(self, polling: anyio.CancelScope) -> None:
        super().__init__()
        self.most = 0
        self._polling = polling

    async def answer(self, message: consumer.Message, digit: int) -> None:
        self.most = max(self.most, self.taken - len(self.answers) - len(self.rejected))
        await asyncio.sleep(0)
        self.answers[message.id] = digit
        if len(self.answers) == 200:
            self._polling.cancel()


DEPTH = 4


async def run(broker: consumer.Broker, polling: anyio.CancelScope) -> None:
    sender, receiver = anyio.create_memory_object_stream[consumer.Message](consumer.BUFFER)
    async with receiver, MultiDeviceSession(DIGITS_MODEL, depth=DEPTH) as session, anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.poll, broker, sender, polling)
        await consumer.consume(broker, session, receiver)


@pytest.fixture
def two_devices(aioais_devices: EmulatedDevices) -> None:
    aioais_devices.configure(devices=2)


@pytest.mark.usefixtures("two_devices")
async def test_the_consumer_takes_no_more_than_it_can_hold() -> None:
    polling = anyio.CancelScope()
    broker = BoundedBroker(polling)
    await run(broker, polling)
    assert len(broker.answers) >= 200
    assert list(broker.answers) == sorted(broker.answers)
    # One in hand, those in the inbox, one between inbox and stream, and four times what the stream may hold: the depth
    # of both devices and as many items read ahead.
    assert broker.most <= 1 + consumer.BUFFER + 1 + 4 * 2 * (DEPTH + consumer.AHEAD)


@pytest.mark.usefixtures("two_devices")
async def test_a_broker_that_fails_ends_the_consumer() -> None:
    class Broken(consumer.Broker):
        async def answer(self, message: consumer.Message, digit: int) -> None:
            raise OSError("no broker")

    with pytest.raises(BaseException, match="unhandled errors") as caught:
        await run(Broken(), anyio.CancelScope())
    group: Any = caught.value
    assert [str(error) for error in group.exceptions] == ["no broker"]


@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize(("code", "is_data"), [(507018, True), (145000, False)])
async def test_a_message_that_no_device_can_take(aioais_devices: EmulatedDevices, code: int, is_data: bool) -> None:
    class OneMessage(consumer.Broker):
        async def take(self) -> consumer.Message:
            if self.taken:
                await anyio.sleep_forever()
            return await super().take()

    broker = OneMessage()
    aioais_devices.script(Fault("acl.mdl.execute_async", code, times=1 + is_data, device_side=True))
    with pytest.raises(BaseException, match="unhandled errors"):
        await run(broker, anyio.CancelScope())
    assert list(broker.rejected) == [0] * is_data


# --- several processes --------------------------------------------------------------------------

WORKERS = """
import os

from examples.serving.fastapi_app import make_app

app = make_app()


@app.middleware("http")
async def tell_the_process(request, call_next):
    response = await call_next(request)
    response.headers["x-process"] = str(os.getpid())
    return response
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_uvicorn_workers(tmp_path: Path) -> None:
    """``uvicorn --workers 2``: each worker is spawned, opens a session of its own and closes it at SIGTERM."""
    pytest.importorskip("uvicorn")
    (tmp_path / "service.py").write_text(WORKERS)
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-W", "always::ResourceWarning", "-m", "uvicorn", "--workers", "2", "--port", "0"]
    with subprocess.Popen(
        [*command, "service:app"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stderr is not None
        said: list[str] = []
        try:
            for line in server.stderr:
                said.append(line)
                if sum("Application startup complete" in before for before in said) == 2:
                    break
            (address,) = re.findall(r"running on (http://[\d.:]+)", "".join(said))
            started = re.findall(r"Started server process \[(\d+)\]", "".join(said))
            answered = set()
            for _ in range(100):
                with ThreadPoolExecutor(8) as pool:
                    answers = list(pool.map(lambda _: httpx.post(f"{address}/infer", content=BODY), range(16)))
                assert [answer.json()["digit"] for answer in answers] == [DIGIT] * 16
                answered |= {answer.headers["x-process"] for answer in answers}
                if len(answered) == 2:
                    break
            assert answered == set(started)
            assert str(server.pid) not in started
        finally:
            server.terminate()
            said += server.stderr.readlines()
        assert server.wait() in (0, -signal.SIGTERM), "".join(said)
    text = "".join(said)
    assert text.count("Application shutdown complete") == 2, text
    assert "Traceback" not in text
    assert "never closed" not in text  # but for the socket of uvicorn itself
