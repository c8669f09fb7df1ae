"""Does an ``acl`` module behave as the engine needs it: a suite for any implementation, real ones included.

>>> from aioais import emulator
>>> from aioais.testing.conformance import check_acl
>>> report = check_acl(emulator.acl)
>>> report.ok
True
"""

from .report import CheckResult as CheckResult
from .report import Report as Report
from .suite import check_acl as check_acl

__all__ = ["CheckResult", "Report", "check_acl"]
