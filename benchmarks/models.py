"""ONNX models for the benchmarks, with random weights: one the size of ResNet-50, one the size of an MNIST reader."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["make_echo", "make_mnist", "make_noop", "make_resnet50"]


class Graph:
    """Nodes and weights of a model while it is built.

    Parameters
    ----------
    seed
        Seed of the weights.
    """

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._random = np.random.default_rng(seed)

    def weight(self, array: np.ndarray) -> str:
        """Add a weight and return its name."""
        from onnx import numpy_helper

        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def random(self, *dims: int) -> str:
        """Add random weights of a layer: the sum over all dims but the first keeps the variance."""
        scale = math.sqrt(2 / math.prod(dims[1:]))
        return self.weight((self._random.standard_normal(dims) * scale).astype(np.float32))

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node with one output and return its name."""
        from onnx import helper

        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def conv(self, x: str, channels: tuple[int, int], kernel: int, stride: int = 1, relu: bool = True) -> str:
        """Convolution, batch normalisation and, if asked for, ReLU."""
        taken, given = channels
        pad = kernel // 2
        w = self.random(given, taken, kernel, kernel)
        x = self.node("Conv", [x, w], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)
        ones, zeros = np.ones(given, np.float32), np.zeros(given, np.float32)
        x = self.node("BatchNormalization", [x, *(self.weight(v) for v in (ones, zeros, zeros, ones))])
        return self.node("Relu", [x]) if relu else x

    def save(self, path: Path, shape: list[int], result: list[int], output: str) -> str:
        """Write the model with input ``x`` and return the path."""
        from onnx import TensorProto, helper, save

        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            [value("x", TensorProto.FLOAT, shape)],
            [value(output, TensorProto.FLOAT, result)],
            self.weights,
        )
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
        return str(path)


def make_resnet50(folder: Path) -> str:
    """Write ResNet-50: 1 x 3 x 224 x 224 in, 1000 classes out, 25.6 million weights."""
    graph = Graph()
    x = graph.conv("x", (3, 64), 7, 2)
    x = graph.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    taken = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            given = 4 * width
            way = graph.conv(x, (taken, width), 1)
            way = graph.conv(way, (width, width), 3, stride)
            way = graph.conv(way, (width, given), 1, relu=False)
            short = x if block else graph.conv(x, (taken, given), 1, stride, relu=False)
            x = graph.node("Relu", [graph.node("Add", [way, short])])
            taken = given
    x = graph.node("Flatten", [graph.node("GlobalAveragePool", [x])])
    bias = graph.weight(np.zeros(1000, np.float32))
    x = graph.node("Gemm", [x, graph.random(1000, taken), bias], transB=1)
    return graph.save(folder / "resnet50.onnx", [1, 3, 224, 224], [1, 1000], x)


def make_mnist(folder: Path) -> str:
    """Write a reader of digits: 1 x 1 x 28 x 28 in, 10 classes out, two convolutions and one dense layer."""
    graph = Graph()
    x = "x"
    for channels in ((1, 8), (8, 16)):
        x = graph.node("Relu", [graph.node("Conv", [x, graph.random(*channels[::-1], 5, 5)], pads=[2] * 4)])
        x = graph.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    x = graph.node("Gemm", [graph.node("Flatten", [x]), graph.random(10, 16 * 7 * 7)], transB=1)
    return graph.save(folder / "mnist.onnx", [1, 1, 28, 28], [1, 10], x)


def make_echo(folder: Path, count: int) -> str:
    """Write a model that adds one to ``count`` numbers."""
    graph = Graph()
    x = graph.node("Add", ["x", graph.weight(np.ones(1, np.float32))])
    return graph.save(folder / "echo.onnx", [1, count], [1, count], x)


def make_noop(folder: Path) -> str:
    """Write the model that does almost nothing: 1 KiB in, 1 KiB out."""
    return make_echo(folder, 256)


def make_heavy(folder: Path) -> str:
    """Write a model with 100 MB of weights."""
    graph = Graph()
    x = graph.node("Gemm", ["x", graph.random(25_000, 1000)], transB=1)
    return graph.save(folder / "heavy.onnx", [1, 1000], [1, 25_000], x)
