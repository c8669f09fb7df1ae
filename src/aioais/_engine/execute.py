"""Executions of one model: gears, and the chain that keeps them from overlapping."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterable, Iterator
from operator import length_hint
from typing import Final, NamedTuple

from .._acl.dataset import Dataset
from .._acl.library import Library
from .._acl.model import LoadedModel
from .._acl.stream import Call, Event, Stream, make_calls
from .._buffers.commands import CommandList, Streams
from .._buffers.slot import Slot
from .._feeds.plan import Plan, output_plans
from ..blame import Seen, blame
from ..errors import AclError, AclMemoryError, DeviceHangError

__all__ = ["IS_CHAINED", "Executions", "RefusedError"]

_log = logging.getLogger("aioais")

IS_CHAINED: Final = [not os.environ.get("AIOAIS_ONE_STREAM")]
"""Private switch for tests: with ``[False]``, sessions opened from then on have one execute stream."""


_MOST_BEHIND: Final = 32
"""Events of other slots for which a list is kept with the wait: slots come and go."""

_Link = tuple[Slot, Event, int]
"""The end of the chain: the slot on whose stream the newest execution is, the event behind it, and its number."""


class _Report(NamedTuple):
    """What a synchronise of the one execute stream reported."""

    last: int
    """Number of the newest submission that it may be about."""
    error: BaseException


class RefusedError(Exception):
    """A call of a submission failed. What was queued before it is complete.

    Parameters
    ----------
    error
        Its failure.
    position
        Where it is in the commands.
    failure
        The failure of work that was queued before it, if the wait for that work met one. ACL reports it once.
    """

    def __init__(self, error: BaseException, position: int, failure: AclError | None) -> None:
        super().__init__(error)
        self.error = error
        self.position = position
        self.failure = failure


class Executions:
    """Queues the executions of one model so that no two of them overlap, which CANN forbids.

    Everything a request needs is queued on the stream of its slot. Right before its execution that stream waits for the
    event behind the execution before, whichever stream that is on. So synchronising the stream of a slot confirms
    one request, its copies and its execution, and copies of other requests overlap with it.

    If ACL refuses an execution that was chained this way, all later ones share one stream instead; then two
    waits between streams surround each execution, and a failure concerns all requests that were queued together.

    Submissions come from one thread at a time (pyACL reference, thread rules of models).

    Attributes
    ----------
    stream
        The one stream of all executions; ``None`` while they are chained.
    """

    def __init__(self, library: Library, model: LoadedModel, loop: int, hang_timeout: float | None) -> None:
        self.library = library
        self.model = model
        self._hang_timeout = hang_timeout
        self._gear: tuple[int, ...] | None = None
        # Many may fill the queue of the stream: then the call waits, and pyACL's own would do so with the GIL.
        execute = library.acl.mdl.execute_async if loop == 1 else library.slow.execute_async
        self._execute = library.named("acl.mdl.execute_async", execute)
        self._submitted = 0
        self._link: _Link | None = None
        self._confirmed = 0
        """Number of the newest submission that is known to be complete; written by the finish thread only."""
        self.stream: Stream | None = None if IS_CHAINED[0] else Stream(library, hang_timeout)
        self._report: _Report | None = None

    def streams(self, slot: Slot) -> Streams:
        """Return where the calls of a request in a slot are queued."""
        if self.stream is None:
            return Streams(slot.stream, slot.stream)
        return Streams(slot.stream, self.stream, *slot.wait_events)

    def prepare(self, plan: Plan, in_datas: Iterable[Dataset]) -> None:
        """Set the gear where it is another one, and find out the output shapes; nothing is queued.

        Parameters
        ----------
        in_datas
            The input datasets of the executions.
        """
        if plan.gear is not None:
            for dataset in in_datas:
                # ACL keeps a gear in the loaded model and in the dataset: both must be this one.
                if plan.gear != self._gear or plan.gear != dataset.gear:
                    self._gear = dataset.gear = None
                    self.model.set_gear(dataset.handle, plan.gear)
                    self._gear = dataset.gear = plan.gear
        if plan.outputs is None:
            plan.know(output_plans(self.model.info, self.model.output_shapes()))

    def launch_call(self, slot: Slot, in_data: Dataset, out_data: Dataset) -> Call:
        """Return the call that queues one execution for a request in a slot."""
        stream = self.stream or slot.stream
        return self._execute, self.model.id, in_data.handle, out_data.handle, stream.handle

    def queue(self, calls: list[Call]) -> None:
        """Make recorded calls.

        Raises
        ------
        AclError
            A call failed; none was made after it.
        """
        self._make(calls, iter(calls))

    def _make(self, calls: list[Call], rest: Iterator[Call]) -> None:
        code = make_calls(rest)
        if code:
            raise self.library.call_error(calls[_made(calls, rest)][0], code)

    def submit(self, slot: Slot, commands: CommandList) -> int:
        """Queue the commands of one request or several; returns the number of the submission.

        Raises
        ------
        RefusedError
            A call failed. What was queued is complete, so that no later execution can overlap with it.
        DeviceHangError
            A call failed, and what was queued before it is not complete within ``hang_timeout``.
        """
        link = self._link_before(slot)
        calls, waits = commands.calls, 0
        if slot.link is not None and self.stream is None:
            calls, waits = self._with_own_events(commands, slot, slot.link, link)
        elif link is not None:
            waits = 1
            event = link[1]
            known = commands.behind.get(event.handle)
            if known is None:
                if len(commands.behind) >= _MOST_BEHIND:
                    commands.behind.clear()
                known = commands.behind[event.handle] = [*calls]
                known.insert(commands.head, slot.stream.wait_call(event))
            calls = known
        number = self.count()
        rest = iter(calls)
        try:
            self._make(calls, rest)
        except BaseException as exc:  # noqa: BLE001 - raised as the cause
            made = _made(calls, rest)
            is_behind_link = link is None or made >= commands.head + waits
            position = made - waits if is_behind_link else min(made, commands.head)
            if position > commands.back:  # behind what _with_own_events put there
                position = max(commands.back, position - (len(calls) - len(commands.calls) - waits))
            failure = self._break_chain(slot) if is_behind_link else None  # else the next must wait for the one before
            if link is not None:
                link[0].needed_until = 0  # this submission waits for it no more
            is_first = made == commands.head + waits + 1  # behind the wait is a record
            # Not in dynamic shape, where too small an output is refused as well.
            if link is not None and is_first and self.model.info.kind != "shape":
                self._consider(exc)
            raise RefusedError(exc, position, failure) from None
        if self.stream is None:
            if slot.link is not None:
                slot.is_link_set = True
                if link is not None:
                    link[0].is_link_set = False
            self._link = slot, commands.last, number
        return number

    def is_complete(self, number: int) -> bool:
        """Whether the submission with this number is known to be complete; in any thread."""
        return number <= self._confirmed

    def count(self) -> int:
        """Return the number of a submission that is about to be made."""
        self._submitted += 1
        return self._submitted

    def _link_before(self, slot: Slot) -> _Link | None:
        """Return the execution before, if the slot's stream has to wait for it."""
        link = self._link
        if link is None or link[0] is slot:
            return None
        link[0].needed_until = self._submitted + 1  # before the check: a slot that is confirmed may be closed
        return None if link[2] <= self._confirmed else link

    def _waits(self, link: _Link, slot: Slot) -> list[Call]:
        """Return the calls that make the slot's stream wait for an execution."""
        own = link[0].link
        if own is None:
            return [slot.stream.wait_call(link[1])]
        # An older release: this wait's own event, which must be reset before it is recorded again.
        return [slot.stream.wait_call(own), slot.stream.reset_call(own)]

    def _with_own_events(
        self, commands: CommandList, slot: Slot, own: Event, link: _Link | None
    ) -> tuple[list[Call], int]:
        """Return the calls on an older release, whose events serve one wait each, and how many of them wait."""
        waits = [] if link is None else self._waits(link, slot)
        # What the next execution waits for is before the copies back, for which it need not wait.
        records = [slot.stream.record_call(own)]
        if slot.is_link_set:  # no other slot has waited for it
            records.insert(0, slot.stream.reset_call(own))
        calls, head, back = commands.calls, commands.head, commands.back
        return [*calls[:head], *waits, *calls[head:back], *records, *calls[back:]], len(waits)

    def _break_chain(self, slot: Slot) -> AclError | None:
        """Wait for what a slot has queued, behind all executions before, so that the next one need not.

        An event that was not recorded again would let it pass at once.

        Returns
        -------
        AclError or None
            The failure of work that was queued there. ACL reports it once, so no later wait meets it.

        Raises
        ------
        DeviceHangError
            The work is not complete within ``hang_timeout``.
        """
        if self.stream is not None:
            return None
        slot.is_link_set = slot.link is not None  # it may be
        failure: AclError | None = None
        try:
            slot.stream.synchronize()
        except DeviceHangError:
            raise
        except AclError as exc:
            failure = exc
        self._link = None
        return failure

    def wait_for_copies(self, slot: Slot) -> None:
        """Wait for the copies of a slot and for all executions before, as a synchronous run does not wait for them.

        Raises
        ------
        AclError, DeviceHangError
            A copy failed, or is not complete within ``hang_timeout``; or the wait failed.
        """
        if self.stream is not None:
            error = self._synchronize_shared()
            if error is not None and self._submitted == self._confirmed:
                raise error  # no request under way gets it
        link = self._link_before(slot)
        if link is not None:
            self.queue(self._waits(link, slot))
            link[0].is_link_set = False
        slot.stream.synchronize()
        self._link = None

    def wait(self, slot: Slot, number: int, is_on_one_stream: bool) -> BaseException | None:
        """Wait for the submission with this number, and for all copies of its slot; returns its failure.

        Parameters
        ----------
        slot, number
            Of the submission; 0 if it failed before its execution.
        is_on_one_stream
            It was submitted to the one execute stream.
        """
        failure = self._failure_of(number) if is_on_one_stream else None
        try:
            slot.stream.synchronize()
        except BaseException as exc:  # noqa: BLE001 - the requests concerned raise it
            failure = failure or exc
        if number > self._confirmed and not isinstance(failure, DeviceHangError):
            self._confirmed = number  # complete, also where it failed
        return failure

    def close(self) -> None:
        """Destroy the one execute stream; idempotent."""
        if self.stream is not None:
            self.stream.close()

    def _failure_of(self, number: int) -> BaseException | None:
        """Synchronise the one execute stream. ACL does not say which submission failed, so all of them fail."""
        self._synchronize_shared()
        failure = self._report
        if failure is None or number > failure.last:
            return None
        return copy.copy(failure.error) if isinstance(failure.error, AclError) else failure.error

    def _synchronize_shared(self) -> BaseException | None:
        assert self.stream is not None
        try:
            self.stream.synchronize()
        except BaseException as exc:  # noqa: BLE001 - the requests concerned raise it
            # Kept until the next one: without the frames, which hold requests.
            self._report = _Report(self._submitted, exc.with_traceback(None))
            return exc
        return None

    def _consider(self, error: BaseException) -> None:
        """Stop chaining if ACL may have refused an execution because it was on another stream."""
        if (
            not isinstance(error, AclError)
            or error.call != "acl.mdl.execute_async"
            or isinstance(error, AclMemoryError)
            or blame(error, Seen.SUBMIT).drops_context
        ):
            return
        try:
            self.stream = Stream(self.library, self._hang_timeout)
            self._link = None
        except AclError as exc:
            _log.warning("%s: no stream for all executions: %s", self.model.path, str(exc))
            return
        _log.warning(
            "%s: ACL refused an execution behind one on another stream (%s); all executions of this session share one "
            "stream from now on",
            self.model.path,
            str(error),
        )


def _made(calls: list[Call], rest: Iterator[Call]) -> int:
    """Return how many calls were made before the last one, which failed."""
    return len(calls) - length_hint(rest) - 1
