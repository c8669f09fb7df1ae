"""Models: loading, descriptions, unloading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from aioais import emulator


def test_load_needs_init(acl: Any, models: Any) -> None:
    assert acl.mdl.load_from_file(models.add()) == (0, 145001)


def test_missing_file_is_145002(ready: Any, tmp_path: Path) -> None:
    assert ready.mdl.load_from_file(str(tmp_path / "none.onnx")) == (0, 145002)
    assert ready.mdl.load_from_file(str(tmp_path)) == (0, 145002)


@pytest.mark.parametrize("content", [b"", b"hello world" * 10])
def test_what_is_no_model_is_145006(ready: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    assert ready.mdl.load_from_file(str(path)) == (0, 145006)
    assert str(path) in ready.get_recent_err_msg()


def test_an_offline_model_is_refused_with_a_clear_text(ready: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.om"
    path.write_bytes(b"IMOD" + bytes(300))
    assert ready.mdl.load_from_file(str(path)) == (0, 545001)
    assert "offline model (.om) for an Ascend NPU" in ready.get_recent_err_msg()


def test_string_tensors_are_refused(ready: Any, models: Any) -> None:
    path = models.write(
        "text",
        [helper.make_node("Identity", ["a"], ["out"])],
        [("a", TensorProto.STRING, [2])],
        [("out", TensorProto.STRING, [2])],
    )
    assert ready.mdl.load_from_file(path) == (0, 145022)
    assert "tensor(string)" in ready.get_recent_err_msg()


def test_damaged_metadata_are_refused(ready: Any, models: Any) -> None:
    import onnx

    path = models.add()
    model = onnx.load(path)
    helper.set_model_props(model, {"aioais.model": "{"})
    Path(path).write_bytes(model.SerializeToString())
    assert ready.mdl.load_from_file(path) == (0, 545001)
    assert "not JSON" in ready.get_recent_err_msg()


def test_every_load_gives_an_id_of_its_own(ready: Any, models: Any) -> None:
    path = models.add()
    ids = {ready.mdl.load_from_file(path)[0] for _ in range(3)}
    assert len(ids) == 3
    assert 0 not in ids


def test_load_from_memory(ready: Any, models: Any) -> None:
    content = Path(models.add()).read_bytes()
    pointer = ready.util.bytes_to_ptr(content)
    model, code = ready.mdl.load_from_mem(pointer, len(content))
    assert code == 0
    assert ready.mdl.unload(model) == 0
    assert ready.mdl.load_from_mem(0, 8) == (0, 145007)
    assert ready.mdl.load_from_mem(pointer, 0) == (0, 100000)
    block, _ = ready.rt.malloc(64, 2)
    with pytest.raises(emulator.EmulatorError, match="read from host memory"):
        ready.mdl.load_from_mem(block, 64)


def test_load_with_own_memory_and_query_size(ready: Any, models: Any) -> None:
    path = models.add()
    work, weight, code = ready.mdl.query_size(path)
    assert code == 0
    block, _ = ready.rt.malloc(work, 2)
    weights, _ = ready.rt.malloc(weight, 2)
    assert ready.mdl.load_from_file_with_mem(path, block, work, weights, weight)[1] == 0
    assert ready.mdl.load_from_file_with_mem(path, 8, work, weights, weight) == (0, 245002)
    assert ready.mdl.query_size(path + "x") == (0, 0, 145002)


def test_load_with_config(ready: Any, models: Any) -> None:
    config = ready.mdl.create_config_handle()
    assert ready.mdl.load_with_config(config) == (0, 100000)
    assert ready.mdl.set_config_opt(config, 1, 1) == 0
    assert ready.mdl.set_config_opt(config, 2, models.add()) == 0
    with pytest.raises(TypeError):
        ready.mdl.set_config_opt(config, 2, 7)
    assert ready.mdl.load_with_config(config)[1] == 0
    assert ready.mdl.destroy_config_handle(config) == 0


def test_bundles(ready: Any, models: Any) -> None:
    bundle, code = ready.mdl.bundle_load_from_file(models.add())
    assert code == 0
    assert ready.mdl.bundle_get_model_num(bundle) == (1, 0)
    inner, code = ready.mdl.bundle_get_model_id(bundle, 0)
    assert code == 0
    assert ready.mdl.unload(inner) == 100000
    assert ready.mdl.bundle_unload(bundle) == 0
    assert ready.mdl.bundle_unload(bundle) == 148053


def test_unload(ready: Any, net: Callable[..., Any], models: Any) -> None:
    one = net(models.add())
    stream, _ = ready.rt.create_stream()
    assert one.execute_async(stream) == 0
    assert ready.mdl.unload(one.id) == 107037
    ready.rt.synchronize_stream(stream)
    assert ready.mdl.unload(one.id) == 0
    assert ready.mdl.unload(one.id) == 145003
    assert one.execute() == 145003
    assert ready.mdl.get_desc(one.desc, one.id) == 145003


def test_static_description(ready: Any, net: Callable[..., Any], models: Any) -> None:
    desc = net(models.add((2, 3))).desc
    mdl = ready.mdl
    assert (mdl.get_num_inputs(desc), mdl.get_num_outputs(desc)) == (2, 1)
    assert mdl.get_input_name_by_index(desc, 1) == "b"
    assert mdl.get_output_name_by_index(desc, 0) == "out"
    assert mdl.get_input_size_by_index(desc, 0) == mdl.get_output_size_by_index(desc, 0) == 24
    assert mdl.get_input_data_type(desc, 0) == mdl.get_output_data_type(desc, 0) == 0
    assert mdl.get_input_format(desc, 0) == 2
    assert mdl.get_input_dims(desc, 0) == ({"name": "a", "dimCount": 2, "dims": [2, 3]}, 0)
    assert mdl.get_input_dims_v2(desc, 0) == mdl.get_input_dims(desc, 0)
    assert mdl.get_output_dims(desc, 0) == ({"name": "out", "dimCount": 2, "dims": [2, 3]}, 0)
    assert mdl.get_cur_output_dims(desc, 0) == mdl.get_output_dims(desc, 0)
    assert mdl.get_input_index_by_name(desc, "b") == (1, 0)
    assert mdl.get_output_index_by_name(desc, "out") == (0, 0)
    assert mdl.get_input_dims_range(desc, 0) == ({"rangeCount": 2, "range": [[2, 2], [3, 3]]}, 0)
    assert mdl.get_dynamic_batch(desc) == ({"batchCount": 0, "batch": []}, 0)
    assert mdl.get_dynamic_hw(desc, -1) == ({"hwCount": 0, "hw": []}, 0)
    assert mdl.get_input_dynamic_gear_count(desc, -1) == (0, 0)
    assert mdl.get_tensor_real_name(desc, "a") == "a"
    assert mdl.get_tensor_real_name(desc, "zz") is None


def test_bad_indexes_and_null_descriptions(ready: Any, net: Callable[..., Any], models: Any) -> None:
    good = net(models.add()).desc
    mdl = ready.mdl
    for desc, index in ((good, 9), (0, 0), (mdl.create_desc(), 0)):
        assert mdl.get_input_size_by_index(desc, index) == 0
        assert mdl.get_input_name_by_index(desc, index) == ""
        assert mdl.get_input_data_type(desc, index) == -1
        assert mdl.get_output_format(desc, index) == -1
        assert mdl.get_input_dims(desc, index) == ({}, 100000)
        assert mdl.get_cur_output_dims(desc, index) == ({}, 100000)
        assert mdl.get_input_dims_range(desc, index) == ({"rangeCount": 0, "range": []}, 100000)
    assert mdl.get_input_index_by_name(good, "zz") == (0, 100000)
    assert mdl.get_num_inputs(0) == 0
    assert mdl.get_desc(0, 1) == 100000
    assert mdl.destroy_desc(0) == 100000


def test_stale_description(ready: Any) -> None:
    desc = ready.mdl.create_desc()
    assert ready.mdl.destroy_desc(desc) == 0
    with pytest.raises(emulator.EmulatorError, match="is not a model description"):
        ready.mdl.get_num_inputs(desc)


def test_description_of_a_file(ready: Any, models: Any) -> None:
    desc = ready.mdl.create_desc()
    assert ready.mdl.get_desc_from_file(desc, models.add()) == 0
    assert ready.mdl.get_num_inputs(desc) == 2
    assert ready.mdl.get_desc_from_file(desc, "none") == 145002


def test_long_names_are_replaced(ready: Any, net: Callable[..., Any], models: Any) -> None:
    name = "a" * 128
    path = models.write("long", [helper.make_node("Identity", [name], ["out"])], [(name, 1, [2])], [("out", 1, [2])])
    one = net(path)
    dims, code = ready.mdl.get_input_dims(one.desc, 0)
    assert code == 0
    assert dims["name"] == f"acl_modelId_{one.id}_input_0"
    assert ready.mdl.get_tensor_real_name(one.desc, dims["name"]) == name


def test_an_output_of_unknown_rank_has_dims_of_minus_2(ready: Any, models: Any) -> None:
    path = models.ranks()
    model, code = ready.mdl.load_from_file(path)
    from_memory, other = ready.mdl.create_desc(), np.fromfile(path, np.uint8)
    assert code == ready.mdl.get_desc_from_mem(from_memory, other.ctypes.data, other.nbytes) == 0
    desc = ready.mdl.create_desc()
    assert ready.mdl.get_desc(desc, model) == 0
    for one in (desc, from_memory):
        assert ready.mdl.get_output_dims(one, 0) == ({"name": "out", "dimCount": 1, "dims": [-2]}, 0)
        assert ready.mdl.get_output_size_by_index(one, 0) == 0
        assert ready.mdl.get_input_dims(one, 0)[0]["dims"] == [], "a scalar has a shape"
        assert ready.mdl.get_cur_output_dims(one, 0) == ({}, 200001), "of dynamic shape"


def test_an_input_of_unknown_rank_is_refused(ready: Any, models: Any) -> None:
    path = models.write("rankless", [helper.make_node("Neg", ["a"], ["out"])], [("a", 1, None)], [("out", 1, None)])
    assert ready.mdl.load_from_file(path) == (0, 545001)
    assert "input 'a' is of unknown rank: give it a shape" in ready.get_recent_err_msg()


def test_scalars(ready: Any, net: Callable[..., Any], models: Any) -> None:
    path = models.write("scalar", [helper.make_node("Neg", ["a"], ["out"])], [("a", 1, [])], [("out", 1, [])])
    one = net(path)
    assert ready.mdl.get_input_dims(one.desc, 0)[0] == {"name": "a", "dimCount": 0, "dims": []}
    assert ready.mdl.get_input_size_by_index(one.desc, 0) == 4
    import numpy as np

    one.put(0, np.float32(3))
    assert one.execute() == 0
    assert one.get(0, ()) == -3


def test_output_shapes_that_the_file_does_not_declare(ready: Any, net: Callable[..., Any], models: Any) -> None:
    path = models.write(
        "inferred", [helper.make_node("Transpose", ["a"], ["out"])], [("a", 1, [2, 3])], [("out", 1, None)]
    )
    assert ready.mdl.get_output_dims(net(path).desc, 0)[0]["dims"] == [3, 2]


def test_a_model_with_open_outputs_is_dynamic(ready: Any, models: Any) -> None:
    path = models.write(
        "nonzero", [helper.make_node("NonZero", ["a"], ["out"])], [("a", 1, [6])], [("out", 7, [1, "n"])]
    )
    desc = ready.mdl.create_desc()
    assert ready.mdl.get_desc_from_file(desc, path) == 0
    assert ready.mdl.get_output_dims(desc, 0)[0]["dims"] == [1, -1]
    assert ready.mdl.get_cur_output_dims(desc, 0) == ({}, 200001)


def test_models_here_have_no_aipp(ready: Any, net: Callable[..., Any], models: Any) -> None:
    one = net(models.add())
    aipp = ready.mdl.create_aipp(1)
    assert aipp
    assert ready.mdl.get_aipp_type(one.id, 0) == (0, 0xFFFFFFFF, 0)
    assert ready.mdl.get_first_aipp_info(one.id, 0) == (None, 145015)
    assert ready.mdl.set_aipp_src_image_size(aipp, 8, 8) == 0
    with pytest.raises(TypeError, match="set_aipp_rbuv_swap_switch args parse failed"):
        ready.mdl.set_aipp_rbuv_swap_switch(aipp, 256)
    assert ready.mdl.set_aipp_dtc_pixel_min(aipp, 0.5, 1, 2.0, 3.0, 0) == 0
    assert ready.mdl.set_aipp_dtc_pixel_mean(aipp, 1, 2, 3, 4, 1) == 100000
    assert ready.mdl.set_input_aipp(one.id, one.ins, 0, aipp) == 200001
    assert ready.mdl.destroy_aipp(aipp) == 0
    assert ready.mdl.create_aipp(0) == 0
