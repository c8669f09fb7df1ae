"""From an array to a device tensor of its own, outside of any request."""

from __future__ import annotations

from typing import Any

from .._bridge.offload import run_in_thread, wait_future
from ..errors import FeedError
from ..tensor import Tensor
from .arrays import as_feed, converts_slowly
from .device import Device

__all__ = ["upload"]


async def upload(device: Device, array: Any) -> Tensor:
    """Copy anything that is a feed to a device; a tensor of that device is returned as it is.

    Raises
    ------
    FeedError
        It is no array, is closed, or is on another device.
    AclError
        The device has no room, or the copy failed.
    """
    if converts_slowly(array):
        feed = await run_in_thread("aioais-feeds", lambda: as_feed(array, "to_device"))
    else:
        feed = as_feed(array, "to_device")
    if isinstance(feed, Tensor):
        if feed.closed:
            raise FeedError(f"to_device: {feed!r} was closed; wanted an array or an open tensor")
        if feed.device is device:
            return feed
        raise FeedError(f"to_device: {feed!r} is on another device; bring it to the host first: await tensor.to_host()")
    if feed.dtype.hasobject:
        raise FeedError(f"to_device: an array of {feed.dtype} has no bytes to copy; convert it to a numeric type")

    def copy() -> Tensor:
        return Tensor(device, device.upload(feed), feed.shape, feed.dtype)

    return await wait_future(device.worker.submit(copy))
