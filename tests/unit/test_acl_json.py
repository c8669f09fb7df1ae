"""``acl_json_path``: what is not a file is called what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from aioais import ArgumentError, InferSession
from aioais.demo_data import DIGITS_MODEL


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (".", "got a folder; expected a regular file of at most"),
        ("/dev/null", "got a special file; expected a regular file of at most"),
        ("none.json", "cannot be read: No such file or directory; expected a JSON file"),
    ],
)
async def test_what_is_no_file(tmp_path: Path, path: str, text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        await InferSession(0, DIGITS_MODEL, acl_json_path=tmp_path / path)
    assert text in str(caught.value)
    assert "JSON:" not in str(caught.value)
