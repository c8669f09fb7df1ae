"""The pytest plugin of aioais: fixtures for programs that use it.

It stands outside of the package, and imports aioais inside the fixtures only: pytest loads every plugin that is
installed, and one that nobody uses is to cost nothing. For the same reason aioais is not yet imported when a coverage
measurement starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from aioais.testing import EmulatedDevices, LoopLag

__all__ = ["aioais_devices", "aioais_loop_lag", "aioais_no_leaks"]

_ended_early = pytest.StashKey[bool]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Note that a test has failed or was skipped: the traceback keeps what its functions held."""
    if call.excinfo is not None:
        item.stash[_ended_early] = True


@pytest.fixture
def aioais_no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test when something on the CPU device outlives it: a session, a device tensor, a result array.

    Where a session was open before the test (say, in a fixture of wider scope), only further sessions count. A test
    that has failed already is not checked, as its traceback keeps what its functions held. To have it for all tests,
    put ``usefixtures = aioais_no_leaks`` into pytest's configuration.
    """
    from aioais.testing.leaks import LeakError, check_leaks, settled

    before = settled()
    yield
    if _ended_early in request.node.stash:
        return
    try:
        check_leaks(before)
    except LeakError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def aioais_devices() -> Iterator[EmulatedDevices]:
    """Give the CPU devices: ``configure``, ``script``, ``gate``; all undone at the end of the test.

    A fault of the script that has not struck by then fails the test.
    """
    from aioais.testing import EmulatedDevices

    with EmulatedDevices() as devices:
        yield devices
        pending = devices.pending()
    if pending:
        pytest.fail(f"faults that never struck: {', '.join(map(str, pending))}", pytrace=False)


@pytest.fixture
def aioais_loop_lag() -> type[LoopLag]:
    """Give :class:`aioais.testing.LoopLag`: ``async with aioais_loop_lag(limit_ms=20): ...`` fails beyond it."""
    from aioais.testing import LoopLag

    return LoopLag
