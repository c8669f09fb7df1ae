"""What a session says of itself once ``finalize`` has ended it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from aioais import ClosedError, InferSession

if TYPE_CHECKING:
    from tests.unit.conftest import Models


async def test_it_is_closed(models: Models) -> None:
    session = await InferSession(0, models.identity([4]))
    await InferSession.finalize()
    assert session.closed
    assert repr(session).endswith("closed>")
    assert [tensor.name for tensor in session.get_inputs()] == ["x"]
    assert (session.summary().count, session.statistics().done, session.statistics().device_bytes) == (0, 0, 0)
    with pytest.raises(ClosedError, match="closed: open a new session"):
        session.record()
    with pytest.raises(ClosedError, match="closed: open a new session"):
        await session.to_device(np.zeros(4, np.float32))
    with pytest.raises(ClosedError, match="closed: open a new session"):
        await session
    await session.aclose()


def test_it_may_be_closed_on_any_loop(models: Models, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Its own may have ended before."""

    async def leave_open() -> InferSession:
        return await InferSession(0, models.identity([4]))

    async def close(session: InferSession) -> None:
        await InferSession.finalize()
        await session.aclose()

    first, second = loop_factory(), loop_factory()
    try:
        session = first.run_until_complete(leave_open())
        second.run_until_complete(close(session))
    finally:
        first.close()
        second.close()
    assert session.closed
