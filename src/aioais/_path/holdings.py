"""What a session holds on its device, and how it is given back."""

from __future__ import annotations

from time import monotonic

from .._acl.model import LoadedModel
from .._acl.release import run_all
from .._acl.stream import Stream
from ..errors import AclError, DeviceHangError
from .device import Device
from .execute import Executor
from .places import Places
from .recorder import Recorder
from .slot_pool import SlotPool

__all__ = ["Holdings"]


class Holdings:
    """Everything that one session holds on a device, the session's reference to the device included.

    Parameters
    ----------
    device
        The opened device.
    model, executor, slots, places, recorder
        Owned, and freed in an order in which no child outlives its parent.
    """

    def __init__(
        self,
        device: Device,
        model: LoadedModel,
        executor: Executor,
        slots: SlotPool,
        places: Places,
        recorder: Recorder,
    ) -> None:
        self.device = device
        self.model = model
        self.executor = executor
        self.slots = slots
        self.places = places
        self.recorder = recorder

    def wait_idle(self, seconds: float) -> bool:
        """Wait until no work of the session is left on the device; ``False`` if that takes longer.

        Needs the device's context. Where the release cannot bound a wait, it may take any time.
        """
        deadline = monotonic() + seconds
        for stream in [self.executor.stream, *self.slots.streams()]:
            try:
                self._wait(stream, deadline - monotonic())
            except DeviceHangError:
                return False
            except AclError:
                pass  # a failure of work that nobody waits for any more; the stream is done with it
        return True

    def free(self) -> None:
        """Free all; nothing on the device may use it any more. A failure is raised when all else is freed."""
        run_all(
            [
                self.recorder.close,
                self.slots.close,
                self.places.close,
                self.model.close,
                self.executor.close,
                self.device.release_session,
            ]
        )

    def _wait(self, stream: Stream, seconds: float) -> None:
        if self.device.library.has_stream_timeout:
            stream.synchronize_within(max(0.0, seconds))
        else:
            stream.synchronize()
