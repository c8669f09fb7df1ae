"""The pytest plugin of aioais: fixtures for programs that use it.

It is a module of its own and imports aioais only inside the fixtures: pytest loads every installed plugin, and a plugin
that is not used should cost nothing. It also means that aioais is not yet imported when a coverage measurement starts.
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
    """Note that a test failed or was skipped: its traceback keeps local variables alive."""
    if call.excinfo is not None:
        item.stash[_ended_early] = True


@pytest.fixture
def aioais_no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test if a session, a device tensor or a result array on the CPU device outlives it.

    A session that was open before the test (in a fixture of wider scope) does not count. A test that has failed is
    not checked, as its traceback keeps local variables alive. To use the fixture in all tests, put
    ``usefixtures = aioais_no_leaks`` into pytest's configuration.
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
    """Return the CPU devices: ``configure``, ``script``, ``gate``; all changes are undone at the end of the test.

    The test fails if a scripted fault has not occurred by then.
    """
    from aioais.testing import EmulatedDevices

    with EmulatedDevices() as devices:
        yield devices
        pending = devices.pending()
    if pending:
        pytest.fail(f"faults that never occurred: {', '.join(map(str, pending))}", pytrace=False)


@pytest.fixture
def aioais_loop_lag() -> type[LoopLag]:
    """Return :class:`aioais.testing.LoopLag`; ``async with aioais_loop_lag(limit_ms=20): ...`` fails above 20 ms."""
    from aioais.testing import LoopLag

    return LoopLag
