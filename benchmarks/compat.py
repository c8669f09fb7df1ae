"""Blocking calls of ``aioais.compat`` beside ``await``, as ratios of one run: ``python -m benchmarks.compat``."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aioais import InferSession, emulator
from aioais.compat.ais_bench import InferSession as BlockingSession

from . import report
from .models import make_noop
from .report import Row, rounds

CALLERS = 8
EXECUTE_MS = (0.0, 2.0, 5.0)
TICK_S = 0.001


async def awaited(path: str, count: int) -> tuple[float, float]:
    """Return the microseconds of one await, and those per request with eight tasks."""
    async with InferSession(0, path) as session:
        feeds = [np.ones(session.get_inputs()[0].shape, np.float32)]

        async def work(number: int) -> None:
            for _ in range(number):
                await session.infer(feeds)

        async def at_once(number: int) -> None:
            await asyncio.gather(*(work(number) for _ in range(CALLERS)))

        await work(10)
        await at_once(10)
        start = time.perf_counter()
        await work(count)
        one = time.perf_counter() - start
        start = time.perf_counter()
        await at_once(count // 2)
        many = time.perf_counter() - start
        return one / count * 1e6, many / (count // 2 * CALLERS) * 1e6


def blocked(path: str, count: int) -> tuple[float, float, list[float]]:
    """Return the same of blocking calls and eight threads, and how late a ticker thread was, in milliseconds."""
    with BlockingSession(0, path) as session:
        feeds = [np.ones(session.get_inputs()[0].shape, np.float32)]

        def work(number: int) -> None:
            for _ in range(number):
                session.infer(feeds)

        work(10)
        in_threads(lambda: work(10))
        start = time.perf_counter()
        work(count)
        one = time.perf_counter() - start
        late: list[float] = []
        start = time.perf_counter()
        with Ticker(late):
            in_threads(lambda: work(count // 2))
        many = time.perf_counter() - start
        return one / count * 1e6, many / (count // 2 * CALLERS) * 1e6, late


def in_threads(work: Callable[[], None]) -> None:
    """Run a function in eight threads."""
    threads = [threading.Thread(target=work) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Ticker:
    """A thread that sleeps a millisecond at a time and notes how late it wakes: what a held GIL would show in."""

    def __init__(self, late_ms: list[float]) -> None:
        self._late_ms = late_ms
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._tick)

    def _tick(self) -> None:
        while not self._is_over.is_set():
            due = time.perf_counter() + TICK_S
            time.sleep(TICK_S)
            self._late_ms.append((time.perf_counter() - due) * 1e3)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def measure(path: str, turns: int = 5, count: int = 100) -> dict[str, list[float]]:
    """Return microseconds of both ways for each execution time, their ratios, and the ticker's p99."""
    figures: dict[str, list[float]] = {}

    def note(key: str, value: float) -> None:
        figures.setdefault(key, []).append(value)

    for _ in range(turns):
        late: list[float] = []
        with Ticker(late):
            time.sleep(0.3)
        note("ticker alone", float(np.percentile(late, 99)))
        for ms in EXECUTE_MS:
            with emulator.configure(execute_ms=ms):
                number = count if ms else 10 * count
                one, many = asyncio.run(awaited(path, number))
                blocked_one, blocked_many, late = blocked(path, number)
            note(f"await {ms:g}", one)
            note(f"call {ms:g}", blocked_one)
            note(f"one {ms:g}", blocked_one / one)
            note(f"eight {ms:g}", many / blocked_many)
            note(f"ticker {ms:g}", float(np.percentile(late, 99)))
    return figures


def rows(figures: dict[str, list[float]]) -> list[Row]:
    """Return the lines of the table."""
    found = []
    alone = statistics.median(figures["ticker alone"])
    for ms in EXECUTE_MS:
        what = f"model of {ms:g} ms" if ms else "model that does nothing"
        is_goal = ms >= 2
        call, wait = (statistics.median(figures[f"{name} {ms:g}"]) for name in ("call", "await"))
        times = f"{call:.0f} us, await {wait:.0f}"
        goal = "goal: at most 1.15; " if is_goal else ""
        found.append(Row(f"{what}: one blocking call, of await", *rounds(figures[f"one {ms:g}"]), goal + times))
        goal = "goal: 0.95" if is_goal else ""
        found.append(Row("  rate of 8 threads, of 8 tasks", *rounds(figures[f"eight {ms:g}"]), goal))
        goal = f"goal: at most 2; alone {alone:.2f}"
        found.append(Row("  a ticker thread beside the 8, p99 ms late", *rounds(figures[f"ticker {ms:g}"]), goal))
    return found


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as temporary:
        figures: Any = measure(make_noop(Path(temporary)))
    report.show(rows(figures))


if __name__ == "__main__":
    main()
