"""How programs end when the device does not let go: signals in each stage, hangs, forks, finalize in the middle."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from tests.unit.programs import finish, run, start


@pytest.mark.parametrize(
    ("stage", "limit"),
    [
        ("load", "None"),
        ("execute", "None"),
        ("h2d", "0.2"),
        *(
            pytest.param(stage, limit, marks=pytest.mark.full)
            for stage in ("init", "set_device", "load", "malloc", "h2d", "execute", "d2h")
            for limit in ("None", "0.2")
            if (stage, limit) not in (("load", "None"), ("execute", "None"), ("h2d", "0.2"))
        ),
    ],
)
def test_ctrl_c_in_each_stage(path: str, stage: str, limit: str) -> None:
    body = f"""
    inside.set_exit_patience(0.3)
    gate = emulator.gate({stage!r})
    async def main():
        keep_awake()
        async with InferSession(0, PATH, hang_timeout={limit}) as session:
            if not gate.reached:
                await session.infer([X])
    def tell():
        assert gate.wait_reached(None)
        os.write(2, b"ready\\n")
    threading.Thread(target=tell, daemon=True).start()
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        asyncio.run(main())
    except DeviceHangError:
        raise SystemExit(3)
    """
    process = start(path, body)
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    # aclose() waits for the request where nothing bounds it: that is what a second Ctrl-C is for.
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    err = finish(process, None)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in err or process.returncode == 3


def test_exit_while_a_broken_session_hangs(path: str) -> None:
    body = """
    gate = emulator.gate("execute")
    async def main():
        async with InferSession(0, PATH, hang_timeout=0.2) as session:
            try:
                await session.infer([X])
            except DeviceHangError as exc:
                assert exc.code == 507046
            else:
                raise AssertionError("no hang")
            try:
                await session.infer([X])
            except BrokenSessionError as exc:
                assert isinstance(exc.__cause__, DeviceHangError)
    asyncio.run(main())
    """
    err = run(path, body)
    assert "stay set aside" in err
    assert "Traceback" not in err


@pytest.mark.full
def test_exit_with_a_broken_session_that_nobody_closed(path: str) -> None:
    body = """
    gate = emulator.gate("execute")
    async def main():
        session = await InferSession(0, PATH, hang_timeout=0.2)
        results = await asyncio.gather(*(session.infer([X]) for _ in range(6)), return_exceptions=True)
        assert all(isinstance(result, AioaisError) for result in results)
        return session
    session = asyncio.run(main())
    """
    assert "Traceback" not in run(path, body)


def test_a_session_that_breaks_while_the_process_ends(path: str) -> None:
    """From 3.12 on no thread can be started by then."""
    body = """
    gate = emulator.gate("execute")
    async def main():
        session = await InferSession(0, PATH, hang_timeout=0.5)
        task = asyncio.ensure_future(session.infer([X]))
        await asyncio.sleep(0)
        assert gate.wait_reached()
        task.cancel()
        await asyncio.wait([task])
        return session
    session = asyncio.run(main())
    """
    err = run(path, body)
    assert "broke with 1 requests under way" in err
    assert "Traceback" not in err


@pytest.mark.full
def test_loop_closed_while_the_session_breaks(path: str) -> None:
    body = """
    gate = emulator.gate("execute")
    loop = asyncio.new_event_loop()
    async def main():
        session = await InferSession(0, PATH, hang_timeout=0.5)
        tasks = [asyncio.ensure_future(session.infer([X])) for _ in range(6)]
        await asyncio.sleep(0)
        assert gate.wait_reached()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return session
    session = loop.run_until_complete(main())
    loop.close()
    inside.wait_broken(session)
    gate.open()
    async def again():
        async with InferSession(0, PATH) as another:
            assert ((await another.infer([X]))[0] == X).all()
        await InferSession.finalize()
    asyncio.run(again())
    assert not emulator.leaks(), emulator.leaks()
    """
    run(path, body, "-W", "ignore::ResourceWarning")


def test_finalize_in_the_middle(path: str) -> None:
    """Requests under way end, sessions are closed, and what is opened afterwards works."""
    body = """
    async def main():
        for _ in range(3):
            first, second = await InferSession(0, PATH), await InferSession(1, PATH)
            tasks = [asyncio.ensure_future(s.infer([X])) for s in (first, second) for _ in range(8)]
            await asyncio.sleep(0)
            await InferSession.finalize()
            for result in await asyncio.gather(*tasks):
                assert (result[0] == X).all()
            for session in (first, second):
                try:
                    await session.infer([X])
                except ClosedError:
                    pass
                else:
                    raise AssertionError("it is closed")
                await session.aclose()
            assert not emulator.leaks()
    asyncio.run(main())
    """
    assert run(path, body, "-X", "dev", "-W", "error") == ""


def test_finalize_while_a_device_hangs(path: str) -> None:
    """It ends, leaves the hung device to the process, and other devices go on."""
    body = """
    gate = emulator.gate("execute", 0)
    async def main():
        hung, whole = await InferSession(0, PATH, hang_timeout=0.2), await InferSession(1, PATH)
        task = asyncio.ensure_future(hung.infer([X]))
        await whole.infer([X])
        await asyncio.wait([task])
        assert isinstance(task.exception(), DeviceHangError)
        await InferSession.finalize()
        async with InferSession(1, PATH) as again:
            assert ((await again.infer([X]))[0] == X).all()
        await hung.aclose()
    asyncio.run(main())
    """
    assert "Traceback" not in run(path, body)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_with_a_broken_session(path: str) -> None:
    body = """
    gate = emulator.gate("execute")
    async def main():
        session = await InferSession(0, PATH, hang_timeout=0.2)
        await asyncio.gather(session.infer([X]), return_exceptions=True)
        pid = os.fork()
        if not pid:
            signal.alarm(20)
            code = 1
            try:
                session.infer([X]).send(None)
            except ForkError:
                code = 7
            inside.end_without_waiting(session)
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        gate.open()
        await session.aclose()
        await InferSession.finalize()
        assert not emulator.leaks()
    asyncio.run(main())
    """
    run(path, body, "-W", "ignore")


def test_a_session_in_a_thread_that_ends(path: str) -> None:
    """Its loop is gone with the thread; the process ends all the same."""
    body = """
    kept = []
    def program():
        async def main():
            kept.append(await InferSession(0, PATH))
            await kept[0].infer([X])
        asyncio.run(main())
    thread = threading.Thread(target=program)
    thread.start()
    thread.join()
    """
    assert "Traceback" not in run(path, body)
