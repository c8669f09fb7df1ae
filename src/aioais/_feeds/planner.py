"""From what the caller gave to a plan: count, names, types, shapes and gears are checked here."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping, Sequence, ValuesView
from typing import Any, Final

import numpy as np

from .._acl.model import ModelInfo, TensorInfo
from .._device.device import Device
from ..errors import FeedError, ModelError
from ..tensor import Tensor, device_of
from ..types import DEFAULT_OUTPUT_BYTES, Check
from .advice import advise
from .arguments import check_mode, check_sizes, check_types, legal_gears
from .arrays import Gathered, as_feed, converts_slowly, describe
from .plan import InputPlan, Plan, output_plans

__all__ = ["Planner"]

Feed = np.ndarray | Tensor | Gathered

_MOST_PLANS: Final = 256
_MOST_NAMED: Final = 4
"""Optional inputs that a message names: some exporters make one of each weight."""


_kind_of = operator.attrgetter("__class__", "dtype", "shape")
_Last = tuple[str | None, int | tuple[int, ...], list[tuple[Any, ...]], Plan | None]
"""What was asked for last: mode, custom_sizes, class, type and shape of each feed, and the plan."""


class Planner:
    """Checks feeds against one model and remembers what it found.

    Parameters
    ----------
    check
        ``"strict"`` compares type and shape, ``"bytes"`` only the number of bytes.
    """

    def __init__(self, info: ModelInfo, check: Check, device: Device) -> None:
        self._info = info
        self._is_strict = check == "strict"
        self._device = device
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._last: _Last = None, 0, [], None
        self._tensors = info.all_inputs

    def known(self, feeds: Any, mode: str, custom_sizes: Any) -> Plan | None:
        """Find the plan of feeds that are like the last ones in everything; ``None`` if they are not.

        Raises
        ------
        FeedError
            A device tensor among them is closed, or elsewhere.
        """
        last_mode, last_sizes, kinds, plan = self._last
        if mode is not last_mode or custom_sizes is not last_sizes or type(feeds) is not list:
            return None
        try:
            if [*map(_kind_of, feeds)] != kinds:
                return None
        except Exception:  # noqa: BLE001 - not arrays, so their attributes may do anything
            return None
        if plan is not None and plan.has_tensors:
            self._check_places(feeds)
        return plan

    def needs_thread(self, feeds: Any) -> bool:
        """Whether seeing the feeds as arrays may take long, so that it must not happen on the loop."""
        values = feeds.values() if isinstance(feeds, Mapping) else feeds
        return isinstance(values, (list, tuple, ValuesView)) and any(map(converts_slowly, values))

    def arrays(self, feeds: Any) -> list[Feed | None]:
        """Order the feeds as the model has them and see each as an array.

        The optional inputs are behind the others; where one of them is fed, ``None`` stands for those that are not.

        Raises
        ------
        FeedError
            Wrong container, count or name, or a feed that is no array.
        """
        tensors, required = self._tensors, len(self._info.inputs)
        by_name: list[Any] | None = None
        values: Sequence[Any]
        if isinstance(feeds, (list, tuple)):
            values = feeds
        elif isinstance(feeds, Mapping):
            values = by_name = self._by_name(feeds)
        elif isinstance(feeds, Sequence) and not isinstance(feeds, (str, bytes, bytearray, memoryview)):
            values = feeds
        else:
            raise FeedError(
                f"feeds: got {_a(feeds)}; expected a list with one array per input {self._expected()}, or a mapping by "
                f"input name{_in_a_list(feeds)}"
            )
        if len(values) not in (required, len(tensors)) and values is not by_name:
            raise FeedError(
                f"feeds: got {len(values)}; expected {required}: {self._expected()}; give one feed per input, in "
                f"this order or as a mapping by name{self._optional()}"
            )
        return [
            value
            if type(value) is np.ndarray or (value is None and k >= required)
            else as_feed(value, _where(tensors[k], k), tensors[k].dtype)
            for k, value in enumerate(values)
        ]

    def plan(self, feeds: Sequence[Feed | None], mode: str, custom_sizes: Any) -> Plan:
        """Find or make the plan for these feeds.

        Raises
        ------
        ArgumentError
            The mode or ``custom_sizes`` is wrong for any feed.
        FeedError
            A feed does not fit the model.
        """
        if type(custom_sizes) is not int:
            custom_sizes = check_sizes(self._info, custom_sizes)  # True and 1.0 would find the plan of 1
        self._check_places(feeds)
        key: list[Any] = [mode, custom_sizes]
        for feed in feeds:
            if feed is None:  # an optional input
                key.append(None)
                continue
            key.append(feed.dtype)
            key.append(feed.shape)
            if type(feed) is Tensor:
                key.append(Tensor)
        try:
            plan = self._plans.get(tuple(key))
        except TypeError:  # a mode that cannot be hashed, so not a legal one
            plan = None
        if plan is None:
            plan = self._make(feeds, mode, custom_sizes)
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[tuple(key)] = plan
        kinds = [_kind_of(feed) for feed in feeds if feed is not None]
        if len(kinds) == len(feeds):
            self._last = mode, custom_sizes, kinds, plan
        return plan

    def check(self, mode: str, custom_sizes: Any) -> None:
        """Raise if no feeds could have a plan.

        Raises
        ------
        ArgumentError
            The mode or ``custom_sizes`` is wrong for any feed.
        """
        check_mode(self._info, mode)
        check_sizes(self._info, custom_sizes)

    def _make(self, given: Sequence[Feed | None], mode: str, custom_sizes: Any) -> Plan:
        info, required = self._info, len(self._info.inputs)
        feeds = [feed for feed in given[:required] if feed is not None]
        extra = [(k, feed, self._tensors[k]) for k, feed in enumerate(given) if k >= required and feed is not None]
        if info.has_dynamic_aipp:
            raise ModelError(
                f"{info.path!r} has dynamic AIPP, whose parameters ACL takes with each run and this library does not; "
                "without them images would be preprocessed at random: build the model with static AIPP, or without"
            )
        check_types(info)
        kind = check_mode(self._info, mode)
        sizes = check_sizes(self._info, custom_sizes)
        gear = None
        if info.gears is None:
            shapes = tuple(tensor.shape for tensor in info.inputs)
            legal = ""
        else:
            found = self._find_gear(feeds) if kind != "static" else info.gears.largest
            gear = info.gears.values[found]
            shapes = info.gears.shapes[found]
            legal = legal_gears(self._info)
            if kind == "static":
                legal = f"{legal}, of which mode='static' runs the largest"
        real = []
        for k, (feed, tensor, shape) in enumerate(zip(feeds, info.inputs, shapes, strict=True)):
            real.append(self._check_feed(k, feed, tensor, shape, legal, feeds))
        for k, feed, tensor in extra:
            self._check_feed(k, feed, tensor, tensor.shape, "", feeds)
        inputs = tuple(
            InputPlan(k, tensor.index, feed.nbytes, tuple(feed.shape), feed.dtype, isinstance(feed, Tensor))
            for k, feed, tensor in [*zip(itertools.count(), feeds, info.inputs, strict=False), *extra]
        )
        fed = {item.position for item in inputs}
        unfed = tuple(tensor.index for k, tensor in enumerate(self._tensors) if k not in fed)
        is_dynamic = info.kind == "shape"
        outputs = output_plans(info, [t.shape for t in info.outputs]) if info.kind == "static" else None
        has_sizes = custom_sizes not in (None, DEFAULT_OUTPUT_BYTES)
        dynamic = tuple(real) if is_dynamic else None
        return Plan(inputs, gear, outputs, dynamic, sizes, has_sizes, unfed, has_optional=bool(extra))

    def _find_gear(self, feeds: Sequence[Feed]) -> int:
        gears, info = self._info.gears, self._info
        assert gears is not None
        found = gears.find([tuple(feed.shape) for feed in feeds])
        if found is not None:
            return found
        if not self._is_strict:
            return self._find_gear_by_bytes(feeds)
        for k, (feed, tensor) in enumerate(zip(feeds, info.inputs, strict=True)):
            columns = [row[k] for row in gears.shapes]
            if tuple(feed.shape) not in columns:
                advice = advise(feed, tensor, tensor.shape, columns.__contains__) or "use a legal gear"
                raise _misfit(k, feed, tensor, tensor.shape, f" with {legal_gears(self._info)}", advice)
        got = ", ".join(f"{t.name!r} {list(f.shape)}" for f, t in zip(feeds, info.inputs, strict=True))
        raise FeedError(
            f"feeds: got {got}, which belong to different gears; expected {self._expected()} with "
            f"{legal_gears(self._info)}; give all inputs the shapes of one gear"
        )

    def _find_gear_by_bytes(self, feeds: Sequence[Feed]) -> int:
        """Find the one gear in which every input has as many bytes as its feed."""
        gears, inputs = self._info.gears, self._info.inputs
        assert gears is not None
        dtypes = [f.dtype if t.dtype is None else t.dtype for f, t in zip(feeds, inputs, strict=True)]
        items = [dtype.itemsize for dtype in dtypes]
        table = [[math.prod(shape) * item for shape, item in zip(row, items, strict=True)] for row in gears.shapes]
        got = [feed.nbytes for feed in feeds]
        found = [gear for gear, row in enumerate(table) if row == got]
        if len(found) == 1:
            return found[0]
        for k, (feed, tensor) in enumerate(zip(feeds, inputs, strict=True)):
            if got[k] not in [row[k] for row in table]:
                advice = (
                    advise(feed, tensor, tensor.shape, [row[k] for row in gears.shapes].__contains__)
                    or "use a legal gear"
                )
                raise FeedError(
                    f"{_where(tensor, k)}: got {describe(feed)}, {got[k]} bytes; expected "
                    f"{tensor.datatype.name}{list(tensor.shape)} with {legal_gears(self._info)}; {advice}"
                )
        if not found:
            what, advice = "which belong to different gears", "give all inputs the bytes of one gear"
        else:
            what, advice = "which several gears have", "give the feeds the shape of one gear"
        parts = ", ".join(f"{t.name!r} {n} bytes" for t, n in zip(inputs, got, strict=True))
        raise FeedError(
            f"feeds: got {parts}, {what}; expected {self._expected()} with {legal_gears(self._info)}; {advice}"
        )

    def _check_feed(
        self,
        k: int,
        feed: Feed,
        tensor: TensorInfo,
        shape: tuple[int, ...],
        legal: str,
        feeds: Sequence[Feed],
    ) -> tuple[int, ...]:
        """Check one feed; gives the shape it really has for the model."""
        note = f" with {legal}" if legal else ""
        got, expected = tuple(feed.shape), shape
        if any(dim < 0 for dim in shape):
            note = _range_note(tensor)
            if not tensor.accepts(got):
                advice = advise(feed, tensor, shape) or "give an array with such dims"
                raise _misfit(k, feed, tensor, shape, note, advice)
            shape = got
        if feed.dtype.hasobject:
            raise _misfit(k, feed, tensor, shape, note, "an object array has no bytes to copy: use a numeric type")
        if not self._is_strict:
            self._check_bytes(k, feed, tensor, shape, note)
            return shape
        if tensor.dtype is None or feed.dtype != tensor.dtype:
            raise _misfit(k, feed, tensor, expected, note, _type_advice(feed, tensor, expected))
        is_scalar = got == () and math.prod(shape) == 1
        if got != shape and not is_scalar:
            gears = self._info.gears
            if gears is not None and gears.find([tuple(other.shape) for other in feeds]) is not None:
                advice = f"use mode={self._info.mode!r} or 'auto'"
            else:
                advice = advise(feed, tensor, shape) or "give an array of that shape"
                if advice.startswith("reshape it"):
                    advice = f"{advice}, or open the session with check='bytes'"
            raise _misfit(k, feed, tensor, shape, note, advice)
        return shape

    def _check_bytes(self, k: int, feed: Feed, tensor: TensorInfo, shape: tuple[int, ...], note: str) -> None:
        """Compare the bytes only."""
        item = feed.dtype.itemsize if tensor.dtype is None else tensor.dtype.itemsize
        expected = math.prod(shape) * item
        if feed.nbytes != expected:
            advice = advise(feed, tensor, shape) or "give an array of that many bytes"
            raise FeedError(
                f"{_where(tensor, k)}: got {describe(feed)}, {feed.nbytes} bytes; expected "
                f"{tensor.datatype.name}{list(shape)}, {expected} bytes{note}; {advice}"
            )

    def _check_places(self, feeds: Sequence[Feed | None]) -> None:
        for k, feed in enumerate(feeds):
            if type(feed) is not Tensor:
                continue
            if feed.closed:
                raise FeedError(
                    f"{_where(self._tensors[k], k)}: got a closed device tensor; expected an open one: make it again "
                    "with to_device()"
                )
            library = device_of(feed).library
            if feed.device_id != self._device.id or library is not self._device.library:
                raise FeedError(
                    f"{_where(self._tensors[k], k)}: got a tensor on device {feed.device_id} (platform "
                    f"{library.platform!r}); expected one on device {self._device.id}; bring it over: await "
                    "session.to_device(await tensor.to_host())"
                )

    def _by_name(self, feeds: Mapping[Any, Any]) -> list[Any]:
        names, required = [tensor.name for tensor in self._tensors], len(self._info.inputs)
        missing = [name for name in names[:required] if name not in feeds]
        unknown = [name for name in feeds if name not in names]
        if missing or unknown:
            parts = [f"{what} {names}" for what, names in (("without", missing), ("with unknown", unknown)) if names]
            raise FeedError(
                f"feeds: got a mapping {' and '.join(parts)}; expected {self._expected()}; give exactly one feed per "
                f"name{self._optional()}"
            )
        fed = max([required, *(k + 1 for k, name in enumerate(names) if name in feeds)])
        return [feeds[name] if k < required else feeds.get(name) for k, name in enumerate(names[:fed])]

    def _optional(self) -> str:
        """Say which inputs may be fed beside those that must be."""
        optional = self._info.optional
        if not optional:
            return ""
        names = ", ".join(_tensor_text(tensor) for tensor in optional[:_MOST_NAMED])
        more = "" if len(optional) <= _MOST_NAMED else f" and {len(optional) - _MOST_NAMED} more"
        return f"; these have a default, and may be fed too, all of them by position or any by name: {names}{more}"

    def _expected(self) -> str:
        return ", ".join(map(_tensor_text, self._info.inputs))


def _tensor_text(tensor: TensorInfo) -> str:
    return f"{tensor.name!r} {tensor.datatype.name}{list(tensor.shape)}"


def _where(tensor: TensorInfo, k: int) -> str:
    return f"input {tensor.name!r} (position {k})"


def _a(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"a bare array {describe(value)}"
    return f"{type(value).__name__}"


def _in_a_list(feeds: Any) -> str:
    if type(feeds) is np.ndarray or isinstance(feeds, (np.generic, Tensor)):
        return "; put a single array into a list: infer([array])"
    return ""


def _misfit(k: int, feed: Feed, tensor: TensorInfo, shape: tuple[int, ...], note: str, advice: str) -> FeedError:
    return FeedError(
        f"{_where(tensor, k)}: got {describe(feed)}; expected {tensor.datatype.name}{list(shape)}{note}; {advice}"
    )


def _type_advice(feed: Feed, tensor: TensorInfo, shape: tuple[int, ...]) -> str:
    if tensor.dtype is None:
        return "NumPy has no such type: give its bytes, to a session opened with check='bytes'"
    advice = advise(feed, tensor, shape) or "give an array of that type and shape"
    if advice.startswith("take its bytes") and min(shape, default=0) >= 0:
        advice = f"{advice}, or open the session with check='bytes'"
    return advice


def _range_note(tensor: TensorInfo) -> str:
    if tensor.ranges is None:
        return ""
    spans = ["any" if high < 0 and low <= 1 else f"{low}~{high if high >= 0 else ''}" for low, high in tensor.ranges]
    return f" with dims in [{', '.join(spans)}]"
