"""Read a folder of digit images on every device: one stream, a progress bar, a table of the work of each device.

    python examples/multi_device/stream_digits.py [folder] [model] [--device N ...]

The folder contains grey images of 8 x 8 pixels as binary PGM files; the number after the last ``_`` of a name is the
label. Without a folder the images of ``aioais demo`` are used, in a temporary folder. Needs the CPU device and the
command line: ``pip install "aioais[cpu,cli]"``, in a clone ``pip install -e ".[cpu,cli]"``.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import aioais
from aioais import MultiDeviceSession
from aioais.demo_data import DIGITS_MODEL, load_digits

Image = npt.NDArray[np.float32]


def write_images(folder: Path) -> None:
    images, labels = load_digits()
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        pixels = (image.reshape(8, 8) * 15).astype(np.uint8)  # the data go from 0 to 16
        (folder / f"{k:04d}_{label}.pgm").write_bytes(b"P5\n8 8\n240\n" + pixels.tobytes())


def read_image(path: Path) -> Image:
    data = path.read_bytes()
    header, pixels = data[:-64], data[-64:]
    magic, width, height, most = header.split()
    if (magic, width, height) != (b"P5", b"8", b"8"):
        raise ValueError(f"{path}: not a binary PGM file of 8 x 8 pixels")
    image: Image = np.frombuffer(pixels, np.uint8).reshape(1, 1, 8, 8).astype(np.float32) * np.float32(16 / int(most))
    return image


async def feeds(paths: list[Path]) -> AsyncIterator[list[Image]]:
    """Read each file only when a device has room for it."""
    for path in paths:
        yield [await asyncio.to_thread(read_image, path)]


async def main(paths: list[Path], model: str, devices: list[int] | None) -> None:
    console = Console()
    right = 0
    async with MultiDeviceSession(model) as session:
        with Progress(console=console, auto_refresh=False, disable=not console.is_terminal) as progress:
            bar = progress.add_task("reading digits", total=len(paths))
            async for index, _, (logits,) in session.stream(feeds(paths), devices):
                right += int(logits.argmax()) == int(paths[index].stem.rpartition("_")[2])
                progress.update(bar, completed=index + 1, refresh=index % 50 == 0)

        table = Table("device", "images", "run again", "mean on the device", "failure")
        for device in session.statistics().values():
            stage = device.session.stages["execute"] if device.session else None
            table.add_row(
                str(device.device_id),
                str(device.streamed),
                str(device.rerun),
                f"{stage.mean_ms:.3f} ms" if stage else "-",
                device.failure or "none",
            )
        console.print(table)
    print(f"{right} of {len(paths)} digits are right: {right / len(paths):.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("model", nargs="?", default=str(DIGITS_MODEL))
    parser.add_argument(
        "--device", "-d", type=int, action="append", help="a device to use; by default all visible ones"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        if arguments.folder is None:
            write_images(Path(made))
        images = sorted((arguments.folder or Path(made)).glob("*.pgm"))
        aioais.run(main, images, arguments.model, arguments.device)
