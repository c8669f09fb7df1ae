"""Blocking sessions: what ais_bench takes and returns."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import aioais
from aioais.compat import aclruntime
from aioais.compat.ais_bench import InferSession, MemorySummary, MultiDeviceSession

if TYPE_CHECKING:
    from tests.unit.conftest import Models

SHAPE = (1, 3, 4, 4)


def ramp(shape: tuple[int, ...] = SHAPE) -> Any:
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape)


@pytest.fixture
def session(models: Models) -> Iterator[InferSession]:
    with InferSession(0, models.subtract(SHAPE, SHAPE, SHAPE)) as opened:
        yield opened


def test_attributes(session: InferSession) -> None:
    assert (session.device_id, session.loop, session.debug, session.acl_json_path) == (0, 1, False, None)
    assert session.outputs_names == ["c"]
    assert list(session.infer_mode_switch) == ["static", "dymbatch", "dymhw", "dymdims", "dymshape"]
    assert "dtype.float32" in str(session.session)
    assert isinstance(session.aio, aioais.InferSession)


def test_descriptions(session: InferSession) -> None:
    first, second = session.get_inputs()
    assert session.intensors_desc[0] is first
    assert (first.name, first.shape, first.size, first.realsize) == ("a", list(SHAPE), 192, 192)
    assert first.datatype == aclruntime.dtype.float32
    assert (str(first.datatype), int(first.datatype), f"{first.datatype}") == ("dtype.float32", 0, "dtype.float32")
    assert first.datatype.numpy == np.float32
    assert type(first.format) is int
    second.name = "changed"  # the caller's own
    assert session.get_inputs()[1].name == "b"
    assert [desc.name for desc in session.get_outputs()] == ["c"]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.view(np.uint8),
        lambda x: x.reshape(-1),
        lambda x: x.astype(np.float32).view(np.float64),
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, axis=3)[..., ::2],
        lambda x: bytearray(x.tobytes()),
        lambda x: aclruntime.Tensor(x),
        lambda x: aclruntime.BaseTensor(x.__array_interface__["data"][0], x.nbytes),
    ],
)
def test_only_the_bytes_of_a_feed_count(session: InferSession, change: Any) -> None:
    x, one = ramp(), np.ones(SHAPE, np.float32)
    (output,) = session.infer([change(x), one])
    np.testing.assert_array_equal(output, x - one)


def test_containers_of_feeds(session: InferSession, models: Models) -> None:
    x, one = ramp(), np.ones(SHAPE, np.float32)
    for feeds in ((x, one), iter([x, one]), {"b": one, "a": x}):
        np.testing.assert_array_equal(session.infer(feeds)[0], x - one)
    with InferSession(0, models.identity((1, 4))) as bare:  # an array is its rows
        np.testing.assert_array_equal(bare.infer(np.ones((1, 4), np.float32))[0], np.ones((1, 4), np.float32))
    for wrong in (None, 3):
        with pytest.raises(TypeError):
            session.infer(wrong)


def test_scalars(models: Models) -> None:
    with InferSession(0, models.identity((1,), name="one")) as one:
        assert one.infer([np.float32(3)])[0].tolist() == [3.0]


def test_outputs_are_the_callers(session: InferSession) -> None:
    (output,) = session.infer([ramp(), ramp()])
    output += 1
    assert output.flags.c_contiguous


def test_outputs_on_the_device(session: InferSession) -> None:
    x, one = ramp(), np.ones(SHAPE, np.float32)
    outputs = session.infer([x, one], out_array=False)
    (tensor,) = outputs
    assert (tensor.type, tensor.device) == (aclruntime.memory_device, 0)
    assert (tensor.shape, tensor.dtype) == (list(SHAPE), aclruntime.dtype.float32)
    with pytest.raises(RuntimeError, match="call to_host"):
        np.array(tensor)
    np.testing.assert_array_equal(session.infer([tensor, one])[0], x - one - one)
    session.convert_tensors_to_host(outputs)
    assert tensor.device == -1
    (array,) = session.convert_tensors_to_arrays(outputs)
    np.testing.assert_array_equal(array, x - one)
    array += 1
    assert not np.shares_memory(np.asarray(tensor), array)


def test_run_takes_arrays_tensors_and_names(session: InferSession) -> None:
    x, one = ramp(), np.ones(SHAPE, np.float32)
    there = session.create_tensor_from_arrays_to_device(x)
    ones = session.create_tensor_from_arrays_to_device(one)
    for feeds in ([x, one], [there, ones], {"b": ones, "a": there}):
        outputs = session.run(feeds)
        session.convert_tensors_to_host(outputs)
        np.testing.assert_array_equal(np.array(outputs[0]), x - one)
        np.testing.assert_array_equal(session.run(feeds, out_array=True)[0], x - one)


def test_tensors_outlive_their_session(models: Models) -> None:
    with InferSession(0, models.identity(SHAPE)) as session:
        (tensor,) = session.infer([ramp()], out_array=False)
    tensor.to_host()
    np.testing.assert_array_equal(np.array(tensor), ramp())
    with pytest.raises(RuntimeError, match="open a session there"):
        tensor.to_device(0)


def test_a_mode_that_is_set_holds_for_run(models: Models) -> None:
    with InferSession(0, models.add_in("dymbatch", (1, 4))) as session:
        assert session.get_max_dym_batchsize() == 4
        assert session.get_inputs()[0].realsize == 64
        session.set_dynamic_batchsize(2)
        assert session.get_inputs()[0].realsize == 32
        flat = np.arange(8, dtype=np.float32)
        (output,) = session.run([flat, flat.view(np.uint8)], out_array=True)
        np.testing.assert_array_equal(output, (flat + flat).reshape(2, 4))
        session.set_staticbatch()
        assert session.run([np.zeros(16, np.float32)] * 2, out_array=True)[0].shape == (4, 4)
        one = np.ones((1, 4), np.float32)
        assert session.infer([one, one], "dymbatch")[0].shape == (1, 4)
        assert session.run([one, one], out_array=True)[0].shape == (1, 4), "the mode of the call before"
        with pytest.raises(RuntimeError, match=r"got batch size 3; expected one of its gears 1, 2, 4"):
            session.set_dynamic_batchsize(3)
        with pytest.raises(RuntimeError, match="expected 'static'"):
            session.infer([one, one], "nothing")
        assert session.run([one, one], out_array=True)[0].shape == (1, 4), "a call that failed has set nothing"
        with pytest.raises(RuntimeError, match="image size"):
            session.set_dynamic_hw(2, 2)


def test_image_sizes_are_height_first(models: Models) -> None:
    path = models.add([1, 3, "h", "w"])
    spec = "input1:1,3,-1,-1;input2:1,3,-1,-1"
    path = models.convert(path, "hw", input_shape=spec, dynamic_image_size="2,8;8,2")
    with InferSession(0, path) as session:
        session.set_dynamic_hw(2, 8)
        flat = np.zeros(48, np.float32)
        assert session.run([flat, flat], out_array=True)[0].shape == (1, 3, 2, 8)
        session.set_dynamic_hw(8, 2)
        tensor = session.create_tensor_from_arrays_to_device(flat)
        assert session.run([tensor, tensor], out_array=True)[0].shape == (1, 3, 8, 2)
        assert session.infer([ramp((1, 3, 2, 8))] * 2, "dymhw")[0].shape == (1, 3, 2, 8)


def test_dims_and_shapes_that_are_set(models: Models) -> None:
    path = models.add(["n", "c"])
    gears = models.convert(path, "dims", input_shape="input1:-1,-1;input2:-1,-1", dynamic_dims="1,2,1,2;3,4,3,4")
    with InferSession(0, gears) as session:
        session.set_dynamic_dims("input2:3,4;input1:3,4")
        assert session.run([np.zeros(12, np.float32)] * 2, out_array=True)[0].shape == (3, 4)
        for wrong in ("input1:3,3;input2:3,3", "input1:3,4", "nonsense", "input1:3,x;input2:3,4"):
            with pytest.raises(RuntimeError, match="expected"):
                session.set_dynamic_dims(wrong)
    with InferSession(0, path) as session:
        session.set_dynamic_shape("input1:2,5;input2:2,5")
        assert [desc.realsize for desc in session.get_inputs()] == [40, 40]
        session.set_custom_outsize([4])
        assert session.run([np.zeros(10, np.float32)] * 2, out_array=True)[0].shape == (2, 5)
        session.infer_mode_switch["dymshape"]([[1, 2], [1, 2]], 100)
        assert session.run([np.zeros(2, np.float32)] * 2, out_array=True)[0].shape == (1, 2)


@pytest.mark.parametrize("sizes", [100000, 4, [4], [4, 5, 6], [], (64,), np.int64(64), True])
def test_sizes_of_outputs(models: Models, sizes: Any) -> None:
    with InferSession(0, models.add(["n", "c"])) as session:
        x = ramp((3, 5))
        np.testing.assert_array_equal(session.infer([x, x], "dymshape", sizes)[0], x + x)
        for wrong in (None, "1", 1.5):
            with pytest.raises(RuntimeError, match="expected an int, or a list"):
                session.infer([x, x], "dymshape", wrong)


def test_sizes_are_ignored_elsewhere(session: InferSession) -> None:
    session.infer([ramp(), ramp()], "static", custom_sizes=None)


def test_an_iteration_by_hand(session: InferSession) -> None:
    x, one = ramp(), np.ones(SHAPE, np.float32)
    assert session.first_inner_run([x, one]) == []
    assert session.inner_run([0, -1]) is None
    outputs = session.inner_run([0, -1], get_outputs=True, mem_copy=False)
    assert outputs is not None
    session.convert_tensors_to_host(outputs)
    np.testing.assert_array_equal(np.array(outputs[0]), x - 3)
    np.testing.assert_array_equal(session.infer_iteration([x, one], [0, -1], 3)[0], x - 3)
    np.testing.assert_array_equal(session.infer_iteration([x, one], [0, -5], 3, mem_copy=False)[0], x - 3)
    with pytest.raises(RuntimeError, match="expected -1 or an output"):
        session.inner_run([1, -1])


def test_times_of_all_releases(session: InferSession) -> None:
    for _ in range(3):
        session.infer([ramp(), ramp()])
    summary = session.summary()
    times: Any = summary.exec_time_list
    assert isinstance(times, list)
    assert len(times) == summary.count == len(summary) == 3
    assert np.mean(times) == pytest.approx(summary.mean)
    assert sum(times) == pytest.approx(summary.total)
    assert times[-1] == pytest.approx(list.__getitem__(times, 2))
    assert [end - start for start, end in times] == pytest.approx([float(ms) for ms in times])
    assert times[1][0] == pytest.approx(times[0][1])
    assert len(times[-1]) == 2
    assert [float(ms) for ms in times[1:]] == [float(ms) for ms in list(times)[1:]]
    assert json.loads(json.dumps(times)) == pytest.approx([float(ms) for ms in times])
    assert "3 executions" in repr(session.sumary())
    session.reset_sumaryinfo()
    assert session.summary().exec_time_list == []
    with pytest.raises(IndexError):
        session.summary().exec_time_list[-1]


def test_copy_times(session: InferSession) -> None:
    MemorySummary.reset()
    session.infer([ramp(), ramp()])
    assert len(MemorySummary.get_h2d_time_list()) == len(MemorySummary.get_H2D_time_list()) == 2
    assert len(MemorySummary.get_d2h_time_list()) == len(MemorySummary.get_D2H_time_list()) == 1


def test_loop(models: Models) -> None:
    with InferSession(0, models.identity((1, 4)), loop=3) as session:
        session.infer([np.zeros((1, 4), np.float32)])
        assert len(session.summary().exec_time_list) == 3
        session.set_loop_count(3)
        with pytest.raises(RuntimeError, match="open another session"):
            session.set_loop_count(1)


def test_a_pipeline_takes_any_iterable(session: InferSession) -> None:
    results = session.infer_pipeline(([ramp() + k, ramp()] for k in range(5)), "static")
    assert [outputs[0].min() for outputs in results] == [0, 1, 2, 3, 4]
    assert session.infer_pipeline([]) == []


def test_freeing_is_final_and_repeatable(models: Models) -> None:
    session = InferSession(0, models.identity((1, 4)))
    session.infer([np.zeros((1, 4), np.float32)])
    session.free_resource()
    session.free_resource()
    assert len(session.summary().exec_time_list) == 1
    with pytest.raises(RuntimeError, match="closed"):
        session.infer([np.zeros((1, 4), np.float32)])
    with pytest.raises(RuntimeError, match="closed"):
        session.infer_pipeline([])


def test_finalize_ends_all_and_lets_begin_again(models: Models) -> None:
    path = models.identity((1, 4))
    x = np.ones((1, 4), np.float32)
    first, second = InferSession(0, path), aclruntime.InferenceSession(path, 1)
    InferSession.finalize()
    InferSession.finalize()
    with pytest.raises(RuntimeError):
        first.infer([x])
    first.free_resource()
    second.free_resource()
    with InferSession(0, path) as again:
        np.testing.assert_array_equal(again.infer([x])[0], x)
    again.session.finalize()


def test_several_devices(models: Models) -> None:
    session = MultiDeviceSession(models.add((1, 4)))
    assert session.summary == {}
    x = np.ones((1, 4), np.float32)
    tensor = aclruntime.Tensor(x)
    results = session.infer(devices_feeds={0: [[x, x], [tensor, x]], 1: [[x, x]]})
    assert {device: [lane[0].tolist() for lane in lanes] for device, lanes in results.items()} == {
        0: [[[2.0] * 4]] * 2,
        1: [[[2.0] * 4]],
    }
    assert {device: len(times) for device, times in session.summary().items()} == {0: 2, 1: 1}
    assert session.summary[0] == session.summary()[0]
    assert session.infer_iteration({0: [[x, x]]}, [-1, 0], 4)[0][0][0].tolist() == [[5.0] * 4]
    assert len(session.infer_pipeline({1: [[[x, x]] * 3]})[1][0]) == 3
    with pytest.raises(RuntimeError, match="input 'input2'"):
        session.infer({0: [[x, x], [x, x[:, :2]]]})
    for wrong in (None, 3):
        with pytest.raises((TypeError, RuntimeError)):
            session.infer(wrong)
    with pytest.raises(TypeError, match="unexpected"):
        session.infer({0: [[x, x]]}, nothing=1)
    session.free_resource()
    session.free_resource()
    assert session.infer({0: [[x, x]]})[0][0][0].tolist() == [[2.0] * 4]
    del session  # closed without a word, as ais_bench has none for it


def test_removed_members_say_what_to_use(session: InferSession) -> None:
    assert session.get_dym_aipp_input_exist() == 0
    with pytest.raises(RuntimeError, match="AIPP"):
        session.check_dym_aipp_input_exist()
    with pytest.raises(AttributeError, match="aioais bench"):
        session.run_pipeline  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        session.nothing  # noqa: B018
    with pytest.raises(AttributeError, match="it has BaseTensor"):
        aclruntime.nothing  # noqa: B018


def test_every_error_is_a_runtime_error_and_one_of_ours(models: Models, tmp_path: Path) -> None:
    path = models.identity((1, 4))
    wrong: list[tuple[type[aioais.AioaisError], tuple[Any, ...]]] = [
        (aioais.ModelError, (0, str(tmp_path / "none.onnx"))),
        (aioais.ModelError, (0, "model.bin")),
        (aioais.DeviceError, (77, path)),
        (aioais.DeviceError, (-1, path)),
        (aioais.ArgumentError, (0, 3)),
        (aioais.ArgumentError, (0, path, None, False, 0)),
    ]
    for kind, arguments in wrong:
        with pytest.raises(kind) as caught:
            InferSession(*arguments)
        assert isinstance(caught.value, RuntimeError)
    with InferSession(0, path) as session:
        with pytest.raises(RuntimeError) as failed:
            session.infer_pipeline([[np.zeros((1, 4), np.float32)], [np.zeros(3, np.float32)]])
        assert isinstance(failed.value, aioais.FeedError)
        assert "item 1 of the source" in getattr(failed.value, "__notes__", ())
