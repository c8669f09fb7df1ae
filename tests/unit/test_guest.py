"""A guest in a process where other code uses ACL too, as torch_npu and MindSpore do: it takes nothing away."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import inside
from tests.unit.sums import feeds, wanted

from aioais import ArgumentError, InferSession, WrongLoopError, emulator

if TYPE_CHECKING:
    from tests.unit.conftest import Models

SHAPE = (1, 8)


@pytest.fixture
def host() -> Iterator[Any]:
    """Other code's ``acl``: it has started it, and has a device, a context and memory."""
    inside.finalize_all()
    emulator.reset()
    acl = emulator.acl
    assert acl.init() == 0
    assert acl.rt.set_device(0) == 0
    yield acl
    assert acl.finalize() == 0
    emulator.reset()


async def test_acl_of_other_code_is_used_and_left_running(models: Models, host: Any) -> None:
    path = models.add(SHAPE)
    mine = host.rt.get_context()[0]
    block, code = host.rt.malloc(8, 2)
    assert code == 0
    for _ in range(2):
        async with InferSession(0, path) as session:
            np.testing.assert_array_equal((await session.infer(feeds(SHAPE, 4)))[0], wanted(SHAPE, 4))
        await InferSession.finalize()
    assert emulator.counts().get("acl.finalize", 0) == 0
    assert host.rt.get_context() == (mine, 0), "the context of this thread is what it was"
    data = ctypes.create_string_buffer(b"still so", 8)
    assert host.rt.memcpy(block, 8, ctypes.addressof(data), 8, 1) == 0
    assert host.rt.free(block) == 0
    assert host.rt.reset_device(0) == 0


async def test_a_configuration_comes_too_late(models: Models, host: Any, tmp_path: Path) -> None:
    config = tmp_path / "acl.json"
    config.write_text(json.dumps({}))
    path = models.add(SHAPE)
    with pytest.raises(ArgumentError, match="cannot take effect: ACL was initialised by other code of this process"):
        await InferSession(0, path, acl_json_path=str(config)).__aenter__()
    async with InferSession(0, path) as session:
        np.testing.assert_array_equal((await session.infer(feeds(SHAPE, 5)))[0], wanted(SHAPE, 5))
    await InferSession.finalize()
    assert host.rt.reset_device(0) == 0


async def test_the_count_of_other_code_is_left_as_it_was(models: Models, host: Any) -> None:
    for _ in range(2):
        async with InferSession(0, models.add(SHAPE)) as session:
            await session.infer(feeds(SHAPE))
        await InferSession.finalize()
    assert host.rt.reset_device(0) == 0
    assert host.finalize_reference() == (0, 0), "the owner's count was the only one"
    assert host.init() == 0


async def test_other_code_that_comes_later_keeps_acl(models: Models) -> None:
    inside.finalize_all()
    emulator.reset()
    acl, path = emulator.acl, models.add(SHAPE)
    async with InferSession(0, path) as session:
        await session.infer(feeds(SHAPE))
    assert (acl.init(), acl.rt.set_device(0)) == (100002, 0)
    await InferSession.finalize()
    block, code = acl.rt.malloc(64, 0)
    assert code == acl.rt.free(block) == 0
    async with InferSession(0, path) as session:
        np.testing.assert_array_equal((await session.infer(feeds(SHAPE, 4)))[0], wanted(SHAPE, 4))
    await InferSession.finalize()
    assert acl.rt.reset_device(0) == 0
    assert acl.finalize_reference() == (0, 0)
    emulator.reset()


async def test_a_release_that_does_not_count(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    inside.finalize_all()
    emulator.reset()
    async with InferSession(0, models.add(SHAPE)) as session:
        await session.infer(feeds(SHAPE))
    monkeypatch.setattr(inside.cpu_library().slow, "finalize_reference", None)
    await InferSession.finalize()
    assert emulator.counts()["acl.finalize"] == 1
    emulator.reset()


async def test_threads_that_gevent_has_replaced(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    patched = {"threading", "queue"}
    monkeypatch.setitem(sys.modules, "gevent.monkey", SimpleNamespace(is_module_patched=patched.__contains__))
    path = models.add(SHAPE)
    with pytest.raises(WrongLoopError, match=r"replaced Python's threading and queue.*thread=False, queue=False"):
        await InferSession(0, path)
    patched.remove("threading")
    with pytest.raises(WrongLoopError, match="replaced Python's queue,"):
        await InferSession(0, path)
    patched.clear()
    async with InferSession(0, path) as session:
        await session.infer(feeds(SHAPE))


async def test_contexts_and_resets_of_other_code(models: Models, host: Any) -> None:
    async with InferSession(0, models.add(SHAPE)) as session:
        for _ in range(3):
            other, code = host.rt.create_context(0)
            assert code == 0
            np.testing.assert_array_equal((await session.infer(feeds(SHAPE, 4)))[0], wanted(SHAPE, 4))
            assert host.rt.get_context() == (other, 0)
            assert host.rt.destroy_context(other) == host.rt.set_device(0) == host.rt.reset_device(0) == 0
        assert host.rt.reset_device(0) == 0, "its own set_device, the last"
        np.testing.assert_array_equal((await session.infer(feeds(SHAPE, 4)))[0], wanted(SHAPE, 4))
    await InferSession.finalize()
    assert host.rt.set_device(0) == host.rt.reset_device(0) == 0
