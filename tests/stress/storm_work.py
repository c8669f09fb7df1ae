"""What the storm asks of sessions: models of every mode, feeds of every kind, and the right answers.

Every request has values of its own, so a result that is lost, doubled, swapped or written over is a wrong one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

import aioais
from aioais import Tensor

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Kind:
    """A model of one mode, and what may be fed to it."""

    path: str
    modes: tuple[str, ...]
    """Spellings of its mode."""
    shapes: Callable[[random.Random], Shape]
    """Draws the shape of a request; both inputs have the same."""
    largest: Shape | None = None
    """What mode ``static`` runs, where that is allowed."""


def write_kinds(folder: Path) -> list[Kind]:
    """Write ``y = a - b; z = -a`` for every mode."""
    names: list[str | int | None] = ["n", 3, "h", "w"]
    graph = helper.make_graph(
        [helper.make_node("Sub", ["a", "b"], ["y"]), helper.make_node("Neg", ["a"], ["z"])],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, names) for name in "ab"],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, names) for name in "yz"],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = str(folder / "open.onnx")
    Path(path).write_bytes(model.SerializeToString())

    def convert(name: str, shape: str, **options: str) -> str:
        return aioais.convert(path, str(folder / f"{name}.onnx"), input_shape=f"a:{shape};b:{shape}", **options)

    return [
        # Results of up to 64 KiB are copied, larger ones lease the memory that they came in.
        Kind(convert("small", "2,3,4,4"), ("static", "auto"), lambda _: (2, 3, 4, 4), (2, 3, 4, 4)),
        Kind(convert("large", "1,3,128,64"), ("static", "auto"), lambda _: (1, 3, 128, 64), (1, 3, 128, 64)),
        Kind(
            convert("batch", "-1,3,8,8", dynamic_batch_size="1,2,4"),
            ("dymbatch", "dynbatch", "auto"),
            lambda pick: (pick.choice([1, 2, 4]), 3, 8, 8),
            (4, 3, 8, 8),
        ),
        Kind(
            convert("hw", "1,3,-1,-1", dynamic_image_size="4,4;8,16;80,80"),
            ("dymhw", "dynhw", "auto"),
            lambda pick: (1, 3, *pick.choice([(4, 4), (4, 4), (8, 16), (80, 80)])),
            (1, 3, 80, 80),
        ),
        Kind(
            convert("dims", "-1,3,-1,4", dynamic_dims="1,4,1,4;2,8,2,8", input_format="ND"),
            ("dymdims", "dyndims", "auto"),
            lambda pick: pick.choice([(1, 3, 4, 4), (2, 3, 8, 4)]),
            (2, 3, 8, 4),
        ),
        Kind(
            path,
            ("dymshape", "dynshape", "auto"),
            lambda pick: (pick.randint(1, 4), 3, pick.randint(1, 9), pick.choice([1, 4, 7, 900])),
        ),
    ]


class WithArray:
    """A feed that NumPy sees by way of ``__array__`` alone."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self._array


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


DISGUISES: list[Callable[[Any], Any]] = [
    lambda array: array,
    np.asfortranarray,
    lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
    lambda array: array[::-1].copy()[::-1],
    lambda array: array.transpose(3, 1, 0, 2).copy().transpose(2, 1, 3, 0),
    read_only,
    memoryview,
    WithArray,
]
"""The same values as a plain array, in other memory or behind another interface."""


@dataclass
class Request:
    """One request: what to feed, and what must come."""

    feeds: Any
    mode: Any
    wanted: list[Array]

    def check(self, outputs: Sequence[Array]) -> None:
        """Compare outputs with what must come, bit by bit."""
        assert [output.shape for output in outputs] == [array.shape for array in self.wanted]
        for output, array in zip(outputs, self.wanted, strict=True):
            assert np.array_equal(output, array), f"came {output}, wanted {array}"


class Requests:
    """Makes the requests of one session.

    Parameters
    ----------
    kind
        The model.
    pick
        Where the randomness comes from.
    number
        Of the session: no two requests of two sessions have the same values.
    """

    def __init__(self, kind: Kind, pick: random.Random, number: int) -> None:
        self.kind = kind
        self.tensors: list[tuple[Tensor, Array]] = []
        """Device tensors that may be fed, and what they hold."""
        self._pick = pick
        self._base = number * 97 % 8192

    def draw(self, wires: Sequence[int] = (), steps: int = 1) -> Request:
        """Make a request, or an iteration of so many steps with these ``in_out_list``."""
        pick, kind = self._pick, self.kind
        mode = pick.choice(kind.modes)
        shape = kind.shapes(pick)
        if kind.largest and pick.random() < 0.1:
            mode, shape = "static", kind.largest
        fitting = [pair for pair in self.tensors if pair[0].shape == shape and not pair[0].closed]
        feeds: list[Any] = []
        arrays: list[Array] = []
        for _ in "ab":
            if fitting and pick.random() < 0.5:
                tensor, array = pick.choice(fitting)
                feeds.append(tensor)
            else:
                array = self.fresh(shape)
                feeds.append(pick.choice(DISGUISES)(array.copy()) if pick.random() < 0.4 else array)
            arrays.append(array)
        by_name = pick.random() < 0.3
        return Request(dict(zip("ab", feeds, strict=True)) if by_name else feeds, mode, compute(arrays, wires, steps))

    def fresh(self, shape: Shape) -> Array:
        """Make an array that no other code has."""
        self._base = (self._base + 1) % 8192
        count = int(np.prod(shape))
        return (np.arange(count, dtype=np.float32) % 61 + self._base).reshape(shape)


def compute(inputs: Sequence[Array], wires: Sequence[int], steps: int) -> list[Array]:
    """Run the model by NumPy; exact, as all values are small whole numbers."""
    a, b = inputs
    outputs = [a - b, -a]
    for _ in range(steps - 1):
        a, b = (kept if wire < 0 else outputs[wire] for wire, kept in zip(wires, (a, b), strict=True))
        outputs = [a - b, -a]
    return outputs
