"""Models that run and models that are small: stopping a run, the threads of a model."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.inside import cores, is_brief, weigh
from tests.inside import find_model as find

from aioais import emulator
from aioais.emulator.ort import start_session

Make = Callable[..., Any]


def endless(folder: Path, steps: int = 1 << 40) -> str:
    """Write a loop that runs for days; each step is some operators."""
    body = helper.make_graph(
        [helper.make_node("Add", ["v", "one"], ["w"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [4]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["steps", "", "x"], ["y"], body=body)],
        "endless",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [
            numpy_helper.from_array(np.array(steps, np.int64), "steps"),
            numpy_helper.from_array(np.ones(4, np.float32), "one"),
        ],
    )
    path = folder / "endless.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8), str(path))
    return str(path)


class Run:
    """A thread that waits for a stream, and so runs its work."""

    def __init__(self, acl: Any, stream: int, model: int) -> None:
        context = acl.rt.get_context()[0]
        self.codes: list[int] = []

        def wait() -> None:
            acl.rt.set_context(context)
            self.codes.append(acl.rt.synchronize_stream(stream))
            self.codes.append(acl.rt.synchronize_stream(stream))

        self.thread = threading.Thread(target=wait)
        self.thread.start()
        loaded = find(model)
        assert loaded is not None
        while not loaded.engine.is_running:
            assert self.thread.is_alive()
            self.thread.join(0.001)


@pytest.mark.parametrize("call", ["stream_abort", "destroy_stream_force", "reset_device_force"])
def test_a_running_model_is_stopped(ready: Any, net: Make, tmp_path: Path, call: str) -> None:
    one = net(endless(tmp_path))
    one.put(0, np.zeros(4, np.float32))
    stream, _ = ready.rt.create_stream()
    assert one.execute_async(stream) == 0
    run = Run(ready, stream, one.id)
    assert getattr(ready.rt, call)(0 if call == "reset_device_force" else stream) == 0
    run.thread.join()
    assert run.codes[0] == 107023
    if call == "reset_device_force":
        return
    if call == "stream_abort":
        assert run.codes[1] == 0  # told once
        ready.rt.destroy_stream(stream)
    one.close()


def test_models_of_two_devices_run_at_once(ready: Any, net: Make, tmp_path: Path) -> None:
    path = endless(tmp_path)
    runs, nets = [], []
    for device in (0, 1):
        ready.rt.set_device(device)
        one = net(path)
        one.put(0, np.zeros(4, np.float32))
        assert one.execute_async() == 0
        runs.append(Run(ready, 0, one.id))
        nets.append(one)
    loaded = [find(one.id) for one in nets]
    assert all(model is not None and model.engine.is_running for model in loaded)
    for device, run in enumerate(runs):
        ready.rt.set_device(device)
        ready.rt.stream_abort(0)
        run.thread.join()
        assert run.codes == [107023, 0]
    for device in (0, 1):
        ready.rt.reset_device_force(device)


def test_an_abort_reaches_no_later_run(ready: Any, net: Make, models: Any, tmp_path: Path) -> None:
    ended = net(endless(tmp_path, 3))
    ended.put(0, np.zeros(4, np.float32))
    for _ in range(3):
        assert ended.execute_async() == 0
        assert ready.rt.stream_abort(0) == 0  # nothing runs: the queued work is dropped
        assert ready.rt.synchronize_stream(0) == 0
        assert ended.execute_async() == 0
        assert ready.rt.synchronize_stream(0) == 0
        assert (ended.get(0, (4,)) == 3).all()
    ended.close()


def test_the_interpreter_exits_while_a_model_runs(tmp_path: Path) -> None:
    code = """
    import asyncio, sys, threading
    import numpy as np
    from aioais import InferSession, emulator
    from aioais.emulator.model import models as models_of_acl

    async def main():
        session = await InferSession(0, sys.argv[1])
        tasks = [asyncio.ensure_future(session.infer([np.zeros(4, np.float32)])) for _ in range(6)]
        while not any(model.engine.is_running for model in models_of_acl.values()):
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), endless(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "not shut down cleanly" not in done.stderr  # as it is when the model holds it up


def test_small_models_get_one_thread(ready: Any, net: Make, models: Any, tmp_path: Path) -> None:
    def threads(path: str) -> int:
        one = net(path)
        loaded = find(one.id)
        assert loaded is not None
        number: int = loaded.engine.session.get_session_options().intra_op_num_threads
        one.close()
        return number

    small = models.add()
    assert threads(small) == 1
    assert threads(models.add((1, 1 << 16))) == cores()  # 3 x 256 KiB
    emulator.configure(threads=3)
    assert threads(small) == 3


def conv(models: Any, side: int, channels_last: bool) -> str:
    """A few weights, used at every position of an image."""
    image = [1, side, side, 3] if channels_last else [1, 3, side, side]
    nodes = [helper.make_node("Transpose", ["x"], ["y0"], perm=[0, 3, 1, 2] if channels_last else [0, 1, 2, 3])]
    weights = []
    for k, (channels, kernels) in enumerate(((3, 16), (16, 16), (16, 32))):
        weights.append(numpy_helper.from_array(np.zeros((kernels, channels, 3, 3), np.float32), f"w{k}"))
        step = 4 if k == 2 else 1
        nodes.append(helper.make_node("Conv", [f"y{k}", f"w{k}"], [f"y{k + 1}"], pads=[1] * 4, strides=[step] * 2))
    out = [1, 32, side // 4, side // 4]
    path: str = models.write(f"conv{side}", nodes, [("x", 1, image)], [("y3", 1, out)], None, weights)
    return path


@pytest.mark.parametrize("channels_last", [False, True])
def test_small_models_with_much_work_get_all_threads(ready: Any, net: Make, models: Any, channels_last: bool) -> None:
    def threads(path: str) -> int:
        loaded = find(net(path).id)
        assert loaded is not None
        number: int = loaded.engine.session.get_session_options().intra_op_num_threads
        return number

    assert threads(conv(models, 28, channels_last)) == 1
    assert threads(conv(models, 112, channels_last)) == cores()


def test_runs_of_open_shapes_get_the_threads_that_their_shapes_need(ready: Any, net: Make, models: Any) -> None:
    weights = [numpy_helper.from_array(np.zeros((32, 3, 3, 3), np.float32), "w")]
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)]
    path = models.write("open", nodes, [("x", 1, ["n", 3, "h", "w"])], [("y", 1, ["n", 32, "h", "w"])], None, weights)

    def threads(*shape: int) -> int:
        loaded = find(net(path, sizes=[1], out_sizes=[1]).id)
        assert loaded is not None
        session = loaded.engine.session_for([shape], 4 * int(np.prod(shape)))
        number: int = session.get_session_options().intra_op_num_threads
        return number

    assert threads(1, 3, 28, 28) == 1
    assert threads(8, 3, 28, 28) == 1
    assert threads(8, 3, 128, 128) == cores(), "much in and out"
    emulator.configure(threads=3)
    assert threads(1, 3, 28, 28) == 3


@pytest.mark.parametrize(
    ("shape", "has_convolutions", "is_one"),
    [
        ([1, 1024], False, True),
        ([1, 1024], True, True),
        ([2, 1, 512], True, True),
        ([1, 4096], False, False),
        ([1, 1, 32, 32], False, True),
        ([1, 1, 32, 32], True, False),
    ],
)
def test_larger_models_are_brief_with_few_inputs(shape: list[int], has_convolutions: bool, is_one: bool) -> None:
    """They use each weight a few times, unless it is that of a convolution over an image."""
    weights = weigh(bytes(1 << 20) + b"Conv" * has_convolutions)
    assert weights is not None
    assert is_brief(weights, [shape], 4 * int(np.prod(shape))) is is_one


@pytest.mark.parametrize(
    ("version", "spins"), [("1.20.1", False), ("1.31.0", False), ("1.32.0", True), ("2.0.0rc1", True)]
)
def test_threads_spin_briefly_where_the_release_can(
    monkeypatch: pytest.MonkeyPatch, models: Any, version: str, spins: bool
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", version)
    for always in (False, True):
        options = start_session(models.add(), "add", 2, always).get_session_options()
        key = "session.intra_op."
        assert options.get_session_config_entry(f"{key}allow_spinning") == str(int(spins or always))
        if spins and not always:
            assert options.get_session_config_entry(f"{key}spin_duration_us") == "60"


def test_weights_in_files_of_their_own_are_not_small(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.zeros(1 << 18, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1 << 18])],
        [weights],
    )
    model = helper.make_model(graph)
    path = tmp_path / "outside.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin")
    assert path.stat().st_size < 4096
    assert weigh(str(path)) is None
    assert weigh(model.SerializeToString()) is None


def test_cores_where_the_system_tells_less(monkeypatch: pytest.MonkeyPatch) -> None:
    count = cores.__wrapped__
    monkeypatch.setattr(Path, "read_text", _refuse)
    assert count() == len(os.sched_getaffinity(0)), "no topology: each is taken for a core"
    monkeypatch.delattr(os, "sched_getaffinity")
    assert count() == (os.cpu_count() or 1)


def _refuse(*args: object, **options: object) -> str:
    raise OSError("no such file")
