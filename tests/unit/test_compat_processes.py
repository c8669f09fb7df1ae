"""How programs with blocking sessions end: open sessions, Ctrl-C, forks. Nothing hangs, nothing crashes."""

from __future__ import annotations

import os
import signal
import textwrap
import time

import pytest
from tests.unit.programs import finish, run, start

IMPORTS = "from aioais.compat.ais_bench import InferSession as Blocking, MultiDeviceSession as Multi\n"


def program(body: str) -> str:
    return IMPORTS + textwrap.dedent(body)


def test_open_at_the_end(path: str) -> None:
    """Sessions, tensors, a warm multi-device session, a daemon thread in a call; a hook of the program's own."""
    body = """
    import atexit
    class Model:
        def __init__(self):
            self.session = Blocking(0, PATH)
        def __del__(self):
            self.session.free_resource()
    atexit.register(lambda: kept.free_resource())
    kept, model, multi = Blocking(1, PATH), Model(), Multi(PATH)
    (tensor,) = kept.infer([X], out_array=False)
    model.session.infer([X])
    multi.infer({2: [[X]]})
    emulator.configure(execute_ms=20)
    def work():
        while True:
            model.session.infer([X])
    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.1)
    """
    err = run(path, program(body), "-W", "always::ResourceWarning")
    assert "Traceback" not in err, err
    assert f"sessions that were never closed when the process ended: 1 ({path!r} on device 0)" in err


def test_a_daemon_thread_in_a_call_ends_with_the_process(path: str) -> None:
    body = """
    inside.set_exit_patience(0.5)
    session = Blocking(0, PATH)
    gate = emulator.gate("execute")
    threading.Thread(target=session.infer_pipeline, args=([[X]],), daemon=True).start()
    assert gate.wait_reached()
    """
    assert "Traceback" not in run(path, program(body))


def test_a_dropped_multi_device_session_is_closed_before_the_end(path: str) -> None:
    """The thread that frees what is dropped is busy, and closing does not wait for it."""
    body = """
    inside.set_exit_patience(0.5)
    session, multi = Blocking(0, PATH), Multi(PATH)
    multi.infer({0: [[X]]})
    gate = emulator.gate("h2d")
    threading.Thread(target=session.create_tensor_from_arrays_to_device, args=(X,), daemon=True).start()
    assert gate.wait_reached()
    del multi
    """
    err = run(path, program(body), "-W", "always::ResourceWarning")
    assert "sessions that were never closed when the process ended: 1 (" in err, err


def test_nothing_is_said_by_default(path: str) -> None:
    body = """
    session, multi = Blocking(0, PATH, debug=True), Multi(PATH)
    session.infer([X])
    multi.infer({1: [[X]]})
    Blocking.finalize()
    session = Blocking(0, PATH)
    """
    assert run(path, program(body)) == ""


def test_threads_of_the_program_end_first(path: str) -> None:
    body = """
    emulator.configure(execute_ms=10)
    session = Blocking(0, PATH)
    def work():
        for _ in range(20):
            session.infer([X])
        session.free_resource()
        os.write(2, b"done\\n")
    threading.Thread(target=work).start()
    """
    assert run(path, program(body)) == "done\n"


@pytest.mark.parametrize(
    "call",
    [
        "session.infer([X])",
        pytest.param("session.infer_pipeline([[X]] * 5)", marks=pytest.mark.full),
        pytest.param("session.free_resource()", marks=pytest.mark.full),
    ],
)
def test_ctrl_c_in_a_call(path: str, call: str) -> None:
    """The call ends at once, though the device hangs; the session goes on when that does."""
    body = f"""
    session = Blocking(0, PATH)
    gate = emulator.gate("execute")
    helper = threading.Thread(target=session.infer, args=([X],))
    helper.start()
    assert gate.wait_reached()
    os.write(2, b"ready\\n")
    try:
        {call}
    except KeyboardInterrupt:
        os.write(2, b"interrupted\\n")
    gate.open()
    helper.join()
    if not session.aio.closed and "free" not in {call!r}:
        assert (session.infer([X])[0] == X).all()
        while session.aio.statistics().in_flight:
            time.sleep(0.01)
    session.free_resource()
    assert not [thread for thread in threading.enumerate() if thread.name == "aioais-compat"]
    """
    process = start(path, program(body))
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    time.sleep(0.2)  # from its last word to its call
    process.send_signal(signal.SIGINT)
    assert finish(process) == "interrupted\n"


def test_ctrl_c_while_opening(path: str) -> None:
    body = """
    gate = emulator.gate("load")
    def say():
        assert gate.wait_reached()
        os.write(2, b"ready\\n")
    threading.Thread(target=say).start()
    try:
        Blocking(0, PATH)
    except KeyboardInterrupt:
        os.write(2, b"interrupted\\n")
    gate.open()
    with Blocking(0, PATH) as session:
        assert (session.infer([X])[0] == X).all()
    Blocking.finalize()
    assert not emulator.leaks()
    """
    process = start(path, program(body))
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert finish(process) == "interrupted\n"


def test_a_handler_that_does_not_raise_goes_unseen(path: str) -> None:
    body = """
    seen = []
    signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    emulator.configure(execute_ms=300)
    with Blocking(0, PATH) as session:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        assert (session.infer([X])[0] == X).all()
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert len(seen) >= 2, "handlers run in the middle of the call"
    """
    assert run(path, program(body)) == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_after_start(path: str) -> None:
    body = """
    session, multi = Blocking(0, PATH), Multi(PATH)
    session.infer([X])
    multi.infer({1: [[X]]})
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        code = 0
        calls = [
            lambda: session.infer([X]),
            lambda: session.infer_pipeline([[X]]),
            lambda: Blocking(0, PATH),
            lambda: multi.infer({1: [[X]]}),
            lambda: asyncio.run(session.aio.infer([X])),
            lambda: session.summary(),
        ]
        for call in calls:
            try:
                call()
            except RuntimeError as exc:
                code += isinstance(exc, ForkError) and "fork" in str(exc)
        session.free_resource()
        del multi
        import atexit
        atexit._run_exitfuncs()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 6
    assert (session.infer([X])[0] == X).all()
    assert multi.infer({1: [[X]]})[1][0][0].shape == X.shape
    session.free_resource()
    multi.free_resource()
    """
    assert run(path, program(body), "-W", "ignore") == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_before_start(path: str) -> None:
    """Workers that are forked before the first session each have sessions of their own, as with ais_bench."""
    body = """
    pids = []
    for k in range(2):
        pid = os.fork()
        if not pid:
            signal.alarm(30)
            with Blocking(k, PATH) as session:
                os._exit(5 if (session.infer([X])[0] == X).all() else 1)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [5, 5]
    with Blocking(0, PATH) as session:
        session.infer([X])
    """
    assert run(path, program(body), "-W", "ignore") == ""


@pytest.mark.slow
@pytest.mark.stress
def test_a_storm_of_signals(path: str) -> None:
    """A handler that raises at any moment, in openings, calls and closings: nothing hangs and nothing is left."""
    body = """
    import gc, random
    emulator.configure(execute_ms=0.3)
    class Alarm(Exception): pass
    def strike(*_):
        raise Alarm
    signal.signal(signal.SIGALRM, strike)
    shared, is_over, failures = Blocking(1, PATH), threading.Event(), []
    def work():
        try:
            while not is_over.is_set():
                assert (shared.infer([X])[0] == X).all()
        except BaseException as exc:
            failures.append(exc)
    threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    lost = []  # Python drops what a handler raises in a finaliser, which then has not done all
    sys.unraisablehook = lambda event: lost.append(str(event.exc_type))
    struck, deadline = 0, time.monotonic() + 5
    while time.monotonic() < deadline:
        session = tensor = outputs = None
        try:
            signal.setitimer(signal.ITIMER_REAL, random.random() * 0.03)
            try:
                session = Blocking(0, PATH)
                while True:
                    assert (session.infer([X])[0] == X).all()
                    assert len(session.infer_pipeline([[X]] * 7)) == 7
                    session.infer_iteration([X], [0], 5)
                    tensor = session.create_tensor_from_arrays_to_device(X)
                    outputs = session.run([tensor])
                    session.convert_tensors_to_host(outputs)
                    if random.random() < 0.1:
                        session.free_resource()
                        break
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Alarm:
            struck += 1
        if session is not None:
            try:
                assert (session.infer([X])[0] == X).all()
            except ClosedError:
                pass  # the handler struck while it was being closed
            session.free_resource()
    is_over.set()
    for thread in threads:
        thread.join()
    shared.free_resource()
    session = tensor = outputs = shared = None
    gc.collect()
    Blocking.finalize()
    assert struck > 20
    assert not failures, failures
    assert lost or not emulator.leaks(), emulator.leaks()
    """
    run(path, program(body), "-W", "ignore::ResourceWarning")
