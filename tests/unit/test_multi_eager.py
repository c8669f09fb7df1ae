"""MultiDeviceSession where tasks begin at once (``asyncio.eager_task_factory``)."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from aioais import BrokenSessionError, MultiDeviceSession

if TYPE_CHECKING:
    from tests.unit.conftest import Models

X = np.arange(4, dtype=np.float32)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="has no eager tasks")
async def test_a_device_whose_opening_fails_at_once_is_opened_anew(
    models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):
        pytest.skip("uvloop hands its task factory an argument that this factory may not know")
    async with MultiDeviceSession(models.identity([4])) as session:
        await session.infer({1: [[X]]})
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(BrokenSessionError, match=r"device 0.*no thread left.*ulimit"):
                await session.infer({0: [[X]]})
        assert not caplog.records, "the caller has heard of it"
        assert (await session.infer({0: [[X]]}))[0][0][0].tolist() == X.tolist()
