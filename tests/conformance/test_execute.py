"""Executing static models: checks, mixing, memory, aliasing, data types."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from aioais import emulator

Make = Callable[..., Any]
ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_execute(net: Make, models: Any) -> None:
    one = net(models.add())
    one.put(0, ARRAY)
    one.put(1, ARRAY)
    assert one.execute() == 0
    assert (one.get(0, (2, 3)) == 2 * ARRAY).all()
    one.close()
    assert emulator.leaks() == {"devices": 1}


def test_execute_async_reads_and_writes_late(ready: Any, net: Make, models: Any) -> None:
    one = net(models.add())
    one.put(0, ARRAY)
    one.put(1, ARRAY)
    assert one.execute_async() == 0
    one.put(1, 3 * ARRAY)
    assert not (one.get(0, (2, 3)) == 2 * ARRAY).any()
    assert ready.rt.synchronize_stream(0) == 0
    assert (one.get(0, (2, 3)) == 4 * ARRAY).all()


def test_addresses_are_taken_at_submission(ready: Any, net: Make, models: Any) -> None:
    one = net(models.add())
    one.put(0, ARRAY)
    one.put(1, ARRAY)
    assert one.execute_async() == 0
    other, _ = ready.rt.malloc(24, 2)
    assert ready.update_data_buffer(one.out_bufs[0], other, 24) == 0
    assert ready.rt.synchronize_stream(0) == 0
    back = np.empty((2, 3), np.float32)
    assert ready.rt.memcpy(back.ctypes.data, 24, one.out_ptrs[0], 24, 2) == 0
    assert (back == 2 * ARRAY).all()


def test_mixing_is_refused_until_unload(ready: Any, net: Make, models: Any) -> None:
    one, two = net(models.add()), net(models.add())
    assert one.execute() == 0
    assert one.execute_async() == 500002
    assert two.execute_async() == 0
    assert two.execute() == 500002
    ready.rt.synchronize_stream(0)


def test_null_datasets_and_wrong_counts(ready: Any, net: Make, models: Any) -> None:
    one = net(models.add())
    assert ready.mdl.execute(one.id, 0, one.outs) == 100000
    assert ready.mdl.execute(one.id, one.ins, 0) == 100000
    assert ready.mdl.execute(one.id, one.outs, one.outs) == 145000
    assert ready.mdl.execute(one.id + 99, one.ins, one.outs) == 145003


@pytest.mark.parametrize(("size", "code"), [(100, 500002), (335, 500002), (336, 0), (400, 0), (4000, 0)])
def test_buffer_sizes(net: Make, models: Any, size: int, code: int) -> None:
    """A shortfall of at most 64 bytes passes, more is 500002; larger is fine. The model needs 400."""
    one = net(models.add((100,)), sizes=[400, size])
    assert one.execute() == code


def test_another_context_is_107004(ready: Any, net: Make, models: Any) -> None:
    one = net(models.add())
    ready.rt.create_context(0)
    assert one.execute() == 107004
    assert one.execute_async() == 107004


def test_host_memory_is_refused(ready: Any, net: Make, models: Any) -> None:
    one = net(models.add())
    host, _ = ready.rt.malloc_host(24)
    ready.update_data_buffer(one.in_bufs[0], host, 24)
    assert one.execute() == 500002
    assert "host memory" in ready.get_recent_err_msg()


def test_freed_memory_and_destroyed_buffers_are_refused_loudly(ready: Any, net: Make, models: Any) -> None:
    one, two = net(models.add()), net(models.add())
    ready.rt.free(one.in_ptrs[0])
    with pytest.raises(emulator.EmulatorError, match="already freed"):
        one.execute()
    ready.destroy_data_buffer(two.out_bufs[0])
    with pytest.raises(emulator.EmulatorError, match="was destroyed"):
        two.execute()


def test_a_buffer_that_claims_too_much(ready: Any, net: Make, models: Any) -> None:
    one = net(models.add((100,)))
    ready.update_data_buffer(one.in_bufs[0], one.in_ptrs[0], 4000)
    with pytest.raises(emulator.EmulatorError, match="claims 4000 bytes"):
        one.execute()


def test_memory_freed_while_queued(ready: Any, net: Make, models: Any) -> None:
    one = net(models.add())
    assert one.execute_async() == 0
    ready.rt.free(one.in_ptrs[0])
    assert ready.rt.synchronize_stream(0) == 507011
    assert "freed before the model ran" in ready.get_recent_err_msg()


def test_empty_output_buffers_get_memory_in_synchronous_calls(ready: Any, net: Make, models: Any) -> None:
    one = net(models.add())
    ready.update_data_buffer(one.out_bufs[0], 0, 0)
    one.put(0, ARRAY)
    one.put(1, ARRAY)
    assert one.execute() == 0
    assert ready.get_data_buffer_size_v2(one.out_bufs[0]) == 24
    assert (one.get(0, (2, 3)) == 2 * ARRAY).all()
    address = ready.get_data_buffer_addr(one.out_bufs[0])
    assert one.execute() == 0
    assert ready.get_data_buffer_addr(one.out_bufs[0]) == address
    assert ready.rt.free(address) == 0


def test_empty_output_buffers_get_none_in_asynchronous_calls(ready: Any, net: Make, models: Any) -> None:
    one = net(models.add())
    ready.update_data_buffer(one.out_bufs[0], 0, 0)
    assert one.execute_async() == 500002


def test_one_model_in_two_threads_is_refused_loudly(ready: Any, net: Make, models: Any) -> None:
    """The first thread stands inside the model (its guard is held), the second one comes."""
    from aioais.emulator.model import models as models_of_acl

    one = net(models.add())
    with models_of_acl[one.id].guard, pytest.raises(emulator.EmulatorError, match="two threads at once"):
        one.execute()


def test_a_model_that_fails_on_the_device(ready: Any, net: Make, models: Any) -> None:
    path = models.write(
        "gather",
        [helper.make_node("Gather", ["a", "i"], ["out"])],
        [("a", 1, [4]), ("i", 7, [1])],
        [("out", 1, [1])],
    )
    one, two = net(path), net(path)
    for each in (one, two):
        each.put(0, np.zeros(4, np.float32))
        each.put(1, np.array([99], np.int64))
    assert one.execute() == 507011
    assert "out of data bounds" in ready.get_recent_err_msg()
    assert two.execute_async() == 0
    assert ready.rt.synchronize_stream(0) == 507011
    two.put(1, np.array([1], np.int64))
    assert two.execute_async() == 0
    assert ready.rt.synchronize_stream(0) == 0


def test_outputs_that_share_memory_with_inputs(ready: Any, net: Make, models: Any) -> None:
    path = models.write(
        "matmul",
        [helper.make_node("MatMul", ["a", "b"], ["out"])],
        [("a", 1, [8, 8]), ("b", 1, [8, 8])],
        [("out", 1, [8, 8])],
    )
    one = net(path)
    left, right = np.random.default_rng(0).random((2, 8, 8), np.float32)
    one.put(0, left)
    one.put(1, right)
    ready.update_data_buffer(one.out_bufs[0], one.in_ptrs[0], 256)
    assert one.execute() == 0
    assert np.allclose(one.get(0, (8, 8)), left @ right, atol=1e-5)


def test_one_block_for_two_inputs(ready: Any, net: Make, models: Any) -> None:
    one = net(models.add())
    ready.update_data_buffer(one.in_bufs[1], one.in_ptrs[0], 24)
    one.put(0, ARRAY)
    assert one.execute() == 0
    assert (one.get(0, (2, 3)) == 2 * ARRAY).all()


def test_outputs_that_are_inputs_or_constants_of_the_graph(net: Make, models: Any) -> None:
    path = models.write(
        "through",
        [helper.make_node("Add", ["a", "a"], ["out"]), helper.make_node("Identity", ["out"], ["same"])],
        [("a", 1, [4])],
        [("out", 1, [4]), ("a", 1, [4]), ("k", 1, [2]), ("same", 1, [4])],
        initializers=[helper.make_tensor("k", 1, [2], [5, 6])],
    )
    one = net(path)
    for start in (0, 4):
        array = np.arange(start, start + 4, dtype=np.float32)
        one.put(0, array)
        assert one.execute() == 0
        assert (one.get(0, (4,)) == 2 * array).all()
        assert (one.get(1, (4,)) == array).all()
        assert (one.get(2, (2,)) == [5, 6]).all()
        assert (one.get(3, (4,)) == 2 * array).all()


DTYPES = [
    (TensorProto.FLOAT, np.float32, 0),
    (TensorProto.FLOAT16, np.float16, 1),
    (TensorProto.INT8, np.int8, 2),
    (TensorProto.INT32, np.int32, 3),
    (TensorProto.UINT8, np.uint8, 4),
    (TensorProto.INT16, np.int16, 6),
    (TensorProto.UINT16, np.uint16, 7),
    (TensorProto.UINT32, np.uint32, 8),
    (TensorProto.INT64, np.int64, 9),
    (TensorProto.UINT64, np.uint64, 10),
    (TensorProto.DOUBLE, np.float64, 11),
    (TensorProto.BOOL, np.bool_, 12),
    (TensorProto.BFLOAT16, ml_dtypes.bfloat16, 27),
]


@pytest.mark.parametrize(("element", "dtype", "number"), DTYPES, ids=[str(n) for _, _, n in DTYPES])
def test_data_types(ready: Any, net: Make, models: Any, element: int, dtype: Any, number: int) -> None:
    path = models.write(
        f"same{number}", [helper.make_node("Identity", ["a"], ["out"])], [("a", element, [8])], [("out", element, [8])]
    )
    one = net(path)
    assert ready.mdl.get_input_data_type(one.desc, 0) == number
    array = np.array([0, 1, 1, 0, 1, 0, 1, 1]).astype(dtype)
    assert ready.mdl.get_input_size_by_index(one.desc, 0) == array.nbytes
    one.put(0, array)
    assert one.execute() == 0
    assert one.get(0, (8,), dtype).tobytes() == array.tobytes()


def test_repeated_runs_reuse_their_binding(ready: Any, net: Make, models: Any) -> None:
    from aioais.emulator.model import models as models_of_acl

    one = net(models.add())
    for _ in range(10):
        one.execute_async()
    ready.rt.synchronize_stream(0)
    model = models_of_acl[one.id]
    assert len(model.bindings) == len(model.plans) == 1


def test_memory_that_changes_places_needs_no_new_plan(ready: Any, net: Make, models: Any) -> None:
    from aioais.emulator.model import models as models_of_acl

    one = net(models.add())
    model, places = models_of_acl[one.id], one.in_ptrs + one.out_ptrs
    for index in range(2):
        one.put(index, ARRAY)
    found = []
    for turn in range(6):  # the output is the first input of the next run
        given, taken = (places[0], places[2])[:: 1 if turn % 2 else -1]
        assert one.execute_async() == 0
        assert ready.rt.synchronize_stream(0) == 0
        (plan,) = model.plans.values()
        found.append(plan)
        assert (one.get(0, (2, 3)) == (turn + 2) * ARRAY).all()
        for buffer, pointer in ((one.in_bufs[0], given), (one.out_bufs[0], taken)):
            assert ready.update_data_buffer(buffer, pointer, 24) == 0
    assert found[0::2] == [found[0]] * 3
    assert found[1::2] == [found[1]] * 3
    assert found[0] is not found[1]
    assert ready.rt.free(places[1]) == 0
    with pytest.raises(emulator.EmulatorError, match="already freed"):
        one.execute_async()


def test_an_earlier_plan_is_not_used_with_a_data_buffer_that_was_destroyed(ready: Any, net: Make, models: Any) -> None:
    one = net(models.add())
    other, _ = ready.rt.malloc(24, 2)
    for pointer in (one.in_ptrs[0], other, one.in_ptrs[0]):
        assert ready.update_data_buffer(one.in_bufs[0], pointer, 24) == 0
        assert one.execute_async() == 0
    assert ready.rt.synchronize_stream(0) == 0
    assert ready.destroy_data_buffer(one.in_bufs[0]) == 0
    with pytest.raises(emulator.EmulatorError, match="was destroyed"):
        one.execute_async()


def test_dynamic_outputs_that_depend_on_values(ready: Any, net: Make, models: Any) -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["places"])]
    path = models.write("places", nodes, [("x", TensorProto.FLOAT, ["n"])], [("places", TensorProto.INT64, [1, "m"])])
    one = net(path, sizes=[32], out_sizes=[24])
    one.describe(0, [8])

    def run(count: int) -> int:
        one.put(0, (np.arange(8) < count).astype(np.float32))
        assert one.execute_async() == 0
        code: int = ready.rt.synchronize_stream(0)
        return code

    for count in (3, 3, 1, 1, 2, 0, 3):
        assert run(count) == 0
        desc = ready.mdl.get_dataset_tensor_desc(one.outs, 0)
        assert ready.get_tensor_desc_dim_v2(desc, 1) == (count, 0)
        assert one.get(0, (count,), np.int64).tolist() == list(range(count))
    assert run(4) == 500002
    assert run(2) == 0
    assert one.get(0, (2,), np.int64).tolist() == [0, 1]


@pytest.mark.parametrize("count", [1, 3])
def test_dynamic_outputs_that_outgrow_their_memory(ready: Any, net: Make, models: Any, count: int) -> None:
    """However often the run before had outputs that fitted."""
    nodes = [helper.make_node("NonZero", ["x"], ["places"])]
    path = models.write("places", nodes, [("x", TensorProto.FLOAT, ["n"])], [("places", TensorProto.INT64, [1, "m"])])
    one = net(path, sizes=[32], out_sizes=[24])
    one.describe(0, [8])
    for _ in range(count):
        one.put(0, np.array([1, 1, 1, 0, 0, 0, 0, 0], np.float32))
        assert one.execute_async() == 0
        assert ready.rt.synchronize_stream(0) == 0
    one.put(0, np.ones(8, np.float32))
    assert one.execute_async() == 0
    assert ready.rt.synchronize_stream(0) == 500002
    assert "needs 64 bytes" in ready.get_recent_err_msg()
    assert one.get(0, (3,), np.int64).tolist() == [0, 1, 2], "nothing was written"


def test_two_models_run_in_two_threads(ready: Any, net: Make, models: Any) -> None:
    context, _ = ready.rt.get_context()
    nets = [net(models.add()) for _ in range(2)]
    wrong: list[Any] = []

    def work(one: Any) -> None:
        ready.rt.set_context(context)
        stream, _ = ready.rt.create_stream()
        for i in range(50):
            one.put(0, ARRAY + i)
            one.put(1, ARRAY)
            code = one.execute_async(stream) or ready.rt.synchronize_stream(stream)
            if code or not (one.get(0, (2, 3)) == 2 * ARRAY + i).all():
                wrong.append((i, code))

    threads = [threading.Thread(target=work, args=(one,)) for one in nets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []


def test_execute_v2_needs_a_configuration(ready: Any, net: Make, models: Any) -> None:
    one = net(models.add())
    assert ready.mdl.execute_v2(one.id, one.ins, one.outs, 0, 0) == 100000
    config = ready.mdl.create_exec_config_handle()
    assert ready.mdl.set_exec_config_opt(config, 0, 1000) == 0
    assert ready.mdl.set_exec_config_opt(config, 2, 1) == 100000
    assert ready.mdl.execute_v2(one.id, one.ins, one.outs, 0, config) == 0
    assert ready.mdl.destroy_exec_config_handle(config) == 0
