"""Read a data set with Ray Data: an actor for each NPU, a run that goes on where it was stopped, bad items set aside.

The source is a Parquet file (or a folder of them) with the columns ``id`` and ``body``, or a folder of other files,
whose paths are the ids. A body is 8 x 8 bytes, pixels of 0 (paper) to 16 (ink)::

    pip install "aioais[cpu]" "ray[data]"
    python examples/ray/data_app.py SOURCE TARGET [--actors 2] [--model digits.om]

``TARGET/out`` gets Parquet files with the columns ``id``, ``digit`` and ``reason``: where the digit is missing, the
reason says why. Run it again after an interruption, and it reads only what is not there yet. Without arguments it makes
its own data, starts Ray with two emulated NPUs, and compares with ``MultiDeviceSession.stream`` in one process.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from aioais import AioaisError, InferSession, MultiDeviceSession
from aioais.blame import blame
from aioais.demo_data import DIGITS_MODEL, load_digits

Image = npt.NDArray[np.float32]
Table = dict[str, Any]

BATCH = 128
BLOCK = 512
HANG_TIMEOUT_S = 30.0

log = logging.getLogger(__name__)


def read_image(body: bytes) -> Image:
    pixels = np.frombuffer(body, np.uint8)
    if pixels.size != 64 or pixels.max() > 16:
        raise ValueError(f"got {pixels.size} bytes; expected 64, each of 0 to 16")
    return pixels.reshape(1, 1, 8, 8).astype(np.float32)


class Reader:
    """An actor: one session on the NPU that Ray gave to it; Ray keeps four batches at once in its loop.

    Parameters
    ----------
    model
        A file that is there on each node.
    """

    def __init__(self, model: str) -> None:
        # Ray makes the loop after this, so the first batch opens the session; in this process the device is 0.
        self._session = InferSession(0, model, hang_timeout=HANG_TIMEOUT_S)
        self._opening = asyncio.Lock()
        self._is_open = False

    async def __call__(self, batch: Table) -> AsyncIterator[Table]:
        async with self._opening:
            if not self._is_open:
                await self._session
                self._is_open = True
        bodies = batch["body"]
        digits: list[int | None] = [None] * len(bodies)
        reasons: list[str | None] = [None] * len(bodies)
        images: list[tuple[int, Image]] = []
        for k, body in enumerate(bodies):
            try:
                images.append((k, read_image(body)))
            except ValueError as error:
                reasons[k] = str(error)
        begin = 0
        while begin < len(images):
            # Results have the order of the feeds, and an item that fails ends the pipeline at its place.
            try:
                async with aclosing(self._session.infer_pipeline([image] for _, image in images[begin:])) as results:
                    async for (scores,) in results:
                        digits[images[begin][0]] = int(scores.argmax())
                        begin += 1
            except AioaisError as error:
                if not blame(error).is_ready:
                    # The actor ends; Ray starts another one, which runs its batches again.
                    log.critical("this actor ends because its device failed: %r", error)
                    os._exit(1)
                reasons[images[begin][0]] = str(error)
                begin += 1
        yield {
            "id": batch["id"],
            "digit": pa.array(digits, pa.int8()),
            "reason": pa.array(reasons, pa.string()),
        }


def read_source(source: str) -> Any:
    """Return a data set with the columns ``id`` and ``body``."""
    if source.endswith(".parquet") or any(Path(source).glob("*.parquet")):
        return ray.data.read_parquet(source).select_columns(["id", "body"])
    return ray.data.read_binary_files(source, include_paths=True).rename_columns({"path": "id", "bytes": "body"})


def run(source: str, target: str, model: str, actors: int) -> None:
    """Read all of the source that the target does not have yet."""
    # What a file of the output holds is noted beside it, so that each item is written once.
    ray.data.DataContext.get_current().checkpoint_config = ray.data.checkpoint.CheckpointConfig(
        "id", f"{target}/done", delete_checkpoint_on_success=False
    )
    # Blocks are what actors take, and what is done again after a failure or an interruption.
    blocks = read_source(source).repartition(target_num_rows_per_block=BLOCK)
    found = blocks.map_batches(
        Reader,
        fn_constructor_args=(model,),
        batch_size=BATCH,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        resources={"NPU": 1},
    )
    found.write_parquet(f"{target}/out")


def read_target(target: str) -> dict[str, tuple[int | None, str | None]]:
    """Return digit and reason by id."""
    rows = pq.read_table(f"{target}/out").to_pylist()
    table = {row["id"]: (row["digit"], row["reason"]) for row in rows}
    assert len(table) == len(rows), "an item is there twice"
    return table


def write_source(path: str, times: int) -> dict[str, int]:
    """Write the demo's digits several times to a Parquet file, with some bad items; returns the labels by id."""
    images, labels = load_digits()
    bodies = [image.astype(np.uint8).tobytes() for image in images]
    ids = [f"{turn}-{k:04d}" for turn in range(times) for k in range(len(images))]
    column = [bodies[k][:-1] if k % 100 == 7 else bodies[k] for _ in range(times) for k in range(len(images))]
    pq.write_table(pa.table({"id": ids, "body": column}), path, row_group_size=512)
    return {name: int(label) for name, label in zip(ids, [*labels] * times, strict=True)}


async def stream(source: str, model: str, devices: int) -> int:
    """Read the good items of the same file in one process; returns how many."""
    count = 0

    def feeds() -> Iterator[list[Image]]:
        for batch in pq.ParquetFile(source).iter_batches(BATCH, columns=["body"]):
            for body in batch.column("body").to_pylist():
                if len(body) == 64:
                    yield [read_image(body)]

    async with MultiDeviceSession(model) as session:
        async for _ in session.stream(feeds(), list(range(devices))):
            count += 1
    return count


def demo(model: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = f"{folder}/digits.parquet"
        labels = write_source(source, 4)
        begin = time.perf_counter()
        run(source, folder, model, actors=2)
        took = time.perf_counter() - begin
        table = read_target(folder)
        assert table.keys() == labels.keys()
        bad = {name: reason for name, (digit, reason) in table.items() if digit is None}
        right = sum(digit == labels[name] for name, (digit, _) in table.items())
        print(f"{right} of {len(table)} digits are right, {len(bad)} bad items: {next(iter(bad.values()))}")
        assert right / (len(table) - len(bad)) >= 0.97
        begin = time.perf_counter()
        count = asyncio.run(stream(source, model, 2))
        alone = time.perf_counter() - begin
        print(f"Ray Data {len(table) / took:.0f} items/s with its start, one process {count / alone:.0f} items/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?")
    parser.add_argument("target", nargs="?")
    parser.add_argument("--actors", type=int, default=1, help="NPUs to use, one for each actor")
    parser.add_argument("--model", default=str(DIGITS_MODEL))
    arguments = parser.parse_args()
    if arguments.source is None:
        # On this machine alone, with two emulated NPUs; the number of CPUs only says what may be placed.
        ray.init(
            num_cpus=4,
            resources={"NPU": 2},
            object_store_memory=100 << 20,
            include_dashboard=False,
        )
        demo(arguments.model)
    elif arguments.target is None:
        parser.error("got no TARGET; expected a folder for the output")
    else:
        ray.init()  # the cluster that this machine belongs to, or a new one
        run(arguments.source, arguments.target, arguments.model, arguments.actors)
    ray.shutdown()


if __name__ == "__main__":
    main()
