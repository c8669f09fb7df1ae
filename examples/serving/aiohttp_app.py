"""Serve a model with aiohttp: one session, requests in batches, a limit of pending requests, a deadline for each.

    pip install "aioais[cpu]" aiohttp
    python examples/serving/aiohttp_app.py --port 8080

    curl --data-binary @digit http://127.0.0.1:8080/infer    # 8 x 8 bytes, pixels of 0 (paper) to 16 (ink)

Without ``--port`` it serves on a free port, sends itself 256 digits at once, and ends. The comments of
``fastapi_app.py`` give the reasons.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import anyio
import numpy as np
import numpy.typing as npt
from aiohttp import web

import aioais
from aioais import BatchingSession, BrokenSessionError, FeedError, InferSession
from aioais.demo_data import DIGITS_MODEL, load_digits

Image = npt.NDArray[np.float32]

BATCHING = web.AppKey("BATCHING", BatchingSession)
PLACES = web.AppKey("PLACES", asyncio.Semaphore)
MAX_PENDING = 256
DEADLINE_S = 5


async def session_of_app(app: web.Application) -> AsyncIterator[None]:
    """Open the session in the worker, after any fork, on the loop that serves."""
    with tempfile.TemporaryDirectory() as temporary:
        model = await asyncio.to_thread(with_gears, os.path.join(temporary, "digits.onnx"))
        async with InferSession(0, model) as session, BatchingSession(session) as batching:
            app[BATCHING] = batching
            yield


def with_gears(target: str) -> str:
    """Convert the model of digits to one that takes up to 16 of them at once."""
    sizes = "1,2,4,8,16"
    return aioais.convert(str(DIGITS_MODEL), target, input_shape="image:-1,1,8,8", dynamic_batch_size=sizes)


async def infer(request: web.Request) -> web.Response:
    places = request.app[PLACES]
    if places.locked():
        raise web.HTTPServiceUnavailable(
            text="too many pending requests; try again later", headers={"Retry-After": "1"}
        )
    async with places:
        try:
            with anyio.fail_after(DEADLINE_S):
                raw = np.frombuffer(await request.read(), np.uint8)
                if len(raw) % 8 or raw.max(initial=0) > 16:
                    raise web.HTTPBadRequest(text=f"got {len(raw)} bytes; expected rows of 8 bytes, each of 0 to 16")
                (logits,) = await request.app[BATCHING].infer([raw.reshape(1, 1, -1, 8).astype(np.float32)])
        except FeedError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        except TimeoutError as error:
            raise web.HTTPGatewayTimeout from error
        except BrokenSessionError as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from error
    return web.json_response({"digit": int(logits.argmax()), "logits": logits[0].tolist()})


async def metrics(request: web.Request) -> web.Response:
    figures = request.app[BATCHING].statistics()
    return web.json_response({**figures._asdict(), "fill": figures.fill})


def make_app() -> web.Application:
    app = web.Application(client_max_size=4096)
    app[PLACES] = asyncio.Semaphore(MAX_PENDING)
    app.cleanup_ctx.append(session_of_app)
    app.router.add_post("/infer", infer)
    app.router.add_get("/metrics", metrics)
    return app


async def ask(url: str) -> None:
    images, labels = load_digits()
    # aiohttp's own limit is 100 connections.
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=MAX_PENDING)) as client:

        async def read(image: Image) -> int:
            async with client.post("/infer", data=image.astype(np.uint8).tobytes(), raise_for_status=True) as response:
                return int((await response.json())["digit"])

        digits = await asyncio.gather(*(read(image) for image in images[:256]))
        right = int((np.array(digits) == labels[:256]).sum())
        print(f"{right} of {len(digits)} digits are right")
        assert right / len(digits) >= 0.97

        async with client.post("/infer", data=bytes(56)) as refused:
            print(f"{refused.status}: {await refused.text()}")
            assert refused.status == 400

        async with client.get("/metrics") as response:
            counters = await response.json()
            print({name: counters[name] for name in ("waiting", "done", "failed", "cancelled", "fill")})


@asynccontextmanager
async def serve(app: web.Application) -> AsyncIterator[str]:
    """Serve on a free port of this machine and yield its URL."""
    # With handler_cancellation a client that disconnects cancels its request; by default aiohttp continues.
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def main() -> None:
    async with serve(make_app()) as url:
        await ask(url)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, help="serve on this port until stopped")
    port = parser.parse_args().port
    if port is None:
        aioais.run(main)
    else:
        web.run_app(make_app(), host="127.0.0.1", port=port, handler_cancellation=True)
