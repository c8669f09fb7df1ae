"""aioais: asyncio-native inference on Ascend NPUs, and on the CPU through the same engine.

::

    async with InferSession(0, "model.om") as session:
        outputs = await session.infer([array])
"""

import importlib
import typing

from ._atc.convert import convert as convert
from ._batching.statistics import BatchingStatistics as BatchingStatistics
from ._batching.statistics import BatchUse as BatchUse
from ._batching.statistics import WaitingTime as WaitingTime
from ._version import __version__ as __version__
from .batching import BatchAxes as BatchAxes
from .batching import BatchingSession as BatchingSession
from .errors import AclError as AclError
from .errors import AclInternalError as AclInternalError
from .errors import AclMemoryError as AclMemoryError
from .errors import AclNotFoundError as AclNotFoundError
from .errors import AclResourceError as AclResourceError
from .errors import AclServiceError as AclServiceError
from .errors import AclUsageError as AclUsageError
from .errors import AioaisError as AioaisError
from .errors import ArgumentError as ArgumentError
from .errors import BrokenSessionError as BrokenSessionError
from .errors import ClosedError as ClosedError
from .errors import ConvertError as ConvertError
from .errors import DeadlineExceededError as DeadlineExceededError
from .errors import DeviceError as DeviceError
from .errors import DeviceHangError as DeviceHangError
from .errors import FeedError as FeedError
from .errors import ForkError as ForkError
from .errors import ModelError as ModelError
from .errors import QueueFullError as QueueFullError
from .errors import WrongLoopError as WrongLoopError
from .multi_device import MultiDeviceSession as MultiDeviceSession
from .platforms import devices as devices
from .platforms import run as run
from .session import Feeds as Feeds
from .session import InferSession as InferSession
from .summary import InferSummary as InferSummary
from .summary import MemorySummary as MemorySummary
from .tensor import Tensor as Tensor
from .timing import Recording as Recording
from .timing import RequestTiming as RequestTiming
from .timing import Span as Span
from .trace import Trace as Trace
from .types import Check as Check
from .types import DataType as DataType
from .types import DeviceInfo as DeviceInfo
from .types import DeviceStatistics as DeviceStatistics
from .types import Format as Format
from .types import Mode as Mode
from .types import PipelineOutput as PipelineOutput
from .types import SessionStatistics as SessionStatistics
from .types import StageTime as StageTime
from .types import StreamOutput as StreamOutput
from .types import TensorDesc as TensorDesc

if typing.TYPE_CHECKING:
    from . import emulator as emulator
    from . import testing as testing
else:

    def __getattr__(name):
        """Import ``aioais.emulator`` and ``aioais.testing`` at first use: programs on an NPU do not need them."""
        if name in ("emulator", "testing"):
            return importlib.import_module(f".{name}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = (
    "AclError",
    "AclInternalError",
    "AclMemoryError",
    "AclNotFoundError",
    "AclResourceError",
    "AclServiceError",
    "AclUsageError",
    "AioaisError",
    "ArgumentError",
    "BatchAxes",
    "BatchUse",
    "BatchingSession",
    "BatchingStatistics",
    "BrokenSessionError",
    "Check",
    "ClosedError",
    "ConvertError",
    "DataType",
    "DeadlineExceededError",
    "DeviceError",
    "DeviceHangError",
    "DeviceInfo",
    "DeviceStatistics",
    "FeedError",
    "Feeds",
    "ForkError",
    "Format",
    "InferSession",
    "InferSummary",
    "MemorySummary",
    "Mode",
    "ModelError",
    "MultiDeviceSession",
    "PipelineOutput",
    "QueueFullError",
    "Recording",
    "RequestTiming",
    "SessionStatistics",
    "Span",
    "StageTime",
    "StreamOutput",
    "Tensor",
    "TensorDesc",
    "Trace",
    "WaitingTime",
    "WrongLoopError",
    "convert",
    "devices",
    "run",
)
