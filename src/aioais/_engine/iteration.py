"""Iteration: outputs of one step are inputs of the next, without leaving the device."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._acl.model import ModelInfo, TensorInfo
from .._buffers.commands import Copy
from .._buffers.slot import Slot
from .._feeds.plan import OutputPlan, Plan
from ..errors import ArgumentError, FeedError
from ..tensor import Tensor
from ..types import Check
from .request import Request

__all__ = ["Iteration", "IterationRequest"]


class Iteration:
    """What the caller asked for: which output feeds which input, how often, and how.

    Parameters
    ----------
    info
        The model.
    in_out_list
        For each input -1 or the output that feeds it; ``None`` for a single step.
    iteration_times
        Steps, at least 1.
    mem_copy
        Copy outputs to inputs, instead of exchanging their buffers.
    check
        As in ``InferSession``.

    Raises
    ------
    ArgumentError
        An argument is of a wrong type, length or range.
    FeedError
        The output can never feed the input it is meant for.
    """

    __slots__ = ("_info", "has_copies", "steps", "wires")

    def __init__(self, info: ModelInfo, in_out_list: Any, iteration_times: Any, mem_copy: Any, check: Check) -> None:
        if not _is_int(iteration_times) or iteration_times < 1:
            raise ArgumentError(
                f"iteration_times={iteration_times!r}: expected an int of at least 1, the number of steps"
            )
        self._info = info
        self.steps: int = int(iteration_times)
        self.has_copies: bool = bool(mem_copy)
        self.wires: tuple[tuple[int, int], ...] = _wires(info, in_out_list, self.steps)
        """Pairs of an input and the output that feeds it."""
        for k, source in self.wires:
            self._check_pair(k, source, check)

    def request(self, plan: Plan, feeds: list[np.ndarray | Tensor], future: asyncio.Future[Any]) -> IterationRequest:
        """Make the request; checks bytes where output shapes are known ahead of the first step."""
        if plan.outputs is not None:
            self.check_bytes(plan, plan.outputs)
        return IterationRequest(plan, feeds, future, self)

    def check_bytes(self, plan: Plan, outputs: Sequence[OutputPlan]) -> None:
        """Compare the bytes of outputs with those of the inputs they feed.

        Raises
        ------
        FeedError
            They differ.
        """
        for k, source in self.wires:
            item, output = plan.inputs[k], outputs[source]
            if output.nbytes != item.nbytes:
                raise FeedError(
                    f"{_wire(self._info, k, source)}: got {output.nbytes} bytes {list(output.shape)}; expected "
                    f"{item.nbytes} bytes {list(item.shape)}; feed it an output of its size"
                )

    def check_shape(self, k: int, output: OutputPlan, step: int) -> None:
        """Check that an input of dynamic shape takes the output of the step before.

        Raises
        ------
        FeedError
            It does not.
        """
        tensor = self._info.inputs[k]
        if not tensor.accepts(output.shape):
            raise FeedError(
                f"step {step} of {self.steps}: {_wire(self._info, k, output.position)}: got shape "
                f"{list(output.shape)}; expected {_takes(tensor)}; stop at step {step - 1}, or give feeds from "
                "which all shapes stay in the model's range"
            )

    def _check_pair(self, k: int, source: int, check: Check) -> None:
        tensor, output = self._info.inputs[k], self._info.outputs[source]
        if check == "strict" and tensor.datatype != output.datatype:
            raise FeedError(
                f"{_wire(self._info, k, source)}: got {output.datatype.name}; expected "
                f"{tensor.datatype.name}; feed it an output of its type, or open the session with check='bytes'"
            )
        if self._info.kind != "shape":
            return
        if tensor.dtype is not None and output.dtype is not None and tensor.dtype.itemsize != output.dtype.itemsize:
            raise FeedError(
                f"{_wire(self._info, k, source)}: got {output.datatype.name}; expected "
                f"{tensor.datatype.name}, which has other bytes; feed it an output of its type"
            )
        if all(dim >= 0 for dim in output.shape) and not tensor.accepts(output.shape):
            raise FeedError(
                f"{_wire(self._info, k, source)}: got shape {list(output.shape)}; expected "
                f"{_takes(tensor)}; feed it an output of its shape"
            )


class IterationRequest(Request):
    """A request of several steps.

    Each step is a submission of its own, and is waited for before the next is queued: a cancelled iteration ends after
    the running step, a failure stops it where it happened, and other requests are submitted between two steps.
    """

    is_iteration = True
    is_alone = True

    def __init__(
        self, plan: Plan, feeds: list[np.ndarray | Tensor], future: asyncio.Future[Any], iteration: Iteration
    ) -> None:
        super().__init__(plan, feeds, future, to_host=True)
        self._iteration = iteration
        self._steps_done = 0

    @property
    def is_first(self) -> bool:
        """Whether the present step is the first."""
        return not self._steps_done

    @property
    def is_last(self) -> bool:
        """Whether the present step is the last."""
        return self._steps_done + 1 == self._iteration.steps

    def next_step(self, h2d: float, execute: float) -> None:
        """Go on to the next step: the present one is complete, and took so many milliseconds."""
        self._steps_done += 1
        self.earlier: tuple[float, float] = (self.earlier[0] + h2d, self.earlier[1] + execute)

    def feed_back(self, slot: Slot) -> list[Copy]:
        """Make outputs of the step before inputs of the present one; returns the copies that this takes.

        Before the first step it makes room for what is to be fed back, and returns nothing.

        Raises
        ------
        FeedError
            The model does not take the output of the step before.
        AclError
            A buffer cannot be made or bound.
        """
        outputs = self.outputs
        if self.is_first:
            if outputs is not None:
                self._iteration.check_bytes(self.plan, outputs)
                self._make_room(slot)
            return []
        assert outputs is not None
        shapes = list(self.plan.dynamic_shapes or ())
        if shapes:
            for k, source in self._iteration.wires:
                self._iteration.check_shape(k, outputs[source], self._steps_done + 1)
                shapes[k] = outputs[source].shape
            slot.describe(tuple(shapes))
        if self._iteration.has_copies:
            return self._copies(slot, outputs)
        self._exchange(slot)
        return []

    def _make_room(self, slot: Slot) -> None:
        """Make outputs that will serve as inputs as large as ACL expects inputs to be; before anything runs."""
        if self._iteration.has_copies:
            return
        for k, source in self._iteration.wires:
            slot.output_block(source, slot.info.inputs[k].size)

    def _copies(self, slot: Slot, outputs: Sequence[OutputPlan]) -> list[Copy]:
        copies = []
        for k, source in self._iteration.wires:
            nbytes, block = outputs[source].nbytes, slot.outputs[source]
            assert block is not None
            own = slot.input_block(k, nbytes)
            copies.append(Copy(own.address, own.nbytes, block.address, nbytes))
        return copies

    def _exchange(self, slot: Slot) -> None:
        """Let inputs read the outputs where they are.

        The first input that an output feeds takes its buffer over, and gives its own to the next output;
        the others look at the same buffer. So each buffer of the slot keeps exactly one place, and the slot
        is in order after every step, whatever happens next.
        """
        owners: dict[int, int] = {}
        for k, source in self._iteration.wires:
            owner = owners.setdefault(source, k)
            if owner == k:
                slot.exchange(k, source)
            else:
                block = slot.inputs[owner]
                assert block is not None
                slot.in_data.bind(slot.info.inputs[k].index, block.address, block.nbytes)


def _wires(info: ModelInfo, in_out_list: Any, steps: int) -> tuple[tuple[int, int], ...]:
    """Check the list itself and return the pairs that it means."""
    names = [tensor.name for tensor in info.inputs]
    advice = "-1 keeps an input, k feeds it output k of the step before"
    if in_out_list is None:
        if steps == 1:
            return ()
        raise ArgumentError(
            f"in_out_list=None with iteration_times={steps}: expected a list with one int per input {names}: "
            f"{advice}; in_out_list={[-1] * len(names)} repeats the first step"
        )
    if not isinstance(in_out_list, Sequence) or isinstance(in_out_list, (str, bytes, bytearray, memoryview)):
        raise ArgumentError(f"in_out_list={in_out_list!r}: expected a list with one int per input {names}: {advice}")
    if len(in_out_list) != len(names):
        raise ArgumentError(
            f"in_out_list: got {len(in_out_list)} entries; expected one for each of {len(names)} inputs {names}: "
            f"{advice}"
        )
    outputs = [tensor.name for tensor in info.outputs]
    for k, source in enumerate(in_out_list):
        if not _is_int(source) or not -1 <= source < len(outputs):
            raise ArgumentError(
                f"in_out_list[{k}]={source!r}: expected -1 to keep input {names[k]!r}, or from 0 to "
                f"{len(outputs) - 1} for one of the outputs {outputs}"
            )
    return tuple((k, int(source)) for k, source in enumerate(in_out_list) if source >= 0)


def _wire(info: ModelInfo, k: int, source: int) -> str:
    return f"in_out_list[{k}]={source} feeds output {info.outputs[source].name!r} to input {info.inputs[k].name!r}"


def _takes(tensor: TensorInfo) -> str:
    text = str(list(tensor.shape))
    return text if tensor.ranges is None else f"{text} with dims in {[list(pair) for pair in tensor.ranges]}"


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
