"""From an array to a device tensor of its own, outside of any request."""

from __future__ import annotations

import copy
from typing import Any

from .._bridge.offload import run_in_thread, wait_future
from .._feeds.arrays import as_feed, converts_slowly
from ..blame import Seen
from ..errors import AclError, FeedError
from ..tensor import Tensor, device_of
from .pipeline import Pipeline

__all__ = ["upload"]


async def upload(pipeline: Pipeline, array: Any) -> Tensor:
    """Copy anything that is a feed to a session's device; a tensor of that device is returned as it is.

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
        raise FeedError(f"to_device: {feed!r} is on another device; bring it to the host first: await tensor.to_host()")
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
