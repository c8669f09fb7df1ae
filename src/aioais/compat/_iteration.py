"""Iterations that a program steps through by hand: ``first_inner_run`` and ``inner_run``."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from ..errors import ArgumentError
from ._errors import as_runtime_error
from ._tensor import Tensor, as_feed
from .aclruntime import InferenceSession

__all__ = ["Steps"]


class Steps:
    """The iterations of a session, one for each thread."""

    def __init__(self, session: InferenceSession) -> None:
        self._session = session
        self._own = threading.local()

    def first(self, feeds: Any, mode: str, custom_sizes: Any) -> list[Tensor]:
        """Run the first step and keep its outputs on the device."""
        outputs = self._session.infer(feeds, mode, custom_sizes, False)
        self._own.state = (list(feeds), outputs, mode, custom_sizes)
        return []

    def next(self, in_out_list: Sequence[int], get_outputs: bool) -> list[Tensor] | None:
        """Run one more step, with outputs of the one before as inputs.

        Raises
        ------
        RuntimeError
            There was no first step in this thread, or ``in_out_list`` does not fit the model.
        """
        state = getattr(self._own, "state", None)
        if state is None:
            raise as_runtime_error(
                ArgumentError("got inner_run() in a thread without first_inner_run(); call it first")
            )
        feeds, outputs, mode, custom_sizes = state
        if len(in_out_list) != len(feeds) or not all(k < len(outputs) for k in in_out_list):
            raise as_runtime_error(
                ArgumentError(
                    f"got in_out_list={list(in_out_list)!r}; expected -1 or an output below {len(outputs)} for each of "
                    f"{len(feeds)} inputs"
                )
            )
        feeds = [feed if k < 0 else as_feed(outputs[k]) for feed, k in zip(feeds, in_out_list, strict=True)]
        outputs = self._session.infer(feeds, mode, custom_sizes, False)
        self._own.state = (feeds, outputs, mode, custom_sizes)
        return [*outputs] if get_outputs else None
