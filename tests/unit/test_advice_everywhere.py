"""Wrong calls of every way to run a model with two inputs, and of constructors: what the errors advise is right."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from tests.tiers import Tier

import aioais
from aioais import (
    ArgumentError,
    BatchingSession,
    DeviceError,
    FeedError,
    InferSession,
    ModelError,
    MultiDeviceSession,
)

if TYPE_CHECKING:
    from tests.unit.conftest import Models

COUNT = 3000 if Tier.is_full else 300
MOST_ADVICES = 8

FIRST, SECOND = "a", "b"
KINDS: dict[str, tuple[dict[str, tuple[int, list[Any]]], dict[str, str], list[list[tuple[int, ...]]]]] = {
    "static": ({FIRST: (1, [2, 3]), SECOND: (7, [2, 4])}, {}, [[(2, 3), (2, 4)]]),
    "image": ({FIRST: (1, [1, 3, 4, 5]), SECOND: (16, [1, 2])}, {}, [[(1, 3, 4, 5), (1, 2)]]),
    "gears": (
        {FIRST: (1, ["n", 3, 2, 4]), SECOND: (10, ["n", 5])},
        {"input_shape": "a:-1,3,2,4;b:-1,5", "dynamic_batch_size": "1,2,4"},
        [[(n, 3, 2, 4), (n, 5)] for n in (1, 2, 4)],
    ),
    "open": ({FIRST: (1, ["n", 3, "h"]), SECOND: (6, ["n"])}, {}, [[(1, 3, 5), (1,)], [(2, 3, 4), (2,)]]),
}
"""Inputs, how they are converted, and shapes that fit."""


class Places(NamedTuple):
    """What a model is open in."""

    session: InferSession
    multi: MultiDeviceSession
    batching: BatchingSession


class Call:
    """A call of one of the ways to run a model, and the numbers that were meant."""

    def __init__(self, places: Places, kind: str, way: str, rng: random.Random) -> None:
        self.places, self.kind, self.way, self.rng = places, kind, way, rng
        self.dtypes = {tensor.name: tensor.datatype.numpy for tensor in places.session.get_inputs()}
        self.good = self.make()
        self.is_exact = True
        self.mode: Any = "auto"
        self.sizes: Any = 100000
        self.prefetch: Any = None
        self.wires: Any = [-1, -1]
        self.steps: Any = 2
        self.device: Any = 0
        self.priority: Any = 0
        self.timeout: Any = None
        self.is_flat = False
        """The source is the feeds themselves, instead of a list of them."""
        self.source: Any = self
        """Instead of what is made of the feeds."""
        self.feeds: Any = [*self.good.values()] if rng.random() < 0.5 else dict(self.good)

    def make(self) -> dict[str, np.ndarray]:
        shapes = self.rng.choice(KINDS[self.kind][2])
        return {
            name: np.arange(1, 1 + int(np.prod(shape))).reshape(shape).astype(dtype)
            for (name, dtype), shape in zip(self.dtypes.items(), shapes, strict=True)
        }

    def change(self, name: str, function: Callable[[np.ndarray], Any]) -> None:
        """Replace one feed, where the feeds are still a list or a mapping of them."""
        place: Any = name if isinstance(self.feeds, dict) else [FIRST, SECOND].index(name)
        try:
            self.feeds[place] = function(self.feeds[place])
        except (TypeError, LookupError, AttributeError, ValueError):
            pass  # another change has made it something else

    async def run(self) -> None:
        results = await getattr(self, self.way)()
        if not results:
            assert self.is_flat, "no results"
            assert len(self.feeds) == 0, "no results"
            return
        (outputs,) = results
        if self.is_exact:
            for output, array in zip(outputs, self.good.values(), strict=True):
                np.testing.assert_array_equal(output.astype(np.float64), array.astype(np.float64))

    def _listed(self, item: Any) -> Any:
        return self.source if self.source is not self else item if self.is_flat else [item]

    async def infer(self) -> Any:
        return [await self.places.session.infer(self.feeds, self.mode, self.sizes)]

    async def pipeline(self) -> Any:
        source = self._listed(self.feeds)
        results = self.places.session.infer_pipeline(source, self.mode, self.sizes, prefetch=self.prefetch)
        return [outputs async for outputs in results]

    async def iteration(self) -> Any:
        session = self.places.session
        return [await session.infer_iteration(self.feeds, self.wires, self.steps, self.mode, custom_sizes=self.sizes)]

    async def lanes(self) -> Any:
        entries = {self.device: [self.feeds]}
        given = self.source if self.source is not self else self.feeds if self.is_flat else entries
        results = await self.places.multi.infer(given, self.mode, self.sizes)
        return results.get(self.device)

    async def lane_pipelines(self) -> Any:
        entries = {self.device: [self._listed(self.feeds)]}
        results = await self.places.multi.infer_pipeline(entries, self.mode, self.sizes)
        return results[self.device][0]

    async def lane_iterations(self) -> Any:
        results = await self.places.multi.infer_iteration(
            {self.device: [self.feeds]}, self.wires, self.steps, self.mode, custom_sizes=self.sizes
        )
        return results[self.device]

    async def stream(self) -> Any:
        source = self._listed(self.feeds)
        items = self.places.multi.stream(source, [self.device], self.mode, self.sizes, prefetch=self.prefetch)
        return [item.outputs async for item in items]

    async def batches(self) -> Any:
        return [await self.places.batching.infer(self.feeds, priority=self.priority, timeout=self.timeout)]


WAYS = ["infer", "pipeline", "iteration", "lanes", "lane_pipelines", "lane_iterations", "stream", "batches"]
Break = Callable[[Call], None]


def _channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1) if x.ndim > 2 else x


FEED_BREAKS: list[Callable[[np.ndarray], Any]] = [
    _channels_last,
    lambda x: x.ravel(),
    lambda x: x[0] if len(x) == 1 else x[None],
    lambda x: x.astype(np.float64),
    lambda x: x.astype(np.int32),
    lambda x: _channels_last(x).astype(np.int32),
    lambda x: x.tobytes(),
    lambda x: bytearray(x.tobytes()),
    lambda x: x.view(f"V{x.itemsize}"),
    lambda x: x.view(np.uint16) if x.dtype.kind == "V" else x.astype(np.uint8),
    lambda x: x.astype(float).tolist(),
    lambda x: x.astype(object),
]
LOST: list[Any] = [None, "x", np.zeros(0), np.array(["a"]), np.zeros(3, "M8[s]"), np.ones((7, 7, 7)), 5, {}]
"""Feeds from which no advice can bring the numbers back."""


def _feed(call: Call) -> None:
    call.change(call.rng.choice([FIRST, SECOND]), call.rng.choice(FEED_BREAKS))


def _lost(call: Call) -> None:
    call.is_exact = False
    call.change(call.rng.choice([FIRST, SECOND]), lambda _: call.rng.choice(LOST))


def _container(call: Call) -> None:
    a, b = call.good.values()
    call.feeds = call.rng.choice(
        [
            [b, a],
            [a],
            [a, b, b],
            [],
            {},
            {FIRST: a},
            {FIRST: a, "c": b},
            {**call.good, "c": a},
            a,
            None,
            5,
            "ab",
            {a.size},
        ]
    )
    call.is_exact = not (isinstance(call.feeds, list) and len(call.feeds) == 2)


def _set(**values: Any) -> Break:
    def apply(call: Call) -> None:
        name, choices = next(iter(values.items()))
        setattr(call, name, call.rng.choice(choices))

    return apply


MODES = ["statc", "AUTO", "nothing", None, 3, "static", "dymhw", "dymshape", "dymdims", "dynbatch"]
SIZES = [0, 2**64 + 64, "9", [8], [8, 8, 8], -1, [0, 0], None]
NO_INTS = [-1, "x", 1.5, True, [1]]
BREAKS: dict[str, list[Break]] = {way: [_feed, _feed, _feed, _lost, _container] for way in WAYS}
OF_MODES = [_set(mode=MODES), _set(sizes=SIZES)]
OF_WIRES = [
    _set(wires=[[5, 0], [-1], [-1, -1, -1], "x", None, 3, [0, 1], [1, -1], [None, -1]]),
    _set(steps=[0, "x", 1.5]),
]
OF_SOURCES = [_set(source=[None, 5, 1.5]), _set(is_flat=[True])]
OF_DEVICES = [_set(device=[99, -1, "x", 1.5, None])]
for _way, _more in {
    "infer": OF_MODES,
    "pipeline": [*OF_MODES, *OF_SOURCES, _set(prefetch=NO_INTS)],
    "iteration": [*OF_MODES, *OF_WIRES],
    "lanes": [*OF_MODES, *OF_DEVICES, _set(source=[5, "x", [1]]), _set(is_flat=[True])],
    "lane_pipelines": [*OF_MODES, *OF_DEVICES, *OF_SOURCES],
    "lane_iterations": [*OF_MODES, *OF_WIRES, *OF_DEVICES],
    "stream": [*OF_MODES, *OF_DEVICES, *OF_SOURCES, _set(prefetch=NO_INTS)],
    "batches": [_set(priority=["x", 1.5, True, None]), _set(timeout=[0, -1, "x", float("nan"), True])],
}.items():
    BREAKS[_way] = [*BREAKS[_way], *_more]

EXPRESSION = re.compile(
    r"(?:transpose it|reshape it|convert it|take its bytes|take its bits|add a dim|if these are its bytes): (.*?)"
    r"(?:, or open the session .*)?$"
)


async def carry_out(call: Call, text: str) -> str:
    """Do what an error advises; gives the kind of the advice, or nothing if there is none."""
    place = re.search(rf"input '({FIRST}|{SECOND})' \(position \d\)", text)
    expression = EXPRESSION.search(text)
    if expression and place:

        def evaluate(given: Any) -> Any:
            return eval(
                expression[1], {"array": given, "feed": given, "value": given, "np": np, "ml_dtypes": ml_dtypes}
            )

        call.change(place[1], evaluate)
        return "an expression"
    if re.search(r"in_out_list\[\d\]=\d feeds output .* feed it an output of its", text):
        call.wires = [-1, -1]
        return "wires"
    if place and re.search(
        r"give an array (of that|with such)|give one row or more|expected an array|use a (numeric type|legal gear)",
        text,
    ):
        name = place[1]
        call.is_exact = False
        call.good = call.make()
        other = FIRST if name == SECOND else SECOND
        call.change(name, lambda _: call.good[name])
        call.change(other, lambda _: call.good[other])
        return "another array"
    mode = re.search(r"did you mean '(\w+)'|use mode='(\w+)'", text) or re.search(r"mode=.*expected '(\w+)'", text)
    if mode:
        call.mode = next(filter(None, mode.groups()))
        return "mode"
    if "leave it out to have buffers grow" in text or "or one int for all" in text:
        call.sizes = 100000
        return "sizes"
    if found := re.search(r"in_out_list=(\[[-\d, ]*\]) repeats the first step", text):
        call.wires = eval(found[1])
        return "wires"
    if "-1 keeps an input" in text or "expected -1 to keep input" in text:
        call.wires = [-1, -1]
        return "wires"
    if "expected an int of at least 1, the number of steps" in text:
        call.steps = 2
        return "steps"
    if "aioais.devices() lists" in text:
        call.device = aioais.devices()[0].id
        return "device"
    if "prefetch=" in text:
        assert "expected an int from 0, or None" in text
        call.prefetch = call.rng.choice([0, None])
        return "prefetch"
    if "priority=" in text:
        assert "expected an int, smaller ones first" in text
        call.priority = 1
        return "priority"
    if "timeout=" in text:
        assert "expected a positive number of seconds, or None" in text
        call.timeout = call.rng.choice([60, None])
        return "timeout"
    if re.search(
        r"iterable of feeds: \[\[x\], \[y\]\]|a mapping of lists by device: \{0: |one entry per lane: \{0: ", text
    ):
        call.source, call.is_flat = call, False
        return "a source"
    if re.search(
        r"give (one feed per input|exactly one feed per name|all inputs)|expected a list with one array", text
    ):
        if call.is_flat:  # what is no list of feeds was read as one
            call.is_flat = False
            return "a source"
        call.good = call.make()
        call.feeds = call.rng.choice([[*call.good.values()], dict(call.good)])
        return "feeds"
    if "different numbers of rows" in text:
        call.is_exact, call.good = False, call.make()
        call.feeds = [*call.good.values()]
        return "feeds"
    return ""


@asynccontextmanager
async def opened(models: Models, kind: str) -> AsyncIterator[Places]:
    inputs, options, _ = KINDS[kind]
    names = {FIRST: "first", SECOND: "second"}
    nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = [
        ("Identity", [name], [names[name]], {}) for name in inputs
    ]
    path = models.write(f"plain_{kind}", nodes, inputs, {names[name]: what for name, what in inputs.items()})
    if options:
        path = models.convert(path, kind, **options)
    async with (
        InferSession(0, path) as session,
        MultiDeviceSession(path) as multi,
        BatchingSession(session, max_delay=0) as batching,
    ):
        yield Places(session, multi, batching)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
async def test_advice_is_right(models: Models, kind: str) -> None:
    rng = random.Random(f"20 {kind}")
    suggestions: Counter[str] = Counter()
    wrong = 0
    async with opened(models, kind) as places:
        for number in range(COUNT // len(KINDS)):
            call = Call(places, kind, WAYS[number % len(WAYS)], rng)
            for change in rng.sample(BREAKS[call.way], rng.choice([1, 1, 1, 2])):
                change(call)
            history: list[str] = []
            for _ in range(MOST_ADVICES):
                try:
                    await call.run()
                    break
                except (FeedError, ArgumentError, DeviceError) as exc:
                    history.append(str(exc))
                except AssertionError as exc:
                    raise AssertionError(f"{call.way}: wrong numbers after {history}") from exc
                advice = await carry_out(call, history[-1])
                assert advice, f"{call.way}: no advice that can be carried out: {history[-1]}"
                suggestions[advice] += 1
            else:
                raise AssertionError(f"{call.way}: the advice leads nowhere: {history}")
            wrong += bool(history)
    assert wrong > COUNT / len(KINDS) * 0.6, "most of the calls are wrong"
    assert len(suggestions) >= 8, suggestions


OPTIONS: dict[str, list[Any]] = {
    "device_id": [-1, "0", 1.5, True, 99, None],
    "model_path": [5, None, "", "nowhere.onnx", "a\0b"],
    "acl_json_path": [5, "", "nowhere.json"],
    "loop": [0, -3, "x", 1.5, None],
    "depth": [0, "deep", 1.5, None, True],
    "check": ["strikt", None, 5],
    "platform": ["gpu", "CPU", 5],
    "hang_timeout": [0, -1, "x", float("nan"), float("inf"), True],
    "max_batch_size": [0, "x", 1.5, True],
    "max_delay": [-1, "x", None, float("nan"), float("inf")],
    "max_queue": [0, "x", 1.5],
    "on_full": ["block", None, 5],
    "batch_axes": ["x", {"a": "n"}, {"z": 0}, {"a": 9}, 1.5],
    "session": [None, 5, "x"],
}
"""Wrong values of the arguments of constructors."""
OF_SESSIONS = ["model_path", "acl_json_path", "loop", "depth", "check", "platform", "hang_timeout"]
OF_BATCHING = ["max_batch_size", "max_delay", "max_queue", "on_full", "batch_axes", "session"]


def advised(name: str, text: str, path: str, session: Any) -> Any:
    """Return a value for an argument that is what an error says."""
    if name == "device_id":
        assert "aioais.devices() lists" in text
        return aioais.devices()[0].id
    if name == "model_path":
        assert re.search("expected a path|give the path of a model file", text)
        return path
    if name == "session":
        assert "expected an InferSession or a MultiDeviceSession" in text
        return session
    if name == "batch_axes" and (found := re.search(r"expected inputs or outputs: (\w+)", text)):
        return {found[1]: 0}
    if name == "batch_axes":
        assert "or None" in text or "expected None" in text
        return {"a": 0} if "a dim of it" in text else None
    expected = text.partition("expected ")[2]
    if name == "platform":
        assert "or None to go by the file's name" in text
        return None
    if found := re.match(r"'(\w+)'", expected):
        return found[1]
    if "int of at least 1" in expected:
        return 1
    if found := re.search(r"seconds, (?:from above 0|0 or more)", expected):
        return 0.5
    assert name == "acl_json_path", text
    assert re.search("expected a (JSON file|path)", text)
    return None


@pytest.mark.parametrize("kind", ["session", "multi", "batching"])
async def test_advice_about_options_is_right(models: Models, kind: str) -> None:
    """Constructors and opening: the error names the argument, and what it expects works."""
    path = models.identity([2, 3])
    x = np.ones((2, 3), np.float32)
    rng = random.Random(kind)
    names = OF_BATCHING if kind == "batching" else OF_SESSIONS if kind == "multi" else ["device_id", *OF_SESSIONS]
    output: Any = None
    async with InferSession(0, path) as inner:

        async def use(given: dict[str, Any]) -> Any:
            if kind == "batching":
                async with BatchingSession(given.pop("session", inner), **given) as batching:
                    return await batching.infer([x])
            given = {"model_path": path, **given}
            if kind == "multi":
                async with MultiDeviceSession(**given) as multi:
                    return (await multi.infer({0: [[x]]}))[0][0]
            async with InferSession(given.pop("device_id", 0), **given) as session:
                return await session.infer([x])

        for _ in range(COUNT // 10):
            chosen = rng.sample(names, rng.choice([1, 1, 2, 3]))
            given = {name: rng.choice(OPTIONS[name]) for name in chosen}
            history: list[str] = []
            while True:
                try:
                    (output,) = await use(dict(given))
                    break
                except (ArgumentError, DeviceError, ModelError) as exc:
                    history.append(str(exc))
                assert len(history) <= 2 * len(chosen), history
                named = [name for name in chosen if re.match(rf"(got )?{name}\b", history[-1])]
                if not named and "model file" in history[-1]:
                    named = ["model_path"]
                assert len(named) == 1, f"which argument? {history[-1]}"
                given[named[0]] = advised(named[0], history[-1], path, inner)
            np.testing.assert_array_equal(output, x)
            assert history
