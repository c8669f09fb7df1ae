"""Gear models and dynamic shapes: choosing, both places of state, codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper

from aioais import emulator

Make = Callable[..., Any]


@pytest.fixture
def batch(net: Make, models: Any) -> Any:
    return net(models.batch())


def data(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).random(shape, np.float32)


def test_batch_description(ready: Any, batch: Any) -> None:
    mdl, desc = ready.mdl, batch.desc
    assert mdl.get_num_inputs(desc) == 3
    assert mdl.get_input_index_by_name(desc, "ascend_mbatch_shape_data") == (2, 0)
    assert mdl.get_input_dims(desc, 0)[0]["dims"] == [-1, 3]
    assert mdl.get_input_dims(desc, 2)[0] == {"name": "ascend_mbatch_shape_data", "dimCount": 1, "dims": [1]}
    assert mdl.get_input_data_type(desc, 2) == 3
    assert [mdl.get_input_size_by_index(desc, i) for i in range(3)] == [48, 48, 4]
    assert mdl.get_output_dims(desc, 0)[0]["dims"] == [4, 3]
    assert mdl.get_output_size_by_index(desc, 0) == 48
    assert mdl.get_input_format(desc, 0) == 0
    assert mdl.get_dynamic_batch(desc) == ({"batchCount": 3, "batch": [1, 2, 4]}, 0)
    assert mdl.get_input_dims_range(desc, 0) == ({"rangeCount": 0, "range": []}, 0)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_batch(ready: Any, batch: Any, size: int) -> None:
    array = data(size, 3)
    assert ready.mdl.set_dynamic_batch_size(batch.id, batch.ins, 2, size) == 0
    batch.put(0, array)
    batch.put(1, array)
    assert batch.execute() == 0
    dims, code = ready.mdl.get_cur_output_dims(batch.desc, 0)
    assert code == 0
    assert dims["dims"] == [size, 3]
    assert (batch.get(0, (size, 3)) == 2 * array).all()


def test_outputs_are_packed_and_the_rest_is_old(ready: Any, batch: Any) -> None:
    for size in (4, 1):
        ready.mdl.set_dynamic_batch_size(batch.id, batch.ins, 2, size)
        batch.put(0, np.full((size, 3), size, np.float32))
        batch.put(1, np.zeros((size, 3), np.float32))
        assert batch.execute() == 0
    assert batch.get(0, (4, 3)).tolist() == [[1] * 3, [4] * 3, [4] * 3, [4] * 3]


def test_image_sizes(ready: Any, net: Make, models: Any) -> None:
    one = net(models.gears("hw", (1, 2, -1, -1), ((4, 4), (8, 6))))
    assert ready.mdl.get_dynamic_hw(one.desc, -1) == ({"hwCount": 2, "hw": [[4, 4], [8, 6]]}, 0)
    assert ready.mdl.set_dynamic_hw_size(one.id, one.ins, 2, 8, 6) == 0
    array = data(1, 2, 8, 6)
    one.put(0, array)
    one.put(1, array)
    assert one.execute() == 0
    assert (one.get(0, (1, 2, 8, 6)) == 2 * array).all()
    assert ready.mdl.set_dynamic_hw_size(one.id, one.ins, 2, 6, 8) == 145013
    assert ready.mdl.set_dynamic_hw_size(one.id, one.ins, 2, 0, 8) == 100000


def test_dims(ready: Any, net: Make, models: Any) -> None:
    one = net(models.gears("dims", (-1, 3, -1), ((1, 3, 2, 1, 3, 2), (4, 3, 5, 4, 3, 5))))
    assert ready.mdl.get_input_dynamic_gear_count(one.desc, -1) == (2, 0)
    assert ready.mdl.get_input_dynamic_gear_count(one.desc, 0) == (0, 100000)
    gears, code = ready.mdl.get_input_dynamic_dims(one.desc, -1, 2)
    assert code == 0
    assert [gear["dims"] for gear in gears] == [[1, 3, 2, 1, 3, 2], [4, 3, 5, 4, 3, 5]]
    assert gears[0]["name"] == ""
    assert ready.mdl.get_input_dynamic_dims(one.desc, -1, 1)[1] == 100000
    assert ready.mdl.get_input_dynamic_dims(one.desc, -1, 5000) == (None, 100000)
    assert ready.mdl.get_input_dims(one.desc, 2)[0]["dims"] == [4]
    for gear, shape in zip(gears, ((1, 3, 2), (4, 3, 5)), strict=True):
        array = data(*shape)
        assert ready.mdl.set_input_dynamic_dims(one.id, one.ins, 2, gear) == 0
        one.put(0, array)
        one.put(1, array)
        assert one.execute() == 0
        assert (one.get(0, shape) == 2 * array).all()
    for dims, expected in (([1, 3, 2], 145012), ([1, 4, 2, 1, 3, 2], 145012), ([1, 3, 5, 1, 3, 5], 145013)):
        gear = {"dimCount": len(dims), "dims": dims}
        assert ready.mdl.set_input_dynamic_dims(one.id, one.ins, 2, gear) == expected


def test_codes_of_the_setters(ready: Any, batch: Any, net: Make, models: Any) -> None:
    def set_batch(model: int, dataset: int, index: int, size: int) -> int:
        code: int = ready.mdl.set_dynamic_batch_size(model, dataset, index, size)
        return code

    assert set_batch(batch.id, batch.ins, 2, 0) == 100000
    assert set_batch(batch.id, 0, 2, 1) == 100000
    assert set_batch(batch.id, batch.ins, 7, 1) == 100000
    assert set_batch(batch.id, batch.ins, 2, 3) == 145013
    assert set_batch(999, batch.ins, 2, 1) == 145003
    static = net(models.add())
    assert set_batch(static.id, static.ins, 1, 1) == 145013
    assert ready.mdl.set_dynamic_hw_size(batch.id, batch.ins, 2, 1, 1) == 145013
    ready.update_data_buffer(batch.in_bufs[2], batch.in_ptrs[2], 3)
    assert set_batch(batch.id, batch.ins, 2, 1) == 145012
    ready.update_data_buffer(batch.in_bufs[2], 0, 0)
    assert set_batch(batch.id, batch.ins, 2, 1) == 100000


@pytest.mark.parametrize(("size", "dtype"), [(4, np.int32), (8, np.int64)])
def test_values_have_8_bytes_where_they_fit(ready: Any, net: Make, models: Any, size: int, dtype: Any) -> None:
    one = net(models.batch(), sizes=[48, 48, size])
    assert ready.mdl.set_dynamic_batch_size(one.id, one.ins, 2, 2) == 0
    back = np.zeros(1, dtype)
    assert ready.rt.memcpy(back.ctypes.data, size, one.in_ptrs[2], size, 2) == 0
    assert back == 2
    assert one.execute() == 0


def test_a_missing_hidden_input_is_145000(ready: Any, batch: Any) -> None:
    dataset = ready.mdl.create_dataset()
    for buffer in batch.in_bufs[:2]:
        ready.mdl.add_dataset_buffer(dataset, buffer)
    assert ready.mdl.execute(batch.id, dataset, batch.outs) == 145000


def test_a_hidden_input_without_memory_is_100000(ready: Any, batch: Any) -> None:
    ready.update_data_buffer(batch.in_bufs[2], 0, 0)
    assert batch.execute() == 100000


def test_a_gear_that_was_never_set(ready: Any, batch: Any) -> None:
    """The device goes by the content of the buffer: junk fails, a legal value runs."""
    assert batch.execute() == 507011
    assert "no gear was ever set" in ready.get_recent_err_msg()
    value = np.array([2], np.int32)
    ready.rt.memcpy(batch.in_ptrs[2], 4, value.ctypes.data, 4, 1)
    batch.put(0, data(2, 3))
    batch.put(1, data(2, 3))
    assert batch.execute() == 0
    assert (batch.get(0, (2, 3)) == 2 * data(2, 3)).all()


def test_the_gear_of_the_dataset_decides_and_the_model_reports_the_last(ready: Any, batch: Any) -> None:
    other, pointers, _ = batch.dataset(batch.sizes)
    assert ready.mdl.set_dynamic_batch_size(batch.id, batch.ins, 2, 4) == 0
    assert ready.mdl.set_dynamic_batch_size(batch.id, other, 2, 1) == 0
    assert pointers
    batch.put(0, data(4, 3))
    batch.put(1, data(4, 3))
    assert batch.execute() == 0
    assert (batch.get(0, (4, 3)) == 2 * data(4, 3)).all()
    assert ready.mdl.get_cur_output_dims(batch.desc, 0)[0]["dims"] == [1, 3]


def test_changing_the_gear_of_queued_work_fails_loudly(ready: Any, batch: Any) -> None:
    ready.mdl.set_dynamic_batch_size(batch.id, batch.ins, 2, 4)
    assert batch.execute_async() == 0
    ready.mdl.set_dynamic_batch_size(batch.id, batch.ins, 2, 1)
    assert ready.rt.synchronize_stream(0) == 507011
    assert "overwritten while the model was queued" in ready.get_recent_err_msg()


def test_a_gear_of_another_model_is_refused_loudly(ready: Any, batch: Any, net: Make, models: Any) -> None:
    other = net(models.gears("batch", (-1, 3), ((2,), (3,))))
    assert ready.mdl.set_dynamic_batch_size(batch.id, batch.ins, 2, 4) == 0
    assert batch.execute() == 0
    with pytest.raises(emulator.EmulatorError, match=rf"carries gear \[4\], which model {other.id} does not have"):
        ready.mdl.execute(other.id, batch.ins, batch.outs)
    assert ready.mdl.set_dynamic_batch_size(other.id, batch.ins, 2, 3) == 0
    assert ready.mdl.execute(other.id, batch.ins, batch.outs) == 0


def test_undersized_memory_of_a_gear_is_refused_loudly(ready: Any, net: Make, models: Any) -> None:
    one = net(models.batch(), sizes=[12, 48, 4])
    ready.mdl.set_dynamic_batch_size(one.id, one.ins, 2, 1)
    assert one.execute() == 0
    ready.mdl.set_dynamic_batch_size(one.id, one.ins, 2, 4)
    with pytest.raises(emulator.EmulatorError, match="would corrupt memory"):
        one.execute()


def test_gear_models_have_no_tensor_descs_after_a_run(ready: Any, batch: Any) -> None:
    ready.mdl.set_dynamic_batch_size(batch.id, batch.ins, 2, 1)
    assert batch.execute() == 0
    assert ready.mdl.get_dataset_tensor_desc(batch.outs, 0) == 0


def test_shape_description(ready: Any, net: Make, models: Any) -> None:
    ranged = net(models.shape()).desc
    assert ready.mdl.get_num_inputs(ranged) == 1
    assert ready.mdl.get_input_dims(ranged, 0)[0]["dims"] == [-1, 3]
    assert ready.mdl.get_output_dims(ranged, 0)[0]["dims"] == [-1, 3]
    assert ready.mdl.get_input_size_by_index(ranged, 0) == 48
    assert ready.mdl.get_output_size_by_index(ranged, 0) == 48
    assert ready.mdl.get_input_dims_range(ranged, 0) == ({"rangeCount": 2, "range": [[1, 4], [3, 3]]}, 0)
    assert ready.mdl.get_cur_output_dims(ranged, 0) == ({}, 200001)
    free = net(models.shape(None), sizes=[48], out_sizes=[48]).desc
    assert ready.mdl.get_input_size_by_index(free, 0) == 0
    assert ready.mdl.get_output_size_by_index(free, 0) == 0
    unlimited = net(models.shape(((1, -1), (3, 3))), sizes=[48], out_sizes=[48]).desc
    assert ready.mdl.get_input_size_by_index(unlimited, 0) == 0


@pytest.mark.parametrize("asynchronous", [False, True])
def test_shapes(ready: Any, net: Make, models: Any, asynchronous: bool) -> None:
    one = net(models.shape())
    previous = 0
    for size in (1, 3, 4):
        array = data(size, 3)
        one.describe(0, [size, 3])
        one.put(0, array)
        assert (one.execute_async() or ready.rt.synchronize_stream(0)) == 0 if asynchronous else one.execute() == 0
        desc = ready.mdl.get_dataset_tensor_desc(one.outs, 0)
        assert desc not in (0, previous)
        assert ready.get_tensor_desc_num_dims(desc) == 2
        assert ready.get_tensor_desc_dim_v2(desc, 0) == (size, 0)
        assert ready.get_tensor_desc_size(desc) == size * 12
        assert (one.get(0, (size, 3)) == 2 * array).all()
        assert ready.get_data_buffer_size_v2(one.out_bufs[0]) == 48
        if previous:
            with pytest.raises(emulator.EmulatorError, match="is not a tensor description"):
                ready.get_tensor_desc_num_dims(previous)
        previous = desc


def test_dynamic_shape_models_take_both_ways(ready: Any, net: Make, models: Any) -> None:
    one = net(models.shape())
    one.describe(0, [2, 3])
    assert one.execute() == 0
    assert one.execute_async() == 0
    with pytest.raises(emulator.EmulatorError, match="is queued or running on the default stream"):
        one.execute()
    assert ready.rt.synchronize_stream(0) == 0


@pytest.mark.parametrize("dims", [[5, 3], [0, 3], [2, 4], [2, 3, 1]])
def test_shapes_outside_the_range_are_100000(net: Make, models: Any, dims: list[int]) -> None:
    one = net(models.shape(), sizes=[480])
    one.describe(0, dims)
    assert one.execute() == 100000


def test_a_missing_shape_is_100000(ready: Any, net: Make, models: Any) -> None:
    one = net(models.shape())
    assert one.execute() == 100000
    assert "set_dataset_tensor_desc" in ready.get_recent_err_msg()
    one.describe(0, [1, 3])
    assert one.execute() == 0
    assert ready.mdl.set_dataset_tensor_desc(one.ins, 0, 0) == (one.ins, 0)
    assert one.execute() == 100000


def test_an_output_that_does_not_fit(ready: Any, net: Make, models: Any) -> None:
    one = net(models.shape(), out_sizes=[24])
    one.describe(0, [4, 3])
    assert one.execute() == 500002
    assert "needs 48 bytes" in ready.get_recent_err_msg()
    assert one.execute_async() == 0
    assert ready.rt.synchronize_stream(0) == 500002
    assert "needs 48 bytes" in ready.get_recent_err_msg()


def test_empty_output_buffers_of_dynamic_runs(ready: Any, net: Make, models: Any) -> None:
    one = net(models.shape())
    ready.rt.free(one.out_ptrs[0])
    ready.update_data_buffer(one.out_bufs[0], 0, 0)
    array = data(2, 3)
    one.describe(0, [2, 3])
    one.put(0, array)
    assert one.execute_async() == 0
    assert ready.rt.synchronize_stream(0) == 500002
    assert one.execute() == 0
    assert ready.get_data_buffer_size_v2(one.out_bufs[0]) == 24
    assert (one.get(0, (2, 3)) == 2 * array).all()
    assert ready.rt.free(ready.get_data_buffer_addr(one.out_bufs[0])) == 0


def test_shapes_that_depend_on_the_data(ready: Any, net: Make, models: Any) -> None:
    path = models.write(
        "nonzero", [helper.make_node("NonZero", ["a"], ["out"])], [("a", 1, [6])], [("out", 7, [1, "n"])]
    )
    one = net(path, sizes=[24], out_sizes=[48])
    for array in (np.array([0, 1, 0, 2, 0, 0], np.float32), np.ones(6, np.float32), np.zeros(6, np.float32)):
        one.put(0, array)
        assert one.execute() == 0
        desc = ready.mdl.get_dataset_tensor_desc(one.outs, 0)
        count, _ = ready.get_tensor_desc_dim_v2(desc, 1)
        assert count == np.count_nonzero(array)
        if count:
            assert (one.get(0, (1, count), np.int64) == np.nonzero(array)).all()


def test_tensor_descs_of_a_dataset_are_copies(ready: Any, net: Make, models: Any) -> None:
    one = net(models.shape())
    desc = ready.create_tensor_desc(0, [2, 3], 2)
    ready.mdl.set_dataset_tensor_desc(one.ins, desc, 0)
    own = ready.mdl.get_dataset_tensor_desc(one.ins, 0)
    assert own not in (0, desc)
    assert ready.destroy_tensor_desc(desc) is None
    with pytest.raises(emulator.EmulatorError, match="belongs to a dataset"):
        ready.destroy_tensor_desc(own)
    assert ready.mdl.set_dataset_tensor_desc(one.ins, 0, 5) == (one.ins, 100000)
    assert emulator.live()["tensor_descs"] == 0


def test_datasets_and_data_buffers(ready: Any) -> None:
    dataset = ready.mdl.create_dataset()
    buffer = ready.create_data_buffer(0, 0)
    assert ready.mdl.add_dataset_buffer(dataset, buffer) == (dataset, 0)
    assert ready.mdl.add_dataset_buffer(0, buffer) == (0, 100000)
    assert ready.mdl.add_dataset_buffer(dataset, 0) == (dataset, 100000)
    assert ready.mdl.get_dataset_num_buffers(dataset) == 1
    assert ready.mdl.get_dataset_buffer(dataset, 0) == buffer
    assert ready.mdl.get_dataset_buffer(dataset, 1) == 0
    assert ready.update_data_buffer(buffer, 64, 2**33) == 0
    assert ready.get_data_buffer_size_v2(buffer) == 2**33
    assert ready.get_data_buffer_size(buffer) == 0
    assert ready.destroy_data_buffer(buffer) == 0
    assert ready.destroy_data_buffer(0) == 100000
    assert ready.mdl.destroy_dataset(dataset) == 0
    assert ready.mdl.destroy_dataset(0) == 100000
    with pytest.raises(emulator.EmulatorError, match="is not a dataset"):
        ready.mdl.get_dataset_num_buffers(dataset)
    with pytest.raises(emulator.EmulatorError, match="is not a data buffer"):
        ready.get_data_buffer_addr(buffer)
