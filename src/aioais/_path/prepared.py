"""Small requests, whose ACL calls are the same each time: made once, then only called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from .._acl.memory import view
from .._acl.stream import Call
from .cells import Buffers, Cell, Marks, joined_cell, staged_cell
from .device import Device
from .execute import Executor
from .places import Places, bytes_of
from .plan import Plan
from .request import Request
from .slot import SMALL_OUTPUT, Slot

__all__ = ["Cells", "Prepared"]


_MOST_KINDS: Final = 16
"""Plans that a slot keeps cells for."""


class Cells:
    """The cells of one slot for one plan; they own nothing.

    Attributes
    ----------
    plan
        Of all their requests.
    versions
        Those of the datasets; with others the buffers may be others too.
    most
        How many may be joined.
    """

    def __init__(
        self, slot: Slot, plan: Plan, executor: Executor, places: Places, versions: tuple[int, int], buffers: Buffers
    ) -> None:
        self.plan = plan
        self.versions = versions
        self.most = 0
        self._slot = slot
        self._executor = executor
        self._places = places
        self._nbytes = bytes_of(plan)
        self._serial = -1
        self._buffers = buffers
        self._joined: list[Cell] = []
        self._staged: Cell | None = None

    def reserve(self, most: int) -> None:
        """Have memory for so many joined requests, or for fewer large ones.

        Raises
        ------
        AclMemoryError
            There is none.
        """
        self.most = self._places.reserve(self._nbytes, most)
        if self._serial != self._places.serial:
            self._serial = self._places.serial
            self._joined.clear()

    def joined(self, k: int) -> Cell:
        """Give the cell of the ``k``-th request of a burst; no cell before it may be missing.

        Raises
        ------
        AclError
            There is no event for another.
        """
        if k == len(self._joined):
            marks = self._places.marks(k)
            before = self._places.marks(k - 1).d2h[-1] if k else None
            staging, landing = self._places.views(k, self.plan)
            stream = self._executor.stream
            self._joined.append(joined_cell(self._buffers, marks, before, staging, landing, stream))
        return self._joined[k]

    def staged(self) -> Cell:
        """Give the cell of a request whose copies are on the slot's stream.

        Raises
        ------
        AclMemoryError
            There is no memory for feeds or results.
        """
        if self._staged is None:
            slot, plan = self._slot, self.plan
            assert plan.outputs is not None
            staging = [area for area in slot.staged(plan) if area is not None]
            landing = [view(slot.small_output(o.position), o.shape, o.dtype) for o in plan.outputs]
            marks = Marks(slot.h2d_marks, slot.execute_marks, slot.d2h_marks)
            slot.cells[plan.serial] = self  # again: another staging area makes a slot forget
            self._staged = staged_cell(self._buffers, marks, staging, landing, slot.stream, self._executor.stream)
        return self._staged


class Prepared:
    """Stages, queues and collects requests that have a cell.

    Parameters
    ----------
    device, executor, places
        Of the session.
    is_wanted
        ``False`` if each step of a request must be seen by itself.
    """

    def __init__(self, device: Device, executor: Executor, places: Places, is_wanted: bool) -> None:
        self._library = device.library
        self._executor = executor
        self._places = places
        # Where memory is shared, feeds are written to the device's own buffers and results lease them.
        self._is_on = is_wanted and not device.is_shared
        self.can_stage = device.library.has_event_ex
        """Events may be waited for again without a reset, so the calls are always the same on several streams too."""

    def takes(self, request: Request) -> bool:
        """Whether a request is of the kind that can be prepared, as far as is known."""
        return self._is_on and request.plan.is_plain and request.to_host and request.draft is None

    def cells(self, request: Request, slot: Slot) -> Cells | None:
        """Set the gear of a request, and find the cells of its kind; on the thread that submits.

        ``None``, if its outputs are too large.

        Raises
        ------
        AclError
            The gear cannot be set, or the buffers cannot be bound.
        """
        plan = request.plan
        if plan.gear is not None or plan.outputs is None:
            self._executor.prepare(request, slot)
        cells: Cells | None = slot.cells.get(plan.serial)
        if cells is not None and cells.versions == (slot.in_data.version, slot.out_data.version):
            return cells
        outputs = plan.outputs
        assert outputs is not None
        if any(item.nbytes > SMALL_OUTPUT for item in outputs):
            plan.is_plain = False
            return None
        if len(slot.cells) >= _MOST_KINDS:
            slot.cells.clear()
        executor = self._executor
        blocks = [slot.input_block(item.position, item.nbytes) for item in plan.inputs]
        buffers = Buffers(
            [(item, block.address, block.nbytes) for item, block in zip(plan.inputs, blocks, strict=True)],
            [(item, slot.output_block(item.position, item.nbytes).address) for item in outputs],
            executor.launch_call(slot),
            slot.executions,
        )
        versions = slot.in_data.version, slot.out_data.version
        cells = slot.cells[plan.serial] = Cells(slot, plan, executor, self._places, versions, buffers)
        return cells

    def stage(self, request: Request) -> bool:
        """Copy the feeds to where the device reads them; ``False`` if they were given up."""
        cell, feeds = request.cell, request.feeds
        assert cell is not None
        if feeds is None:
            request.was_cancelled = True
            return False
        for area, feed in zip(cell.staging, feeds, strict=True):
            np.copyto(area, feed)
        return True

    def queue(self, calls: Iterable[Call]) -> None:
        """Call what was prepared.

        Raises
        ------
        AclError
            A call failed; none was made after it.
        """
        for function, arguments, name in calls:
            code = function(*arguments)
            if code:
                raise self._library.error(name, code)

    def collect(self, request: Request) -> list[float]:
        """Make the results of a request that is complete on the device; gives the milliseconds of each of its spans.

        Raises
        ------
        AclError
            A time cannot be read.
        """
        cell = request.cell
        assert cell is not None
        row = [behind.known_ms(before) for before, behind in cell.spans]
        request.result = [area.copy() for area in cell.landing]
        return row
