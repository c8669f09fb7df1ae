"""Every kind of feed, by position and by name, gives what bare ONNX Runtime gives."""

from __future__ import annotations

import array
import asyncio
import collections
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ml_dtypes
import numpy as np
import pytest

from aioais import ArgumentError, FeedError, InferSession

if TYPE_CHECKING:
    from tests.unit.conftest import Models

Array = np.ndarray[Any, np.dtype[Any]]
Same = Callable[[Sequence[Array], Sequence[Array]], None]

# numpy type -> ONNX element type
KINDS = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "uint16": 4,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "uint32": 12,
    "uint64": 13,
}


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


async def test_nearly_like_the_last_ones(models: Models, same: Same) -> None:
    """What was right of the feeds before says nothing of these, however alike they are."""
    path = models.subtract([2, 3], [2, 3], [2, 3])
    a, b = random(2, 3), random(2, 3, seed=1)
    wanted = models.run(path, a=a, b=b)
    wrong: list[tuple[Any, dict[str, Any]]] = [
        ([a], {}),
        ([a, b, b], {}),
        ([a, b.astype(np.float64)], {}),
        ([a.astype(">f4"), b], {}),
        ([a.reshape(3, 2), b], {}),
        ([a, [1.0]], {}),
        ([a, None], {}),
        ([a, b], {"mode": "dymbatch"}),
        ([a, b], {"custom_sizes": 0}),
        ([a, b], {"custom_sizes": [10, 10.5]}),
    ]
    async with InferSession(0, path) as session:
        for feeds, options in wrong:
            for _ in range(2):
                same(await session.infer([a, b]), wanted)
            with pytest.raises((FeedError, ArgumentError)):
                await session.infer(feeds, **options)
        kept = [a, b]
        task = asyncio.create_task(session.infer(kept))
        await asyncio.sleep(0)
        kept.clear()  # the list is the caller's again
        same(await task, wanted)


# --- by position and by name --------------------------------------------------------------------


async def test_by_position_and_by_name(models: Models, same: Same) -> None:
    path = models.subtract([2, 3], [2, 3], [2, 3])
    a, b = random(2, 3), random(2, 3, seed=1)
    wanted = models.run(path, a=a, b=b)
    async with InferSession(0, path) as session:
        for feeds in (
            [a, b],
            (a, b),
            collections.deque([a, b]),
            {"a": a, "b": b},
            {"b": b, "a": a},
            collections.OrderedDict(b=b, a=a),
            collections.ChainMap({"b": b}, {"a": a}),
        ):
            same(await session.infer(feeds), wanted)


# --- memory of every layout ---------------------------------------------------------------------


class OwnArray(np.ndarray[Any, np.dtype[Any]]):
    """A subclass with a mind of its own."""

    def __getitem__(self, key: Any) -> Any:
        raise AssertionError("the subclass was asked")


def _memmap(folder: Path) -> Array:
    path = folder / "feed.bin"
    random(4, 6).tofile(path)
    return np.memmap(path, np.float32, "r", shape=(4, 6))


def _read_only() -> Array:
    own = random(4, 6)
    own.flags.writeable = False
    return own


LAYOUTS: dict[str, Callable[[Path], Any]] = {
    "contiguous": lambda _: random(4, 6),
    "fortran": lambda _: np.asfortranarray(random(4, 6)),
    "transposed": lambda _: random(6, 4).T,
    "negative-strides": lambda _: random(4, 6)[::-1, ::-1],
    "sliced": lambda _: random(9, 20)[1:9:2, 2:14:2],
    "offset": lambda _: random(5, 6)[1:],
    "unaligned": lambda _: np.frombuffer(b"\0" + random(4, 6).tobytes(), np.uint8)[1:].view(np.float32).reshape(4, 6),
    "broadcast": lambda _: np.broadcast_to(random(6), (4, 6)),
    "read-only": lambda _: _read_only(),
    "memmap": _memmap,
    "subclass": lambda _: random(4, 6).view(OwnArray),
    "masked": lambda _: np.ma.masked_array(random(4, 6), random(4, 6) > 0),
    "recarray": lambda _: random(4, 6).view(np.recarray),
    "memoryview": lambda _: memoryview(cast(Any, random(4, 6))),
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=list(LAYOUTS))
async def test_layouts(models: Models, same: Same, tmp_path: Path, make: Callable[[Path], Any]) -> None:
    path = models.subtract([4, 6], [4, 6], [4, 6])
    feed, other = make(tmp_path), random(4, 6, seed=1)
    plain = np.array(feed, subok=False)
    async with InferSession(0, path) as session:
        same(await session.infer([feed, other]), models.run(path, a=plain, b=other))
        same(await session.infer({"b": feed, "a": other}), models.run(path, a=other, b=plain))
    assert np.array(feed, subok=False).tobytes() == plain.tobytes()  # feeds are not modified


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
async def test_matrix(models: Models, same: Same) -> None:
    path = models.identity([4, 6])
    x = random(4, 6)
    async with InferSession(0, path) as session:
        same(await session.infer([np.matrix(x)]), [x])


async def test_a_layout_does_not_stick(models: Models, same: Same) -> None:
    path = models.identity([6, 6])
    x = random(6, 6)
    async with InferSession(0, path) as session:
        for feed in (x, x.T, x[::-1], np.asfortranarray(x), x):
            same(await session.infer([feed]), [np.ascontiguousarray(feed)])


async def test_a_feed_changed_after_the_call(models: Models, same: Same) -> None:
    path = models.identity([300, 300])
    async with InferSession(0, path) as session:
        x = random(300, 300)
        wanted = x.copy()
        for _ in range(5):
            outputs = await session.infer([x])
            x[:] = -1
            same(outputs, [wanted])
            x[:] = wanted


async def test_twenty_megabytes(models: Models, same: Same) -> None:
    path = models.identity([5, 1 << 20])
    x = np.arange(5 << 20, dtype=np.float32).reshape(5, 1 << 20)
    async with InferSession(0, path) as session:
        same(await session.infer([x]), [x])


# --- scalars and buffers ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "bfloat16"])
@pytest.mark.parametrize("dims", [[], [1], [1, 1]], ids=str)
async def test_numpy_scalars(models: Models, same: Same, kind: str, dims: list[int]) -> None:
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    path = models.identity(dims, 16 if kind == "bfloat16" else KINDS[kind])
    scalar = dtype.type(1)
    async with InferSession(0, path) as session:
        same(await session.infer([scalar]), [np.ones(dims, dtype)])
        same(await session.infer({"x": np.array(scalar)}), [np.ones(dims, dtype)])


@pytest.mark.parametrize(
    "make", [bytes, bytearray, lambda data: memoryview(bytes(data))], ids=["bytes", "bytearray", "memoryview"]
)
async def test_buffers_of_bytes(models: Models, same: Same, make: Callable[[bytes], Any]) -> None:
    path = models.identity([16], KINDS["uint8"])
    async with InferSession(0, path) as session:
        same(await session.infer([make(bytes(range(16)))]), [np.arange(16, dtype=np.uint8)])


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("f", "float32"),
        ("d", "float64"),
        ("b", "int8"),
        ("B", "uint8"),
        ("h", "int16"),
        ("H", "uint16"),
        ("i", "int32"),
        ("q", "int64"),
        ("Q", "uint64"),
    ],
)
async def test_array_module(models: Models, same: Same, code: str, kind: str) -> None:
    path = models.identity([5], KINDS[kind])
    async with InferSession(0, path) as session:
        same(await session.infer([array.array(code, [0, 1, 2, 3, 4])]), [np.arange(5).astype(kind)])


# --- other people's arrays ----------------------------------------------------------------------


class WithArray:
    """Offers ``__array__`` and nothing else."""

    def __init__(self, data: Array) -> None:
        self._data = data

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return self._data


class WithInterface:
    """Offers ``__array_interface__`` and nothing else."""

    def __init__(self, data: Array) -> None:
        self._data = data
        self.__array_interface__ = data.__array_interface__


class WithDlpack:
    """Offers DLPack and nothing else."""

    def __init__(self, data: Array) -> None:
        self._data = data

    def __dlpack__(self, **options: Any) -> Any:
        return self._data.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._data.__dlpack_device__()


class WithoutKeywords(WithDlpack):
    """A producer from before DLPack 1.0: takes the stream and nothing else."""

    def __dlpack__(self, stream: Any = None) -> Any:  # type: ignore[override]
        return self._data.__dlpack__()


class Refusing(WithArray):
    """Has DLPack, which cannot export this; ``__array__`` can."""

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("not this type")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class Elsewhere:
    """Lives on a GPU, as far as DLPack knows."""

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("this must not be asked")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


class Broken:
    """Fails when it is asked."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        raise RuntimeError("no array today")


@pytest.mark.parametrize("wrap", [WithArray, WithInterface, WithDlpack, WithoutKeywords, Refusing])
@pytest.mark.parametrize("transposed", [False, True], ids=["contiguous", "transposed"])
async def test_protocols(models: Models, same: Same, wrap: Callable[[Array], Any], transposed: bool) -> None:
    path = models.subtract([4, 6], [4, 6], [4, 6])
    a = random(6, 4).T if transposed else random(4, 6)
    b = random(4, 6, seed=1)
    async with InferSession(0, path) as session:
        same(await session.infer([wrap(a), b]), models.run(path, a=a, b=b))
        same(await session.infer({"b": wrap(b), "a": wrap(a)}), models.run(path, a=a, b=b))


@pytest.mark.parametrize(
    ("feed", "texts"),
    [
        (Elsewhere(), ["Elsewhere", "DLPack device (2, 0)", "host"]),
        (Broken(), ["Broken", "no array today", "expected a dense array"]),
    ],
    ids=["gpu", "broken"],
)
async def test_protocols_that_do_not_help(models: Models, feed: Any, texts: list[str]) -> None:
    async with InferSession(0, models.identity([4])) as session:
        with pytest.raises(FeedError) as caught:
            await session.infer([feed])
    for text in ["'x'", *texts]:
        assert text in str(caught.value)


TORCH = ["float32", "float16", "int8", "int32", "uint8", "int16", "int64", "float64", "bool", "bfloat16"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TORCH)
async def test_torch(models: Models, same: Same, kind: str) -> None:
    torch = pytest.importorskip("torch")
    element = 16 if kind == "bfloat16" else KINDS[kind]
    plain = (
        (random(3, 4) > 0).astype(kind)
        if kind == "bool"
        else (random(3, 4) * 9).astype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    )
    tensor = torch.tensor(plain.astype(np.float64)).to(getattr(torch, kind))
    dynamic = models.identity(["n", "k"], element)
    async with InferSession(0, dynamic) as session:
        same(await session.infer([tensor], "auto"), [plain])
        same(await session.infer({"x": tensor.t()}, "auto"), [plain.T])
        if tensor.is_floating_point():
            learned = tensor.clone().requires_grad_()
            same(await session.infer([learned], "auto"), [plain])
            assert learned.requires_grad


@pytest.mark.filterwarnings("ignore")
async def test_torch_that_is_not_dense(models: Models) -> None:
    torch = pytest.importorskip("torch")
    async with InferSession(0, models.identity([2, 2])) as session:
        with pytest.raises(FeedError, match=r"'x'.*Tensor"):
            await session.infer([torch.eye(2).to_sparse()])
        with pytest.raises(FeedError, match=r"'x'.*'meta'.*cpu\(\)"):
            await session.infer([torch.empty(2, 2, device="meta")])


# --- device tensors -----------------------------------------------------------------------------


async def test_device_tensors_and_host_feeds_mixed(models: Models, same: Same) -> None:
    path = models.subtract([4, 6], [4, 6], [4, 6])
    a, b = random(4, 6), random(4, 6, seed=1)
    wanted = models.run(path, a=a, b=b)
    async with InferSession(0, path) as session:
        on_a, on_b = await session.to_device(a), await session.to_device(b.T.copy().T)
        for feeds in ([on_a, on_b], [a, on_b], [on_a, b], [a, b], {"b": on_b, "a": a}, [on_a, on_b]):
            same(await session.infer(feeds), wanted)
        same(await session.infer([on_a, on_a]), models.run(path, a=a, b=a))
        (kept,) = await session.infer([on_a, b], out_array=False)
        again = await session.infer([kept, on_b])
        same(again, models.run(path, a=wanted[0], b=b))
        same([await kept.to_host(), await on_a.to_host(), await on_b.to_host()], [*wanted, a, b])


@pytest.mark.parametrize("mode", ["dymbatch", "dymshape"])
async def test_device_tensors_in_dynamic_modes(models: Models, same: Same, mode: Any) -> None:
    path = models.add(["n", 3])
    if mode == "dymbatch":
        path = models.convert(path, "batch", input_shape="input1:-1,3;input2:-1,3", dynamic_batch_size="1,2,4")
    async with InferSession(0, path) as session:
        for n in (4, 1, 2, 4):
            a, b = random(n, 3), random(n, 3, seed=1)
            on_device = await session.to_device(a)
            (out,) = await session.infer([on_device, b], mode, out_array=False)
            assert out.shape == (n, 3)
            same([await out.to_host()], models.run(path, input1=a, input2=b))
            same(await session.infer([out, a], mode), models.run(path, input1=a + b, input2=a))
