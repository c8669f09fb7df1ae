"""The services of examples/serving where it gets rough: too many, too late, gone, failing, cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import aioais
from aioais import AclError, ClosedError, FeedError, InferSession, MultiDeviceSession
from aioais.demo_data import DIGITS_MODEL, load_digits
from aioais.emulator import Gate
from aioais.testing import EmulatedDevices, Fault

aiohttp = pytest.importorskip("aiohttp")
httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")

from examples.serving import aiohttp_app, batching, consumer, fastapi_app  # noqa: E402 - what they need is there

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
        await until(lambda: service.session.statistics().cancelled == 1)


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
            assert (await client.get("/metrics")).json()["failed"] == 1


async def test_fastapi_survives_a_request_that_fails(aioais_devices: EmulatedDevices) -> None:
    async with fastapi_client() as (client, _):
        aioais_devices.script(Fault("acl.rt.malloc", 207001, times=2))
        assert (await client.post("/infer", content=BODY)).status_code == 503
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.post("/infer", content=BODY)).status_code == 200


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


@pytest.fixture
def gears_model(tmp_path: Path) -> str:
    target = str(tmp_path / "gears.onnx")
    return str(aioais.convert(str(DIGITS_MODEL), target, input_shape="image:-1,1,8,8", dynamic_batch_size="1,2,4"))


def call(batcher: batching.Batcher, k: int) -> asyncio.Task[list[batching.Array]]:
    return asyncio.create_task(batcher.infer([IMAGES[k, 0]]))


async def digit(task: Awaitable[list[batching.Array]]) -> int:
    (logits,) = await task
    assert logits.shape == (10,)
    return int(logits.argmax())


async def test_a_lonely_item_runs_when_its_time_has_come(gears_model: str) -> None:
    async with (
        InferSession(0, gears_model) as session,
        aclosing(batching.Batcher(session, (1, 2, 4), 0.001)) as batcher,
    ):
        assert [await digit(call(batcher, k)) for k in range(3)] == LABELS[:3].tolist()
        assert batcher.batches == 3


async def test_a_caller_who_leaves_a_running_batch(gears_model: str, aioais_devices: EmulatedDevices) -> None:
    async with InferSession(0, gears_model) as session, aclosing(batching.Batcher(session, (1, 2), 3600)) as batcher:
        with aioais_devices.gate("execute") as gate:
            tasks = [call(batcher, k) for k in range(2)]
            await reached(gate)
            tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
        assert await digit(tasks[1]) == LABELS[1]


async def test_a_batch_that_everybody_left_never_runs(gears_model: str) -> None:
    async with InferSession(0, gears_model) as session:
        async with aclosing(batching.Batcher(session, (1, 2, 4), 3600)) as batcher:
            tasks = [call(batcher, k) for k in range(3)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        assert batcher.batches == 0
        assert session.statistics().done == 0
        with pytest.raises(ClosedError):
            await batcher.infer([IMAGES[0, 0]])


async def test_a_batch_that_fails_fails_its_own_callers(gears_model: str, aioais_devices: EmulatedDevices) -> None:
    async with InferSession(0, gears_model) as session, aclosing(batching.Batcher(session, (1, 2), 3600)) as batcher:
        aioais_devices.script(Fault("acl.mdl.execute_async", 507011, device_side=True))
        failed = await asyncio.gather(call(batcher, 0), call(batcher, 1), return_exceptions=True)
        assert all(isinstance(error, AclError) and error.code == 507011 for error in failed)
        del failed
        assert [await digit(task) for task in (call(batcher, 2), call(batcher, 3))] == LABELS[2:4].tolist()


async def test_a_wrong_item_fails_alone(gears_model: str) -> None:
    async with InferSession(0, gears_model) as session, aclosing(batching.Batcher(session, (1, 2), 3600)) as batcher:
        tasks = [call(batcher, 0)]
        for wrong in ([], [IMAGES[0]], [IMAGES[0, 0].astype(np.float64)]):
            with pytest.raises(FeedError):
                await batcher.infer(wrong)
        tasks.append(call(batcher, 1))
        assert [await digit(task) for task in tasks] == LABELS[:2].tolist()


async def test_closing_that_is_cancelled_leaves_the_batches_alone(
    gears_model: str, aioais_devices: EmulatedDevices
) -> None:
    async with InferSession(0, gears_model) as session:
        batcher = batching.Batcher(session, (1, 2, 4), 3600)
        with aioais_devices.gate("execute") as gate:
            tasks = [call(batcher, k) for k in range(3)]
            await asyncio.sleep(0)
            closing = asyncio.create_task(batcher.aclose())
            await reached(gate)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
        assert [await digit(task) for task in tasks] == LABELS[:3].tolist()
        await batcher.aclose()


async def test_a_batch_whose_task_is_cancelled_holds_nobody_up(
    gears_model: str, aioais_devices: EmulatedDevices
) -> None:
    async with InferSession(0, gears_model) as session, aclosing(batching.Batcher(session, (1, 2), 3600)) as batcher:
        with aioais_devices.gate("execute") as gate:
            tasks = [call(batcher, k) for k in range(2)]
            await reached(gate)
            for running in batcher._running:
                running.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)


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
    assert broker.most <= 1 + consumer.BUFFER + 1 + 4 * 2 * (DEPTH + DEPTH)


@pytest.mark.usefixtures("two_devices")
async def test_a_broker_that_fails_ends_the_consumer() -> None:
    class Broken(consumer.Broker):
        async def answer(self, message: consumer.Message, digit: int) -> None:
            raise OSError("no broker")

    with pytest.raises(BaseException, match="unhandled errors") as caught:
        await run(Broken(), anyio.CancelScope())
    group: Any = caught.value
    assert [str(error) for error in group.exceptions] == ["no broker"]
