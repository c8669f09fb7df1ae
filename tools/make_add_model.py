"""Write ``src/aioais/demo_data/add.onnx``, the model of the examples: ``output = input1 + input2``."""

from __future__ import annotations

from pathlib import Path

from onnx import TensorProto, ValueInfoProto, checker, helper, save

TARGET = Path(__file__).resolve().parents[1] / "src" / "aioais" / "demo_data" / "add.onnx"


def tensor(name: str) -> ValueInfoProto:
    """Describe a float32 tensor of shape (n, 3, h, w)."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"])


def main() -> None:
    """Write the file."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["input1", "input2"], ["output"])],
        "add",
        inputs=[tensor("input1"), tensor("input2")],
        outputs=[tensor("output")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="aioais")
    checker.check_model(model, full_check=True)
    save(model, str(TARGET))


if __name__ == "__main__":
    main()
