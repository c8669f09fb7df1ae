"""Executing models: at once, or queued on a stream.

Facts: pyACL reference and the open graph engine source: which checks fail with which code, the
mixing of synchronous and asynchronous calls, contexts, empty output buffers.
"""

from __future__ import annotations

import atexit
from time import perf_counter, thread_time

from .._cann.codes import AclCode
from . import faults
from ._args import SINGLE, entry
from ._observers import observers
from ._quick_exit import keep_for_good, rest_instead_of_abort, skip_destructors
from ._registry import handles, table
from ._state import report, state
from .context import Context, current, local
from .dataset import Dataset, datasets
from .dataset import find as find_dataset
from .errors import DeviceError, EmulatorError
from .model import Model, models
from .model import find as find_model
from .ordering import Executions, Queue, is_ordered
from .plan import Plan
from .planning import find_plan, make_plan
from .stream import Operation, Stream, foreign, resolve, streams
from .timeline import sleep_until

__all__ = ["execute", "execute_async", "run_execute"]


def _prepare(
    call: str, model: Model, in_handle: int, out_handle: int, context: Context
) -> tuple[Dataset, Dataset] | int:
    """Check everything but the buffers."""
    inputs = datasets.get(in_handle) or find_dataset(in_handle)
    outputs = datasets.get(out_handle) or find_dataset(out_handle)
    if inputs is None or outputs is None:
        return report(AclCode.INVALID_PARAM, f"{call}: dataset 0")
    if model.info.mode == "shape":
        return inputs, outputs
    if model.context is not context:
        return report(AclCode.RT_MODEL_CONTEXT, f"{call}: the model was loaded in another context")
    if model.manner is None:
        model.manner = call
    elif model.manner != call:
        text = f"{call} after {model.manner} on one static model: the first call decides until the model is unloaded"
        return report(AclCode.GE_FAILURE, text)
    return inputs, outputs


def _plan(model: Model, pair: tuple[Dataset, Dataset], context: Context, allocate: bool) -> Plan | int:
    """Return the plan of an execution, an earlier one if all is as it was then."""
    return find_plan(model, *pair) or make_plan(model, *pair, context, allocate)


def _execute(model_id: int, in_handle: int, out_handle: int) -> int:
    context = current()
    if context is None:
        return AclCode.RT_CONTEXT_NULL
    model = find_model(model_id)
    if model is None:
        return AclCode.GE_EXEC_MODEL_ID_INVALID
    pair = _prepare("execute", model, in_handle, out_handle, context)
    if isinstance(pair, int):
        return pair
    executions = model.executions
    if executions.last > executions.known:
        raise EmulatorError(_not_finished(model, executions.last_queue, str(executions)))
    plan = _plan(model, pair, context, allocate=True)
    if isinstance(plan, int):
        return plan
    for rival in plan.use.rivals:
        if not rival.is_finished():
            raise EmulatorError(_not_finished(model, rival.last_queue, f"{rival.owner}, with the same device memory,"))
    number = _number(executions, plan, None)
    model.finished += 1
    try:
        return _execute_now(model, plan, context)
    finally:
        executions.known = number


def _number(executions: Executions, plan: Plan, queue: Queue | None) -> int:
    """Give an execution its number."""
    executions.submitted = number = executions.submitted + 1
    executions.last = plan.use.last = number
    executions.last_queue = plan.use.last_queue = queue
    return number


def _execute_now(model: Model, plan: Plan, context: Context) -> int:
    if state.gates:
        faults.pass_gates("execute", context.device.index)
    fault = faults.take_device_fault("acl.mdl.execute") if state.device_faults else 0
    if fault:
        return report(fault, "execute: injected fault on the device")
    began, cpu = perf_counter(), thread_time()
    try:
        plan.run(context)
    except DeviceError as exc:
        return report(exc.code, exc.text)
    device = context.device
    worked = end = 0.0
    if device.is_virtual:
        worked = thread_time() - cpu
        end = device.execute.book(began, plan.rows, worked)
        sleep_until(end, state.settings.gil != "release")
    if observers.profiler is not None:
        names = (model.handle, model.name)
        observers.profiler.record(device, "execute", model.name, began, worked, end, plan.rows, model=names)
    return 0


@entry("acl.mdl.execute", "Ikk", hot=True)
def execute(model_id: int, inputs: int, outputs: int) -> int:
    """Run a model and wait for it, holding the GIL as pyACL does."""
    return _execute(model_id, inputs, outputs)


@entry("acl.mdl.execute_v2", "Ikkkk")
def execute_v2(model_id: int, inputs: int, outputs: int, stream: int, config: int) -> int:
    """Run a model with limits and wait for it; the configuration is mandatory."""
    if config == 0:
        return report(AclCode.INVALID_PARAM, "execute_v2: configuration 0")
    if config not in exec_configs:
        raise EmulatorError(f"{config:#x} is not an execution configuration: destroyed, or never created")
    return _execute(model_id, inputs, outputs)


def run_execute(stream: Stream, operation: Operation, deadline: float) -> bool:
    """Run a queued execution; False when it is blocked."""
    _, submitted, fault, model, plan, number = operation
    if state.is_leaving:
        stream.fail(AclCode.RT_STREAM_ABORT, "execute_async: the interpreter exits")
    elif stream.is_halted:
        model.executions.drop(number)
    else:
        device = stream.device
        if state.gates and not faults.pass_gates("execute", device.index, deadline):
            return False
        if fault:
            stream.fail(fault, "execute_async: injected fault on the device")
        else:
            virtual, profiler = device.is_virtual, observers.profiler
            worked = thread_time() if virtual else 0.0
            began = 0.0 if profiler is None else perf_counter()
            stream.running = model.engine
            try:
                plan.run(None, stream.index)
            except DeviceError as exc:
                stream.fail(exc.code, f"execute_async: {exc.text}")
            finally:
                stream.running = None
            if virtual:
                ready = submitted if submitted > stream.tail else stream.tail
                worked = thread_time() - worked
                stream.tail = device.execute.book(ready, plan.rows, worked)
            if profiler is not None:
                name, names = model.name, (model.handle, model.name)
                profiler.record(device, "execute", name, began, worked, stream.tail, plan.rows, stream.index, names)
    model.finished += 1
    return True


@entry("acl.mdl.execute_async", "Ikkk", hot=True)
def execute_async(model_id: int, in_handle: int, out_handle: int, stream_handle: int) -> int:
    """Queue a run of a model on a stream."""
    context = local.context
    if (context is None or not context.is_alive) and (context := current()) is None:
        return AclCode.RT_CONTEXT_NULL
    model = models.get(model_id) or find_model(model_id)
    if model is None:
        return AclCode.GE_EXEC_MODEL_ID_INVALID
    stream = streams.get(stream_handle) or resolve(stream_handle, context)
    if stream.context is not context:
        return foreign("execute_async")
    pair = _prepare("execute_async", model, in_handle, out_handle, context)
    if isinstance(pair, int):
        return pair
    executions = model.executions
    if not is_ordered(executions, executions.last, stream):
        raise EmulatorError(_not_ordered(model, stream, executions, executions.last_queue))
    plan = _plan(model, pair, context, allocate=False)
    if isinstance(plan, int):
        return plan
    for rival in plan.use.rivals:
        if not (rival.is_finished() or is_ordered(rival.owner, rival.last, stream)):
            raise EmulatorError(_not_ordered(model, stream, rival.owner, rival.last_queue))
    fault = faults.take_device_fault("acl.mdl.execute_async") if state.device_faults else 0
    number = _number(executions, plan, stream)
    stream.behind = {**stream.behind, executions: number}
    submitted = perf_counter() if stream.device.is_virtual else 0.0
    stream.queue.append((run_execute, submitted, fault, model, plan, number))
    return 0


def _name(queue: Queue | None) -> str:
    return "a stream inside ACL (a synchronous execute)" if queue is None else str(queue)


def _not_finished(model: Model, queue: Queue | None, what: str) -> str:
    return (
        f"execute of model {model.handle} while an execution of {what} is queued or running on {_name(queue)}: "
        f"wait for that one first (synchronize_stream, synchronize_event or synchronize_device)"
    )


def _not_ordered(model: Model, stream: Stream, other: Executions, first: Queue | None) -> str:
    """Say why two executions are not ordered, and what would order them."""
    problem = f"execute_async of model {model.handle} on {stream} may overlap the last execution of {other}"
    if other is not model.executions:
        problem += ", which uses the same device memory,"
    if first is None:
        return f"{problem} which is inside a synchronous execute: let that return first"
    missing = (
        f"{stream} waits only for an event behind an earlier execution"
        if other in stream.behind
        else f"{stream} waits for no event recorded behind it"
    )
    return (
        f"{problem} on {first}: {missing}. Record an event on {first} behind the execution and call stream_wait_event "
        f"for it first, or use one stream, or synchronise before the second execution"
    )


@atexit.register
def _leave() -> None:
    """Stop what runs and drop what is queued: no thread waits for it any more, and it would delay the exit."""
    try:
        _stop_models()
    except KeyboardInterrupt:  # one more Ctrl-C while the process ends
        _stop_models()
        raise


def _stop_models() -> None:
    if state.is_forked:
        return
    if models:  # first: a model that runs may go on for longer than the process
        skip_destructors()
        rest_instead_of_abort()
    state.is_leaving = True
    for model in list(models.values()):
        if model.engine.is_running:
            keep_for_good(model.engine)
        model.engine.stop()


class ExecConfig:
    """Limits of one execution; the emulator stores and ignores them."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: dict[int, int] = {}


exec_configs: dict[int, ExecConfig] = table("others")


def _find_config(handle: int) -> ExecConfig | None:
    config = exec_configs.get(handle)
    if handle and config is None:
        raise EmulatorError(f"{handle:#x} is not an execution configuration: destroyed, or never created")
    return config


@entry("acl.mdl.create_exec_config_handle", answer=SINGLE)
def create_exec_config_handle() -> int:
    """Create an execution configuration."""
    handle = next(handles)
    exec_configs[handle] = ExecConfig()
    return handle


@entry("acl.mdl.set_exec_config_opt", "kii")
def set_exec_config_opt(handle: int, attribute: int, value: int) -> int:
    """Set a limit: only attributes of 32 bits can be set from Python."""
    config = _find_config(handle)
    if config is None or attribute not in (0, 1, 8, 9):
        return report(AclCode.INVALID_PARAM, f"set_exec_config_opt({handle:#x}, {attribute}, {value})")
    config.values[attribute] = value
    return 0


@entry("acl.mdl.destroy_exec_config_handle", "k")
def destroy_exec_config_handle(handle: int) -> int:
    """Destroy an execution configuration."""
    if _find_config(handle) is None:
        return report(AclCode.INVALID_PARAM, "destroy_exec_config_handle of 0")
    del exec_configs[handle]
    return 0
