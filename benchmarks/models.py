"""ONNX models for the benchmarks, with random weights and the sizes of known ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "make_detector",
    "make_echo",
    "make_heavy",
    "make_mnist",
    "make_nhwc",
    "make_noop",
    "make_ocr",
    "make_resnet50",
    "make_vad",
]

Shapes = dict[str, list[Any]]
"""Dims by name; a dim that is a name is open."""


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
        return self.split(kind, inputs, 1, **attributes)[0]

    def split(self, kind: str, inputs: list[str], count: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs and return their names."""
        from onnx import helper

        names = [f"t{len(self.nodes)}_{k}" for k in range(count)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names

    def conv(self, x: str, channels: tuple[int, int], kernel: int, stride: int = 1, relu: bool = True) -> str:
        """Convolution, batch normalisation and, if asked for, ReLU."""
        taken, given = channels
        pad = kernel // 2
        w = self.random(given, taken, kernel, kernel)
        x = self.node("Conv", [x, w], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)
        ones, zeros = np.ones(given, np.float32), np.zeros(given, np.float32)
        x = self.node("BatchNormalization", [x, *(self.weight(v) for v in (ones, zeros, zeros, ones))])
        return self.node("Relu", [x]) if relu else x

    def save(self, path: Path, inputs: Shapes, outputs: Shapes) -> str:
        """Write the model and return the path."""
        from onnx import TensorProto, helper, save

        given, results = (
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in shapes.items()]
            for shapes in (inputs, outputs)
        )
        graph = helper.make_graph(self.nodes, path.stem, given, results, self.weights)
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
    return graph.save(folder / "resnet50.onnx", {"x": [1, 3, 224, 224]}, {x: [1, 1000]})


def make_mnist(folder: Path, rows: int | str = 1) -> str:
    """Write a reader of digits: 1 x 28 x 28 in, 10 classes out, two convolutions and one dense layer.

    Parameters
    ----------
    folder
        Where to.
    rows
        The first dim; a name leaves it open.
    """
    graph = Graph()
    x = "x"
    for channels in ((1, 8), (8, 16)):
        x = graph.node("Relu", [graph.node("Conv", [x, graph.random(*channels[::-1], 5, 5)], pads=[2] * 4)])
        x = graph.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    x = graph.node("Gemm", [graph.node("Flatten", [x]), graph.random(10, 16 * 7 * 7)], transB=1)
    return graph.save(folder / f"mnist_{rows}.onnx", {"x": [rows, 1, 28, 28]}, {x: [rows, 10]})


def make_vad(folder: Path, rows: int | str = 1) -> str:
    """Write a detector of speech, like Silero VAD: 576 samples and the state of an LSTM in, both new ones out.

    Parameters
    ----------
    folder
        Where to.
    rows
        Number of voices; a name leaves it open.
    """
    graph, width = Graph(), 128
    axes = graph.weight(np.array([1], np.int64))
    x = graph.node("Unsqueeze", ["x", axes])
    x = graph.node("Conv", [x, graph.random(258, 1, 256)], strides=[128], pads=[64, 0])
    halves = graph.split("Split", [x], 2, axis=1)
    x = graph.node("Sqrt", [graph.node("Add", [graph.node("Mul", [half, half]) for half in halves])])
    for taken, given, stride in ((129, width, 1), (width, 64, 2), (64, 64, 2), (64, width, 1)):
        x = graph.node("Conv", [x, graph.random(given, taken, 3)], strides=[stride], pads=[1, 1])
        x = graph.node("Relu", [x])
    x = graph.node("Transpose", [x], perm=[2, 0, 1])
    states = graph.split("Split", ["state"], 2, axis=0)
    weights = [graph.random(1, 4 * width, width), graph.random(1, 4 * width, width)]
    _, *states = graph.split("LSTM", [x, *weights, "", "", *states], 3, hidden_size=width)
    state = graph.node("Concat", states, axis=0)
    x = graph.node("Relu", [graph.node("Squeeze", [states[0], graph.weight(np.array([0], np.int64))])])
    x = graph.node("Sigmoid", [graph.node("Gemm", [x, graph.random(1, width)], transB=1)])
    shape = [2, rows, width]
    return graph.save(folder / f"vad_{rows}.onnx", {"x": [rows, 576], "state": shape}, {x: [rows, 1], state: shape})


def make_nhwc(folder: Path) -> str:
    """Write an image model as converters from TensorFlow do: channels last, with transposes around convolutions."""
    graph, x = Graph(), "x"
    for taken, given, stride in ((3, 16, 2), (16, 32, 2), (32, 64, 1), (64, 64, 2), (64, 128, 1)):
        x = graph.conv(graph.node("Transpose", [x], perm=[0, 3, 1, 2]), (taken, given), 3, stride)
        x = graph.node("Transpose", [x], perm=[0, 2, 3, 1])
        x = graph.node("Add", [x, graph.weight(np.full(given, 0.1, np.float32))])
    x = graph.node("ReduceMean", [x], axes=[1, 2], keepdims=0)
    x = graph.node("Gemm", [x, graph.random(10, 128)], transB=1)
    return graph.save(folder / "nhwc.onnx", {"x": [1, 224, 224, 3]}, {x: [1, 10]})


def make_detector(folder: Path) -> str:
    """Write a small detector of objects: an image of 320 x 320 in, 85 numbers for each of 20 x 20 places out."""
    graph, x = Graph(), "x"
    for taken, given, stride in ((3, 16, 2), (16, 32, 2), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1)):
        x = graph.conv(x, (taken, given), 3, stride)
    x = graph.conv(x, (128, 85), 1, relu=False)
    return graph.save(folder / "detector.onnx", {"x": [1, 3, 320, 320]}, {x: [1, 85, 20, 20]})


def make_ocr(folder: Path) -> str:
    """Write a reader of text: a line of 48 x 320 pixels in, one of 6625 characters for each of 40 places out."""
    graph, x = Graph(), "x"
    for taken, given, stride in ((3, 16, 2), (16, 32, 2), (32, 64, 1), (64, 128, 2), (128, 128, 1)):
        x = graph.conv(x, (taken, given), 3, stride)
    x = graph.node("ReduceMean", [x], axes=[2], keepdims=0)
    x = graph.node("Transpose", [x], perm=[0, 2, 1])
    x = graph.node("Softmax", [graph.node("MatMul", [x, graph.random(128, 6625)])], axis=2)
    return graph.save(folder / "ocr.onnx", {"x": [1, 3, 48, 320]}, {x: [1, 40, 6625]})


def make_echo(folder: Path, count: int) -> str:
    """Write a model that adds one to ``count`` numbers."""
    graph = Graph()
    x = graph.node("Add", ["x", graph.weight(np.ones(1, np.float32))])
    return graph.save(folder / "echo.onnx", {"x": [1, count]}, {x: [1, count]})


def make_noop(folder: Path) -> str:
    """Write the model that does almost nothing: 1 KiB in, 1 KiB out."""
    return make_echo(folder, 256)


def make_heavy(folder: Path) -> str:
    """Write a model with 100 MB of weights."""
    graph = Graph()
    x = graph.node("Gemm", ["x", graph.random(25_000, 1000)], transB=1)
    return graph.save(folder / "heavy.onnx", {"x": [1, 1000]}, {x: [1, 25_000]})
