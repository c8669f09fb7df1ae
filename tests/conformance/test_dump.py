"""The ``dump`` part of acl.json: the tensors of each layer, their places, filters, errors."""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.inside import emulator_observers as observers

from aioais import emulator
from aioais.emulator.model import models as models_of_acl

from .conftest import Models, Net

Init = Callable[..., int]
Arrays = dict[str, np.ndarray[Any, Any]]
WEIGHT = np.arange(9, dtype=np.float32).reshape(3, 3) - 4
INPUT = np.arange(6, dtype=np.float32).reshape(2, 3) - 2


@pytest.fixture
def init(acl: Any, tmp_path: Path) -> Init:
    """Initialises with a dump part and sets device 1."""

    def start(**part: Any) -> int:
        path = tmp_path / "acl.json"
        whole = {"dump_list": [], "dump_path": str(tmp_path / "dump"), "dump_mode": "all", **part}
        path.write_text(json.dumps({"dump": {key: value for key, value in whole.items() if value is not None}}))
        code: int = acl.init(str(path))
        if code == 0:
            assert acl.rt.set_device(1) == 0
        return code

    return start


def two_layers(models: Models, name: str = "two") -> str:
    """``y = relu(x @ w)``; the first layer has a name with a slash and a dot, the second none."""
    return models.write(
        name,
        [helper.make_node("MatMul", ["x", "w"], ["m"], name="/head/fc.1"), helper.make_node("Relu", ["m"], ["y"])],
        [("x", 1, [2, 3])],
        [("y", 1, [2, 3])],
        initializers=[numpy_helper.from_array(WEIGHT, "w")],
    )


def run(acl: Any, path: str, array: np.ndarray[Any, Any] = INPUT, times: int = 1) -> Net:
    net = Net(acl, path)
    net.put(0, array)
    for _ in range(times):
        assert net.execute() == 0, acl.get_recent_err_msg()
    return net


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "dump").rglob("*.npy"))


def short(path: Path) -> str:
    """Leave the stream and the time out of a file's name."""
    match = re.fullmatch(r"(.+\.\d+)\.\d+\.\d{16}\.((?:input|output)\.\d+)\.npy", path.name)
    assert match, path.name
    return f"{match[1]}.{match[2]}"


def arrays(tmp_path: Path) -> Arrays:
    return {short(path): np.load(path) for path in files(tmp_path)}


EXPECTED: Arrays = {
    "MatMul._head_fc_1.0.input.0": INPUT,
    "MatMul._head_fc_1.0.input.1": WEIGHT,
    "MatMul._head_fc_1.0.output.0": INPUT @ WEIGHT,
    "Relu.Relu_1.1.input.0": INPUT @ WEIGHT,
    "Relu.Relu_1.1.output.0": np.maximum(INPUT @ WEIGHT, 0),
}


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_every_tensor_of_every_layer(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    assert init() == 0
    net = run(acl, two_layers(models))
    np.testing.assert_array_equal(net.get(0, (2, 3)), EXPECTED["Relu.Relu_1.1.output.0"])
    assert_same(arrays(tmp_path), EXPECTED)


def test_the_layout_of_the_folders(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    assert init() == 0
    net = run(acl, two_layers(models), times=2)
    folders = {path.parent.relative_to(tmp_path / "dump").parts for path in files(tmp_path)}
    (moment,) = {parts[0] for parts in folders}
    assert re.fullmatch(r"\d{14}", moment)
    assert {parts[1:] for parts in folders} == {("1", "two", str(net.id), "0"), ("1", "two", str(net.id), "1")}


def test_a_queued_run_is_dumped_when_it_runs(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    assert init() == 0
    net = Net(acl, two_layers(models))
    net.put(0, INPUT + 1)
    stream = acl.rt.create_stream()[0]
    number = acl.rt.stream_get_id(stream)[0]
    assert number > 0
    assert net.execute_async(stream) == 0
    net.put(0, INPUT)
    assert files(tmp_path) == []
    assert acl.rt.synchronize_stream(stream) == 0
    assert_same(arrays(tmp_path), EXPECTED)
    assert {path.name.split(".")[3] for path in files(tmp_path)} == {str(number)}


@pytest.mark.parametrize("mode", ["input", "output", None])
def test_modes(acl: Any, init: Init, models: Models, tmp_path: Path, mode: str | None) -> None:
    assert init(dump_mode=mode) == 0
    run(acl, two_layers(models))
    assert_same(arrays(tmp_path), {k: v for k, v in EXPECTED.items() if f".{mode or 'output'}." in k})


@pytest.mark.parametrize("layer", ["/head/fc.1", "_head_fc_1"])
def test_layers_are_chosen_by_name(acl: Any, init: Init, models: Models, tmp_path: Path, layer: str) -> None:
    assert init(dump_list=[{"model_name": "two", "layer": [layer, "none"]}]) == 0
    run(acl, two_layers(models))
    assert_same(arrays(tmp_path), {k: v for k, v in EXPECTED.items() if k.startswith("MatMul")})


def test_models_are_chosen_by_file_or_graph(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    entries = [{"model_name": "renamed"}, {"model_name": "graph_b", "layer": ["Relu_1"]}]
    assert init(dump_list=entries, dump_mode="output") == 0
    first = Path(two_layers(models, "graph_a")).rename(tmp_path / "renamed.onnx")
    for path in (str(first), two_layers(models, "graph_b"), two_layers(models, "graph_c")):
        run(acl, path)
    assert {path.parents[2].name for path in files(tmp_path)} == {"renamed", "graph_b"}
    assert len(files(tmp_path)) == 2 + 1


def test_layers_that_do_not_exist_are_logged(acl: Any, init: Init, models: Models, tmp_path: Path, caplog: Any) -> None:
    assert init(dump_list=[{"model_name": "two", "layer": ["nowhere"]}]) == 0
    run(acl, two_layers(models))
    assert files(tmp_path) == []
    assert "'two' has none of the layers" in caplog.text


def test_a_model_in_memory_goes_by_its_graph(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    assert init() == 0
    content = Path(two_layers(models)).read_bytes()
    buffer = ctypes.create_string_buffer(content, len(content))
    handle, code = acl.mdl.load_from_mem(ctypes.addressof(buffer), len(content))
    assert code == 0
    net = Net(acl, two_layers(models))
    net.put(0, INPUT)
    assert acl.mdl.execute(handle, net.ins, net.outs) == 0
    assert_same(arrays(tmp_path), EXPECTED)
    assert {path.parents[2].name for path in files(tmp_path)} == {"two"}


def test_gears_dump_the_shape_that_ran(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    assert init() == 0
    net = Net(acl, models.batch())
    assert acl.mdl.set_dynamic_batch_size(net.id, net.ins, 2, 2) == 0
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    net.put(0, values)
    net.put(1, values * 10)
    assert net.execute() == 0
    expected = {"Add.Add_0.0.input.0": values, "Add.Add_0.0.input.1": values * 10, "Add.Add_0.0.output.0": values * 11}
    assert_same(arrays(tmp_path), expected)


def test_dynamic_shapes(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    assert init() == 0
    net = Net(acl, models.shape())
    for rows in (1, 3):
        net.describe(0, [rows, 3])
        net.put(0, np.full((rows, 3), rows, np.float32))
        assert net.execute() == 0
    outputs = [path for path in files(tmp_path) if ".output." in path.name]
    np.testing.assert_array_equal(np.load(outputs[0]), np.full((1, 3), 2, np.float32))
    np.testing.assert_array_equal(np.load(outputs[1]), np.full((3, 3), 6, np.float32))


def test_outputs_on_top_of_inputs(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    assert init() == 0
    net = Net(acl, two_layers(models))
    net.put(0, INPUT)
    assert acl.mdl.execute(net.id, net.ins, net.ins) == 0
    assert_same(arrays(tmp_path), EXPECTED)


def test_weights_outside_of_the_file(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    path = two_layers(models)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert init() == 0
    run(acl, path)
    assert_same(arrays(tmp_path), EXPECTED)


def test_dtypes_and_empty_and_missing_tensors(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=10),
        helper.make_node("Cast", ["x"], ["brain"], to=16),
        helper.make_node("Cast", ["x"], ["eight"], to=17),
        helper.make_node("Cast", ["x"], ["whole"], to=7),
        helper.make_node("Cast", ["x"], ["truth"], to=9),
        helper.make_node("Cast", ["x"], ["text"], to=8),
        helper.make_node("Slice", ["x", "zero", "zero"], ["nothing"]),
        helper.make_node("Clip", ["x", "", "top"], ["y"]),
        helper.make_node("Constant", [], ["alone"], value=numpy_helper.from_array(np.array([1.5], np.float32), "v")),
    ]
    weights = [
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array(1, np.float32), "top"),
    ]
    path = models.write("kinds", nodes, [("x", 1, [2, 3])], [("y", 1, [2, 3])], initializers=weights)
    assert init() == 0
    values = INPUT / 3
    run(acl, path, values)
    found = arrays(tmp_path)
    expected: Arrays = {
        "Cast.Cast_0.0.output.0": values.astype(np.float16),
        "Cast.Cast_1.1.output.0": values.astype(ml_dtypes.bfloat16).astype(np.float32),
        "Cast.Cast_2.2.output.0": values.astype(ml_dtypes.float8_e4m3fn).astype(np.float32),
        "Cast.Cast_3.3.output.0": values.astype(np.int64),
        "Cast.Cast_4.4.output.0": values.astype(np.bool_),
        "Slice.Slice_6.6.output.0": np.empty((0, 3), np.float32),
        "Slice.Slice_6.6.input.1": np.array([0], np.int64),
        "Clip.Clip_7.7.input.2": np.array(1, np.float32),
        "Clip.Clip_7.7.output.0": np.minimum(values, 1),
        "Constant.Constant_8.8.output.0": np.array([1.5], np.float32),
    }
    assert_same({name: found[name] for name in expected}, expected)
    assert "Cast.Cast_5.5.output.0" not in found  # texts are no tensors of a device
    assert "Clip.Clip_7.7.input.1" not in found


def test_sparse_weights_are_left_out(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    path = models.write("sparse", [helper.make_node("Add", ["x", "w"], ["y"])], [("x", 1, [2, 3])], [("y", 1, [2, 3])])
    model = onnx.load(path)
    values = numpy_helper.from_array(np.array([2], np.float32), "w")
    indices = numpy_helper.from_array(np.array([1], np.int64), "")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))
    onnx.save(model, path)
    assert init() == 0
    net = run(acl, path)
    total = INPUT + np.array([0, 2, 0], np.float32)
    assert (net.get(0, (2, 3)) == total).all()
    assert_same(arrays(tmp_path), {"Add.Add_0.0.input.0": INPUT, "Add.Add_0.0.output.0": total})


def test_long_names_fit_the_file_system(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["m"], name="é" * 300 + "a"),
        helper.make_node("Relu", ["m"], ["y"], name="é" * 300 + "b"),
    ]
    path = models.write("long", nodes, [("x", 1, [2, 3])], [("y", 1, [2, 3])])
    assert init() == 0
    run(acl, path)
    assert len(files(tmp_path)) == 4
    assert len({path.name.split(".")[1] for path in files(tmp_path)}) == 2


def test_each_initialisation_has_a_folder_of_its_own(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    for _ in range(3):
        assert init() == 0
        run(acl, two_layers(models)).close()
        assert acl.rt.reset_device(1) == 0
        assert acl.finalize() == 0
    assert len(list((tmp_path / "dump").iterdir())) == 3
    assert len(files(tmp_path)) == 15


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ({"dump_mode": "some"}, "dump_mode"),
        ({"dump_op_switch": True}, "dump_op_switch"),
        ({"dump_path": None}, "dump_path"),
        ({"dump_path": ""}, "dump_path"),
        ({"dump_path": 3}, "dump_path"),
        ({"dump_list": None}, "dump_list"),
        ({"dump_list": {}}, "dump_list"),
        ({"dump_list": ["two"]}, "dump_list"),
        ({"dump_list": [{"model_name": 2}]}, "model_name"),
        ({"dump_list": [{"model_name": "two", "layer": "fc"}]}, "layer"),
    ],
)
def test_wrong_values_are_100009(acl: Any, init: Init, tmp_path: Path, part: dict[str, Any], text: str) -> None:
    assert init(**part) == 100009
    assert text in acl.get_recent_err_msg()
    assert not (tmp_path / "dump").exists()
    assert acl.rt.set_device(0) == 100001


def test_a_folder_that_cannot_be_written_is_100004(acl: Any, init: Init, tmp_path: Path) -> None:
    (tmp_path / "dump").write_text("a file")
    assert init() == 100004
    assert "cannot be written" in acl.get_recent_err_msg()
    (tmp_path / "dump").unlink()
    assert init() == 0


def test_statistics_are_refused(acl: Any, init: Init) -> None:
    assert init(dump_data="stats") == 200006
    assert "stats" in acl.get_recent_err_msg()


def test_without_onnx_the_start_says_so(acl: Any, init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert init() == 200006
    assert "pip install onnx" in acl.get_recent_err_msg()


def test_a_folder_that_vanishes_fails_the_run(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    assert init() == 0
    net = Net(acl, two_layers(models))
    (tmp_path / "dump").rmdir()
    (tmp_path / "dump").write_text("a file")
    assert net.execute() == 107010
    assert "dump cannot be written" in acl.get_recent_err_msg()
    assert net.execute_async() == 500002 or acl.rt.synchronize_stream(0) == 107010


def test_a_model_that_fails_on_the_device(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    assert init() == 0
    gather = helper.make_node("Gather", ["a", "i"], ["out"])
    net = Net(acl, models.write("gather", [gather], [("a", 1, [4]), ("i", 7, [1])], [("out", 1, [1])]))
    net.put(0, np.zeros(4, np.float32))
    net.put(1, np.array([99], np.int64))
    assert net.execute() == 507011
    assert "failed while it was dumped" in acl.get_recent_err_msg()
    assert files(tmp_path) == []
    net.put(1, np.array([1], np.int64))
    assert net.execute() == 0


def test_the_umask_is_respected(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert init() == 0
        run(acl, two_layers(models))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in files(tmp_path)} == {0o640}


def test_reset_ends_the_dump(acl: Any, init: Init, models: Models, tmp_path: Path) -> None:
    assert init() == 0
    run(acl, two_layers(models))
    emulator.reset()
    assert observers.dump is None
    assert acl.init() == 0
    assert acl.rt.set_device(0) == 0
    run(acl, two_layers(models))
    assert_same(arrays(tmp_path), EXPECTED)


def test_without_a_dump_nothing_is_prepared(ready: Any, models: Models) -> None:
    net = Net(ready, two_layers(models))
    assert models_of_acl[net.id].probe is None
