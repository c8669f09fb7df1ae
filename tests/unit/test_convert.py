"""Conversion for the CPU device: what is written runs, on bare ONNX Runtime, at every gear it names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from tests import inside

from aioais import convert
from aioais.emulator.metadata import METADATA_KEY, ModelMetadata, parse
from aioais.errors import AclNotFoundError, ConvertError, ModelError

Shape = Sequence[int | str | None]
TWO_INPUTS = "input1:-1,3,32,32;input2:-1,3,32,32"


def value(name: str, shape: Shape | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray[Any, Any]] | None = None,
    **options: Any,
) -> Path:
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, **options)
    return path


def add(path: Path, shape: Shape, kind: int = TensorProto.FLOAT) -> Path:
    inputs = [value("input1", shape, kind), value("input2", shape, kind)]
    return save(path, [helper.make_node("Add", ["input1", "input2"], ["y"])], inputs, [value("y", shape, kind)])


def conv(path: Path, shape: Shape, **options: Any) -> Path:
    """Like a classifier: convolution, pooling to a vector, a matrix, and an intermediate value_info."""
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["prob"]),
    ]
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(size=(16, 3, 3, 3)).astype(np.float32),
        "m": random.normal(size=(16, 5)).astype(np.float32),
    }
    return save(path, nodes, [value("image", shape)], [value("prob", [shape[0], 5])], weights, **options)


def table(path: str | Path) -> ModelMetadata:
    model = onnx.load(path, load_external_data=False)
    (text,) = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    return parse(text)


def dims(path: str | Path) -> dict[str, list[int | str]]:
    model = onnx.load(path, load_external_data=False)
    return {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.input, *model.graph.output)
    }


def feeds(metadata: ModelMetadata, gear: int) -> dict[str, Any]:
    random = np.random.default_rng(gear)
    names = [entry.name for entry in metadata.inputs]
    shapes = metadata.input_shapes(gear)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in zip(names, shapes, strict=True)}


def check_runs(path: str | Path, valid: bool = True) -> ModelMetadata:
    """Every gear runs on bare ONNX Runtime, with the shapes of the table and without a warning."""
    metadata = table(path)
    if valid:
        onnx.checker.check_model(str(path), full_check=True)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for gear in range(max(1, len(metadata.gears))):
        outputs = session.run(None, feeds(metadata, gear))
        assert [o.shape for o in outputs] == [entry.shapes[gear] for entry in metadata.outputs]
        for output, entry in zip(outputs, metadata.outputs, strict=True):
            assert output.nbytes <= entry.max_bytes
    return metadata


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


# --- the forms of model -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [[1, 3, 32, 32], ["N", 3, 32, 32], [None, 3, 32, 32], None], ids=str)
def test_batch_gears(tmp_path: Path, shape: Shape, capfd: pytest.CaptureFixture[str]) -> None:
    model = add(tmp_path / "add.onnx", shape)
    output = tmp_path / "add_dymbatch.onnx"
    written = convert(model, output, input_shape=TWO_INPUTS, dynamic_batch_size="1,2,4,8")
    assert written == str(output)
    metadata = check_runs(written)
    assert metadata.mode == "batch"
    assert metadata.gears == ((1,), (2,), (4,), (8,))
    assert metadata.input_shapes(2) == ((4, 3, 32, 32), (4, 3, 32, 32))
    assert metadata.outputs[0].max_bytes == 8 * 3 * 32 * 32 * 4
    assert [entry.format for entry in metadata.inputs] == [0, 0]
    assert all(isinstance(d[0], str) and d[0] and d[1:] == [3, 32, 32] for d in dims(written).values())
    assert capfd.readouterr() == ("", "")
    assert not leftovers(tmp_path)


def test_batch_gears_give_the_same_numbers(tmp_path: Path) -> None:
    model = conv(tmp_path / "conv.onnx", [1, 3, 12, 12])
    written = convert(model, tmp_path / "b.onnx", input_shape="image:-1,3,12,12", dynamic_batch_size="3,1")
    x = np.random.default_rng(1).normal(size=(3, 3, 12, 12)).astype(np.float32)
    (together,) = ort.InferenceSession(written).run(None, {"image": x})
    single = ort.InferenceSession(str(model))
    apart = np.concatenate([single.run(None, {"image": row[None]})[0] for row in x])
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-6)
    assert check_runs(written).largest_gear() == 0


@pytest.mark.parametrize(
    ("layout", "given", "shape"),
    [("NCHW", None, "1,3,-1,-1"), ("NCHW", "NCHW", "1,3,-1,-1"), ("NHWC", "NHWC", "1,-1,-1,3")],
)
def test_image_gears(tmp_path: Path, layout: str, given: str | None, shape: str) -> None:
    fixed: list[int | str] = [1, 3, "H", "W"] if layout == "NCHW" else [1, "H", "W", 3]
    model = add(tmp_path / "add.onnx", fixed)
    written = convert(
        model,
        tmp_path / "hw.onnx",
        input_format=given,
        input_shape=f"input1:{shape};input2:{shape}",
        dynamic_image_size="32,48;64,16",
    )
    metadata = check_runs(written)
    assert (metadata.mode, metadata.gears) == ("hw", ((32, 48), (64, 16)))
    wanted = (1, 3, 64, 16) if layout == "NCHW" else (1, 64, 16, 3)
    assert metadata.outputs[0].shapes[1] == wanted
    assert metadata.inputs[0].format == (0 if layout == "NCHW" else 1)


def test_dims_gears_hold_every_dim_in_the_order_of_input_shape(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", [name], [name + "_"]) for name in "abc"]
    model = save(
        tmp_path / "m.onnx",
        nodes,
        [value("a", ["A", 4]), value("b", [2, 3]), value("c", ["C1", "C2"])],
        [value("a_", ["A", 4]), value("b_", [2, 3]), value("c_", ["C1", "C2"])],
    )
    written = convert(model, tmp_path / "d.onnx", input_shape="c:-1,-1;a:-1,4", dynamic_dims="1,2,3;4,5,6")
    metadata = check_runs(written)
    assert [entry.name for entry in metadata.inputs] == ["c", "a", "b"]
    assert metadata.gears == ((1, 2, 3, 4, 2, 3), (4, 5, 6, 4, 2, 3))
    assert [entry.format for entry in metadata.inputs] == [2, 2, 2]
    assert dims(written)["b_"] == [2, 3]


def test_one_symbol_with_two_values_in_a_gear_is_split(tmp_path: Path) -> None:
    # The example of ATC's page on --dynamic_dims: T of the model is 80, 60 and 4 in one gear.
    nodes = [helper.make_node("Identity", [name], [name + "_"]) for name in ("data", "label")]
    ios: dict[str, Shape] = {"data": [1, "T"], "label": ["T", "T"]}
    model = save(
        tmp_path / "m.onnx",
        nodes,
        [value(name, shape) for name, shape in ios.items()],
        [value(name + "_", shape) for name, shape in ios.items()],
    )
    written = convert(model, tmp_path / "d.onnx", input_shape="data:1,-1;label:-1,-1", dynamic_dims="20,1,1;80,4,4")
    check_runs(written)
    assert dims(written)["data"][1] != dims(written)["label"][0]


def test_a_symbol_of_the_model_is_kept(tmp_path: Path) -> None:
    model = add(tmp_path / "add.onnx", ["N", 3, 32, 32])
    written = convert(model, tmp_path / "b.onnx", input_shape=TWO_INPUTS, dynamic_batch_size="1,2")
    assert {d[0] for d in dims(written).values()} == {"N"}


@pytest.mark.parametrize(
    "options",
    [
        {"input_shape_range": "input1:[1~4,3,32~64,-1];input2:[1~4,3,32~64,-1]"},
        {"input_shape": "input1:1~4,3,32~64,-1;input2:1~4,3,32~64,-1"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_ranges_make_a_dynamic_shape_model(tmp_path: Path, options: dict[str, str]) -> None:
    written = convert(add(tmp_path / "add.onnx", ["N", 3, "H", "W"]), tmp_path / "s.onnx", **options)
    metadata = table(written)
    assert metadata.mode == "shape"
    assert metadata.gears == ()
    for entry in metadata.inputs:
        assert (entry.shape, entry.range) == ((-1, 3, -1, -1), ((1, 4), (3, 3), (32, 64), (1, -1)))
    assert (metadata.outputs[0].shapes, metadata.outputs[0].max_bytes) == ((), 0)
    x = np.ones((2, 3, 33, 7), np.float32)
    assert ort.InferenceSession(written).run(None, {"input1": x, "input2": x})[0].shape == x.shape


def test_the_bytes_at_the_upper_bounds(tmp_path: Path) -> None:
    model = add(tmp_path / "add.onnx", [1, 3, 32, 32])
    shape = "1~4,3,32,16~64"
    written = convert(model, tmp_path / "s.onnx", input_shape=f"input1:{shape};input2:{shape}")
    assert table(written).outputs[0].max_bytes == 4 * 3 * 32 * 64 * 4


def test_a_fixed_shape_makes_a_static_model(tmp_path: Path) -> None:
    model = conv(tmp_path / "conv.onnx", ["N", 3, "H", "W"])
    written = convert(model, tmp_path / "s.onnx", input_shape="image:2,3,20,24")
    metadata = check_runs(written)
    assert (metadata.mode, metadata.gears) == ("static", ())
    assert metadata.outputs[0].shapes == ((2, 5),)
    assert metadata.outputs[0].max_bytes == 40
    assert dims(written) == {"image": [2, 3, 20, 24], "prob": [2, 5]}


def test_without_options_a_fixed_model_is_static(tmp_path: Path) -> None:
    metadata = check_runs(convert(conv(tmp_path / "c.onnx", [1, 3, 8, 8]), tmp_path / "s.onnx"))
    assert metadata.mode == "static"


def test_without_options_an_open_model_is_of_dynamic_shape(tmp_path: Path) -> None:
    written = convert(conv(tmp_path / "c.onnx", ["N", 3, None, 8]), tmp_path / "s.onnx")
    metadata = table(written)
    assert metadata.mode == "shape"
    assert metadata.inputs[0].range == ((1, -1), (3, 3), (1, -1), (8, 8))
    assert dims(written)["prob"] == ["N", 5]


def test_a_negative_size_of_an_old_exporter_is_an_unknown_one(tmp_path: Path) -> None:
    metadata = table(convert(add(tmp_path / "add.onnx", [-1, 3]), tmp_path / "s.onnx"))
    assert (metadata.mode, metadata.inputs[0].range) == ("shape", ((1, -1), (3, 3)))


def test_a_converted_model_can_be_converted_again(tmp_path: Path) -> None:
    model = add(tmp_path / "add.onnx", [1, 3, 32, 32])
    first = convert(model, tmp_path / "b.onnx", input_shape=TWO_INPUTS, dynamic_batch_size="1,2")
    loaded = onnx.load(first)
    loaded.metadata_props.add(key="author", value="somebody")
    onnx.save(loaded, first)
    again = convert(first, tmp_path / "c.onnx", input_shape=TWO_INPUTS, dynamic_batch_size="3,5")
    assert check_runs(again).gears == ((3,), (5,))
    assert [entry.value for entry in onnx.load(again).metadata_props if entry.key == "author"] == ["somebody"]


def test_scalars_and_weights_among_the_inputs(tmp_path: Path) -> None:
    weight = np.full((3,), 2, np.float32)
    nodes = [helper.make_node("Mul", ["x", "w"], ["t"]), helper.make_node("Add", ["t", "s"], ["y"])]
    inputs = [value("w", [3]), value("x", ["N", 3]), value("s", [])]
    model = save(tmp_path / "m.onnx", nodes, inputs, [value("y", ["N", 3])], {"w": weight})
    for shape in ("x:-1,3", "x:-1,3;s:"):
        metadata = check_runs(convert(model, tmp_path / "b.onnx", input_shape=shape, dynamic_batch_size="1,2"))
        assert [(entry.name, entry.shape) for entry in metadata.inputs] == [("x", (-1, 3)), ("s", ())]


def test_an_output_that_comes_twice_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, [value("x", ["N", 3])], [value("y", ["N", 3])] * 2)
    with pytest.raises(ModelError, match="lists output 'y' more than once"):
        convert(model, tmp_path / "b.onnx", input_shape="x:-1,3", dynamic_batch_size="1,2")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_scalar_outputs(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)]
    model = save(tmp_path / "m.onnx", nodes, [value("x", ["N", 3])], [value("y", [])])
    written = convert(model, tmp_path / "b.onnx", input_shape="x:-1,3", dynamic_batch_size="1,2")
    assert check_runs(written).outputs[0].shapes == ((), ())
    assert dims(written)["y"] == []


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        (TensorProto.FLOAT16, 16),
        (TensorProto.BFLOAT16, 16),
        (TensorProto.DOUBLE, 64),
        (TensorProto.INT64, 64),
        (TensorProto.UINT8, 8),
        (TensorProto.BOOL, 8),
    ],
)
def test_element_types(tmp_path: Path, kind: int, bits: int) -> None:
    nodes = [helper.make_node("Reshape", ["x", "to"], ["y"])]
    to = np.array([-1], np.int64)
    model = save(tmp_path / "m.onnx", nodes, [value("x", ["N", 4], kind)], [value("y", None, kind)], {"to": to})
    written = convert(model, tmp_path / "b.onnx", input_shape="x:-1,4", dynamic_batch_size="1,3")
    metadata = table(written)
    assert metadata.outputs[0].shapes == ((4,), (12,))
    assert metadata.outputs[0].max_bytes == 12 * bits // 8
    assert ml_dtypes.bfloat16  # the emulated types of the device come from this package


# --- shapes that only a run shows ---------------------------------------------------------------


def through_a_shape(path: Path, kind: str) -> Path:
    """A graph whose output shape goes through values: by an operator that inference gives up on."""
    nodes = {
        "data": [helper.make_node("NonZero", ["x"], ["y"])],
        "input": [helper.make_node("Expand", ["x", "to"], ["y"])],
    }[kind]
    inputs = [value("x", ["N", 3])]
    if kind == "input":
        inputs.append(value("to", [2], TensorProto.INT64))
    return save(path, nodes, inputs, [value("y", None, TensorProto.INT64 if kind == "data" else TensorProto.FLOAT)])


def test_gears_refuse_outputs_that_depend_on_the_data(tmp_path: Path) -> None:
    model = through_a_shape(tmp_path / "m.onnx", "data")
    with pytest.raises(ModelError, match=r"output 'y' depends on the data.*give ranges in input_shape"):
        convert(model, tmp_path / "b.onnx", input_shape="x:-1,3", dynamic_batch_size="1,2")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_fixed_model_whose_outputs_depend_on_the_data_is_of_dynamic_shape(tmp_path: Path) -> None:
    model = through_a_shape(tmp_path / "m.onnx", "data")
    metadata = table(convert(model, tmp_path / "s.onnx", input_shape="x:2,3"))
    assert metadata.mode == "shape"
    assert metadata.inputs[0].range == ((2, 2), (3, 3))
    assert metadata.outputs[0].max_bytes == 0


def test_a_size_fixed_inside_the_graph_is_found(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "to"], ["y"])]
    model = save(
        tmp_path / "m.onnx",
        nodes,
        [value("x", [1, 3, 4])],
        [value("y", [1, 12])],
        {"to": np.array([1, 12], np.int64)},
    )
    with pytest.raises(ModelError, match=r"does not run at gear 2 \(x: 2,3,4\).*Reshape.*export it") as caught:
        convert(model, tmp_path / "b.onnx", input_shape="x:-1,3,4", dynamic_batch_size="1,2")
    assert len(str(caught.value)) < 1000
    with pytest.raises(ModelError, match="at the bounds of its shape range"):
        convert(model, tmp_path / "s.onnx", input_shape="x:1~4,3,4")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_stale_shapes_inside_the_graph_are_dropped(tmp_path: Path) -> None:
    model = onnx.load(conv(tmp_path / "c.onnx", [1, 3, 12, 12]))
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "c.onnx")
    assert onnx.load(tmp_path / "c.onnx").graph.value_info
    written = convert(
        tmp_path / "c.onnx", tmp_path / "b.onnx", input_shape="image:-1,3,12,12", dynamic_batch_size="2,4"
    )
    check_runs(written)
    assert not any(v.type.tensor_type.HasField("shape") for v in onnx.load(written).graph.value_info)


def test_a_rank_that_changes_with_the_gear(tmp_path: Path) -> None:
    nodes = [helper.make_node("Squeeze", ["x"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, [value("x", ["N", 3])], [value("y", None)])
    written = convert(model, tmp_path / "b.onnx", input_shape="x:-1,3", dynamic_batch_size="1,2")
    # ONNX has no way to write down a rank that varies; ONNX Runtime runs it all the same.
    assert check_runs(written, valid=False).outputs[0].shapes == ((3,), (2, 3))


# --- options against the model ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"input_shape": "input3:1,3,32,32"},
            ["got input 'input3'", "inputs of the model (input1, input2)", "use the names"],
        ),
        (
            {"input_shape": "input1:1,3,32;input2:1,3,32,32"},
            ["got 3 dims for input1", "(1,3,32)", "expected 4, as in the model (N,3,32,32)", "give that many"],
        ),
        (
            {"input_shape": "input1:;input2:1,3,32,32"},
            ["got 0 dims for input1", "((scalar))", "expected 4", "give that many"],
        ),
        (
            {"input_shape": "input1:1,4,32,32;input2:1,3,32,32"},
            ["got 4 as dim 1 of input1", "(1,4,32,32)", "expected 3, which", "give 3, or export"],
        ),
        (
            {"input_shape": "input1:-1,3,32,32", "dynamic_batch_size": "1,2"},
            ["does not name 'input2'", "N,3,32,32 in the model", "expected every input", '"input2:1,3,32,32"'],
        ),
        ({"input_format": "NCDHW"}, ["input_format='NCDHW'", "expected one of NCHW", "leave it out"]),
    ],
    ids=str,
)
def test_options_that_do_not_fit_the_model(tmp_path: Path, options: dict[str, str], words: list[str]) -> None:
    model = add(tmp_path / "add.onnx", ["N", 3, 32, 32])
    with pytest.raises(ConvertError) as caught:
        convert(model, tmp_path / "out.onnx", **options)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "out.onnx").exists()


def test_an_input_of_unknown_rank_has_to_be_named(tmp_path: Path) -> None:
    model = add(tmp_path / "add.onnx", None)  # type: ignore[arg-type]
    with pytest.raises(ConvertError, match=r"does not name 'input1', which is of unknown rank"):
        convert(model, tmp_path / "out.onnx")


@pytest.mark.parametrize("kind", ["strings", "sequence_type"])
def test_what_no_device_takes(tmp_path: Path, kind: str) -> None:
    if kind == "strings":
        x, y = value("x", [2], TensorProto.STRING), value("y", [2], TensorProto.STRING)
    else:
        x = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [2])
        y = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [2])
    model = save(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])], [x], [y])
    with pytest.raises(
        ModelError, match=f"'x' with {kind}; expected a tensor of numbers, as a device takes no other: remove"
    ):
        convert(model, tmp_path / "out.onnx")


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "platform", "words"),
    [
        (
            "m.bin",
            None,
            ["expected a name that ends in .onnx", 'pass platform="cpu", platform="ascend" or a soc_version'],
        ),
        ("m.onnx", "npu", ["platform='npu'", 'expected "cpu" or "ascend"', "leave it out"]),
        (
            "m.om",
            "cpu",
            ["m.om', which has the ending of another platform", "expected a name that ends in .onnx", "change"],
        ),
        ("m.onnx", "ascend", ["another platform than platform='ascend'", "expected a name that ends in .om"]),
        ("add.onnx", None, ["is the model itself, which is never overwritten", "give another path"]),
        ("link.onnx", None, ["is the model itself", "give another path"]),
        ("folder.onnx", None, ["is a folder; expected the path of a file", "add a name"]),
        (
            "none/m.onnx",
            None,
            ["cannot write output=", "No such file", "give a path in a folder that exists"],
        ),
    ],
)
def test_outputs_that_are_refused(tmp_path: Path, output: str, platform: str | None, words: list[str]) -> None:
    model = add(tmp_path / "add.onnx", [1, 3])
    before = model.read_bytes()
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "link.onnx").symlink_to(model)
    with pytest.raises(ConvertError) as caught:
        convert(model, tmp_path / output, platform=platform)
    for word in words:
        assert word in str(caught.value)
    assert model.read_bytes() == before


def test_any_ending_with_a_platform(tmp_path: Path) -> None:
    written = convert(add(tmp_path / "add.onnx", [1, 3]), tmp_path / "m.bin", platform="cpu")
    assert table(written).mode == "static"


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    conv(Path("c.onnx"), [1, 3, 8, 8], save_as_external_data=True, size_threshold=0, location="w.bin")
    assert convert("c.onnx", "s.onnx") == "s.onnx"
    check_runs("s.onnx")


@pytest.mark.parametrize("content", [None, b"", b"not a model at all", b"\x08\x08"])
def test_models_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    model = tmp_path / "m.onnx"
    if content is not None:
        model.write_bytes(content)
    wanted = "cannot read the model .*give the path" if content is None else "is not an ONNX model.*export it"
    with pytest.raises(ModelError, match=wanted):
        convert(model, tmp_path / "out.onnx")


@pytest.mark.parametrize("place", ["input", "output", "symbol", "metadata"])
def test_names_that_are_no_text(tmp_path: Path, place: str) -> None:
    """A flipped bit: the parser takes any bytes for a text."""
    model = onnx.load(str(add(tmp_path / "add.onnx", [3])))
    if place == "input":
        model.graph.input[0].name = "marked"
    elif place == "output":
        model.graph.output[0].name = "marked"
    elif place == "symbol":
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "marked"
    else:
        model.metadata_props.add(key="marked", value="x")
    path = tmp_path / "damaged.onnx"
    path.write_bytes(model.SerializeToString().replace(b"marked", b"mark\xe5d"))
    with pytest.raises(ModelError, match="is not UTF-8"):
        convert(path, tmp_path / "out.onnx")


def test_an_element_type_that_nobody_knows(tmp_path: Path) -> None:
    model = onnx.load(str(add(tmp_path / "add.onnx", [3])))
    model.graph.input[0].type.tensor_type.elem_type = 99
    path = tmp_path / "damaged.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="a type 99"):
        convert(path, tmp_path / "out.onnx")


def test_a_model_that_onnx_runtime_refuses(tmp_path: Path) -> None:
    model = save(
        tmp_path / "m.onnx",
        [helper.make_node("NoSuchThing", ["x"], ["y"])],
        [value("x", [1])],
        [value("y", [1])],
    )
    with pytest.raises(ModelError, match=r"ONNX Runtime.*refuses the model.*NoSuchThing"):
        convert(model, tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_om_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is already a \.om; expected an ONNX model"):
        convert(tmp_path / "m.om", tmp_path / "out.onnx")


def test_a_failure_leaves_the_old_output_alone(tmp_path: Path) -> None:
    model = through_a_shape(tmp_path / "m.onnx", "data")
    output = tmp_path / "b.onnx"
    output.write_bytes(b"old")
    with pytest.raises(ModelError):
        convert(model, output, input_shape="x:-1,3", dynamic_batch_size="1,2")
    assert output.read_bytes() == b"old"
    assert not leftovers(tmp_path)


def test_an_old_output_is_replaced_with_the_usual_permissions(tmp_path: Path) -> None:
    output = tmp_path / "b.onnx"
    output.write_bytes(b"old")
    model = add(tmp_path / "add.onnx", [1, 3])
    convert(model, output)
    check_runs(output)
    assert output.stat().st_mode == model.stat().st_mode


@pytest.mark.parametrize("one_file", [True, False])
@pytest.mark.parametrize("threshold", [0, 1024])
def test_external_data_comes_along(tmp_path: Path, one_file: bool, threshold: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    model = conv(
        source / "c.onnx",
        [1, 3, 12, 12],
        save_as_external_data=True,
        all_tensors_to_one_file=one_file,
        size_threshold=threshold,
        location="weights.bin" if one_file else None,
    )
    x = np.ones((1, 3, 12, 12), np.float32)
    (wanted,) = ort.InferenceSession(str(model)).run(None, {"image": x})
    written = convert(model, target / "b.onnx", input_shape="image:-1,3,12,12", dynamic_batch_size="1,2")
    for path in source.iterdir():
        path.unlink()
    check_runs(written)
    np.testing.assert_array_equal(ort.InferenceSession(written).run(None, {"image": x})[0], wanted)
    names = sorted(path.name for path in target.iterdir())
    many = not one_file and threshold == 0
    assert names == ["b.onnx", *(["b.onnx.1.data"] if many else []), "b.onnx.data"]


def test_external_data_of_the_source_is_never_overwritten(tmp_path: Path) -> None:
    model = conv(
        tmp_path / "c.onnx",
        [1, 3, 8, 8],
        save_as_external_data=True,
        size_threshold=0,
        location="s.onnx.data",
    )
    before = (tmp_path / "s.onnx.data").read_bytes()
    written = convert(model, tmp_path / "s.onnx")
    assert (tmp_path / "s.onnx.data").read_bytes() == before
    assert (tmp_path / "s.onnx.1.data").exists()
    (tmp_path / "s.onnx.data").unlink()
    check_runs(written)


def test_external_data_inside_a_subgraph(tmp_path: Path) -> None:
    def branch(name: str) -> onnx.GraphProto:
        tensor = numpy_helper.from_array(np.full((3,), 2, np.float32), name)
        return helper.make_graph(
            [helper.make_node("Identity", [name], [name + "_"])], name, [], [value(name + "_", [3])], [tensor]
        )

    node = helper.make_node("If", ["x"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    model = save(
        tmp_path / "m.onnx",
        [node],
        [value("x", [1], TensorProto.BOOL)],
        [value("y", [3])],
        save_as_external_data=True,
        size_threshold=0,
        location="w.bin",
    )
    (tmp_path / "out").mkdir()
    written = convert(model, tmp_path / "out" / "s.onnx")
    (tmp_path / "w.bin").unlink()
    (y,) = ort.InferenceSession(written).run(None, {"x": np.array([True])})
    assert y.tolist() == [2, 2, 2]


@pytest.mark.parametrize("location", ["gone.bin", "../w.bin", "{root}/w.bin"])
def test_external_data_that_cannot_be_taken(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(10000))
    (tmp_path / "in").mkdir()
    path = conv(tmp_path / "in" / "c.onnx", [1, 3, 8, 8])
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        set_external_data(tensor, location.format(root=tmp_path))
        tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    words = "put the file beside the model" if location == "gone.bin" else "expected a file in the model's folder"
    with pytest.raises(ModelError, match=words):
        convert(path, tmp_path / "s.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "w.bin"]


def test_a_model_too_large_for_one_message_moves_its_tensors_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside.limit_proto(monkeypatch, 1500)
    written = convert(
        conv(tmp_path / "c.onnx", [1, 3, 8, 8]),
        tmp_path / "b.onnx",
        input_shape="image:-1,3,8,8",
        dynamic_batch_size="1,2",
    )
    assert (tmp_path / "b.onnx.data").stat().st_size >= 16 * 27 * 4
    assert Path(written).stat().st_size < 1500
    check_runs(written)


# --- what is not installed ----------------------------------------------------------------------


def test_without_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = add(tmp_path / "add.onnx", [1, 3])
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(AclNotFoundError, match=r'pip install "aioais\[cpu\]"'):
        convert(model, tmp_path / "out.onnx")


def test_without_onnx_runtime_inference_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = conv(tmp_path / "c.onnx", ["N", 3, "H", "W"])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        written = convert(model, tmp_path / "hw.onnx", input_shape="image:2,3,-1,-1", dynamic_image_size="8,8;16,9")
    assert check_runs(written).outputs[0].shapes == ((2, 5), (2, 5))


def test_without_onnx_runtime_a_shape_that_takes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = through_a_shape(tmp_path / "m.onnx", "data")
    odd = helper.make_node("Identity", ["x"], ["y"], no_such_attribute=1)
    broken = save(tmp_path / "n.onnx", [odd], [value("x", [1])], [value("y", [1])])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(AclNotFoundError, match=r'output \'y\' does not follow.*pip install "aioais\[cpu\]"'):
        convert(model, tmp_path / "out.onnx", input_shape="x:2,3")
    with pytest.raises(ModelError, match="breaks a rule of ONNX"):
        convert(broken, tmp_path / "out.onnx")


def test_importing_convert_imports_no_onnx() -> None:
    code = "import sys; from aioais import convert; print(sorted({'onnx', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert done.stdout.strip() == "[]"
