"""Other code in the same threads keeps its device context, around every blocking call: torch_npu is such a guest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pytest
from tests import inside

from aioais import emulator
from aioais.compat import aclruntime
from aioais.compat.ais_bench import InferSession, MemorySummary, MultiDeviceSession

if TYPE_CHECKING:
    from tests.unit.conftest import Models

_T = TypeVar("_T")


class Guest:
    """Code that uses ACL by itself, in any thread, and looks at its context around every call of others.

    Parameters
    ----------
    has_context
        Whether it has a context of its own, or none.
    """

    def __init__(self, has_context: bool) -> None:
        self.rt = emulator.acl.rt
        self.has_context = has_context
        self.calls = 0
        self._own = threading.local()
        self._contexts: list[int] = []

    def enter(self) -> None:
        """Make a context current in this thread."""
        if self.has_context and not hasattr(self._own, "context"):
            self._own.context, code = self.rt.create_context(1)
            assert code == 0
            self._contexts.append(self._own.context)

    def __call__(self, function: Callable[..., _T], *arguments: Any, **named: Any) -> _T:
        self.enter()
        before = self.rt.get_context()
        assert (before[1] == 0) is self.has_context
        try:
            return function(*arguments, **named)
        finally:
            self.calls += 1
            assert self.rt.get_context() == before, f"{function} has left another context current"

    def leave(self) -> None:
        """Destroy the contexts."""
        for context in self._contexts:
            assert self.rt.destroy_context(context) == 0


@pytest.fixture(params=[True, False], ids=["with a context", "without"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    inside.finalize_all()
    emulator.reset()
    acl = emulator.acl
    assert acl.init() == 0
    if request.param:
        assert acl.rt.set_device(1) == 0
    made = Guest(request.param)
    yield made
    inside.finalize_all()
    made.leave()
    if request.param:
        assert acl.rt.reset_device(1) == 0
    assert acl.finalize() == 0
    emulator.reset()


def test_around_every_call(models: Models, guest: Guest) -> None:
    shape = (1, 4)
    x = np.ones(shape, np.float32)
    session = guest(InferSession, 0, models.add(shape))
    assert guest(session.infer, [x, x])[0][0, 0] == 2
    guest(session.infer_pipeline, [[x, x]] * 3)
    guest(session.infer_iteration, [x, x], [-1, 0], 3)
    guest(session.first_inner_run, [x, x])
    guest(session.inner_run, [-1, 0])
    tensor = guest(session.create_tensor_from_arrays_to_device, x)
    outputs = guest(session.run, [tensor, tensor])
    guest(session.convert_tensors_to_host, outputs)
    guest(session.convert_tensors_to_arrays, outputs)
    for call in (session.get_inputs, session.get_outputs, session.summary, session.reset_summaryinfo):
        guest(call)
    guest(session.set_staticbatch)
    guest(session.get_max_dym_batchsize)
    guest(MemorySummary.get_h2d_time_list)
    with pytest.raises(RuntimeError):
        guest(session.infer, [x])
    with pytest.raises(RuntimeError):
        guest(InferSession, 0, "nothing.onnx")
    made = guest(aclruntime.Tensor, x)
    guest(made.to_device, 0)
    guest(made.to_host)
    multi = guest(MultiDeviceSession, models.add(shape))
    assert guest(multi.infer, {0: [[x, x]], 1: [[x, x]]})[1][0][0][0, 0] == 2
    guest(multi.free_resource)
    with pytest.warns(ResourceWarning, match="device tensors"):
        guest(InferSession.finalize)
    guest(session.free_resource)
    assert guest.calls > 20


def test_in_many_threads(models: Models, guest: Guest) -> None:
    shape = (1, 4)
    with InferSession(0, models.identity(shape)) as session:

        def work(value: int) -> None:
            for _ in range(5):
                x = np.full(shape, value, np.float32)
                assert guest(session.infer, [x])[0][0, 0] == value

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(24)))
    assert guest.calls == 120
