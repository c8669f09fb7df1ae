"""SessionCore: what is behind an ``InferSession``: its life on one event loop, and the way from feeds to a request."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable
from typing import Any

from .._bridge.offload import run_in_thread, wait_future
from .._feeds.arrays import as_feed, converts_slowly
from .._feeds.planner import Planner
from ..blame import Seen
from ..errors import AclError, ClosedError, FeedError, WrongLoopError, open_error
from ..tensor import Tensor, device_of
from ..types import DEFAULT_OUTPUT_BYTES
from .iteration import Iteration
from .lifetime import open_pipeline
from .options import Options
from .pipeline import Pipeline
from .request import Request

__all__ = ["SessionCore"]


class SessionCore:
    """One model on one device, for the class that has the public methods.

    Attributes
    ----------
    pipeline
        ``None`` until the session is open.
    is_closed
        It was closed, or is to be closed as soon as it is open.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.pipeline: Pipeline | None = None
        self.is_closed: bool = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the session was closed, or ended by ``finalize``."""
        return self.is_closed or (self.pipeline is not None and self.pipeline.closed.done())

    async def open(self) -> None:
        """Open the session: start the device, make a context and load the model, in a thread of their own.

        Raises
        ------
        ClosedError
            It was closed, or is open already.
        ModelError, DeviceError, ArgumentError, AclNotFoundError, AclError, BrokenSessionError, ForkError
            See ``InferSession``.
        """
        if self.has_ended:
            raise ClosedError(f"{self!r} is closed: open a new session")
        if self._loop is not None:
            raise ClosedError(f"{self!r} is open already, or being opened: open each session once")
        loop = self._loop = asyncio.get_running_loop()
        options = self.options
        try:
            self.pipeline = await run_in_thread(
                f"aioais-open-{options.device_id}", lambda: open_pipeline(options, loop), Pipeline.close, uses_acl=True
            )
        except RuntimeError as exc:
            raise open_error(repr(self), exc)  # noqa: B904 - it has its cause
        finally:
            if self.pipeline is None:
                self._loop = None
        if self.is_closed:  # closed while it was being opened
            await self.aclose()
            raise ClosedError(f"{self!r} was closed while it was being opened: open a new session")

    def request(
        self,
        feeds: Any,
        mode: Any = "static",
        custom_sizes: Any = None,
        to_host: bool = True,
        iteration: Iteration | None = None,
    ) -> Request | Awaitable[Request]:
        """Check feeds and submit them; the result is awaitable if converting the feeds may take long.

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
        ClosedError, BrokenSessionError, WrongLoopError, ForkError
            The session cannot be used here.
        """
        pipeline = self.pipeline
        # Checked before the feeds: a session that has ended runs nothing.
        if (
            pipeline is None
            or pipeline.admission.is_closed
            or pipeline.process.is_forked  # before the loop: it does not run in a forked child
            or self._loop is not asyncio.get_running_loop()
        ):
            pipeline = self._usable()
        planner = pipeline.planner
        plan = planner.known(feeds, mode, custom_sizes)
        if plan is not None:
            feeds = [*feeds]
        elif planner.needs_thread(feeds):
            return self._convert(planner, feeds, (mode, custom_sizes, to_host, iteration))
        else:
            arrays = planner.arrays(feeds)
            plan = planner.plan(arrays, mode, custom_sizes)
            feeds = [array for array in arrays if array is not None]  # without optional inputs that are unfed
        future = pipeline.loop.create_future()
        request = iteration.request(plan, feeds, future) if iteration else Request(plan, feeds, future, to_host)
        pipeline.submit(request)
        return request

    async def _convert(self, planner: Planner, feeds: Any, how: tuple[Any, Any, bool, Iteration | None]) -> Request:
        """Convert feeds in a thread, and submit them."""
        arrays = await run_in_thread("aioais-feeds", lambda: planner.arrays(feeds))
        request = self.request(arrays, *how)
        assert isinstance(request, Request)
        return request

    def submit_batch(self, feeds: list[Any], future: asyncio.Future[Any]) -> Request:
        """Submit feeds in model order that were put together by the library, in the mode of the model.

        Parameters
        ----------
        feeds
            Arrays and ``Gathered`` rows of several callers.
        future
            Gets the outputs or the error, on the loop's thread.

        Raises
        ------
        FeedError, ClosedError, BrokenSessionError, WrongLoopError, ForkError
            As in :meth:`request`.
        """
        pipeline = self._usable()
        planner = pipeline.planner
        plan = planner.known(feeds, "auto", DEFAULT_OUTPUT_BYTES) or planner.plan(feeds, "auto", DEFAULT_OUTPUT_BYTES)
        request = Request(plan, feeds, future, to_host=True)
        request.keeps_row = True
        pipeline.submit(request)
        return request

    def _usable(self) -> Pipeline:
        """Return the pipeline, or raise why it takes no request."""
        pipeline = self.opened()
        pipeline.admission.check()
        return pipeline

    def iteration(self, in_out_list: Any, iteration_times: Any, mem_copy: Any) -> Iteration:
        """Check the arguments of ``InferSession.infer_iteration`` that say what to repeat.

        Raises
        ------
        ArgumentError, FeedError
            They do not fit the model.
        ClosedError, WrongLoopError, ForkError
            The session cannot be used here.
        """
        return Iteration(self.opened().info, in_out_list, iteration_times, mem_copy, self.options.check)

    async def result(self, request: Request | Awaitable[Request]) -> Any:
        """Wait for the result of a request; cancelled, the request is given up."""
        if not isinstance(request, Request):
            request = await request
        try:
            return await request.future
        finally:
            request.give_up()
            del request  # an error's traceback holds this frame, and the request the error

    async def upload(self, array: Any) -> Tensor:
        """Copy anything that is a feed to the session's device; a tensor of that device is returned as it is.

        Raises
        ------
        FeedError
            It is no array, is closed, or is on another device.
        AclError
            The device has no room, or the copy failed.
        DeviceHangError
            The copy was not done within ``hang_timeout``; the session is broken now.
        BrokenSessionError, ClosedError
            The session was broken or closed before, by ``finalize`` maybe.
        """
        pipeline = self.opened()
        device, hang_timeout = pipeline.device, pipeline.hang_timeout
        if converts_slowly(array):
            feed = await run_in_thread("aioais-feeds", lambda: as_feed(array, "to_device"))
        else:
            feed = as_feed(array, "to_device")
        if isinstance(feed, Tensor):
            if feed.closed:
                raise FeedError(f"to_device: got {feed!r}, which is closed; expected an array or an open tensor")
            if device_of(feed) is device:
                return feed
            raise FeedError(
                f"to_device: {feed!r} is on another device; bring it to the host first: await tensor.to_host()"
            )
        if feed.dtype.hasobject:
            raise FeedError(f"to_device: an array of {feed.dtype} has no bytes to copy; convert it to a numeric type")

        pipeline.admission.check()

        def copy_there() -> Tensor:
            return Tensor(device, device.transfers.upload(feed, hang_timeout), feed.shape, feed.dtype, hang_timeout)

        try:
            return await wait_future(device.worker.submit(copy_there))
        except AclError as error:
            pipeline.failure.judge(copy.copy(error), Seen.COPY)  # without the frames, which hold the session
            raise

    async def aclose(self) -> None:
        """Refuse new requests, wait for those under way, free all; idempotent. See ``InferSession.aclose``."""
        pipeline = self.pipeline
        if pipeline is not None and not pipeline.closed.done():
            self.check_loop()
        self.is_closed = True
        if pipeline is not None:
            pipeline.close()
            await wait_future(pipeline.closed)
            pipeline.join()

    def abandon(self) -> bool:
        """Have a session that was dropped while open closed; ``False`` if it was not open. Safe in a finaliser.

        The collector runs finalisers in any thread, one that holds the locks that closing takes included: so the
        control thread of the device closes it.
        """
        pipeline = self.pipeline
        if pipeline is None or self.has_ended:
            return False
        self.is_closed = True
        pipeline.device.post(pipeline.close)
        return True

    def opened(self) -> Pipeline:
        """Return the pipeline, or raise why there is none. After ``finalize`` a broken one still says what broke it."""
        pipeline = self.pipeline
        failure = None if pipeline is None else pipeline.failure
        if self.is_closed or (failure is not None and failure.closing.is_set() and failure.cause is None):
            raise ClosedError(f"{self!r} is closed: open a new session")
        if pipeline is None:
            raise ClosedError(f"{self!r} is not open: use 'async with InferSession(...)' or 'await InferSession(...)'")
        pipeline.device.process.check_fork()
        self.check_loop()
        return pipeline

    def known(self) -> Pipeline:
        """Return the pipeline, that of a closed session too: what it has measured can still be read."""
        pipeline = self.pipeline
        return pipeline if pipeline is not None and self.has_ended else self.opened()

    def check_loop(self) -> None:
        """Raise ``WrongLoopError`` on another event loop than the one that opened the session."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return  # a plain method called outside of any loop: nothing to mix up
        if running is not self._loop:
            raise WrongLoopError(
                f"{self!r} was opened by another event loop; open one session per loop (they may share the device)"
            )

    def __repr__(self) -> str:
        options, pipeline = self.options, self.pipeline
        state = "closed" if self.has_ended else "open" if pipeline is not None else "not open"
        if not self.is_closed and pipeline is not None and pipeline.failure.cause is not None:
            state = "broken"
        mode = "" if pipeline is None else f", mode {pipeline.info.mode!r}"
        depth = options.depth if pipeline is None else pipeline.slots.depth
        where = f"{options.platform} device {options.device_id}"
        return f"<InferSession {options.model_path!r} on {where}{mode}, depth {depth}, {state}>"
