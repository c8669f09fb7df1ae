"""Checks of names, start-up, devices and contexts."""

from __future__ import annotations

from typing import Any

from ..._acl import api
from ..._cann.codes import AclCode
from ..._cann.constants import MallocPolicy, MemAttr, RunMode
from .bench import NULL, Bench, Check, Register, Skip, checks_of

__all__ = ["CHECKS", "missing_names"]

CHECKS: list[Check] = []

early: Register = checks_of("process", CHECKS, context=False)
check: Register = checks_of("contexts", CHECKS)

OPTIONAL = {"acl.rt.create_event_ex_with_flag", "acl.mdl.get_input_dims_range", "acl.mdl.get_input_dims_v2"}
"""Calls that older releases do not have; the engine does without."""


def missing_names(acl: Any) -> list[str]:
    """Return the calls of the engine that the module has not."""
    missing = []
    for owner, protocol in (("acl", api.Acl), ("acl.rt", api.Rt), ("acl.mdl", api.Mdl)):
        module = acl if owner == "acl" else getattr(acl, owner.partition(".")[2], None)
        for name in vars(protocol):
            full = f"{owner}.{name}"
            if name.startswith("_") or full in OPTIONAL or full in ("acl.rt", "acl.mdl"):
                continue
            if not callable(getattr(module, name, None)):
                missing.append(full)
    return missing


@early("every call that the engine makes exists")
def names(bench: Bench) -> None:
    """Checked before ACL starts: without its names nothing else can run."""
    bench.same("missing", missing_names(bench.acl), [])


@early("a second init answers 100002 and does no harm")
def init_again(bench: Bench) -> None:
    """The engine takes that code as: others have started ACL, so others end it."""
    if not bench.owns_acl:
        raise Skip("ACL was initialised by other code of this process")
    if not hasattr(bench.acl, "finalize_reference"):
        raise Skip("the module cannot lower the count of starts again")
    bench.same("init", bench.acl.init(), AclCode.REPEAT_INITIALIZE)
    count = bench.value("finalize_reference", bench.acl.finalize_reference())
    bench.same("starts left", count, 1)


@early("the number of devices and the run mode are known without a device")
def device_count(bench: Bench) -> None:
    """``get_device_count`` and ``get_run_mode`` answer ``(value, 0)``."""
    count = bench.value("get_device_count", bench.acl.rt.get_device_count())
    bench.true(f"get_device_count: got {count}, expected more than {bench.device}", count > bench.device)
    mode = bench.value("get_run_mode", bench.acl.rt.get_run_mode())
    bench.one_of("get_run_mode", mode, int(RunMode.DEVICE), int(RunMode.HOST))
    name = bench.acl.get_soc_name()
    bench.true(f"get_soc_name: got {name!r}, expected a str or None", name is None or isinstance(name, str))


@early("a device that does not exist is refused with 107001")
def no_such_device(bench: Bench) -> None:
    """One past the last."""
    count = bench.value("get_device_count", bench.acl.rt.get_device_count())
    bench.same("set_device", bench.acl.rt.set_device(count), AclCode.RT_INVALID_DEVICEID)


@early("devices are counted: as many resets as sets, one more answers 507007")
def device_references(bench: Bench) -> None:
    """The engine resets each device once, when ACL ends."""
    if not bench.owns_acl:
        raise Skip("other code of this process uses ACL: a reset too many would take its device")
    rt = bench.acl.rt
    for _ in range(2):
        bench.ok("set_device", rt.set_device(bench.device))
    for _ in range(2):
        bench.ok("reset_device", rt.reset_device(bench.device))
    bench.same("reset_device without a set", rt.reset_device(bench.device), AclCode.RT_CONTEXT_RELEASE_ERROR)


@early("a thread without a context gets 107002, and 0 in the place of the value")
def no_context(bench: Bench) -> None:
    """Contexts belong to threads: a new one has none."""
    rt = bench.acl.rt

    def body() -> None:
        expected = (0, AclCode.RT_CONTEXT_NULL)
        bench.same("malloc", rt.malloc(64, int(MallocPolicy.HUGE_FIRST)), expected)
        bench.same("create_stream", rt.create_stream(), expected)
        bench.same("synchronize_stream", rt.synchronize_stream(0), AclCode.RT_CONTEXT_NULL)

    bench.in_thread(body)


@check("the message of a failed call is a str or None")
def message(bench: Bench) -> None:
    """It is read in the thread that failed, at once."""
    bench.fails("free(0)", bench.acl.rt.free(0))
    text = bench.acl.get_recent_err_msg()
    bench.true(f"get_recent_err_msg: got {text!r}, expected a str or None", text is None or isinstance(text, str))


@check("the message is forgotten when it is read")
def message_once(bench: Bench) -> None:
    """``None`` or ``""`` where there is nothing."""
    bench.fails("free(0)", bench.acl.rt.free(0))
    first = bench.acl.get_recent_err_msg()
    if not first:
        raise Skip("the module has no messages")
    bench.one_of("get_recent_err_msg, read again", bench.acl.get_recent_err_msg(), None, "")


@check("a context set in another thread makes the streams of the first usable there")
def shared(bench: Bench) -> None:
    """The engine's threads share one context for each device."""
    rt = bench.acl.rt
    stream = bench.stream()

    def body() -> None:
        bench.ok("set_context", rt.set_context(bench.context))
        bench.wait(stream)
        address = bench.value("malloc", rt.malloc(64, int(MallocPolicy.HUGE_FIRST)))
        bench.ok("free", rt.free(address))

    bench.in_thread(body)


@check("memory is freed in a thread that has no context")
def free_anywhere(bench: Bench) -> None:
    """``free`` and ``free_host`` need none."""
    rt = bench.acl.rt
    device = bench.value("malloc", rt.malloc(64, int(MallocPolicy.HUGE_FIRST)))
    host = bench.value("malloc_host", rt.malloc_host(64))

    def body() -> None:
        bench.ok("free", rt.free(device))
        bench.ok("free_host", rt.free_host(host))

    bench.in_thread(body)


@check("a new context is current in its thread until it is destroyed")
def current(bench: Bench) -> None:
    """Destroying the current one leaves the thread with none."""
    rt = bench.acl.rt
    context = bench.value("create_context", rt.create_context(bench.device))
    bench.true("create_context: got a handle of 0", context != 0)
    stream = bench.value("create_stream", rt.create_stream())
    bench.ok("destroy_stream", rt.destroy_stream(stream))
    bench.ok("destroy_context", rt.destroy_context(context))
    bench.same("create_stream", rt.create_stream(), (0, AclCode.RT_CONTEXT_NULL))


@check("destroy_context(0) is refused")
def destroy_none(bench: Bench) -> None:
    """With 100000, or 107000 from the layer below."""
    bench.one_of("destroy_context(0)", bench.acl.rt.destroy_context(0), *NULL)


@check("a stream of another context is refused with 107003")
def foreign_stream(bench: Bench) -> None:
    """Seen by ``record_event``."""
    rt = bench.acl.rt
    stream = bench.stream()
    event = bench.event()

    def body() -> None:
        other = bench.value("create_context", rt.create_context(bench.device))
        try:
            bench.same("record_event", rt.record_event(event, stream), AclCode.RT_STREAM_CONTEXT)
        finally:
            bench.ok("destroy_context", rt.destroy_context(other))

    bench.in_thread(body)


@check("get_mem_info gives free and total bytes")
def memory_info(bench: Bench) -> None:
    """HBM where there is some, else DDR."""
    rt = bench.acl.rt
    answers = [rt.get_mem_info(int(attr)) for attr in (MemAttr.HBM, MemAttr.DDR)]
    for answer in answers:
        free, total = bench.value("get_mem_info", answer, 2)
        if total:
            bench.true(f"get_mem_info: {free} free of {total}", 0 <= free <= total)
            return
    raise Skip(f"neither kind of memory is known: {answers}")
