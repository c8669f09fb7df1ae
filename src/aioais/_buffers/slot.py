"""A slot: one set of device buffers, datasets and events, with a stream; built once, used by request after request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from .._acl.block_pool import size_class
from .._acl.dataset import Dataset
from .._acl.memory import BlockHome, DeviceBlock, view
from .._acl.model import ModelInfo, TensorInfo
from .._acl.release import run_all
from .._acl.stream import Event, Stream
from .._device.device import Device
from .._feeds.plan import SMALL, InputPlan, Plan
from ..errors import AclMemoryError
from .batch_buffers import BatchBuffers
from .commands import Marks

__all__ = ["KEPT_BYTES", "Slot", "executions_per_mark"]

KEPT_BYTES: Final = 1 << 20
"""With open dims: buffers up to this size stay with their slot; larger ones are those of one request."""

_MOST_KEPT: Final = 64
"""Plans of which a slot keeps views of its staging."""
_MOST_MEMORIES: Final = 8
"""Sets of addresses for which a slot keeps command lists. Device tensors that are fed back take turns with few."""
_MOST_MARKS: Final = 64
"""Events behind the executions of a request; some devices have 1023 in all (pyACL reference, ``create_event``)."""


def executions_per_mark(loop: int) -> list[int]:
    """Return how many of ``loop`` executions each event is behind; more than one only where there are many."""
    marks = min(loop, _MOST_MARKS)
    return [loop // marks + (k < loop % marks) for k in range(marks)]


class Slot:
    """Everything on the device that one request at a time needs, or one batch.

    The buffers of a model of dynamic shape come from a pool of the device. What is larger than ``KEPT_BYTES`` goes back
    there with each request, so no slot holds the memory of the largest request that it ever had.

    All its work is queued on the slot's own stream, unless the session has fallen back to one for executions. ACL
    reports a failure only to the caller that synchronises the stream that the work was queued on, and this way that
    concerns exactly one request, or one batch.

    Must be built, used and closed in threads that have the device's context.

    Attributes
    ----------
    shapes
        Those that were described last to its input dataset; ``None`` if that is unknown.
    middle_commands
        Lists of iteration steps without copies: they hold no addresses, so they serve any.
    batch
        Buffers for batches; makes them when they are asked for.
    link
        On a release without ``create_event_ex_with_flag``: what the next execution of the model waits for.
    is_resting
        It is free, and was free when idle memory was looked for last.
    is_link_set
        ``link`` is recorded, and no other stream has reset it.
    needed_until
        Number of the newest submission that may wait for an event of this slot; it is not closed before that is
        complete.
    """

    batch: BatchBuffers
    in_data: Dataset
    marks: Marks
    out_data: Dataset

    def __init__(self, device: Device, info: ModelInfo, loop: int, hang_timeout: float | None) -> None:
        self.device = device
        self.info = info
        self.shapes: tuple[tuple[int, ...], ...] | None = None
        self.executions_per_mark: list[int] = executions_per_mark(loop)
        self._tensors: tuple[TensorInfo, ...] = info.all_inputs
        self.inputs: list[DeviceBlock | None] = [None] * len(self._tensors)
        self.outputs: list[DeviceBlock | None] = [None] * len(info.outputs)
        self._hidden: list[DeviceBlock] = []
        self._homes: list[BlockHome] = [BlockHome(device.memory) for _ in info.outputs]
        self._staging: list[tuple[int, int]] = [(0, 0)] * len(self._tensors)
        self._small: list[tuple[int, int]] = [(0, 0)] * len(info.outputs)
        self._views: dict[int, list[np.ndarray | None]] = {}
        self._events: list[Event] = []
        self._links: list[Event] = []
        self.link: Event | None = None
        self.is_link_set: bool = False
        self.needed_until: int = 0
        self.is_resting: bool = False
        self._is_open = info.kind == "shape"
        self._datasets: list[Dataset] = []
        self._commands: dict[Any, Any] | None = None
        self._commands_by_memory: dict[Any, dict[Any, Any]] = {}
        self.middle_commands: dict[Any, Any] = {}
        self.stream: Stream = Stream(device.library, hang_timeout)
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        device, info = self.device, self.info
        library = device.library
        hidden: dict[int, tuple[int, int]] = {}
        for index, nbytes in info.hidden:
            block = device.alloc(nbytes)
            self._hidden.append(block)
            hidden[index] = block.address, block.nbytes
        bound = {**hidden}
        for k, tensor in enumerate(self._tensors):
            bound[tensor.index] = (0, 0)
            if not self._is_open and k < len(info.inputs):  # optional ones have memory once they are fed
                block = self.inputs[k] = device.alloc(tensor.size)
                bound[tensor.index] = block.address, block.nbytes
        self.in_data = Dataset(library, [bound[index] for index in range(info.input_count)], self._rebound)
        self._datasets.append(self.in_data)
        for k, tensor in enumerate(info.outputs):
            if not self._is_open:
                self.outputs[k] = device.alloc(tensor.size)
        bound_outputs = [(b.address, b.nbytes) if b else (0, 0) for b in self.outputs]
        self.out_data = Dataset(library, bound_outputs, self._rebound)
        self._datasets.append(self.out_data)
        inputs, outputs = ([self._event() for _ in tensors] for tensors in (info.inputs, info.outputs))
        executions = [self._event() for _ in self.executions_per_mark]
        self.marks = Marks(self._event(), inputs, self._event(), executions, outputs)
        if not library.has_event_ex:  # marks cannot be reset without losing their time: events that serve one wait each
            self._links = [self._event() for _ in range(3)]
            self.link = self._links[0]
        self.batch = BatchBuffers(device, info, hidden)

    @property
    def commands(self) -> dict[Any, Any]:
        """Command lists of its requests, for the memory that its datasets point to now."""
        found = self._commands
        if found is None:
            memory = self.in_data.bound, self.out_data.bound
            found = self._commands_by_memory.get(memory)
            if found is None:
                if len(self._commands_by_memory) >= _MOST_MEMORIES:
                    self._commands_by_memory.clear()
                found = self._commands_by_memory[memory] = {}
            self._commands = found
        return found

    @property
    def wait_events(self) -> list[Event]:
        """Two events for the waits of a request between streams, where marks cannot serve; else none."""
        return self._links[1:]

    def mend(self) -> None:
        """Make the slot usable after a failed request; nothing of it is queued any more."""
        self.shapes = None  # what is set on the device is unknown
        for dataset in (self.in_data, *self.batch.in_datas(len(self.batch.places))):
            dataset.gear = None
        self._forget_commands()  # the next ones may be on other streams
        self.batch.commands.clear()
        for event in self._links:
            # It may have been recorded without a wait behind it. A link that a stream waits for is reset by that one.
            if event is not self.link or self.is_link_set:
                self.stream.reset(event)
        self.is_link_set = False

    @property
    def nbytes(self) -> int:
        """Device memory of its buffers."""
        blocks = (block for block in (*self.inputs, *self.outputs, *self._hidden, *self._homes, self.batch) if block)
        return sum(block.nbytes for block in blocks)

    def input_block(self, k: int, nbytes: int) -> DeviceBlock:
        """Bind input ``k`` to its own buffer, with room for ``nbytes``."""
        return self._fitting(self.inputs, k, nbytes, self.in_data, self._tensors[k].index)

    def unbind(self, indices: tuple[int, ...]) -> None:
        """Leave optional inputs, by their index in the model, without a buffer: they keep their default."""
        for index in indices:
            self.in_data.bind(index, 0, 0)

    def output_block(self, k: int, nbytes: int) -> DeviceBlock:
        """Bind output ``k`` to a buffer with room for ``nbytes``."""
        return self._fitting(self.outputs, k, nbytes, self.out_data, k)

    def describe(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Set the shapes of a dynamic-shape model's inputs, unless they are set already."""
        if self.shapes == shapes:
            return
        self.shapes = None
        for tensor, shape in zip(self.info.inputs, shapes, strict=True):
            self.in_data.describe(tensor.index, tensor.datatype, tensor.format, shape)
        self.shapes = shapes

    def exchange(self, k: int, source: int) -> None:
        """Make the buffer of output ``source`` that of input ``k``, whose own one the output gets.

        Nothing is copied: the input reads what the output holds. A buffer too small to be the output's
        is replaced; what it held is lost either way.
        """
        given, taken = self.outputs[source], self.inputs[k]
        assert given is not None
        if self.device.is_board:
            self._forget()  # they look at the input's buffer
        if taken is None or taken.nbytes < given.nbytes:
            small, taken = taken, self._alloc(given.nbytes)
            self.inputs[k] = taken
            if small is not None:
                small.close()
        # The owners change last. Where a call fails before, the output is still bound to its own buffer, and an
        # input is bound anew by each request.
        self.in_data.bind(self.info.inputs[k].index, given.address, given.nbytes)
        self.out_data.bind(source, taken.address, taken.nbytes)
        self.inputs[k], self.outputs[source] = given, taken

    def take_output(self, k: int) -> DeviceBlock:
        """Take the buffer of output ``k`` out of the slot.

        When it is let go, it returns if the slot lacks a buffer for this output then; else it is freed. A buffer of a
        pool returns to the pool.
        """
        taken = self.outputs[k]
        assert taken is not None
        self.outputs[k] = None
        if not self._is_open and not self.device.is_board:
            self._homes[k].miss()
            taken.leave_to(self._homes[k])
        return taken

    def complete(self) -> None:
        """Have a buffer for each output of fixed size again.

        Raises
        ------
        AclError
            The device has no room.
        """
        if self._is_open:
            return
        for k, block in enumerate(self.outputs):
            if block is None:
                self._put_output(k, self._homes[k].take() or self.device.alloc(self.info.outputs[k].size))

    def lend_output(self, k: int, nbytes: int) -> DeviceBlock | None:
        """Take the buffer of output ``k`` for an array that leases it; only where host and device share memory.

        ``None``, if the bytes should rather be copied out: they are few, most of the buffer is not used,
        or there is no room for another buffer.
        """
        taken = self.outputs[k]
        assert taken is not None
        if nbytes <= SMALL or 2 * nbytes < taken.nbytes or not self.device.pinned.may_lease(taken.nbytes):
            return None
        if self._is_open:
            return self.take_output(k)
        try:
            self._put_output(k, self.device.alloc(taken.nbytes))
        except AclMemoryError:
            return None
        return taken

    def staged(self, plan: Plan) -> list[np.ndarray | None]:
        """Return the memory that each host feed is copied to, as an array of the feed's type and shape.

        That is pinned staging, or the device's own buffer where the host has the same memory.
        """
        views = self._views.get(plan.serial)
        if views is None:
            marks = self.marks.inputs
            marks.extend(self._event() for _ in range(len(plan.inputs) - len(marks)))  # optional inputs have none yet
            hosted = [item for item in plan.inputs if not item.is_device]
            if not all(self._fits(self._room(item.position), item.nbytes) for item in hosted):
                self._forget()  # they look at the blocks that are about to be replaced
            views = [None if item.is_device else self._stage(item.position, item) for item in plan.inputs]
            if len(self._views) >= _MOST_KEPT:
                self._forget()
            self._views[plan.serial] = views
        return views

    def staging_address(self, k: int) -> int:
        """Return the address of the pinned staging area of input ``k``."""
        return self._staging[k][0]

    def small_output(self, k: int) -> int:
        """Return the address of a pinned area for results of output ``k`` up to ``SMALL`` bytes."""
        address, nbytes = self._small[k]
        if not address:
            size = self._most_bytes(self.info.outputs[k])
            nbytes = min(size, SMALL) if size else SMALL
            address = self.device.pinned.acquire(nbytes)
            self._small[k] = address, nbytes
        return address

    def give_back(self) -> None:
        """Return large buffers of open dims to their pools; nothing queued may use them any more."""
        if any(self._room(k) > KEPT_BYTES for k in range(len(self.inputs))):
            self._forget()  # they look at these
        for k, (address, nbytes) in enumerate(self._staging):
            if nbytes > KEPT_BYTES:
                self._staging[k] = 0, 0
                self.device.pinned.release(address, nbytes)
        for blocks in (self.inputs, self.outputs):  # those that are taken first come last: each gets its own back
            for k in reversed(range(len(blocks))):
                block = blocks[k]
                if block is not None and block.nbytes > KEPT_BYTES:
                    blocks[k] = None
                    block.close()

    def close(self) -> None:
        """Free everything; idempotent. Nothing queued may use the slot any more.

        A failure is raised when all else is freed.
        """
        self._forget()
        datasets, self._datasets = self._datasets, []
        events, self._events = self._events, []
        returned = [home.take() for home in self._homes]
        blocks = [block for block in (*self.inputs, *self.outputs, *self._hidden, *returned) if block is not None]
        steps: list[Callable[[], None]] = [dataset.close for dataset in datasets]
        steps += [event.close for event in events]
        steps += [self.stream.close, *(block.close for block in blocks)]
        pinned = self.device.pinned
        areas, self._staging, self._small = [*self._staging, *self._small], [], []
        for address, nbytes in areas:
            if address:
                pinned.release(address, nbytes)
        run_all([self.batch.close, *steps] if hasattr(self, "batch") else steps)

    def _forget(self) -> None:
        """Drop what points to memory of the slot."""
        self._views.clear()
        self._forget_commands()

    def _forget_commands(self) -> None:
        self._commands = None
        self._commands_by_memory.clear()
        self.middle_commands.clear()

    def _rebound(self) -> None:
        self._commands = None

    def _room(self, k: int) -> int:
        """Bytes of the memory that feeds of input ``k`` are copied to."""
        if not self.device.is_board:
            return self._staging[k][1]
        block = self.inputs[k]
        return block.nbytes if block is not None else 0

    def _put_output(self, k: int, block: DeviceBlock) -> None:
        self.out_data.bind(k, block.address, block.nbytes)  # first: where that fails the slot stays as it is
        self.outputs[k] = block

    def _stage(self, k: int, item: InputPlan) -> np.ndarray:
        if self.device.is_board:
            return view(self.input_block(k, item.nbytes).address, item.shape, item.dtype)
        address, nbytes = self._staging[k]
        if not address or not self._fits(nbytes, item.nbytes):
            room = size_class(max(item.nbytes, self._most_bytes(self._tensors[k])))
            self._staging[k] = 0, 0
            if address:
                self.device.pinned.release(address, nbytes)
            address = self.device.pinned.acquire(room)
            self._staging[k] = address, room
        return view(address, item.shape, item.dtype)

    def _most_bytes(self, tensor: TensorInfo) -> int:
        """Return the reported bytes of a tensor; 0 with ranges, whose upper bounds may be out of all proportion."""
        return tensor.size if self.info.kind != "shape" else 0

    def _fits(self, have: int, nbytes: int) -> bool:
        """Whether memory of ``have`` bytes is large enough, and not out of proportion."""
        return nbytes <= have and (not self._is_open or have <= max(KEPT_BYTES, size_class(nbytes)))

    def _fitting(
        self, blocks: list[DeviceBlock | None], k: int, nbytes: int, dataset: Dataset, index: int
    ) -> DeviceBlock:
        old = block = blocks[k]
        if block is None or not self._fits(block.nbytes, nbytes):
            if self._is_open and old is not None:  # before: there may be no room for both, and each request binds anew
                blocks[k] = None
                old.close()
                old = None
            block = self._alloc(nbytes)
        dataset.bind(index, block.address, block.nbytes)  # first: where that fails the slot stays as it is
        if block is not old:
            blocks[k] = block
            if old is not None:
                old.close()
        return block

    def _alloc(self, nbytes: int) -> DeviceBlock:
        return self.device.alloc_for_request(nbytes) if self._is_open else self.device.alloc(nbytes)

    def _event(self) -> Event:
        event = Event(self.device.library)
        self._events.append(event)
        return event
