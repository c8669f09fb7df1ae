"""Wrong calls made at random: what the error advises is carried out; then the call works, with the right numbers."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from tests.tiers import Tier

from aioais import ArgumentError, FeedError, InferSession, Tensor

if TYPE_CHECKING:
    from tests.unit.conftest import Models

COUNT = 2000 if Tier.is_full else 200
MOST_ADVICES = 6
"""Advice that one call may need: for the container, the mode, and each feed."""

KINDS: list[tuple[str, list[Any], int, dict[str, str]]] = [
    ("static", [2, 3], 1, {}),
    ("image", [1, 3, 4, 5], 1, {}),
    ("half", [2, 3, 4], 10, {}),
    ("bf16", [2, 3], 16, {}),
    ("int", [5], 7, {}),
    ("batch", ["n", 3, 2, 4], 1, {"input_shape": "x:-1,3,2,4", "dynamic_batch_size": "1,2,4"}),
    ("hw", [1, 3, "h", "w"], 1, {"input_shape": "x:1,3,-1,-1", "dynamic_image_size": "8,6;16,12"}),
    ("range", ["n", 3], 1, {"input_shape_range": "x:[1~4,3]"}),
    ("open", ["n", 3, "h", "w"], 1, {}),
]
LEGAL: dict[str, list[tuple[int, ...]]] = {
    "static": [(2, 3)],
    "image": [(1, 3, 4, 5)],
    "half": [(2, 3, 4)],
    "bf16": [(2, 3)],
    "int": [(5,)],
    "batch": [(1, 3, 2, 4), (2, 3, 2, 4), (4, 3, 2, 4)],
    "hw": [(1, 3, 8, 6), (1, 3, 16, 12)],
    "range": [(1, 3), (4, 3)],
    "open": [(1, 3, 4, 5), (2, 3, 8, 6)],
}


class Call:
    """A call of ``infer`` or ``infer_iteration``, and the numbers that were meant."""

    def __init__(self, session: InferSession, kind: str, rng: random.Random) -> None:
        self.session, self.kind, self.rng = session, kind, rng
        self.dtype = session.get_inputs()[0].datatype.numpy
        self.mode: Any = "auto"
        self.sizes: Any = 100000
        self.steps: Any = 1
        self.wires: Any = None
        self.good = self.make()
        self.is_exact = True
        """The numbers must be those that were meant: no advice has replaced them."""
        self.feeds: Any = [self.good]

    def make(self) -> np.ndarray:
        """Return a feed that fits."""
        shape = self.rng.choice(LEGAL[self.kind])
        return np.arange(1, 1 + int(np.prod(shape))).reshape(shape).astype(self.dtype)

    async def run(self) -> None:
        if (self.steps, self.wires) != (1, None):
            outputs = await self.session.infer_iteration(
                self.feeds, self.wires, self.steps, self.mode, custom_sizes=self.sizes
            )
        else:
            outputs = await self.session.infer(self.feeds, self.mode, self.sizes)
        if self.is_exact:
            np.testing.assert_array_equal(outputs[0].astype(np.float64), self.good.astype(np.float64))


Break = Callable[[Call], None]


def _feed(change: Callable[[np.ndarray], Any]) -> Break:
    def apply(call: Call) -> None:
        call.feeds = [change(call.good)]

    return apply


def _set(**values: Any) -> Break:
    def apply(call: Call) -> None:
        for name, value in values.items():
            setattr(call, name, value)

    return apply


def _channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1) if x.ndim > 2 else x.T


def _image(x: np.ndarray) -> np.ndarray:
    return _channels_last(x)[0] if x.ndim > 2 and len(x) == 1 else x[None]


def _replace(call: Call) -> None:
    """Give numbers that no advice can bring back."""
    call.is_exact = False
    call.feeds = [np.ones(call.rng.choice([(7,), (3, 3), (2, 2, 2), (0,), (1, 3, 9, 9), ()]), call.dtype)]


def _other_kind(call: Call) -> None:
    call.is_exact = False
    call.feeds = call.rng.choice([None, 5, "x", [None], ["x"], [{}], [np.array(["a"])], [np.zeros(3, "M8[s]")]])


BREAKS: list[Break] = [
    _feed(_channels_last),
    _feed(_image),
    _feed(lambda x: x.ravel()),
    _feed(lambda x: x.astype(np.float64)),
    _feed(lambda x: x.astype(np.int32)),
    _feed(lambda x: _channels_last(x).astype(np.float64)),
    _feed(lambda x: x.tobytes()),
    _feed(lambda x: bytearray(x.tobytes())),
    _feed(lambda x: x.view(f"V{x.itemsize}")),
    _feed(lambda x: x.view(np.uint16) if x.itemsize == 2 and x.dtype.kind == "V" else x.astype(np.float64)),
    _feed(lambda x: x.astype(float).tolist()),
    _feed(lambda x: x.astype(object)),
    _replace,
    _other_kind,
    lambda call: setattr(call, "feeds", call.good),
    lambda call: setattr(call, "feeds", [call.good, call.good]),
    lambda call: setattr(call, "feeds", []),
    lambda call: setattr(call, "feeds", {"wrong": call.good}),
    _set(mode="statc"),
    _set(mode="AUTO"),
    _set(mode="nothing"),
    _set(mode=None),
    _set(mode="static"),
    _set(mode="dymhw"),
    _set(mode="dymshape"),
    _set(sizes=0),
    _set(sizes=2**64 + 64),
    _set(sizes="9"),
    _set(sizes=[8, 8]),
    _set(steps=3),
    _set(steps=0),
    _set(wires=[5]),
    _set(wires=[-1, -1]),
    _set(wires="x", steps=2),
]


async def carry_out(call: Call, text: str) -> str:
    """Do what an error advises; gives the kind of the advice, or nothing if there is none."""
    expression = re.search(
        r"(?:transpose it|reshape it|convert it|take its bytes|take its bits|add a dim|if these are its bytes): (.*?)"
        r"(?:, or open the session .*)?$",
        text,
    )
    if expression:
        given = call.feeds[0]
        names = {"array": given, "feed": given, "value": given, "np": np, "ml_dtypes": ml_dtypes}
        source = expression[1]
        if isinstance(given, Tensor):
            names["array"] = await given.to_host()
            source = source.replace("(await tensor.to_host())", "array")
        call.feeds = [eval(source, names)]
        return "an expression"
    for pattern, name in (
        (r"did you mean '(\w+)'", "mode"),
        (r"use mode='(\w+)'", "mode"),
        (r"expected '(\w+)'", "mode"),
    ):
        found = re.search(pattern, text)
        if found and "mode" in text:
            call.mode = found[1]
            return name
    if "put a single array into a list" in text:
        call.feeds = [call.feeds]
        return "a list"
    if "leave it out to have buffers grow" in text or "or one int for all" in text:
        call.sizes = 100000
        return "sizes"
    if found := re.search(r"in_out_list=(\[.*?\]) repeats the first step", text):
        call.wires = eval(found[1])
        return "wires"
    if "-1 keeps an input" in text or "expected -1 to keep input" in text:
        call.wires = [-1]
        return "wires"
    if "expected an int of at least 1, the number of steps" in text:
        call.steps = 1
        return "steps"
    if "use a numeric type" in text:
        call.feeds = [call.feeds[0].astype(call.dtype)]
        return "a type"
    if re.search(r"give (one feed per input|exactly one feed per name)|expected a list with one array per input", text):
        call.feeds = [call.good]
        return "a list"
    if re.search(r"use a legal gear|give an array (of that|with such)|expected an array|NumPy has no such", text):
        call.feeds, call.is_exact = [call.make()], False
        return "another array"
    return ""


def _can_be_a_tensor(feeds: Any) -> bool:
    is_one = isinstance(feeds, list) and len(feeds) == 1 and type(feeds[0]) is np.ndarray
    return is_one and not feeds[0].dtype.hasobject and feeds[0].dtype.kind not in "VUSM"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
async def test_advice_is_right(models: Models) -> None:
    rng = random.Random(17)
    suggestions: Counter[str] = Counter()
    for name, dims, kind, options in KINDS:
        path = models.identity(dims, kind, f"plain_{name}")
        if options:
            path = models.convert(path, name, **options)
        async with InferSession(0, path) as session:
            for number in range(COUNT // len(KINDS) + 1):
                call = Call(session, name, rng)
                for change in rng.sample(BREAKS, rng.choice([1, 1, 1, 2])):
                    change(call)
                feeds = call.feeds
                if number % 9 == 0 and _can_be_a_tensor(feeds):
                    call.feeds = [await session.to_device(feeds[0])]
                history = []
                for _ in range(MOST_ADVICES):
                    try:
                        await call.run()
                        break
                    except (FeedError, ArgumentError) as exc:
                        history.append(str(exc))
                    except AssertionError as exc:
                        raise AssertionError(f"wrong numbers after {history}") from exc
                    advice = await carry_out(call, history[-1])
                    assert advice, f"no advice that can be carried out: {history[-1]}"
                    suggestions[advice] += 1
                else:
                    raise AssertionError(f"the advice leads nowhere: {history}")
    assert suggestions.total() > COUNT * 0.6, "most of the calls are wrong"
    assert suggestions["an expression"] > COUNT * 0.2
    assert len(suggestions) >= 7
