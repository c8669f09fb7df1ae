"""Tools for testing programs that use this library, and implementations of ``acl``.

The pytest fixtures are in the plugin ``aioais_pytest``, which pytest finds by itself. What they provide
works without pytest too::

    with EmulatedDevices() as devices:
        devices.configure(execute_ms=2)
        devices.script(Fault("acl.rt.malloc", 207001))
        ...

Importing this package imports neither pytest nor ONNX Runtime.
"""

from .conformance import CheckResult as CheckResult
from .conformance import Report as Report
from .conformance import check_acl as check_acl
from .devices import EmulatedDevices as EmulatedDevices
from .devices import Fault as Fault
from .lag import LoopLag as LoopLag
from .lag import LoopLagError as LoopLagError
from .leaks import LeakError as LeakError
from .leaks import check_leaks as check_leaks
from .leaks import leaks as leaks

__all__ = (
    "CheckResult",
    "EmulatedDevices",
    "Fault",
    "LeakError",
    "LoopLag",
    "LoopLagError",
    "Report",
    "check_acl",
    "check_leaks",
    "leaks",
)
