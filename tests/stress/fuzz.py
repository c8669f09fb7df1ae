"""Seeded bad input: feeds and arguments, constructor arguments, configuration files, options of ``convert``.

Every case follows from its number alone, so that a finding is repeated by running that number. A case ends well, or
with an error that the library documents; anything else is a finding.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

import aioais
from aioais import AioaisError, InferSession, emulator

DOCUMENTED = (AioaisError,)
"""What a case may raise."""

HUGE = np.broadcast_to(np.float32(1), (1 << 20, 1 << 20))
"""A terabyte of elements in four bytes of memory."""


class Outcomes:
    """How the cases of one kind ended."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.ends: Counter[str] = Counter()
        self.findings: list[str] = []

    async def run(self, case: int, action: Callable[[random.Random], Awaitable[Any]]) -> None:
        """Run one case."""
        try:
            await action(random.Random(f"{self.kind} {case}"))
            self.ends["well"] += 1
        except DOCUMENTED as error:
            self.ends[type(error).__name__] += 1
        except Exception as error:  # noqa: BLE001 - what is found is told at the end
            self.findings.append(f"{self.kind} {case}: {type(error).__name__}: {str(error)[:300]}")


# --- models ---------------------------------------------------------------------------------------


def write_models(folder: Path) -> dict[str, str]:
    """Write a model of each kind; the values are paths."""

    def write(name: str, node: Any, inputs: list[str], kind: int, dims: list[Any]) -> str:
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info(key, kind, dims) for key in inputs],
            [helper.make_tensor_value_info("y", kind, dims)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path = folder / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        return str(path)

    add = helper.make_node("Add", ["a", "b"], ["y"])
    opened = write("open", add, ["a", "b"], 1, ["n", 3, "h", "w"])
    shape = "a:-1,3,4,4;b:-1,3,4,4"
    return {
        "static": write("static", add, ["a", "b"], 1, [2, 3]),
        "int64": write("int64", helper.make_node("Identity", ["a"], ["y"]), ["a"], 7, [4]),
        "scalar": write("scalar", helper.make_node("Identity", ["a"], ["y"]), ["a"], 11, []),
        "open": opened,
        "batch": aioais.convert(opened, str(folder / "batch.onnx"), input_shape=shape, dynamic_batch_size="1,2,4"),
        "hw": aioais.convert(
            opened,
            str(folder / "hw.onnx"),
            input_shape="a:1,3,-1,-1;b:1,3,-1,-1",
            dynamic_image_size="4,4;8,8",
        ),
        "range": aioais.convert(
            opened, str(folder / "range.onnx"), input_shape_range="a:[1~4,3,4~9,-1];b:[1~4,3,4~9,-1]"
        ),
    }


SHAPES: dict[str, list[tuple[int, ...]]] = {
    "static": [(2, 3)] * 2,
    "int64": [(4,)],
    "scalar": [()],
    "open": [(1, 3, 4, 4)] * 2,
    "batch": [(2, 3, 4, 4)] * 2,
    "hw": [(1, 3, 8, 8)] * 2,
    "range": [(1, 3, 4, 4)] * 2,
}


# --- feeds and arguments of a request -------------------------------------------------------------


class Stubborn:
    """Fails when it is looked at."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("no array")


class Interface:
    """Says what is not so."""

    def __init__(self, shape: Any, typestr: str) -> None:
        self.__array_interface__ = {"shape": shape, "typestr": typestr, "version": 3, "data": (0, False)}


MODES: list[Any] = [
    "static", "dymbatch", "dymhw", "dymdims", "dymshape", "dynbatch", "dynhw", "dyndims", "dynshape", "auto",
    "", "STATIC", "dym", None, 3, b"static", ["static"], "static\0", "äuto",
]  # fmt: skip
SIZES: list[Any] = [100000, 1, 0, -1, 1 << 62, 1 << 70, [100], [100, 100], [], [0], "9", None, 1.5, True, np.int64(64)]


def random_array(rng: random.Random, shape: tuple[int, ...], dtype: str) -> Any:
    """Make an array about right, or not at all."""
    dims = list(shape)
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        act = rng.randrange(4)
        if act == 0:
            dims.insert(rng.randrange(len(dims) + 1), rng.choice((0, 1, 2, 3)))
        elif dims and act == 1:
            del dims[rng.randrange(len(dims))]
        elif dims:
            dims[rng.randrange(len(dims))] = rng.choice((0, 1, 2, 4, 5, 8, 17))
    kind = dtype if rng.random() < 0.6 else rng.choice("?bBhHiIlLqQefdgFDGSUVmMO")
    try:
        array = np.ones(dims, dtype=kind)
    except (TypeError, ValueError):
        array = np.zeros(dims, dtype=kind)
    act = rng.randrange(12)
    if act == 0:
        return array.T
    if act == 1 and array.ndim:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if act == 2:
        return array.astype(array.dtype.newbyteorder()) if array.dtype.kind in "iuf" else array
    if act == 3:
        return np.ma.masked_array(array)
    if act == 4:
        return array.tolist()
    if act == 5 and array.dtype.kind not in "OmM":
        return np.ascontiguousarray(array).data if array.dtype.kind in "iufb" else array.tobytes()
    if act == 6:
        array.flags.writeable = False
    return array


def random_feed(rng: random.Random, shape: tuple[int, ...], dtype: str) -> Any:
    """Make one feed."""
    if rng.random() < 0.75:
        return random_array(rng, shape, dtype)
    others: list[Any] = [
        None, 0, 1.5, "feed", b"", b"1234" * 6, [], [[1, 2], [3]], {}, set(), object(), Stubborn(), np.float32(1),
        np.datetime64("nat"), HUGE, HUGE[:0], Interface((2, 3), "<f4"), Interface((-1,), "<f4"), Interface("x", "?"),
        np.zeros((2, 3), [("a", "f4"), ("b", "i2")]), range(6), type, float("nan"), 1 << 80, bytearray(24),
        np.array("text"), np.array([None, 1]), np.zeros((1,) * 32, "f4"), (x for x in range(3)),
    ]  # fmt: skip
    return rng.choice(others)


def random_feeds(rng: random.Random, name: str) -> Any:
    """Make the feeds of a request."""
    dtype = {"int64": "int64", "scalar": "float64"}.get(name, "float32")
    feeds = [random_feed(rng, shape, dtype) for shape in SHAPES[name]]
    act = rng.randrange(16)
    if act == 0:
        return feeds + feeds
    if act == 1:
        return feeds[:-1]
    if act == 2:
        return dict(zip("ab", feeds, strict=False))
    if act == 3:
        return dict(zip(rng.choice(("ba", "xy", "aa", "yb")), feeds, strict=False))
    if act == 4:
        return rng.choice([None, 7, "ab", b"ab", feeds[0], iter(feeds), set(), {}, {1: 2}, {None: feeds[0]}])
    return tuple(feeds) if act == 5 else feeds


async def request(rng: random.Random, sessions: dict[str, InferSession]) -> None:
    """Make one request of some kind."""
    name = rng.choice(list(sessions))
    session = sessions[name]
    options: dict[str, Any] = {"mode": "auto" if rng.random() < 0.5 else rng.choice(MODES)}
    if rng.random() < 0.3:
        options["custom_sizes"] = rng.choice(SIZES)
    act = rng.randrange(8)
    feeds = random_feeds(rng, name.partition("/")[0])
    if act == 0:
        source: Any = rng.choice([[feeds, feeds], [], None, 5, "feeds", feeds, iter([feeds])])
        async for _ in session.infer_pipeline(source, **options):
            pass
    elif act == 1:
        pairs: Any = rng.choice([None, [-1], [0], [0, 0], [0, -1], [-1, -1], [1], [-2], [5], "0", 0, [None], [0.0], []])
        times: Any = rng.choice([1, 2, 3, 0, -1, None, 1.5, "2", True])
        await session.infer_iteration(feeds, pairs, times, mem_copy=rng.random() < 0.5, **options)
    elif act == 2:
        (await session.to_device(random_feed(rng, (2, 3), "float32"))).close()
    else:
        await session.infer(feeds, **options)


async def fuzz_requests(paths: dict[str, str], first: int, last: int) -> Outcomes:
    """Run cases of feeds and request arguments on open sessions of every model."""
    outcomes = Outcomes("request")
    sessions: dict[str, InferSession] = {}
    with emulator.configure(memory_mb=256, threads=1):
        for name, path in paths.items():
            sessions[name] = await InferSession(0, path)
            sessions[f"{name}/bytes"] = await InferSession(1, path, check="bytes", depth=2)
        for case in range(first, last):
            await outcomes.run(case, lambda rng: request(rng, sessions))
        # After all of it every session still works.
        for name, session in sessions.items():
            plain = name.partition("/")[0]
            dtype = {"int64": "int64", "scalar": "float64"}.get(plain, "float32")
            await session.infer([np.ones(shape, dtype) for shape in SHAPES[plain]], mode="auto")
            await session.free_resource()
        await InferSession.finalize()
    return outcomes


# --- arguments of the constructor -----------------------------------------------------------------


async def fuzz_constructor(paths: dict[str, str], folder: Path, first: int, last: int) -> Outcomes:
    """Run cases of constructor arguments; what is accepted is opened."""
    outcomes = Outcomes("constructor")
    files: list[Any] = [
        *paths.values(), "", "x", "x.onnx", "x.om", "\0.onnx", str(folder), folder, None, 5, b"x.onnx", "." * 5000,
        f"{folder}/x.onnx", "\udcff.onnx", "a.ONNX", Path("b.onnx"), [], "/dev/null", "~/x.onnx",
    ]  # fmt: skip
    numbers: list[Any] = [0, 1, 2, 3, -1, 4, 1 << 31, 1 << 70, None, "0", 0.0, True, np.int32(1), [0], float("nan")]
    odd: list[Any] = [None, "ascend", "cpu", "gpu", "", 1, b"cpu", ["cpu"], "strict", "bytes", {}, object()]

    async def open_one(rng: random.Random) -> None:
        options: dict[str, Any] = {}
        for name, values in (
            ("acl_json_path", [*odd, "missing.json"]),
            ("debug", [None, 1, "yes"]),
            ("loop", numbers[:4] + numbers[8:]),
            ("platform", odd),
            ("depth", numbers[:4] + numbers[8:]),
            ("check", odd),
        ):
            if rng.random() < 0.15:
                options[name] = rng.choice(values)
        device = 0 if rng.random() < 0.5 else rng.choice(numbers)
        async with InferSession(device, rng.choice(files), **options):
            pass

    for case in range(first, last):
        await outcomes.run(case, open_one)
    await InferSession.finalize()
    return outcomes


# --- configuration files --------------------------------------------------------------------------


def mutate_json(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """Change parts of a tree of JSON values."""
    if rng.random() < 0.12:
        odd: list[Any] = [
            None, True, 0, -1, 1.5, 1 << 80, "", "on", "off", "\0", "x" * 5000, [], {}, [[]], {"": {}}, "..",
            float("inf"),
        ]  # fmt: skip
        return rng.choice(odd)
    if isinstance(value, dict):
        return {
            key if rng.random() < 0.95 else rng.choice(["", "dump", key.upper()]): mutate_json(rng, entry, depth + 1)
            for key, entry in value.items()
            if rng.random() < 0.93
        }
    if isinstance(value, list):
        return [mutate_json(rng, entry, depth + 1) for entry in value for _ in range(rng.choice((1, 1, 1, 0, 3)))]
    return value


def random_config(rng: random.Random, folder: Path) -> bytes:
    """Write a configuration, wrong in some place."""
    dump = {
        "dump_path": str(folder), "dump_mode": "all", "dump_level": "op", "dump_data": "tensor",
        "dump_op_switch": "off",
        "dump_list": [{"model_name": "static", "layer": ["y"]}, {}],
    }  # fmt: skip
    profiler = {"switch": "on", "output": str(folder), "aic_metrics": "", "ascendcl": "on", "storage_limit": "200MB"}
    rest = {"max_opqueue_num": "100", "err_msg_mode": "0", "defaultDevice": {"default_device": "0"}}
    whole: dict[str, Any] = {}
    for part in ({"dump": dump}, {"profiler": profiler}, rest):
        if rng.random() < 0.6:
            whole.update(part)
    text = json.dumps(mutate_json(rng, whole)).encode()
    act = rng.randrange(10)
    if act == 0:
        cut = rng.randrange(len(text) + 1)
        return text[:cut]
    if act == 1:
        changed = bytearray(text)
        for _ in range(rng.randint(1, 5)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        return bytes(changed)
    if act == 2:
        return rng.choice(
            [b"", b"\xff\xfe", b"[" * 5000, b'{"a":' * 3000, b"\xef\xbb\xbf{}", text.decode().encode("utf-16")]
        )
    return text


async def fuzz_config(path: str, folder: Path, first: int, last: int) -> Outcomes:
    """Run cases of ``acl.json``; what is accepted runs a request, and may write below the current folder."""
    outcomes = Outcomes("config")
    config = folder / "acl.json"
    out = folder / "out"
    out.mkdir(exist_ok=True)

    async def start(rng: random.Random) -> None:
        config.write_bytes(random_config(rng, out))
        async with InferSession(0, path, str(config)) as session:
            await session.infer([np.ones(shape, np.float32) for shape in SHAPES["static"]])

    for case in range(first, last):
        await outcomes.run(case, start)
        await InferSession.finalize()
        emulator.reset()  # ACL keeps its first configuration for the life of the process
    return outcomes


# --- options of convert ---------------------------------------------------------------------------

OPTIONS: dict[str, list[str]] = {
    "input_shape": [
        "a:-1,3,4,4;b:-1,3,4,4",
        "a:1,3,-1,-1;b:1,3,-1,-1",
        "a:1,3,4,4;b:1,3,4,4",
        "a:1~4,3,4,4;b:1~4,3,4,4",
    ],
    "dynamic_batch_size": ["1,2,4,8", "1,2"],
    "dynamic_image_size": ["4,4;8,8", "32,32;64,64"],
    "dynamic_dims": ["1,1;2,2", "4,4,4,4;8,8,8,8", "1,3,4,4,1,3,4,4;2,3,4,4,2,3,4,4"],
    "input_shape_range": ["a:[1~4,3,4~9,-1];b:[1~4,3,4~9,-1]", "a:[1,3,4,4]"],
    "input_format": ["NCHW", "NHWC", "ND"],
    "soc_version": ["Ascend310P3"],
    "platform": ["cpu"],
}
ALPHABET = "0123456789,;:~-[]ab .\0\n\té∞٣_+e"


def random_text(rng: random.Random, text: str) -> str:
    """Change a few characters."""
    for _ in range(rng.choice((0, 0, 1, 1, 2, 6))):
        place = rng.randrange(len(text) + 1)
        act = rng.randrange(4)
        if act == 0:
            text = text[:place] + rng.choice(ALPHABET) + text[place:]
        elif act == 1:
            text = text[:place] + text[place + 1 :]
        elif act == 2:
            text = text[:place] + rng.choice(ALPHABET) + text[place + 1 :]
        else:
            other = rng.randrange(len(text) + 1)
            text = text[: min(place, other)] + text[max(place, other) :] if rng.random() < 0.5 else text + text[place:]
    if rng.random() < 0.05:
        text = rng.choice(["", " ", "9" * 30, "a:" + "1," * 300, "-1", ",", ";", "a:[" + "1~" * 50, "0,0", "1" * 5000])
    return text


async def fuzz_convert(paths: dict[str, str], folder: Path, first: int, last: int) -> Outcomes:
    """Run cases of ``convert``; what it accepts must load."""
    outcomes = Outcomes("convert")
    target = folder / "converted.onnx"
    good = [
        ("input_shape", "dynamic_batch_size"), ("input_shape", "dynamic_image_size"), ("input_shape",),
        ("input_shape", "dynamic_dims", "input_format"), ("input_shape_range",),
    ]  # fmt: skip

    async def convert(rng: random.Random) -> None:
        names = list(rng.choice(good)) if rng.random() < 0.8 else rng.sample(list(OPTIONS), rng.randint(0, 4))
        options: dict[str, Any] = {}
        for name in names:
            options[name] = random_text(rng, rng.choice(OPTIONS[name]))
            if rng.random() < 0.02:
                options[name] = rng.choice([1, [1, 2], b"1,2", {}, 1.5, True])
        model = paths["open"] if rng.random() < 0.8 else rng.choice([*paths.values(), str(folder), "missing.onnx"])
        target.unlink(missing_ok=True)
        written = aioais.convert(model, str(target), **options)
        async with InferSession(0, written):
            pass

    for case in range(first, last):
        await outcomes.run(case, convert)
    await InferSession.finalize()
    return outcomes


if __name__ == "__main__":
    # python -m tests.stress.fuzz KIND FIRST LAST FOLDER: repeat cases.
    async def main(kind: str, first: int, last: int, folder: Path) -> Outcomes:
        models = write_models(folder)
        if kind == "request":
            return await fuzz_requests(models, first, last)
        if kind == "constructor":
            return await fuzz_constructor(models, folder, first, last)
        if kind == "config":
            return await fuzz_config(models["static"], folder, first, last)
        return await fuzz_convert(models, folder, first, last)

    came = asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
    sys.stdout.write("\n".join([came.kind, str(dict(came.ends)), *came.findings, ""]))
