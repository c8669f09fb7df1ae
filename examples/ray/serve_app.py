"""Serve a model with Ray Serve: one replica for each NPU, requests in batches, a broken device replaced.

As a service, on a machine or a cluster whose NPUs Ray knows (``ray start --resources='{"NPU": 2}'`` without any)::

    pip install "aioais[cpu]" "ray[serve]"
    serve run --app-dir examples/ray serve_app:build replicas=2
    curl --data-binary @digit http://127.0.0.1:8000/    # 8 x 8 bytes for each image, 0 (paper) to 16 (ink)

As a script it starts Ray with two emulated NPUs, asks through a handle and over HTTP, and ends. docs/many_machines.md
says which pattern to choose, and what Ray costs per request.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import ray
from ray import serve
from starlette.responses import JSONResponse

import aioais
from aioais import AclError, BatchingSession, BrokenSessionError, InferSession, MultiDeviceSession
from aioais.blame import blame
from aioais.demo_data import DIGITS_MODEL, load_digits

if TYPE_CHECKING:
    from starlette.requests import Request

Image = npt.NDArray[np.float32]

GEARS = (1, 2, 4, 8, 16)
HANG_TIMEOUT_S = 30.0
PORT = int(os.environ.get("PORT", "8000"))

log = logging.getLogger("ray.serve")


def with_gears(folder: str) -> str:
    """Convert the model of digits to one that takes up to 16 of them at once."""
    target = os.path.join(folder, "digits.onnx")
    sizes = ",".join(map(str, GEARS))
    return aioais.convert(str(DIGITS_MODEL), target, input_shape="image:-1,1,8,8", dynamic_batch_size=sizes)


def leave(error: BaseException) -> None:
    """End this process: Ray routes nothing more to it, gives its devices back, and starts another replica.

    Not by a failed health check: Ray counts three of them first, and a replica that fails at once looks idle to the
    router, which would send it most of the requests. Nothing is closed: the device may hang.
    """
    log.critical("this replica ends because its device failed: %r", error)
    for handler in logging.getLogger("ray.serve").handlers:
        handler.flush()
    os._exit(1)


class Digits:
    """A replica: one session on the devices that Ray gave to this process.

    Parameters
    ----------
    model
        A file that is there on each node; by default the model of digits, converted.
    hang_timeout
        Most seconds that the device may take; long against the longest queue on it.
    """

    # Ray awaits it in the replica's own loop, where the session then lives.
    async def __init__(self, model: str | None = None, hang_timeout: float = HANG_TIMEOUT_S) -> None:  # type: ignore[misc]
        self.devices: list[str] = ray.get_runtime_context().get_accelerator_ids()["NPU"]
        self._stack = AsyncExitStack()
        if model is None:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory())
            model = await asyncio.to_thread(with_gears, folder)
        # Ray has set ASCEND_RT_VISIBLE_DEVICES: the devices of this process count from 0.
        session: InferSession | MultiDeviceSession
        if len(self.devices) == 1:
            session = InferSession(0, model, hang_timeout=hang_timeout)
        else:
            session = MultiDeviceSession(model, hang_timeout=hang_timeout)
        await self._stack.enter_async_context(session)
        self.batching = await self._stack.enter_async_context(BatchingSession(session))
        # Warm up before Ray sends requests: each gear allocates its buffers and shows its time.
        for size in GEARS:
            await self.batching.infer([np.zeros((size, 1, 8, 8), np.float32)])

    async def infer(self, images: Image) -> Image:
        """Return the ten scores of each image of 1 x 8 x 8 pixels; for handles."""
        try:
            (scores,) = await self.batching.infer([images])
        except (AclError, BrokenSessionError) as error:
            if not blame(error).is_ready:
                leave(error)
            raise
        return scores

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer over HTTP."""
        body = await request.body()
        if not body or len(body) % 64 or max(body) > 16:
            return JSONResponse({"detail": f"got {len(body)} bytes; expected 64 for each image, all of 0 to 16"}, 400)
        scores = await self.infer(np.frombuffer(body, np.uint8).reshape(-1, 1, 8, 8).astype(np.float32))
        return JSONResponse({"digits": scores.argmax(1).tolist(), "pid": os.getpid(), "devices": self.devices})

    async def __del__(self) -> None:
        """Close in order; Ray awaits it when it stops the replica, after its last request."""
        await self._stack.aclose()


class Models:
    """A replica that keeps the models that were asked for last, all on its device.

    Parameters
    ----------
    folder
        Where the models are, on each node: a model id is a file name without ``.onnx`` or ``.om``.
    """

    def __init__(self, folder: str) -> None:
        self._files = {path.stem: str(path) for path in Path(folder).iterdir() if path.suffix in (".om", ".onnx")}

    @serve.multiplexed(max_num_models_per_replica=2)  # type: ignore[untyped-decorator,unused-ignore] # without Ray
    async def model(self, model_id: str) -> Model:
        if model_id not in self._files:
            raise ValueError(f"got model {model_id!r}; expected one of {', '.join(sorted(self._files))}")
        return await Model.open(self._files[model_id])

    async def infer(self, feeds: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Run the model that the caller names: ``handle.options(multiplexed_model_id=…).infer.remote(feeds)``."""
        model: Model = await self.model(serve.get_multiplexed_model_id())
        try:
            return await model.session.infer(feeds, "auto")
        except (AclError, BrokenSessionError) as error:
            if not blame(error).is_ready:
                leave(error)
            raise


class Model:
    """A session that Ray can drop: Ray awaits ``__del__`` of the model that was used least recently."""

    def __init__(self, session: InferSession) -> None:
        self.session = session

    @classmethod
    async def open(cls, path: str) -> Model:
        return cls(await InferSession(0, path, hang_timeout=HANG_TIMEOUT_S))

    async def __del__(self) -> None:
        await self.session.aclose()  # waits for its requests


def deployment(args: dict[str, Any]) -> Any:
    """Return the deployment of ``Digits``.

    Parameters
    ----------
    args
        ``replicas``: how many; ``devices``: NPUs of each replica, which runs more than one as a ``MultiDeviceSession``.
    """
    devices = int(args.get("devices", 1))
    return serve.deployment(Digits).options(
        name="Digits",
        num_replicas=int(args.get("replicas", 1)),
        ray_actor_options={"num_cpus": 1, "resources": {"NPU": devices}},
        # Two full batches on the device and two that wait, for each device. More would only wait in the replica.
        max_ongoing_requests=4 * GEARS[-1] * devices,
        # Those that wait in each proxy and handle; more are refused at once: 503, or BackPressureError.
        max_queued_requests=256,
        health_check_period_s=2,
        graceful_shutdown_wait_loop_s=0.1,
    )


def build(args: dict[str, Any]) -> Any:
    """Return the application; ``serve run serve_app:build replicas=2 model=/models/digits.om``."""
    return deployment(args).bind(args.get("model"))


async def ask(handle: Any) -> None:
    images, labels = load_digits()
    scores = await asyncio.gather(*(handle.infer.remote(image) for image in images[:200]))
    right = sum(int(row.argmax() == label) for row, label in zip(scores, labels[:200], strict=True))
    print(f"{right} of 200 digits are right")
    assert right >= 194


async def ask_http() -> None:
    import httpx

    images, labels = load_digits()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{PORT}", trust_env=False) as client:
        bodies = [image.astype(np.uint8).tobytes() for image in images[:100]]
        answers = await asyncio.gather(*(client.post("/", content=body) for body in bodies))
        found = [answer.raise_for_status().json() for answer in answers]
        right = sum(answer["digits"] == [label] for answer, label in zip(found, labels[:100], strict=True))
        print(f"{right} of 100 digits over HTTP are right, from devices {sorted({tuple(f['devices']) for f in found})}")
        assert right >= 97
        assert (await client.post("/", content=b"?")).status_code == 400


def start_ray() -> None:
    """Start Ray on this machine alone, with two emulated NPUs; the number of CPUs only says what may be placed."""
    ray.init(
        num_cpus=4,
        resources={"NPU": 2},
        object_store_memory=100 << 20,
        include_dashboard=False,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})


if __name__ == "__main__":
    start_ray()
    try:
        application = serve.run(build({"replicas": 2}))
        asyncio.run(ask(application))
        asyncio.run(ask_http())
    finally:
        serve.shutdown()
        ray.shutdown()
