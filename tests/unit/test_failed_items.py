"""Which item of a source failed, and where: in the notes of the error."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aioais import AclError, FeedError, InferSession, MultiDeviceSession, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]
GOOD, BAD = np.zeros(4, np.float32), np.zeros(3, np.float32)
WRONG_SIZE = 145006
"""Concerns one request, not the device."""


class Lazy:
    """Becomes an array in a thread."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        raise OSError("the picture cannot be read")


def items(last: Any) -> Iterator[list[Any]]:
    for _ in range(5):
        yield [GOOD]
    yield [last]


async def awaited(last: Any) -> AsyncIterator[list[Any]]:
    for feeds in items(last):
        yield feeds


async def failure(results: AsyncGenerator[Any, None], kind: type[Exception]) -> list[str]:
    with pytest.raises(kind) as caught:
        async for _ in results:
            pass
    return list(getattr(caught.value, "__notes__", []))


@pytest.mark.parametrize("source", [items, awaited], ids=["plain", "awaited"])
@pytest.mark.parametrize("bad", [BAD, Lazy()], ids=["shape", "slow"])
async def test_a_feed_of_a_pipeline(models: Models, source: Any, bad: Any) -> None:
    async with InferSession(0, models.identity([4])) as session:
        assert await failure(session.infer_pipeline(source(bad)), FeedError) == ["item 5 of the source"]


async def test_an_execution_of_a_pipeline(models: Models) -> None:
    async with InferSession(0, models.identity([4]), depth=1) as session:
        emulator.fail("acl.mdl.execute_async", WRONG_SIZE, after=3)
        assert await failure(session.infer_pipeline(items(GOOD)), AclError) == ["item 3 of the source"]


@pytest.mark.parametrize("source", [items, awaited], ids=["plain", "awaited"])
@pytest.mark.parametrize("bad", [BAD, Lazy()], ids=["shape", "slow"])
@pytest.mark.parametrize("ordered", [True, False])
async def test_a_feed_of_a_stream(models: Models, source: Any, bad: Any, ordered: bool) -> None:
    async with MultiDeviceSession(models.identity([4])) as session:
        results = session.stream(source(bad), [2], ordered=ordered)
        assert await failure(results, FeedError) == ["item 5 of the source, device 2"]


@pytest.mark.parametrize("ordered", [True, False])
async def test_an_execution_of_a_stream(models: Models, ordered: bool) -> None:
    async with MultiDeviceSession(models.identity([4]), depth=1) as session:
        emulator.fail("acl.mdl.execute_async", WRONG_SIZE, after=3)
        results = session.stream(items(GOOD), [1], ordered=ordered)
        assert await failure(results, AclError) == ["item 3 of the source, device 1"]


async def test_a_source_that_fails_is_no_item(models: Models) -> None:
    async def source() -> AsyncIterator[list[Array]]:
        yield [GOOD]
        raise OSError("the disk is gone")

    path = models.identity([4])
    async with InferSession(0, path) as session, MultiDeviceSession(path) as sessions:
        assert await failure(session.infer_pipeline(source()), OSError) == []
        assert await failure(sessions.stream(source(), [0]), OSError) == []
