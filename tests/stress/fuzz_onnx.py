"""Damaged ONNX files: bytes of small models flipped, loaded and run (one in four converted before) in worker processes.

ONNX Runtime may end its process over such a file, which a test cannot catch. So each case runs in a worker, which
writes the case's number before it begins; where a worker dies, the next one starts after that case, and the case is
tried on bare ONNX Runtime to see whose crash it is.

``python -m tests.stress.fuzz_onnx`` with ``aioais`` or ``bare``, first and last case and a folder runs a worker.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tests.stress.fuzz import write_models

import aioais
from aioais import AioaisError, InferSession, emulator

MEMORY = 8 << 30
"""Address space of a worker: flipped dims ask for petabytes, and get an error instead."""
GRACE_S = 100
"""A worker that has not said anything for so long hangs."""


def damaged(case: int, models: dict[str, bytes]) -> bytes:
    """Give the file of a case: one model with a few bytes changed, dropped or doubled."""
    rng = random.Random(f"onnx {case}")
    content = bytearray(models[rng.choice(sorted(models))])
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place = rng.randrange(len(content))
        act = rng.randrange(8)
        if act == 0:
            del content[place : place + rng.randint(1, 8)]
        elif act == 1:
            content[place:place] = content[place : place + rng.randint(1, 8)]
        elif act < 5:
            content[place] ^= 1 << rng.randrange(8)
        else:
            content[place] = rng.randrange(256)
        if not content:
            break
    return bytes(content)


async def _by_aioais(path: str, case: int) -> str:
    try:
        if case % 4 == 0:
            path = aioais.convert(path, f"{path}.converted.onnx", input_shape_range="a:[1~4,3,4~9,-1];b:[1~4,3,4~9,-1]")
        async with InferSession(0, path) as session:
            shapes = [[max(0, dim) or 1 for dim in desc.shape] for desc in session.get_inputs()]
            if any(np.prod(shape, dtype=float) > 1e6 for shape in shapes):
                return "too large to run"
            feeds = [
                np.ones(shape, desc.datatype.numpy) for shape, desc in zip(shapes, session.get_inputs(), strict=True)
            ]
            await session.infer(feeds, mode="auto")
    except AioaisError as error:
        return type(error).__name__
    except Exception as error:  # noqa: BLE001 - what is found is told at the end
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"FOUND {type(error).__name__} at {where.filename}:{where.lineno}: {str(error)[:200]!r}"
    return "well"


async def _by_bare(path: str, _: int) -> str:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    types = {"tensor(float)": "f4", "tensor(int64)": "i8", "tensor(double)": "f8"}
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        feeds: dict[str, Any] = {}
        for node in session.get_inputs():
            shape = [dim if isinstance(dim, int) and dim > 0 else 1 for dim in node.shape]
            if np.prod(shape, dtype=float) > 1e6:
                return "too large to run"
            feeds[node.name] = np.ones(shape, types.get(node.type, "f4"))
        session.run(None, feeds)
    except Exception as error:  # noqa: BLE001 - its exception classes are made at run time
        return type(error).__name__
    return "well"


async def work(by: str, first: int, last: int, folder: Path) -> None:
    """Run cases, writing the number of each before it and its end after it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    models = {name: Path(path).read_bytes() for name, path in write_models(folder).items()}
    path = folder / f"damaged_{by}.onnx"
    run: Callable[[str, int], Any] = _by_bare if by == "bare" else _by_aioais
    with emulator.configure(memory_mb=256, threads=1):
        for case in range(first, last):
            path.write_bytes(damaged(case, models))
            sys.stdout.write(f"{case} ")
            sys.stdout.flush()
            sys.stdout.write(f"{await run(str(path), case)}\n")
            sys.stdout.flush()
        await InferSession.finalize()


@dataclass
class Survey:
    """What the workers reported."""

    ends: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    crashes: list[int] = field(default_factory=list)
    """Cases over which a worker died, as one with bare ONNX Runtime does."""


def _worker(by: str, first: int, last: int, folder: Path) -> tuple[dict[int, str], int | None, str]:
    """Run a worker; gives the ends of its cases, the case it died over, and its last words."""
    command = [sys.executable, "-m", "tests.stress.fuzz_onnx", by, str(first), str(last), str(folder)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])}
    words = ""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=env, check=False, timeout=GRACE_S + (last - first)
        )
        out, words = done.stdout, f"exit {done.returncode}: {done.stderr[-300:]}"
        has_failed = done.returncode != 0
    except subprocess.TimeoutExpired as error:
        out, words = (error.stdout or b"").decode() if isinstance(error.stdout, bytes) else str(error.stdout), "a hang"
        has_failed = True
    ends: dict[int, str] = {}
    begun = None
    for line in out.splitlines():
        number, _, end = line.partition(" ")
        begun = int(number)
        if end:
            ends[begun] = end
            begun = None
    if has_failed and begun is None:
        raise RuntimeError(f"a worker failed outside of its cases: {words}")
    return ends, begun if has_failed else None, words


def survey(first: int, last: int, folder: Path) -> Survey:
    """Run cases in as many workers as it takes."""
    found = Survey()
    while first < last:
        ends, died, words = _worker("aioais", first, last, folder)
        for case, end in ends.items():
            found.ends[end.partition(" ")[0]] += 1
            if end.startswith("FOUND"):
                found.findings.append(f"onnx {case}: {end}")
        if died is None:
            break
        _, bare_died, _ = _worker("bare", died, died + 1, folder)
        if bare_died is None:
            found.findings.append(f"onnx {died}: the process died ({words}), with bare ONNX Runtime it lives")
        else:
            found.crashes.append(died)
        first = died + 1
    return found


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
