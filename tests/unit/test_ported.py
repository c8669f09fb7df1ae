"""A member that only ais_bench has: the error says what to write instead."""

from __future__ import annotations

import pytest
from tests.inside import INSTEAD

from aioais import InferSession
from aioais.demo_data import DIGITS_MODEL


@pytest.mark.parametrize("name", sorted(INSTEAD))
def test_an_old_name_says_what_takes_its_place(name: str) -> None:
    session = InferSession(0, DIGITS_MODEL)
    with pytest.raises(AttributeError, match=f"{name} of ais_bench is not in aioais: .*(use|give|convert|inspect)"):
        getattr(session, name)
    assert not hasattr(session, name)


def test_another_name_fails_as_ever() -> None:
    session = InferSession(0, DIGITS_MODEL)
    with pytest.raises(AttributeError, match=r"^'InferSession' object has no attribute 'infre'$") as caught:
        _ = session.infre  # type: ignore[attr-defined]
    assert caught.value.name == "infre"
