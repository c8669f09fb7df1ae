"""Runs that cannot be: no memory for an output, buffers too few, too small or elsewhere; and what a model keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper
from tests.inside import KEPT_PLANS as _KEPT

from aioais import emulator
from aioais.emulator.model import models as models_of_acl

from .conftest import Models, Net

Make = Callable[..., Net]

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
MEGABYTE = 1 << 20


def test_a_model_keeps_only_so_many_plans_and_bindings(ready: Any, net: Make, models: Models) -> None:
    one = net(models.add())
    one.put(0, ARRAY)
    one.put(1, ARRAY)
    for _ in range(_KEPT + 3):
        outs, pointers, _ = one.dataset(one.out_sizes)
        assert ready.mdl.execute(one.id, one.ins, outs) == 0
        found = np.empty_like(ARRAY)
        assert ready.rt.memcpy(found.ctypes.data, found.nbytes, pointers[0], found.nbytes, 2) == 0
        assert (found == 2 * ARRAY).all()
    model = models_of_acl[one.id]
    assert len(model.bindings) == _KEPT
    assert len(model.plans) <= _KEPT


def test_memory_of_another_device_is_refused_loudly(ready: Any, net: Make, models: Models) -> None:
    one = net(models.add())
    assert ready.rt.set_device(1) == 0
    elsewhere, code = ready.rt.malloc(one.sizes[0], 2)
    assert code == 0
    assert ready.rt.set_device(0) == 0
    assert ready.update_data_buffer(one.in_bufs[0], elsewhere, one.sizes[0]) == 0
    with pytest.raises(emulator.EmulatorError, match="memory of another device"):
        one.execute()


@pytest.mark.parametrize("mode", ["static", "shape"])
def test_no_memory_for_an_output_that_acl_allocates(ready: Any, net: Make, models: Models, mode: str) -> None:
    rows = MEGABYTE // 12
    path = models.shape(((1, -1), (3, 3))) if mode == "shape" else models.add((rows, 3))
    with emulator.configure(memory_mb=2 if mode == "static" else 1):
        one = net(path, sizes=None if mode == "static" else [rows * 12], out_sizes=[0])
        if mode == "shape":
            one.describe(0, [rows, 3])
        assert one.execute() == 245000
    assert one.execute() == 0, "there is room now"
    assert ready.get_data_buffer_size(one.out_bufs[0]) == rows * 12


def test_dynamic_inputs_that_do_not_fit(ready: Any, net: Make, models: Models) -> None:
    one = net(models.shape(), out_sizes=[48])
    one.describe(0, [4, 3])
    assert ready.update_data_buffer(one.in_bufs[0], one.in_ptrs[0], 12) == 0
    assert one.execute() == 500002
    assert "needs 48 bytes, its data buffer has 12" in ready.get_recent_err_msg()
    empty = ready.mdl.create_dataset()
    assert ready.mdl.execute(one.id, empty, one.outs) == 100000
    assert "the dataset has 0 inputs, the model 1" in ready.get_recent_err_msg()


@pytest.mark.parametrize("size", [0, 24, MEGABYTE])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_dynamic_inputs_of_any_size_need_memory(
    ready: Any, net: Make, models: Models, size: int, asynchronous: bool
) -> None:
    one = net(models.shape(None), sizes=[0], out_sizes=[24])
    one.describe(0, [2, 3])
    assert ready.update_data_buffer(one.in_bufs[0], 0, size) == 0
    assert (one.execute_async() if asynchronous else one.execute()) == 100000
    assert "input 'a' needs 24 bytes, it has no memory" in ready.get_recent_err_msg()


def test_dynamic_outputs_that_claim_memory_and_have_none(ready: Any, net: Make, models: Models) -> None:
    one = net(models.shape(None), sizes=[24], out_sizes=[24])
    one.describe(0, [2, 3])
    one.put(0, ARRAY)
    assert ready.update_data_buffer(one.out_bufs[0], 0, 24) == 0
    assert one.execute() == 500002
    assert "output 'out' needs 24 bytes, its data buffer has memory for 0" in ready.get_recent_err_msg()
    assert one.execute_async() == 0
    assert ready.rt.synchronize_stream(0) == 500002
    assert ready.update_data_buffer(one.out_bufs[0], one.out_ptrs[0], 24) == 0
    assert one.execute() == 0
    assert (one.get(0, (2, 3)) == 2 * ARRAY).all()


def test_empty_tensors_need_no_memory(ready: Any, net: Make, models: Models) -> None:
    path = models.write(
        "empty", [helper.make_node("Identity", ["a"], ["out"])], [("a", 1, [0, 3])], [("out", 1, [0, 3])]
    )
    one = net(path)
    assert one.in_ptrs == [0]
    assert one.execute() == 0
