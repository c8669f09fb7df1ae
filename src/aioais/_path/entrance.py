"""From what the caller gave to a request under way; on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from .._bridge.offload import run_in_thread
from ..tensor import Tensor
from .feeds import Planner
from .iteration import Iteration
from .plan import Plan
from .request import Request

__all__ = ["Entrance"]


class Entrance:
    """Checks feeds, and makes and submits requests.

    Parameters
    ----------
    planner
        Of the model.
    submit
        Takes a request; never blocks.
    loop
        Of the session.
    """

    def __init__(self, planner: Planner, submit: Callable[[Request], None], loop: asyncio.AbstractEventLoop) -> None:
        self._planner = planner
        self._submit = submit
        self._loop = loop

    def request(
        self, feeds: Any, mode: str, custom_sizes: Any, to_host: bool, iteration: Iteration | None
    ) -> Request | Awaitable[Request]:
        """Submit a request; to be awaited where seeing its feeds as arrays may take long.

        Parameters
        ----------
        feeds, mode, custom_sizes
            As in ``InferSession.infer``.
        to_host
            Its outputs go to arrays.
        iteration
            What to repeat, if it has several steps.

        Raises
        ------
        ArgumentError, FeedError
            They do not fit the model.
        ClosedError, BrokenSessionError
            Nothing may enter any more.
        """
        planner = self._planner
        plan = planner.known(feeds, mode, custom_sizes)
        if plan is not None:
            return self._make(plan, [*feeds], to_host, iteration)
        if planner.needs_thread(feeds):
            return self._convert(feeds, mode, custom_sizes, to_host, iteration)
        arrays = planner.arrays(feeds)
        return self._make(planner.plan(arrays, mode, custom_sizes), arrays, to_host, iteration)

    def check(self, mode: str, custom_sizes: Any) -> None:
        """Raise ``ArgumentError`` if these do not fit the model, whatever the feeds."""
        self._planner.check(mode, custom_sizes)

    async def _convert(
        self, feeds: Any, mode: str, custom_sizes: Any, to_host: bool, iteration: Iteration | None
    ) -> Request:
        planner = self._planner
        arrays = await run_in_thread("aioais-feeds", lambda: planner.arrays(feeds))
        return self._make(planner.plan(arrays, mode, custom_sizes), arrays, to_host, iteration)

    def _make(
        self, plan: Plan, arrays: list[np.ndarray | Tensor], to_host: bool, iteration: Iteration | None
    ) -> Request:
        future = self._loop.create_future()
        request = iteration.request(plan, arrays, future) if iteration else Request(plan, arrays, future, to_host)
        self._submit(request)
        return request
