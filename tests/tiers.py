"""The tiers of the suite: what a run leaves out, and how much processor time a test of the default run may take.

=================  ==================================================================================
``pytest``         the default run: every promise of the library at least once, for each change
``pytest --full``  every test: slow ones, stress, and products of parameters where the default has pairs
``pytest --long``  as ``--full``, with the long forms of the stress tests
=================  ==================================================================================
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable

import pytest
from tests.pairs import cover

LIMIT_S = 1.0
"""Processor time, of the process and the programs that it starts, from which a test has to be marked ``slow``."""

MARGIN = 5.0
"""An unmarked test fails above this many times the limit: machines differ, and what else runs costs time as well."""

LEFT_OUT = ("slow", "full", "stress")
"""Markers of the tests that only ``--full`` runs."""


class Tier:
    """What was asked for on the command line; ``pytest_configure`` fills it in before test modules are imported."""

    is_full = False
    is_long = False


def choose(config: pytest.Config, items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Split tests into those that run and those that only ``--full`` runs; what is named by its ``::`` runs."""
    if Tier.is_full:
        return items, []
    covered = _covered(items)
    named = [argument.partition("::")[2] for argument in config.args if "::" in argument]
    chosen: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        own = item.nodeid.partition("::")[2]
        is_named = any(own == name or own.startswith((f"{name}[", f"{name}::")) for name in named)
        is_left = any(item.get_closest_marker(name) for name in LEFT_OUT) or item.nodeid not in covered
        (left if is_left and not is_named else chosen).append(item)
    return chosen, left


def _covered(items: Iterable[pytest.Item]) -> set[str]:
    """Return the ids of the tests to run as far as the marker ``pairs`` goes; those without it are all in there."""
    chosen: set[str] = set()
    products: dict[str, list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("pairs") and hasattr(item, "callspec"):
            products.setdefault(item.nodeid.partition("[")[0], []).append(item)
        else:
            chosen.add(item.nodeid)
    for product in products.values():
        names = sorted(product[0].callspec.params)
        rows = [[repr(item.callspec.params[name]) for name in names] for item in product]
        chosen |= {product[k].nodeid for k in cover(rows)}
    return chosen


def cpu_s() -> float:
    """Return the processor time of this process and of the programs that it has waited for."""
    own, programs = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + programs.ru_utime + programs.ru_stime


def too_slow(item: pytest.Item, spent_s: float) -> str | None:
    """Return what is wrong where an unmarked test takes clearly more processor time than the limit."""
    is_measured = not Tier.is_long and "COVERAGE_RUN" not in os.environ  # tracing costs several times as much
    is_marked = any(item.get_closest_marker(name) for name in ("slow", "stress"))
    if not is_measured or is_marked or spent_s <= MARGIN * LIMIT_S:
        return None
    return (
        f"{item.nodeid} took {spent_s:.1f} s of processor time; expected at most {LIMIT_S:g} s (fails above "
        f"{MARGIN * LIMIT_S:g} s): make it quicker, or mark it slow and keep a quick test of what it checks"
    )
