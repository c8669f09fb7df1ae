"""What type checkers see of the public interface; read by test_typing.py, never run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

import aioais
from aioais import (
    BatchingSession,
    BatchingStatistics,
    BatchUse,
    DataType,
    Format,
    InferSession,
    MultiDeviceSession,
    PipelineOutput,
    Recording,
    RequestTiming,
    Span,
    StreamOutput,
    Tensor,
    TensorDesc,
)
from aioais.testing import EmulatedDevices, Fault, LoopLag, Report, check_acl, check_leaks, leaks

if sys.version_info >= (3, 11):
    from typing import assert_type
elif TYPE_CHECKING:
    from typing_extensions import assert_type

Array = NDArray[Any]


async def opening() -> None:
    async with InferSession(0, "model.onnx") as session:
        assert_type(session, InferSession)
    assert_type(await InferSession(device_id=0, model_path=Path("model.onnx"), depth=2), InferSession)
    InferSession(0, "model.om", None, False, 1, platform="ascend", check="bytes")
    await session.free_resource()
    await session.aclose()
    await InferSession.finalize()


async def inferring(session: InferSession, x: Array, keep: bool) -> None:
    assert_type(await session.infer([x]), list[Array])
    assert_type(await session.infer([x], "static"), list[Array])
    assert_type(await session.infer((x,), mode="dymshape", custom_sizes=[100, 200]), list[Array])
    assert_type(await session.infer([x], out_array=True), list[Array])
    assert_type(await session.infer([x], out_array=False), list[Tensor])
    assert_type(await session.infer([x], out_array=keep), list[Array] | list[Tensor])


async def iterating(session: InferSession, x: Array) -> None:
    assert_type(await session.infer_iteration([x]), list[Array])
    assert_type(await session.infer_iteration([x], [0], 3, "dymshape", [100], mem_copy=False), list[Array])
    assert_type(await session.infer_iteration({"x": x}, (0, -1), iteration_times=9), list[Array])


async def batching(session: InferSession, several: MultiDeviceSession, x: Array) -> None:
    async with BatchingSession(session) as one:
        assert_type(one, BatchingSession)
        assert_type(await one.infer([x]), list[Array])
        assert_type(await one.infer({"input": x}, priority=-1, timeout=0.5), list[Array])
        found = one.statistics()
        assert_type(found, BatchingStatistics)
        assert_type(found.batches, dict[int, BatchUse])
        assert_type(found.fill, float)
        assert_type(found.waiting_ms.p99, float)
        assert_type(one.closed, bool)
    two = BatchingSession(several, max_batch_size=8, max_delay=0, max_queue=100, on_full="raise", batch_axes=0)
    assert_type(two.session, InferSession | MultiDeviceSession)
    BatchingSession(session, batch_axes={"input": 1, "scale": None})
    await two.aclose()


async def feeding(session: InferSession, x: Array, tensor: Tensor) -> None:
    await session.infer([x, tensor, np.float32(1), memoryview(b""), bytearray(b"")])
    await session.infer({"input1": x, "input2": tensor})


async def tensors(session: InferSession, x: Array) -> None:
    tensor = await session.to_device(x)
    assert_type(tensor, Tensor)
    assert_type(await tensor.to_host(), Array)
    assert_type(tensor.shape, tuple[int, ...])
    assert_type(tensor.nbytes, int)
    assert_type(tensor.device_id, int)
    assert_type(tensor.closed, bool)
    tensor.close()


def describing(session: InferSession) -> None:
    assert_type(session.get_inputs(), list[TensorDesc])
    (desc,) = session.get_outputs()
    assert_type(desc.name, str)
    assert_type(desc.datatype, DataType)
    assert_type(desc.datatype.numpy, np.dtype[Any])
    assert_type(desc.format, Format)
    assert_type(desc.shape, list[int])
    assert_type(desc.size, int)


def timing(session: InferSession) -> None:
    summary = session.summary()
    assert_type(summary[0], float)
    assert_type(len(summary), int)
    assert_type(summary.exec_time_list[-1], float)
    assert_type(summary.count, int)
    assert_type(summary.total, float)
    assert_type(summary.mean, float)
    assert_type(summary.percentile(99), float)
    session.reset_summaryinfo()


async def recording(session: InferSession) -> None:
    with session.record() as timings:
        assert_type(timings, Recording)
    timing = timings[-1]
    assert_type(timing, RequestTiming)
    assert_type(timings[1:], list[RequestTiming])
    assert_type(timing.outcome, Literal["done", "failed", "cancelled"])
    assert_type(timing.queue_ms + timing.h2d_ms + timing.execute_ms + timing.d2h_ms + timing.delivery_ms, float)
    assert_type(timing.execute, Span)
    assert_type(timing.number, int)
    assert_type(timings.dropped, int)
    async with session.trace("out.json") as timings:
        assert_type(timings, Recording)
    with session.trace(Path("out.json"), limit=100) as timings:
        assert_type(timings, Recording)


async def answer(x: int) -> str:
    return str(x)


def functions() -> None:
    assert_type(aioais.run(answer, 1), str)
    aioais.convert("add.onnx", "add_b.onnx", input_shape="x:-1,3", dynamic_batch_size="1,2")
    for device in aioais.devices():
        assert_type(device.id, int)
        assert_type(device.name, str)
    assert_type(aioais.__version__, str)


async def many_devices(x: Array) -> None:
    async with MultiDeviceSession("model.onnx", depth=2) as session:
        assert_type(session, MultiDeviceSession)
        assert_type(await session.infer({0: [[x], {"x": x}]}), dict[int, list[list[Array]]])
        assert_type(await session.infer(device_feeds={0: [[x]]}, mode="dymbatch"), dict[int, list[list[Array]]])
        assert_type(await session.infer_pipeline({0: [[[x], [x]]]}), dict[int, list[list[list[Array]]]])
        async for result in session.infer_pipeline(device_feeds_list={0: [[[x]]]}):
            assert_type(result, PipelineOutput)
        iterated = await session.infer_iteration({0: [[x]]}, [0], iteration_times=2)
        assert_type(iterated, dict[int, list[list[Array]]])
        async for one in session.stream([[x]], "all", ordered=False):
            assert_type(one, StreamOutput)
            assert_type(one.index, int)
            assert_type(one.outputs, list[Array])
        session.stream(([x] for _ in range(3)), device_ids=[0, 1])
        assert_type(session.summary(), dict[int, list[float]])
        assert_type(session.statistics()[0].streamed, int)
        await session.aclose(cancel=True)


async def mistakes(session: InferSession, x: Array) -> None:
    # mypy's strict mode reports an ignore that is not needed: these lines must not type-check.
    await session.infer([x], mode="fast")  # type: ignore[call-overload]
    InferSession(0, "model.onnx", platform="gpu")  # type: ignore[arg-type]


async def testing(devices: EmulatedDevices, acl: object) -> None:
    devices.configure(device=1, execute_ms=2)
    devices.script(Fault("acl.rt.malloc", 207001, after=1))
    assert_type(devices.pending(), list[Fault])
    with devices.gate("execute") as gate:
        assert_type(gate.wait_reached(), bool)
    async with LoopLag(limit_ms=20) as lag:
        assert_type(lag.p99_ms, float)
    assert_type(leaks(), dict[str, int])
    check_leaks(leaks())
    report = check_acl(acl, Path("model.onnx"), device_id=1)
    assert_type(report, Report)
    assert_type(report.failed[0].status, Literal["passed", "failed", "skipped"])
