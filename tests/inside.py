"""What tests see of the inside of the library: everything that is no public name is reached through here.

A test asks for what it means, such as the slots of a session that are idle, and this module knows where the library
keeps it. When the library is built anew, this file follows, and tests do not. Programs that tests start import it too.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import aioais.summary
from aioais import InferSession, MultiDeviceSession
from aioais._acl import block_pool
from aioais._acl.api import Acl, Mdl, Rt
from aioais._acl.library import Library, find_library
from aioais._acl.memory import BlockHome
from aioais._acl.process import process_of
from aioais._acl.slow import SlowCalls
from aioais._atc import onnx_file, other_options
from aioais._atc.options import InputShape, Options, parse_options
from aioais._bridge.offload import wait_future
from aioais._bridge.worker import Worker
from aioais._buffers.batch_buffers import MOST_BATCHED
from aioais._cann.codes import CODES
from aioais._device import device as device_module
from aioais._device.transfers import Transfers
from aioais._engine import core, execute, lifetime, stages, times
from aioais._engine.core import SessionCore
from aioais._engine.lifetime import open_pipeline
from aioais._machine import machine_memory
from aioais._misuse import _AIS_BENCH as AIS_BENCH_NAMES
from aioais.cli.devices import _remarks as remarks_on_devices
from aioais.compat import _install
from aioais.compat import _loop as compat_loop
from aioais.compat import _models as compat_models
from aioais.emulator import lent
from aioais.emulator import memory as emulator_memory
from aioais.emulator._observers import observers as emulator_observers
from aioais.emulator._runner import main as run_emulator
from aioais.emulator._state import state as emulator_state
from aioais.emulator.model import find as find_model
from aioais.emulator.plan import KEPT as KEPT_PLANS
from aioais.emulator.threads import cores, is_brief, weigh
from aioais.session import core_of

if TYPE_CHECKING:
    import pytest

    from aioais._engine.pipeline import Pipeline
    from aioais.emulator.profiler import Profiler
    from aioais.trace import Trace

__all__ = [
    "ACL_CALLS",
    "AIS_BENCH_NAMES",
    "CODES",
    "COMPAT_MODULES",
    "COMPAT_VARIABLE",
    "KEPT_PLANS",
    "MOST_BATCHED",
    "PASSING_THREADS",
    "SLOW_CALLS",
    "STAGES",
    "InputShape",
    "Options",
    "Worker",
    "block_home",
    "break_now",
    "break_once_left",
    "break_stage",
    "cause_of_break",
    "chain_executions",
    "close_entrance",
    "collect_where_locks_are_held",
    "compat_finders",
    "compat_platform",
    "control_thread",
    "cores",
    "count_copies_of_feeds",
    "cpu_library",
    "emulator_memory",
    "emulator_observers",
    "emulator_state",
    "end_of",
    "end_without_waiting",
    "file_of_trace",
    "finalize_all",
    "find_model",
    "forget_compat_platform",
    "hold_end_of_device",
    "hold_lent_bytes",
    "hold_opening",
    "hold_with_lock",
    "idle_slots",
    "is_brief",
    "is_fast",
    "is_file_closed",
    "is_known_as_brief",
    "is_leased",
    "keep_idle_for",
    "kept_with_waits",
    "limit_idle",
    "limit_kept_waits",
    "limit_leases",
    "limit_proto",
    "machine_memory",
    "most_idle",
    "note_deliveries",
    "other_options",
    "own_bytes",
    "parse_options",
    "places",
    "reclaim",
    "recordings",
    "refuse_memory_for_times",
    "remarks_on_devices",
    "run_emulator",
    "run_exit_hook",
    "session_of",
    "set_compat_platform",
    "set_exit_patience",
    "settle_device",
    "share_one_stream",
    "stop_a_loop_that_ends",
    "submitted",
    "sweep",
    "times_of",
    "times_of_copies_held",
    "treat_as_brief",
    "treat_as_fast",
    "treat_as_instant",
    "treat_as_slow",
    "wait_broken",
    "wait_finalize_requested",
    "weigh",
    "when_counted",
]


def _pipeline(session: InferSession | SessionCore) -> Pipeline:
    core = session if isinstance(session, SessionCore) else core_of(session)
    pipeline = core.pipeline
    assert pipeline is not None, "the session is not open"
    return pipeline


# --- the process ----------------------------------------------------------------------------------

finalize_all = lifetime.finalize_all
"""End every session, every device and ACL, without an event loop."""


def set_exit_patience(seconds: float) -> None:
    """Bound how long the end of the process waits for a device."""
    lifetime._PATIENCE_S = seconds  # type: ignore[misc]


def run_exit_hook() -> None:
    """Do what the library does when the interpreter exits."""
    lifetime._at_exit()


def cpu_library() -> Library:
    """Return what the library knows of the ``acl`` of the CPU device; its flags are attributes to be patched."""
    return find_library("cpu")


def _public(protocol: type) -> set[str]:
    return {name for name in vars(protocol) if not name.startswith("_")} - {"rt", "mdl"}


ACL_CALLS = {
    f"{prefix}.{name}"
    for prefix, protocol in (("acl", Acl), ("acl.rt", Rt), ("acl.mdl", Mdl))
    for name in _public(protocol)
}
"""Every call of pyACL that the library may make, read from its Protocols."""

SLOW_CALLS = set(vars(SlowCalls(cpu_library().acl))) - {"releases_gil"}
"""Names of the calls that may take long, without their modules."""


def limit_proto(patch: pytest.MonkeyPatch, nbytes: int) -> None:
    """Have ONNX files of more bytes pass for too large for one protobuf."""
    patch.setattr(onnx_file, "_PROTO_LIMIT", nbytes)


EMULATOR_PARTS = "aioais.emulator._state, aioais.emulator.plan"
"""Modules of the emulator, to be imported before the package itself is asked for anything."""


def is_file_closed(profiler: Profiler) -> bool:
    """Whether the profiler of the CPU device has closed its file."""
    return profiler._file == -1


# --- opening and closing --------------------------------------------------------------------------

PASSING_THREADS = ("aioais-end-", "aioais-open-", "aioais-count", "aioais-feeds", "aioais-finalize")
"""How the names of threads begin that end by themselves, with their one job."""


def hold_opening(patch: pytest.MonkeyPatch, may_begin: threading.Event) -> None:
    """Have sessions wait for an event before they begin to open."""

    def late(*args: Any) -> Any:
        assert may_begin.wait(10)
        return open_pipeline(*args)

    patch.setattr(core, "open_pipeline", late)


def hold_end_of_device(patch: pytest.MonkeyPatch, has_begun: threading.Event, may_go_on: threading.Event) -> None:
    """Have the control thread of a device wait for an event while it frees the device."""
    close = Transfers.close

    def held_up(transfers: Transfers) -> None:
        has_begun.set()
        assert may_go_on.wait(60)
        close(transfers)

    patch.setattr(Transfers, "close", held_up)


def wait_finalize_requested() -> None:
    """Block until ``finalize`` has asked for the end of the CPU device's ACL."""
    while not process_of(cpu_library()).is_finalize_requested:
        threading.Event().wait(0.001)


def end_of(session: InferSession) -> Callable[[], bool]:
    """Return a function that tells whether a session has ended; it does not keep the session."""
    return _pipeline(session).closed.done


def end_without_waiting(session: InferSession) -> None:
    """Do what a finaliser of the session would."""
    _pipeline(session).close()


def cause_of_break(session: InferSession | SessionCore) -> BaseException | None:
    """Return why a session broke, without asking it for anything that would tell it to look."""
    return _pipeline(session).failure.cause


def wait_broken(session: InferSession) -> None:
    """Block until a session has broken."""
    while cause_of_break(session) is None:
        threading.Event().wait(0.01)


def collect_where_locks_are_held(session: InferSession, collect: Callable[[], object]) -> None:
    """Call a function each time that a request leaves the session, while the locks for that are held."""

    class Collecting(set[Any]):
        def difference_update(self, *requests: Any) -> None:
            super().difference_update(*requests)
            collect()

    _pipeline(session).admission._active = Collecting()


def when_counted(session: InferSession, act: Callable[[], object]) -> None:
    """Have something done in another thread right after the next request was counted as under way."""

    class Counting(set[Any]):
        is_over = False

        def add(self, request: Any) -> None:
            super().add(request)
            if not self.is_over:
                self.is_over = True
                thread = threading.Thread(target=act)
                thread.start()
                thread.join()

    _pipeline(session).admission._active = Counting()


def session_of(session: MultiDeviceSession, device: int) -> SessionCore:
    """Return the warm session of one device."""
    found = session._pool.state(device).session
    assert found is not None, f"device {device} is not open"
    return found


# --- devices --------------------------------------------------------------------------------------


def control_thread(session: InferSession) -> threading.Thread:
    """Return the thread that frees what is dropped on the session's device."""
    return _pipeline(session).device.worker.thread


def block_home(memory: Any) -> BlockHome:
    """Return where a set of buffers waits for a block that it gave away; what is not missed goes to ``memory``."""
    return BlockHome(memory)


async def settle_device(session: InferSession) -> None:
    """Wait until all that was dropped on the session's device is freed.

    A control thread lets go of a job, and of what that holds, after it has told of its end. When the first of these
    two has run, what earlier ones have dropped is in the inbox; when the second has, it is freed.
    """
    device = _pipeline(session).device
    await wait_future(device.worker.submit(lambda: None))
    await wait_future(device.worker.submit(device.pinned.trim))
    await wait_future(device.worker.submit(device.pool.trim))


def most_idle() -> int:
    """Bytes that a pool may keep idle when it grows."""
    return block_pool._MOST_IDLE


def limit_idle(patch: pytest.MonkeyPatch, nbytes: int) -> None:
    """Let pools keep only so many bytes idle when they grow."""
    patch.setattr(block_pool, "_MOST_IDLE", nbytes)


def keep_idle_for(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have devices that are opened from now on look for idle memory so often."""
    patch.setattr(device_module, "_KEEP_S", seconds)


async def sweep(session: InferSession) -> None:
    """Have the session's device look for idle memory now, as it does by itself after a time."""
    device = _pipeline(session).device
    await wait_future(device.worker.submit(device.idle_memory.sweep))


async def reclaim(session: InferSession) -> None:
    """Have the session give up the sets of buffers that no request uses, as it does when memory runs short."""
    pipeline = _pipeline(session)
    await wait_future(pipeline.device.worker.submit(pipeline.slots.reclaim))


def limit_leases(patch: pytest.MonkeyPatch, session: InferSession, nbytes: int | None = None) -> None:
    """Bound the pinned memory that results may lease on the session's device; by default, what there is now."""
    pinned = _pipeline(session).device.pinned
    patch.setattr(pinned, "_limit", pinned.nbytes if nbytes is None else nbytes)


def is_leased(result: Any) -> bool:
    """Whether an array is a pinned block itself."""
    return type(result.base).__name__ == "PinnedLease"


# --- requests -------------------------------------------------------------------------------------

STAGES = ("queue", "wait", "finish")
"""What the threads of a session do with each request."""


def break_now(session: InferSession, error: BaseException) -> None:
    """Have a session break."""
    _pipeline(session).failure.strike(error)


def close_entrance(session: InferSession) -> None:
    """Begin to close a session; its core does not know yet."""
    _pipeline(session).close()


def break_once_left(session: InferSession, error: BaseException) -> None:
    """Have a session break when its next request has been counted as ended and is not on its way to the loop yet.

    The batch behind it is complete by then, and the loop has settled all that the break gave to it.
    """
    pipeline = _pipeline(session)
    leave = pipeline.admission.leave
    settled = threading.Event()

    def leave_and_break(requests: Sequence[Any]) -> None:
        pipeline.admission.leave = leave  # type: ignore[method-assign]
        leave(requests)
        pipeline._router.submitted[0].slot.stream.synchronize()
        pipeline.failure.strike(error)
        pipeline._delivery.loop.call_soon_threadsafe(settled.set)
        settled.wait()

    pipeline.admission.leave = leave_and_break  # type: ignore[method-assign]


def break_stage(patch: pytest.MonkeyPatch, session: InferSession, stage: str, error: Exception) -> None:
    """Give an engine thread a bug: from now on its work raises an error."""

    def broken(*_: object, **__: object) -> None:
        raise error

    patch.setattr(_pipeline(session)._stages, stage, broken)


def idle_slots(session: InferSession) -> list[int]:
    """Return the identities of the sets of buffers that wait for a request; nothing may be under way."""
    return [id(slot) for slot in _pipeline(session).slots.free]


def recordings(session: InferSession) -> int:
    """Return how many recordings of a session are on."""
    return len(_pipeline(session).recordings)


def file_of_trace(trace: Trace, make: Callable[[Callable[[], Any]], Any]) -> None:
    """Have the file of a trace made by a function, which is given the function that would have made it."""
    create = trace._create
    trace._create = lambda: make(create)  # type: ignore[method-assign]


# --- speed: what the engine believes of a device, and how many requests share one set of buffers ----


def treat_as_fast(patch: pytest.MonkeyPatch) -> None:
    """Have every device pass for one that is faster than threads wake, and slower than the host."""
    _set_limits(patch, 1000.0)


def treat_as_slow(patch: pytest.MonkeyPatch) -> None:
    """Have a device that takes longer than a millisecond pass for a slow one."""
    _set_limits(patch, 1.0)


def treat_as_brief(patch: pytest.MonkeyPatch) -> None:
    """Have every device pass for one that takes longer than threads need to wake, but little longer."""
    _set_limits(patch, 1000.0)
    patch.setattr(times, "_LIGHT_MS", 0.0)


def treat_as_instant(patch: pytest.MonkeyPatch) -> None:
    """Have every device pass for one that waits for the host."""
    _set_limits(patch, 1000.0)
    patch.setattr(times, "_INSTANT_MS", 1000.0)


def _set_limits(patch: pytest.MonkeyPatch, ms: float) -> None:
    patch.setattr(times, "_INSTANT_MS", 0.0)
    for name in ("_LIGHT_MS", "_BRIEF_MS"):
        patch.setattr(times, name, ms)
    patch.setattr(times, "_SLOW_MS", max(ms, times._SLOW_MS))


def is_fast(session: InferSession) -> bool:
    """Whether requests of the session take the device less time than a thread needs to wake."""
    return _pipeline(session).times.speed.is_light


def count_copies_of_feeds(patch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the bytes of each feed that is copied to where the device reads it."""
    copied: list[int] = []
    copy_feeds = stages.copy_feeds

    def counting(staging: Sequence[Any], feeds: Sequence[Any]) -> None:
        copied.extend(area.nbytes for area in staging if area is not None)
        copy_feeds(staging, feeds)

    patch.setattr(stages, "copy_feeds", counting)
    return copied


def submitted(session: InferSession) -> int:
    """Count the batches on the device for which the finish thread does not wait yet."""
    return len(_pipeline(session)._router.submitted)


def note_deliveries(session: InferSession) -> list[int]:
    """Return a list that gets the number of results for which the loop is woken, each time."""
    delivery = _pipeline(session)._delivery
    counts: list[int] = []

    class Loop:
        loop = delivery.loop

        def call_soon_threadsafe(self, function: Callable[[], None]) -> None:
            counts.append(len(delivery.ready))
            self.loop.call_soon_threadsafe(function)

    delivery.loop = cast("Any", Loop())
    return counts


def is_known_as_brief(session: InferSession) -> bool:
    """Whether each hop from thread to thread counts."""
    return _pipeline(session).times.speed.is_brief


def places(session: InferSession) -> list[int]:
    """Return how many requests may share each slot; 0 where none was shared yet."""
    return [len(slot.batch.places) for slot in _pipeline(session).slots._all]


def kept_with_waits(session: InferSession) -> int:
    """Return for how many events of other slots the command list is kept that is kept for most."""
    slots = _pipeline(session).slots._all
    return max(len(commands.behind) for slot in slots for commands in slot.commands.values())


def limit_kept_waits(patch: pytest.MonkeyPatch, most: int) -> None:
    """Keep a command list for so many events of other slots."""
    patch.setattr(execute, "_MOST_BEHIND", most)


def own_bytes(session: InferSession) -> int:
    """Return the device memory of the session's slots, without what batches have."""
    slots = _pipeline(session).slots._all
    return sum(slot.nbytes - slot.batch.nbytes for slot in slots)


def chain_executions(patch: pytest.MonkeyPatch) -> None:
    """Have sessions chain their executions, with ``--one-stream`` too."""
    patch.setattr(execute, "IS_CHAINED", [True])


def share_one_stream(patch: pytest.MonkeyPatch) -> None:
    """Have sessions that are opened from now on execute on one stream, as where ACL refuses chained executions."""
    patch.setattr(execute, "IS_CHAINED", [False])


# --- times ----------------------------------------------------------------------------------------


def times_of(session: InferSession) -> Any:
    """Return what keeps the times of a session."""
    return _pipeline(session).times


def refuse_memory_for_times(patch: pytest.MonkeyPatch) -> None:
    """Have no memory for the times of a session that has none yet."""

    def out_of_memory(code: str, values: Any) -> Any:
        if isinstance(values, bytes):
            raise MemoryError("no ring")
        return array(code, values)

    patch.setattr(aioais.summary, "array", out_of_memory)


@contextlib.contextmanager
def times_of_copies_held() -> Iterator[None]:
    """Hold the locks of ``MemorySummary``, as a thread does that books times."""
    with aioais.summary.MemorySummary._h2d._lock, aioais.summary.MemorySummary._d2h._lock:
        yield


# --- programs written for ais_bench ---------------------------------------------------------------


def stop_a_loop_that_ends(patch: pytest.MonkeyPatch) -> list[str]:
    """Stop the loop of blocking sessions once more while it ends; returns what its thread raised."""
    failures: list[str] = []
    patch.setattr(threading, "excepthook", lambda args: failures.append(repr(args.exc_value)))
    patch.setattr(compat_loop, "_PATIENCE_S", 0)
    ends, go = threading.Event(), threading.Event()
    runner = compat_loop.LoopThread()
    tasks: list[Any] = []

    async def lingers() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ends.set()
            await asyncio.to_thread(go.wait)

    def begin() -> None:
        tasks.append(runner.loop.create_task(lingers()))
        runner.loop.call_soon(runner._stop)  # behind the first step of the task

    runner.post(begin)
    ends.wait()
    runner.stop()
    go.set()
    runner._thread.join()
    return failures


COMPAT_MODULES = tuple(_install._IMPLEMENTED_BY)
"""The modules that an installation makes importable."""
COMPAT_VARIABLE = compat_models.VARIABLE


def compat_finders() -> list[Any]:
    """Return the finders that installations have put in."""
    return [finder for finder in sys.meta_path if isinstance(finder, _install._Finder)]


def compat_platform() -> str | None:
    """Return the platform that was asked for, for models named ``.om``."""
    return compat_models._platform


def set_compat_platform(platform: Any) -> None:
    """Have that platform asked for."""
    compat_models._platform = platform


def forget_compat_platform(patch: pytest.MonkeyPatch) -> None:
    """Have no platform asked for, and nothing told."""
    patch.setattr(compat_models, "_platform", None)
    patch.setattr(compat_models, "_told", set())


def hold_with_lock(before: Callable[[], object]) -> Callable[[], compat_loop.Hold]:
    """Return what holds the loop thread of blocking sessions, and calls a function first, where its lock is held."""

    def late() -> compat_loop.Hold:
        with compat_loop._lock:
            before()
        return compat_loop.hold()

    return late


def hold_lent_bytes(most: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], int]:
    """Limit what the emulator holds of Python's objects; returns a function that counts those of a size."""
    monkeypatch.setattr(lent, "_MOST_BYTES", most)
    lent._table.clear()
    return lambda size: sum(known.size == size for known in lent._table._known.values())
