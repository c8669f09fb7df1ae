"""Clients that ask a service in a closed loop, retry once, and note what happened to each request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count as count_from
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from aioais import InferSession
from aioais.demo_data import DIGITS_MODEL, load_digits

Image = npt.NDArray[np.float32]
Ask = Callable[[int], Awaitable[int]]

IMAGES = load_digits()[0]


@dataclass
class Load:
    """What the clients found.

    Parameters
    ----------
    ask
        Sends the request of this number; returns the digit.
    """

    ask: Ask
    answers: dict[int, list[int]] = field(default_factory=dict)
    """The answers of each request: exactly one each."""
    retried: dict[int, BaseException] = field(default_factory=dict)
    lost: dict[int, BaseException] = field(default_factory=dict)
    """Those that failed twice."""
    asked: int = 0

    def wrong(self, expected: list[int]) -> list[int]:
        """Return the requests that have not exactly one answer, the right one."""
        return [k for k in range(self.asked) if self.answers.get(k) != [expected[k % len(expected)]]]

    async def run(self, clients: int, count: int) -> float:
        """Send this many more requests; return the requests per second."""
        begin = time.perf_counter()
        await self._all(clients, iter(range(self.asked, self.asked + count)))
        return count / (time.perf_counter() - begin)

    async def run_until(self, clients: int, stop: asyncio.Event) -> None:
        """Send requests until the event is set."""
        await self._all(clients, takewhile(lambda _: not stop.is_set(), count_from(self.asked)))

    async def until_answered(self, count: int) -> None:
        while len(self.answers) < count:
            await asyncio.sleep(0.005)

    async def _all(self, clients: int, numbers: Iterator[int]) -> None:
        await asyncio.gather(*(self._client(numbers) for _ in range(clients)))

    async def _client(self, numbers: Iterator[int]) -> None:
        for k in numbers:
            self.asked = max(self.asked, k + 1)
            try:
                digit = await self._twice(k)
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.lost[k] = error
                continue
            self.answers.setdefault(k, []).append(digit)

    async def _twice(self, k: int) -> int:
        try:
            return await self.ask(k)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.retried[k] = error
            return await self.ask(k)


def by_handle(handle: Any) -> Ask:
    async def ask(k: int) -> int:
        scores = await handle.infer.remote(IMAGES[k % len(IMAGES)])
        return int(scores.argmax())

    return ask


def by_http(client: Any) -> Ask:
    async def ask(k: int) -> int:
        response = await client.post("/", content=IMAGES[k % len(IMAGES)].astype(np.uint8).tobytes())
        (digit,) = response.raise_for_status().json()["digits"]
        return int(digit)

    return ask


async def expected_digits() -> list[int]:
    """Return what the model says of each image, without Ray."""
    async with InferSession(0, DIGITS_MODEL) as session:
        return [int(scores.argmax()) async for (scores,) in session.infer_pipeline([image] for image in IMAGES)]
