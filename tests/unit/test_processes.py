"""How whole programs end: leaks, exits, forks, Ctrl-C. Nothing hangs, nothing is printed without being asked for."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest
from tests.unit.programs import finish, run, start

if TYPE_CHECKING:
    from tests.unit.conftest import Models


def test_nothing_is_printed(path: str) -> None:
    body = """
    async def main():
        async with InferSession(0, PATH, debug=True) as session:
            await asyncio.gather(*(session.infer([X]) for _ in range(20)))
            tensor = await session.to_device(X)
            tensor.close()
        await InferSession.finalize()
    asyncio.run(main())
    """
    assert run(path, body, "-X", "dev", "-W", "error") == ""


def test_leaked_session(path: str) -> None:
    body = """
    async def main():
        session = await InferSession(0, PATH)
        await session.infer([X])
    asyncio.run(main())
    """
    err = run(path, body, "-W", "always::ResourceWarning")
    assert "never closed" in err


@pytest.mark.parametrize("action", [pytest.param("always", marks=pytest.mark.full), "error"])
def test_open_at_the_end(path: str, action: str) -> None:
    body = """
    async def main():
        global session, closed
        session, closed = await InferSession(0, PATH), await InferSession(1, PATH)
        await closed.aclose()
    asyncio.run(main())
    """
    err = run(path, body, "-W", f"{action}::ResourceWarning")
    assert f"sessions that were never closed when the process ended: 1 ({path!r} on device 0); use" in err


@pytest.mark.parametrize("action", ["always", pytest.param("error", marks=pytest.mark.full)])
def test_tensors_open_at_the_end(path: str, action: str) -> None:
    body = """
    async def main():
        global kept, closed
        async with InferSession(0, PATH) as session:
            kept, closed = await session.to_device(X), await session.to_device(X)
            closed.close()
    asyncio.run(main())
    """
    err = run(path, body, "-W", f"{action}::ResourceWarning")
    assert "device tensors that were open when the process ended: 1; close them" in err


@pytest.mark.parametrize("kept", [pytest.param("session", marks=pytest.mark.full), "tensor", "result"])
def test_kept_until_the_end(path: str, kept: str) -> None:
    body = f"""
    async def main():
        session = await InferSession(0, PATH)
        (tensor,) = await session.infer([X], out_array=False)
        (result,) = await session.infer([X])
        if {kept!r} != "session":
            await session.aclose()
        return {kept}
    kept = asyncio.run(main())
    """
    run(path, body, "-W", "ignore::ResourceWarning")


@pytest.mark.full
def test_kept_result_does_not_delay_the_exit(models: Models) -> None:
    body = """
    X = np.zeros((1, 1 << 17), np.float32)
    async def main():
        async with InferSession(0, PATH) as session:
            return await session.infer([X])
    results = asyncio.run(main())
    inside.set_exit_patience(1000)
    inside.run_exit_hook()
    assert (results[0] == 0).all()
    """
    run(models.identity((1, 1 << 17)), body)


def test_exit_with_requests_in_flight(path: str) -> None:
    body = """
    emulator.configure(execute_ms=20)
    async def main():
        session = await InferSession(0, PATH)
        tasks = [asyncio.ensure_future(session.infer([X])) for _ in range(8)]
        await asyncio.sleep(0.01)
    asyncio.run(main())
    """
    err = run(path, body)
    assert "Traceback" not in err


def test_exit_while_the_device_hangs(path: str) -> None:
    body = """
    inside.set_exit_patience(0.5)
    gate = emulator.gate("execute")
    async def main():
        session = await InferSession(0, PATH)
        tasks = [asyncio.ensure_future(session.infer([X])) for _ in range(8)]
        await asyncio.sleep(0)
        assert gate.wait_reached()
    asyncio.run(main())
    """
    err = run(path, body, code=None)
    assert "Traceback" not in err


def test_sys_exit_in_the_middle(path: str) -> None:
    body = """
    emulator.configure(execute_ms=5)
    async def main():
        async with InferSession(0, PATH) as session:
            tasks = [asyncio.ensure_future(session.infer([X])) for _ in range(8)]
            await session.infer([X])
            sys.exit(3)
    asyncio.run(main())
    """
    err = run(path, body, code=3)
    assert "Traceback" not in err


def test_loop_closed_with_requests_running(path: str) -> None:
    body = """
    gate = emulator.gate("execute")
    loop = asyncio.new_event_loop()
    async def main():
        session = await InferSession(0, PATH)
        tasks = [asyncio.ensure_future(session.infer([X])) for _ in range(8)]
        closing = asyncio.ensure_future(session.aclose())
        await asyncio.sleep(0.01)
        assert gate.wait_reached()
        for task in [*tasks, closing]:
            task.cancel()
        await asyncio.wait([*tasks, closing])
    loop.run_until_complete(main())
    loop.close()
    gate.open()
    deadline = time.monotonic() + 10
    while any(t.name.startswith("aioais-") for t in threading.enumerate()):
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.001)
    async def again():
        async with InferSession(0, PATH) as session:
            assert ((await session.infer([X]))[0] == X).all()
        await InferSession.finalize()
    asyncio.run(again())
    assert not emulator.leaks()
    """
    assert run(path, body, "-X", "dev") == ""


FORKED = """
async def child(session):
    try:
        await asyncio.wait_for(session.infer([X]), 5)
    except (ClosedError, ForkError, WrongLoopError):
        pass
    try:
        await asyncio.wait_for(InferSession(0, PATH).__aenter__(), 5)
    except ForkError as exc:
        assert "fork" in str(exc)
        return 7
    return 1
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    "ending",
    [
        pytest.param("os._exit(code)", marks=pytest.mark.full),
        "import atexit; atexit._run_exitfuncs(); os._exit(code)",
    ],
)
def test_fork_after_start(path: str, ending: str) -> None:
    # Not sys.exit: ONNX Runtime itself crashes at the regular exit of a child that inherits its threads.
    body = f"""
    {textwrap.indent(FORKED, "    ").strip()}
    async def main():
        session = await InferSession(0, PATH)
        await session.infer([X])
        return session
    loop = asyncio.new_event_loop()
    session = loop.run_until_complete(main())
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        code = asyncio.run(child(session))
        {ending}
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    async def goes_on():
        async with InferSession(0, PATH) as another:
            assert ((await another.infer([X]))[0] == X).all()
        await session.aclose()
        await InferSession.finalize()
    loop.run_until_complete(goes_on())
    loop.close()
    """
    run(path, body, "-W", "ignore")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_inside_the_loop(path: str) -> None:
    body = """
    async def main():
        async with InferSession(0, PATH) as session:
            await session.infer([X])
            pid = os.fork()
            if not pid:
                signal.alarm(20)
                code = 1
                coroutine = session.infer([X])
                try:
                    coroutine.send(None)
                except ForkError:
                    code = 7
                try:
                    session.aclose().send(None)
                except BaseException:
                    pass
                os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            assert ((await session.infer([X]))[0] == X).all()
    asyncio.run(main())
    """
    run(path, body, "-W", "ignore")


def test_ctrl_c(path: str) -> None:
    body = """
    async def main():
        emulator.configure(execute_ms=2)
        async with InferSession(0, PATH) as session:
            await session.infer([X])
            os.write(2, b"ready\\n")
            async def lane():
                while True:
                    await session.infer([X])
            await asyncio.gather(*(lane() for _ in range(16)))
    asyncio.run(main())
    """
    process = start(path, body)
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    err = finish(process, None)
    assert process.returncode not in (0, None)
    # Before 3.11 the loop is not told of the signal, and what the lanes then run into may come last.
    assert err.rstrip().endswith("KeyboardInterrupt") or (sys.version_info < (3, 11) and "KeyboardInterrupt" in err)
    assert "aioais-" not in err


def test_two_ctrl_c_while_the_device_hangs(path: str) -> None:
    body = """
    inside.set_exit_patience(0.5)
    gate = emulator.gate("execute")
    async def main():
        async with InferSession(0, PATH) as session:
            task = asyncio.ensure_future(session.infer([X]))
            await asyncio.sleep(0)
            assert gate.wait_reached()
            keep_awake()
            # Said when the task and aclose() wait: before 3.11 a signal is raised wherever the program is.
            say = asyncio.get_running_loop().call_soon
            try:
                say(os.write, 2, b"ready\\n")
                await task
            finally:
                say(os.write, 2, b"again\\n")
    asyncio.run(main())
    """
    process = start(path, body)
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "again\n"
    process.send_signal(signal.SIGINT)
    err = finish(process, None)
    assert "aioais-" not in err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("code", [0, 3])
def test_a_forked_child_ends(path: str, code: int) -> None:
    # ONNX Runtime 1.31 and newer start a thread at import, which its destructors wait for.
    body = f"""
    async def main():
        async with InferSession(0, PATH) as session:
            await session.infer([X])
    asyncio.run(main())
    if (pid := os.fork()) == 0:
        print("flushed", file=sys.stderr)
        sys.exit({code})
    deadline = time.monotonic() + 20
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(found[1]) == {code}
    """
    assert "flushed" in run(path, body)


@pytest.mark.slow
def test_three_interrupts_while_a_model_runs(models: Models) -> None:
    """The last comes while Python ends; the operator that runs ends after that, and its thread comes back to Python."""
    shape = [1500, 1500]
    path = models.write("long", [("MatMul", ["x", "x"], ["y"], {})], {"x": (1, shape)}, {"y": (1, shape)})
    body = """
    class Last:
        def __del__(self, sleep=time.sleep):
            sleep(3)  # Python ends for so long
    last = Last()
    def interrupt():
        for pause in (0.3, 0.1, 0.1):
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGINT)
    async def main():
        x = np.zeros((1500, 1500), np.float32)
        async with InferSession(0, PATH) as session:
            await session.infer([x])
            threading.Thread(target=interrupt, daemon=True).start()
            while True:
                await session.infer([x])
    asyncio.run(main())
    """
    assert "terminate called" not in run(path, body, code=None)
