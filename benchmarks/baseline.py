"""The same ACL calls without this library: in ``asyncio.to_thread``, and behind one thread."""

from __future__ import annotations

import asyncio
import ctypes
import queue
import threading
from typing import Any

import numpy as np

H2D, D2H = 1, 2


def ok(code: int) -> None:
    """Stop at the first failed call."""
    if code:
        raise RuntimeError(f"an ACL call failed with {code}")


def value(answer: tuple[Any, ...]) -> Any:
    """Unpack ``(value, code)``."""
    ok(answer[-1])
    return answer[0]


class Buffers:
    """Device buffers, datasets and pinned host memory for one request of a model with one input and one output."""

    def __init__(self, acl: Any, nbytes: tuple[int, int]) -> None:
        self.acl, self.nbytes = acl, nbytes
        self.device = [value(acl.rt.malloc(n, 0)) for n in nbytes]
        self.host = [value(acl.rt.malloc_host(n)) for n in nbytes]
        self.datasets: list[int] = []
        self.buffers: list[int] = []
        for address, n in zip(self.device, nbytes, strict=True):
            dataset = acl.mdl.create_dataset()
            self.buffers.append(acl.create_data_buffer(address, n))
            value(acl.mdl.add_dataset_buffer(dataset, self.buffers[-1]))
            self.datasets.append(dataset)

    def close(self) -> None:
        """Free all of it."""
        for dataset, buffer in zip(self.datasets, self.buffers, strict=True):
            ok(self.acl.destroy_data_buffer(buffer))
            ok(self.acl.mdl.destroy_dataset(dataset))
        for device, host in zip(self.device, self.host, strict=True):
            ok(self.acl.rt.free(device))
            ok(self.acl.rt.free_host(host))


class Program:
    """A model with a context and a stream of its own; a session that is open beside it has started ACL."""

    def __init__(self, acl: Any, path: str) -> None:
        self.acl = acl
        ok(acl.rt.set_device(0))
        self.context = value(acl.rt.create_context(0))
        self.model = value(acl.mdl.load_from_file(path))
        desc = acl.mdl.create_desc()
        ok(acl.mdl.get_desc(desc, self.model))
        self.nbytes = acl.mdl.get_input_size_by_index(desc, 0), acl.mdl.get_output_size_by_index(desc, 0)
        ok(acl.mdl.destroy_desc(desc))
        self.stream = value(acl.rt.create_stream())

    def close(self) -> None:
        """Free all of it; call it in the thread that made it."""
        ok(self.acl.rt.set_context(self.context))
        ok(self.acl.rt.destroy_stream(self.stream))
        ok(self.acl.mdl.unload(self.model))
        ok(self.acl.rt.destroy_context(self.context))
        ok(self.acl.rt.reset_device(0))


class Slot(Buffers):
    """Buffers of a request in a thread."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.acl, program.nbytes)
        self.model, self.stream = program.model, program.stream
        self.areas: list[Any] = [
            (ctypes.c_char * n).from_address(p) for n, p in zip(self.nbytes, self.host, strict=True)
        ]

    def stage(self, array: np.ndarray) -> None:
        """Copy the feed to pinned memory."""
        np.copyto(np.frombuffer(self.areas[0], array.dtype).reshape(array.shape), array)

    def submit(self) -> None:
        """Copy in, execute, copy out."""
        rt, (n_in, n_out) = self.acl.rt, self.nbytes
        ok(rt.memcpy_async(self.device[0], n_in, self.host[0], n_in, H2D, self.stream))
        ok(self.acl.mdl.execute_async(self.model, *self.datasets, self.stream))
        ok(rt.memcpy_async(self.host[1], n_out, self.device[1], n_out, D2H, self.stream))

    def result(self) -> np.ndarray:
        """Copy the result out of pinned memory."""
        result: np.ndarray = np.frombuffer(self.areas[1], np.float32).copy()
        return result


class ToThread(Program):
    """The model behind ``asyncio.to_thread``, ``depth`` requests at once."""

    def __init__(self, acl: Any, path: str, depth: int = 4) -> None:
        super().__init__(acl, path)
        self.submitting = threading.Lock()
        self.slots = [Slot(self) for _ in range(depth)]
        self.free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in self.slots:
            self.free.put(slot)

    def call(self, array: np.ndarray) -> np.ndarray:
        """Run one request in the calling thread."""
        ok(self.acl.rt.set_context(self.context))
        slot = self.free.get()
        try:
            slot.stage(array)
            with self.submitting:  # a model takes executions on one stream and from one thread at a time
                slot.submit()
            ok(self.acl.rt.synchronize_stream(self.stream))
            return slot.result()
        finally:
            self.free.put(slot)

    async def infer(self, array: np.ndarray) -> np.ndarray:
        """Run one request in a pool thread."""
        return await asyncio.to_thread(self.call, array)

    def close(self) -> None:
        """Free all of it; call it in the thread that made it."""
        for slot in self.slots:
            slot.close()
        super().close()


Job = tuple[np.ndarray, "asyncio.Future[np.ndarray]"]


class OneThread(Program):
    """The model behind one thread that takes up to ``depth`` requests, waits for all of them once, and wakes the loop.

    The lowest cost of the same ACL calls behind an ``await``: nothing is checked, timed, overlapped or cancelled.
    """

    def __init__(self, acl: Any, path: str, depth: int = 4) -> None:
        super().__init__(acl, path)
        self.slots = [Slot(self) for _ in range(depth)]
        self.loop = asyncio.get_running_loop()
        self.inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        """Take jobs, submit, wait and deliver, until the inbox ends."""
        ok(self.acl.rt.set_context(self.context))
        while (job := self.inbox.get()) is not None:
            jobs = [job]
            while len(jobs) < len(self.slots) and not self.inbox.empty():
                if (job := self.inbox.get()) is None:
                    return
                jobs.append(job)
            for slot, (array, _) in zip(self.slots, jobs, strict=False):
                slot.stage(array)
                slot.submit()
            ok(self.acl.rt.synchronize_stream(self.stream))
            answers = [(future, slot.result()) for slot, (_, future) in zip(self.slots, jobs, strict=False)]
            self.loop.call_soon_threadsafe(self.deliver, answers)

    @staticmethod
    def deliver(answers: list[tuple[asyncio.Future[np.ndarray], np.ndarray]]) -> None:
        """Set the results; runs on the event loop."""
        for future, result in answers:
            future.set_result(result)

    async def infer(self, array: np.ndarray) -> np.ndarray:
        """Run one request in the thread."""
        future: asyncio.Future[np.ndarray] = self.loop.create_future()
        self.inbox.put((array, future))
        return await future

    def close(self) -> None:
        """Free all of it; call it in the thread that made it."""
        self.inbox.put(None)
        self.thread.join()
        for slot in self.slots:
            slot.close()
        super().close()
