"""Recording the commands of a request, or finding those of an earlier one of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from .._acl.memory import DeviceBlock, view
from .._buffers.commands import CommandList, Copy, Work, record_commands
from .._buffers.results import Landing
from .._buffers.slot import Slot
from .._feeds.plan import SMALL, Plan
from .execute import Executions
from .request import Request

__all__ = ["WHOLE", "CommandCache", "Ends"]

_MOST_KEPT: Final = 64
"""Command lists that a slot keeps for one set of addresses."""

Ends = tuple[bool, bool]
WHOLE: Final = (True, True)
"""With both kinds of copies: a request of one step."""


class CommandCache:
    """Makes command lists; those that are the same for each request of a kind are kept in the slot."""

    def __init__(self, executions: Executions, is_board: bool) -> None:
        self._executions = executions
        self._is_board = is_board

    def step(self, request: Request, slot: Slot, feeds: Sequence[Any] | None, ends: Ends = WHOLE) -> CommandList:
        """Return the commands of a request, or of one step of it.

        Parameters
        ----------
        request, slot
            The request, with its outputs known if they are to be copied back.
        feeds
            Of the request; only for the first step.
        ends
            Whether it has the copies to the device, and those back.
        """
        plan = request.plan
        if plan.unfed:
            slot.unbind(plan.unfed)
        if plan.has_tensors and feeds:
            self._bind_tensors(request, slot, feeds)
        outputs = request.outputs if plan.dynamic_shapes is not None else None
        kind = plan.serial, request.to_host, ends, self._executions.stream is None, outputs
        is_first, is_last = ends
        # Without copies either way it is the middle step of an iteration, whose buffers may change places.
        has_copies = is_first or is_last
        found: CommandList | None = (slot.commands if has_copies else slot.middle_commands).get(kind)
        if found is not None:
            return found if found.is_small or not found.landing[0] else _renewed(found, request, slot)
        inputs, staging = self._inputs(request, slot) if is_first else ([], [])
        back, landing = self._outputs(request, slot) if is_last else ([], [])
        launch = self._executions.launch_call(slot, slot.in_data, slot.out_data)
        groups = zip(slot.executions_per_mark, slot.marks.executions, strict=True)
        executions = [([launch] * count, mark) for count, mark in groups]
        work = Work(inputs, executions, back, slot.marks, [staging], [landing])
        commands = record_commands(work, self._executions.streams(slot))
        own = [None if isinstance(area, Landing) else area for area in landing]
        _keep(slot.commands if has_copies else slot.middle_commands, kind, commands._replace(landing=[own]))
        return commands

    def batch(self, plan: Plan, slot: Slot, count: int) -> CommandList:
        """Return the commands of ``count`` requests of a plan that share a slot."""
        kind = plan.serial, count, self._executions.stream is None
        batch = slot.batch
        found: CommandList | None = batch.commands.get(kind)
        if found is None:
            inputs, outputs = batch.copies(count)
            staging, landing = batch.areas(plan)
            # No mark behind each of them: recording and reading it takes the host longer than the request itself.
            launches = [self._executions.launch_call(slot, *place) for place in batch.places[:count]]
            executions = [(launches, slot.marks.executions[-1])]
            work = Work(inputs, executions, outputs, slot.marks, staging[:count], landing[:count], is_shared=True)
            found = record_commands(work, self._executions.streams(slot))
            _keep(batch.commands, kind, found)
        return found

    def _bind_tensors(self, request: Request, slot: Slot, feeds: Sequence[Any]) -> None:
        """Let the model read device tensors where they are."""
        for item, feed in zip(request.plan.inputs, feeds, strict=True):
            if item.is_device:
                assert isinstance(feed, DeviceBlock)
                request.blocks.append(feed)
                slot.in_data.bind(item.model_index, feed.address, feed.nbytes)

    def _inputs(self, request: Request, slot: Slot) -> tuple[list[Copy], list[Any]]:
        """Bind the inputs of a request that come from the host; returns their copies, and what is copied."""
        staging = slot.staged(request.plan)
        copies: list[Copy] = []
        for item in request.plan.inputs:
            if item.is_device:
                continue
            k = item.position
            own = slot.input_block(k, item.nbytes)
            if not self._is_board:
                copies.append(Copy(own.address, own.nbytes, slot.staging_address(k), item.nbytes))
        return copies, [*staging]

    def _outputs(self, request: Request, slot: Slot) -> tuple[list[Copy], list[Any]]:
        """Find memory for the results of a request; returns its copies back, and where they arrive."""
        if not request.to_host or self._is_board:
            return [], []
        copies: list[Copy] = []
        landing: list[Any] = []
        assert request.outputs is not None
        for item in request.outputs:
            block = slot.outputs[item.position]
            assert block is not None
            if item.nbytes > SMALL:
                area = Landing(slot, item.nbytes)
                request.blocks.append(area)
                landing.append(area)
                address = area.address
            else:
                address = slot.small_output(item.position)
                landing.append(view(address, item.shape, item.dtype))
            copies.append(Copy(address, item.nbytes, block.address, item.nbytes))
        return copies, landing


def _renewed(kept: CommandList, request: Request, slot: Slot) -> CommandList:
    """Return kept commands with pinned blocks of their own for large outputs, as arrays lease those of the last time.

    The calls are changed in place: they are those of one slot, so of one request at a time.
    """
    copies = [k for k in range(kept.back, len(kept.calls)) if slot.stream.is_copy(kept.calls[k])]
    assert request.outputs is not None
    landing = [*kept.landing[0]]
    filled = [item for item in request.outputs if item.nbytes]
    for place, item in zip(copies, filled, strict=True):
        if landing[item.position] is None:
            area = landing[item.position] = Landing(slot, item.nbytes)
            request.blocks.append(area)
            function, _, *arguments = kept.calls[place]
            kept.calls[place] = function, area.address, *arguments
    kept.behind.clear()
    return kept._replace(landing=[landing])


def _keep(kept: dict[Any, Any], kind: Any, commands: CommandList) -> None:
    if len(kept) >= _MOST_KEPT:
        kept.clear()
    kept[kind] = commands
