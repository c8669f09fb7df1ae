"""Serve a model with FastAPI: one session, requests in batches, a limit of pending requests, a deadline for each.

As a service, with the session opened and closed by the application's lifespan::

    pip install "aioais[cpu]" fastapi uvicorn
    uvicorn --app-dir examples/serving fastapi_app:app

    curl --data-binary @digit http://127.0.0.1:8000/infer    # 8 x 8 bytes, pixels of 0 (paper) to 16 (ink)
    curl --json '{"pixels": [[0, 0, 5, ...], ...]}' http://127.0.0.1:8000/infer

The environment variables ``MODEL`` and ``DEVICE`` select model and device; by default the model of digits is converted
to one with gears. As a script it sends itself 256 digits at
once, without a server, and ends. That needs ``pip install httpx`` too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any

import anyio
import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import ClientDisconnect

import aioais
from aioais import (
    AclError,
    AclMemoryError,
    BatchingSession,
    BrokenSessionError,
    ClosedError,
    DeviceHangError,
    FeedError,
    InferSession,
)
from aioais.blame import blame
from aioais.demo_data import DIGITS_MODEL, load_digits

Image = npt.NDArray[np.float32]

MODEL = os.environ.get("MODEL")
DEVICE = int(os.environ.get("DEVICE", "0"))
MAX_BODY_BYTES = 4096

log = logging.getLogger(__name__)


class Digit(BaseModel):
    """The body of a request in JSON: rows of pixels."""

    pixels: list[list[Annotated[float, Field(ge=0, le=16)]]]


class Answer(BaseModel):
    digit: int
    logits: list[float]


class Service:
    """A session with limits for its clients. All runs on one event loop, so no lock is needed.

    Parameters
    ----------
    batching
        Runs requests of the same moment together.
    max_pending
        Most requests that are not answered yet, those whose body is still being read included; one more is refused at
        once.
    deadline_s
        Most seconds from the head of a request to its answer.
    """

    def __init__(self, batching: BatchingSession, max_pending: int, deadline_s: float) -> None:
        self.batching = batching
        self.pending = 0
        self.failure: str | None = None
        """The failure of the device, after which the process must be replaced."""
        self._max_pending = max_pending
        self._deadline_s = deadline_s

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count a request until it is answered, or refuse it."""
        if self.pending >= self._max_pending:
            raise HTTPException(503, "too many pending requests; try again later", {"Retry-After": "1"})
        self.pending += 1
        try:
            yield
        finally:
            self.pending -= 1

    async def answer(self, request: Request) -> Answer:
        """Read a request and answer it in time."""
        with self.admit(), anyio.fail_after(self._deadline_s):
            image = await read_image(request)
            with anyio.CancelScope() as scope:
                watcher = asyncio.create_task(cancel_when_gone(request, scope))
                try:
                    (logits,) = await self.batching.infer([image])
                except (AclError, BrokenSessionError) as error:
                    self.note(error)
                    raise
                finally:
                    watcher.cancel()
                return Answer(digit=int(logits.argmax()), logits=logits[0].tolist())
        raise ClientDisconnect

    def note(self, error: AclError | BrokenSessionError) -> None:
        """Remember an error after which no request can be sent here; others concern only their request."""
        if not blame(error).is_ready:
            self.failure = str(error)


def with_gears(target: str) -> str:
    """Convert the model of digits to one that takes up to 16 of them at once."""
    sizes = "1,2,4,8,16"
    return aioais.convert(str(DIGITS_MODEL), target, input_shape="image:-1,1,8,8", dynamic_batch_size=sizes)


async def cancel_when_gone(request: Request, scope: anyio.CancelScope) -> None:
    """Cancel the scope when the client disconnects; the body is read already, so no other message can follow."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def read_image(request: Request) -> Image:
    """Return the feed that the client sent; the session checks its shape."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"expected at most {MAX_BODY_BYTES} bytes")
    if request.headers.get("content-type", "").startswith("application/json"):
        try:
            pixels = np.array(Digit.model_validate_json(bytes(body)).pixels, np.float32)
        except ValidationError as error:
            raise HTTPException(
                400, error.errors(include_url=False, include_context=False, include_input=False)
            ) from None
        except ValueError:
            raise HTTPException(400, "expected rows of the same length") from None
        return pixels[None, None]
    raw = np.frombuffer(body, np.uint8)
    if len(raw) % 8 or raw.max(initial=0) > 16:
        raise HTTPException(400, f"got {len(raw)} bytes; expected rows of 8 bytes, each of 0 to 16")
    return raw.reshape(1, 1, -1, 8).astype(np.float32)


async def the_service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(the_service)]
router = APIRouter()


@router.post("/infer")
async def infer(request: Request, service: TheService) -> Answer:
    return await service.answer(request)


@router.get("/healthz")
async def healthz(service: TheService) -> Response:
    """Report whether requests can be sent here, or the process must be replaced."""
    body = {"ready": service.failure is None, "failure": service.failure}
    return JSONResponse(body, 503 if service.failure else 200)


@router.get("/metrics")
async def metrics(service: TheService) -> dict[str, Any]:
    figures = service.batching.statistics()
    return {"pending": service.pending, "fill": figures.fill, **figures._asdict()}


async def refuse(request: Request, error: Exception) -> Response:
    """Turn an error of ``STATUS`` into a response; all others become 500 and are logged."""
    status = next(status for kind, status in STATUS.items() if isinstance(error, kind))
    if status >= 500:
        log.warning("%s: %r", request.url.path, error)
    return JSONResponse({"detail": str(error)}, status)


STATUS: dict[type[Exception], int] = {
    FeedError: 400,
    ClientDisconnect: 499,  # the client is gone
    AclMemoryError: 503,
    BrokenSessionError: 503,
    ClosedError: 503,
    DeviceHangError: 503,
    TimeoutError: 504,
}


def make_app(
    *,
    max_pending: int = 256,
    deadline_s: float = 5,
    hang_timeout: float | None = 30,
) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Not at import: this runs in the worker, after any fork, on the loop that serves.
        with tempfile.TemporaryDirectory() as temporary:
            model = MODEL
            if model is None:
                model = await asyncio.to_thread(with_gears, os.path.join(temporary, "digits.onnx"))
            async with (
                InferSession(DEVICE, model, hang_timeout=hang_timeout) as session,
                BatchingSession(session) as batching,
            ):
                app.state.service = Service(batching, max_pending, deadline_s)
                yield

    app = FastAPI(title="digits", lifespan=lifespan)
    app.include_router(router)
    for kind in STATUS:
        app.add_exception_handler(kind, refuse)
    return app


app = make_app()


async def main() -> None:
    import httpx

    images, labels = load_digits()
    transport = httpx.ASGITransport(app)
    # A server would run the lifespan.
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://app") as client,
    ):
        assert (await client.get("/healthz")).json()["ready"]

        async def read(image: Image) -> int:
            response = await client.post("/infer", content=image.astype(np.uint8).tobytes())
            return int(response.raise_for_status().json()["digit"])

        digits = await asyncio.gather(*(read(image) for image in images[:256]))
        right = int((np.array(digits) == labels[:256]).sum())
        print(f"{right} of {len(digits)} digits are right")
        assert right / len(digits) >= 0.97

        response = await client.post("/infer", json={"pixels": images[0].reshape(8, 8).tolist()})
        assert response.json()["digit"] == digits[0]

        refused = await client.post("/infer", content=bytes(56))
        print(f"{refused.status_code}: {refused.json()['detail']}")
        assert refused.status_code == 400

        counters = (await client.get("/metrics")).json()
        print({name: counters[name] for name in ("pending", "waiting", "done", "failed", "cancelled", "fill")})


if __name__ == "__main__":
    aioais.run(main)
