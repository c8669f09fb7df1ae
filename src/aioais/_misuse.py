"""What to write instead: answers to programs that use a session as another library has it, or without ``await``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from .errors import WrongLoopError

__all__ = ["AwaitedOnly", "Results", "check_loop_kind", "instead"]

T = TypeVar("T")

_AIS_BENCH = {
    "run": "await session.infer(feeds, out_array=False), for results that stay on the device",
    "aio": "this session itself: it is the awaitable one",
    "run_pipeline": "'async for outputs in session.infer_pipeline(feeds_list)'",
    "create_tensor_from_arrays_to_device": "await session.to_device(array)",
    "create_tensor_from_fileslist": "await session.to_device(numpy.fromfile(path, dtype))",
    "convert_tensors_to_host": "await tensor.to_host(), for each",
    "convert_tensors_to_arrays": "await tensor.to_host(), for each",
    "set_staticbatch": "mode='static' in each call",
    "set_dynamic_batchsize": "mode='dymbatch' in each call: the feeds say the batch size",
    "set_dynamic_hw": "mode='dymhw' in each call: the feeds say the image size",
    "set_dynamic_dims": "mode='dymdims' in each call: the feeds say the dims",
    "set_dynamic_shape": "mode='dymshape' in each call: the feeds say the shapes",
    "set_custom_outsize": "custom_sizes=[...] in each call",
    "get_max_dym_batchsize": "session.get_inputs()[0].shape[0], or session.get_outputs(): shapes of the largest gear",
    "set_loop_count": "InferSession(..., loop=...)",
    "outputs_names": "[output.name for output in session.get_outputs()]",
    "intensors_desc": "session.get_inputs()",
    "outtensors_desc": "session.get_outputs()",
    "sumary": "session.summary()",
    "reset_sumaryinfo": "session.reset_summaryinfo()",
    "options": "session.loop, session.depth",
    "debug": "InferSession(..., debug=...); logging.getLogger('aioais') has what it logs",
    "acl_json_path": "InferSession(..., acl_json_path=...), once for the process",
    "session": "the methods of this session",
    "infer_mode_switch": "mode=... in each call",
    "first_inner_run": "await session.infer_iteration(...), which runs all steps",
    "inner_run": "await session.infer_iteration(...), which runs all steps",
    "load_aipp_config_file": "a model with static AIPP: dynamic AIPP is not supported",
    "check_dym_aipp_input_exist": "session.get_inputs(): dynamic AIPP is not supported",
    "get_dym_aipp_input_exist": "session.get_inputs(): dynamic AIPP is not supported",
    "get_H2D_time_list": "MemorySummary.get_h2d_time_list()",
    "get_D2H_time_list": "MemorySummary.get_d2h_time_list()",
    "subprocess_infer": "await session.infer({device_id: [feeds, ...]})",
    "subprocess_pipeline": "await session.infer_pipeline({device_id: [feeds_list, ...]})",
    "subprocess_iteration": "await session.infer_iteration({device_id: [feeds, ...]}, ...)",
    "print_subprocess_run_error": "the exception that the await raises",
}
"""Names of ais_bench, and what takes their place."""


def instead(owner: object, name: str) -> AttributeError:
    """Return the error for an attribute that does not exist; names of ais_bench say what takes their place."""
    kind = owner if isinstance(owner, type) else type(owner)
    text = f"{kind.__name__!r} object has no attribute {name!r}"
    if name in _AIS_BENCH:
        text = f"{text}, as ais_bench has; use {_AIS_BENCH[name]}"
    elif name.startswith("aipp_set_"):
        text = f"{text}, as ais_bench has; dynamic AIPP is not supported: build the model with static AIPP"
    return AttributeError(text)


class AwaitedOnly:
    """A base of what needs ``async with``: says so to a plain ``with``."""

    def __enter__(self) -> NoReturn:
        raise TypeError(f"{self!r} needs 'async with', inside of an 'async def'; got 'with'")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raise AssertionError  # it is never entered


class Results(AsyncGenerator[T, None]):
    """An async generator that says what to write to programs that forget ``async``.

    ``async for`` runs the generator itself, so this costs nothing for each item.

    Parameters
    ----------
    generator
        What yields the results.
    call
        How it was made, for messages.
    """

    __slots__ = ("_call", "_generator")

    def __init__(self, generator: AsyncGenerator[T, None], call: str) -> None:
        self._generator = generator
        self._call = call

    def __aiter__(self) -> AsyncIterator[T]:
        return self._generator

    def __anext__(self) -> Any:
        return self._generator.__anext__()

    def asend(self, value: None) -> Any:
        """As of any async generator."""
        return self._generator.asend(value)

    def athrow(self, *error: Any) -> Any:
        """As of any async generator."""
        return self._generator.athrow(*error)

    def aclose(self) -> Any:
        """Give up what is under way, and wait for the end."""
        return self._generator.aclose()

    def __iter__(self) -> NoReturn:
        raise TypeError(f"{self._call} needs 'async for', inside of an 'async def'; got 'for', or list()")

    def __await__(self) -> Generator[Any, None, NoReturn]:
        raise TypeError(
            f"{self._call} cannot be awaited: it yields results one by one; write 'async for item in {self._call}', or "
            f"'[item async for item in {self._call}]' for a list"
        )


def check_loop_kind() -> None:
    """Raise where an event loop runs that is none of asyncio's.

    Raises
    ------
    WrongLoopError
        It is trio's, or none runs.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        what = "trio" if "trio" in sys.modules and _trio_runs() else "no event loop of asyncio"
        raise WrongLoopError(
            f"got {what}; expected asyncio's event loop, or uvloop's: use asyncio.run(main()), aioais.run(main), "
            "or with anyio anyio.run(main, backend='asyncio')"
        ) from None


def _trio_runs() -> bool:
    try:
        sys.modules["trio"].lowlevel.current_task()
    except (RuntimeError, AttributeError):
        return False
    return True
