"""The model of these examples, ``output = input1 + input2``, and how each of them is started.

Every example takes a model and a device, both optional::

    python examples/infer/infer_dymbatch.py [model.om] [device]

Without a model the Add model is made on the spot and runs on the CPU. To run on an NPU, write the plain
ONNX file with ``python examples/infer/add_model.py`` and convert it with the options that the
example names, such as

    aioais convert --model add.onnx --output add_dymbatch.om --soc_version Ascend310P3 \
        --input_shape "input1:-1,3,32,32;input2:-1,3,32,32" --dynamic_batch_size 1,2,4,8
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import aioais

Array = npt.NDArray[np.float32]


def write_add_model(path: Path) -> None:
    """Write the plain ONNX file: two float32 inputs of shape (n, 3, h, w), all but the 3 open."""
    # Only this function needs the package onnx; a model on the command line does without it.
    from onnx import TensorProto, ValueInfoProto, checker, helper, save

    def tensor(name: str) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "h", "w"])

    graph = helper.make_graph(
        [helper.make_node("Add", ["input1", "input2"], ["output"])],
        "add",
        inputs=[tensor("input1"), tensor("input2")],
        outputs=[tensor("output")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    checker.check_model(model, full_check=True)
    save(model, str(path))


def random_pair(*shape: int) -> tuple[Array, Array]:
    """Make two inputs of whole numbers, whose sum is exact at any precision a device may choose."""
    a, b = np.random.default_rng(seed=0).integers(0, 100, (2, *shape)).astype(np.float32)
    return a, b


def run(example: Callable[[str, int], Coroutine[Any, Any, None]], **options: str) -> None:
    """Run ``example(model, device)`` with the model of the command line, or one made with ``options``."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("model", nargs="?", help="an Add model; made on the spot without one")
    parser.add_argument("device", nargs="?", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.model:
        aioais.run(example, arguments.model, arguments.device)
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "add.onnx")
        write_add_model(plain)
        model = aioais.convert(str(plain), str(Path(folder, "add_converted.onnx")), **options)
        aioais.run(example, str(model), arguments.device)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "add.onnx")
    write_add_model(target)
    print(f"wrote {target}")
