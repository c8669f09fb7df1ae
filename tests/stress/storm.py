"""Random users of sessions, who are cancelled, run out of time, leave, close, and meet devices that break."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

from tests.stress.storm_work import Array, Kind, Request, Requests

from aioais import (
    AclError,
    BrokenSessionError,
    ClosedError,
    DeviceError,
    DeviceHangError,
    FeedError,
    InferSession,
    ModelError,
    MultiDeviceSession,
    Tensor,
    emulator,
)

LOST = 507010
HANG_S = 0.25
KEPT = 12
"""Results that a session's users keep for a while: nothing may write into them."""


class Tally:
    """What has happened, over all loops; read by the watchdog in another thread.

    Parameters
    ----------
    quota
        How many disruptions to make.
    """

    def __init__(self, quota: int) -> None:
        self.quota = quota
        self.disruptions: Counter[str] = Counter()
        self.steps = 0
        self.checked = 0

    @property
    def total(self) -> int:
        return sum(self.disruptions.values())

    @property
    def is_over(self) -> bool:
        return self.total >= self.quota

    def disrupt(self, what: str) -> None:
        self.disruptions[what] += 1
        self.steps += 1


class Storm:
    """The users of one event loop.

    Parameters
    ----------
    seed
        Everything that is drawn follows from it; what the threads make of it does not.
    kinds
        The models.
    devices
        How many devices to use.
    tally
        Shared with other loops.
    has_breaks
        Devices hang and are lost.
    has_ends
        A task finalises everything now and then; of every loop of the process.
    """

    def __init__(
        self, seed: int, kinds: list[Kind], devices: int, tally: Tally, has_breaks: bool, has_ends: bool
    ) -> None:
        self._pick = random.Random(seed)
        self._kinds = kinds
        self._devices = devices
        self._tally = tally
        self._has_breaks = has_breaks
        self._has_ends = has_ends
        self._sessions = 0

    async def run(self, users: int) -> None:
        """Let users come and go until there were disruptions enough."""
        await asyncio.gather(self._user_of_all(), *(self._user() for _ in range(users)))

    # --- one session from open to close -----------------------------------------------------------

    async def _user(self) -> None:
        while not self._tally.is_over:
            self._sessions += 1
            pick, kind = self._pick, self._pick.choice(self._kinds)
            session = InferSession(
                pick.randrange(self._devices),
                kind.path,
                depth=pick.randint(1, 5),
                loop=pick.choice([1, 1, 1, 2]),
                check=pick.choice(["strict", "bytes"]) if kind.largest else "strict",
                hang_timeout=HANG_S if self._has_breaks else None,
            )
            opening = asyncio.ensure_future(session.__aenter__())
            if pick.random() < 0.15:
                await self._moment()
                opening.cancel()
            try:
                await opening
            except asyncio.CancelledError:
                self._tally.disrupt("cancel of an opening")
                continue
            except (AclError, ModelError, DeviceError, BrokenSessionError) as error:
                self._excuse(error)
                continue
            await self._use(session, kind)

    async def _use(self, session: InferSession, kind: Kind) -> None:
        pick = self._pick
        requests = Requests(kind, pick, self._sessions)
        kept: deque[tuple[Request, list[Array]]] = deque()
        life = [pick.randint(1, 100)]  # requests until a task closes it
        is_over = asyncio.Event()
        tasks = [
            asyncio.ensure_future(self._work(session, requests, kept, life, is_over)) for _ in range(pick.randint(1, 8))
        ]
        for task in tasks:  # however it ends, the session is to be closed
            task.add_done_callback(lambda _: is_over.set())
        await is_over.wait()
        await self._moment()
        if self._has_ends and pick.random() < 0.05:
            with contextlib.suppress(ResourceWarning):  # device tensors were open, which others use
                await InferSession.finalize()
            self._tally.disrupt("finalize")
        closing = asyncio.ensure_future(session.aclose())
        if pick.random() < 0.3:
            await asyncio.sleep(0)
            closing.cancel()
        await asyncio.wait([closing])
        if not closing.cancelled():
            self._expect(closing.exception())
        try:
            await session.aclose()
        except AclError as error:
            self._excuse(error)
        self._tally.disrupt("close")
        await asyncio.gather(*tasks)
        for request, outputs in kept:
            request.check(outputs)
        for tensor, _ in requests.tensors:
            tensor.close()

    async def _work(
        self,
        session: InferSession,
        requests: Requests,
        kept: deque[tuple[Request, list[Array]]],
        life: list[int],
        is_over: asyncio.Event,
    ) -> None:
        """Make requests until the session is closed."""
        pick = self._pick
        while True:
            life[0] -= 1
            if life[0] < 0 or self._tally.is_over:
                is_over.set()
            act = pick.random()
            try:
                if self._has_breaks and act < 0.01:
                    await self._break(session, requests)
                elif act < 0.03:
                    array = requests.fresh(requests.kind.shapes(pick))
                    if len(requests.tensors) == 6:
                        requests.tensors.pop(0)[0].close()
                    tensor = await self._disturbed(session.to_device(array))
                    if tensor is not None:
                        requests.tensors.append((tensor, array))
                elif act < 0.12:
                    await self._iterate(session, requests)
                elif act < 0.25:
                    await self._consume(session, requests)
                else:
                    request = requests.draw()
                    outputs = await self._infer(session, request)
                    if outputs is not None:
                        request.check(outputs)
                        self._tally.checked += 1
                        kept.append((request, outputs))
                        if len(kept) > KEPT:
                            older, results = kept.popleft()
                            older.check(results)
                self._tally.steps += 1
            except ClosedError:  # another task may have finalised everything
                return
            except FeedError as error:
                if not self._has_ends or "closed" not in str(error):
                    raise
            except (AclError, BrokenSessionError) as error:
                self._excuse(error)
                if isinstance(error, BrokenSessionError):
                    self._tally.disrupt("broken session")
                    return

    # --- what is asked of it -----------------------------------------------------------------------

    async def _infer(self, session: InferSession, request: Request) -> list[Array] | None:
        sizes = self._pick.choice([100000, 64]) if session.model_path.endswith("open.onnx") else 100000
        if self._pick.random() < 0.8:
            arrays: list[Array] | None = await self._disturbed(session.infer(request.feeds, request.mode, sizes))
            return arrays
        tensors: list[Tensor] | None = await self._disturbed(
            session.infer(request.feeds, request.mode, sizes, out_array=False)
        )
        if tensors is None:
            return None
        try:
            outputs: list[Array] | None = await self._disturbed(_to_host(tensors))
        finally:
            for tensor in tensors:
                tensor.close()
        return outputs

    async def _iterate(self, session: InferSession, requests: Requests) -> None:
        wires = self._pick.choice([(0, -1), (-1, 0), (1, 0), (0, 0), (0, 1), (-1, -1)])
        steps = self._pick.randint(1, 4)
        request = requests.draw(wires, steps)
        outputs = await self._disturbed(
            session.infer_iteration(request.feeds, wires, steps, request.mode, mem_copy=self._pick.random() < 0.5)
        )
        if outputs is not None:
            request.check(outputs)
            self._tally.checked += 1

    async def _consume(self, session: InferSession, requests: Requests) -> None:
        """Run a pipeline, and leave it some way."""
        pick = self._pick
        asked: deque[Request] = deque()
        mode = pick.choice(requests.kind.modes)

        def items() -> Iterator[Any]:
            for _ in range(pick.randint(0, 12)):
                request = requests.draw()
                while request.mode == "static" != mode:
                    request = requests.draw()
                asked.append(request)
                yield request.feeds

        async def awaited() -> AsyncIterator[Any]:
            for feeds in items():
                if pick.random() < 0.3:
                    await self._moment()
                yield feeds

        pipe = session.infer_pipeline(awaited() if pick.random() < 0.5 else items(), cast("Any", mode))
        way, stop = pick.choice(["stay", "break", "aclose", "error", "cancel"]), pick.randint(1, 8)

        async def consume() -> str:
            taken = 0
            async for outputs in pipe:
                asked.popleft().check(outputs)
                self._tally.checked += 1
                taken += 1
                if taken == stop and way == "break":
                    return "break out of a pipeline"
                if taken == stop and way == "error":
                    raise KeyError("of the consumer")
                if taken == stop and way == "aclose":
                    await pipe.aclose()
                    return "aclose of a pipeline"
            assert not asked, "a result is missing"
            return ""

        try:
            left = await (self._disturbed(consume()) if way == "cancel" else consume())
        except KeyError:
            left = "error in a consumer"
        finally:
            await pipe.aclose()
        if left:
            self._tally.disrupt(left)

    async def _disturbed(self, work: Any) -> Any:
        """Await something, or be cancelled, or run out of time; ``None`` then."""
        pick = self._pick
        act = pick.random()
        if act < 0.3:
            return await work
        if act < 0.55:
            try:
                return await asyncio.wait_for(work, pick.choice([0, 0.0001, 0.0005, 0.002]))
            except asyncio.TimeoutError:
                self._tally.disrupt("timeout")
                return None
        task = asyncio.ensure_future(work)
        await self._moment()
        task.cancel()
        if act > 0.95:
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            self._tally.disrupt("cancel")
            return None
        return task.result()

    async def _moment(self) -> None:
        act = self._pick.random()
        if act < 0.85:
            for _ in range(self._pick.randint(0, 3)):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(self._pick.choice([0.0002, 0.001, 0.003]))

    # --- devices that break -----------------------------------------------------------------------

    async def _break(self, session: InferSession, requests: Requests) -> None:
        """Break the session's device; raises what the session says of it."""
        request = requests.draw()
        act = self._pick.randrange(3)
        if act == 0:
            with emulator.gate("execute", session.device_id):
                await session.infer(request.feeds, request.mode)
            raise AssertionError("the device hangs, and no caller is told")
        if act == 1:
            with emulator.kill(session.device_id):  # until another task that has killed it too brings it back
                await session.infer(request.feeds, request.mode)
            return
        emulator.fail("acl.mdl.execute_async", LOST, device_side=True)
        await session.infer(request.feeds, request.mode)  # another task may meet it

    def _excuse(self, error: BaseException) -> None:
        """Raise an error that no broken device explains."""
        cause: BaseException | None = error
        while self._has_breaks and cause is not None:
            if isinstance(cause, DeviceHangError) or (isinstance(cause, AclError) and cause.code == LOST):
                return
            cause = cause.__cause__
        raise error

    def _expect(self, error: BaseException | None) -> None:
        if error is not None:
            self._excuse(error)

    # --- many devices at once ---------------------------------------------------------------------

    async def _user_of_all(self) -> None:
        """Use all devices by one session; opened and closed over and over too."""
        pick = self._pick
        while not self._tally.is_over:
            self._sessions += 1
            kind = pick.choice(self._kinds)
            requests = Requests(kind, pick, self._sessions)
            timeout = HANG_S if self._has_breaks else None
            session = MultiDeviceSession(kind.path, depth=pick.randint(1, 3), hang_timeout=timeout)
            try:
                for _ in range(pick.randint(1, 12)):
                    if pick.random() < 0.5:
                        await self._lanes(session, requests)
                    else:
                        await self._stream(session, requests)
                    self._tally.steps += 1
            except ClosedError:
                assert self._has_ends
            except (AclError, ModelError, DeviceError, BrokenSessionError) as error:
                self._excuse(error)
            finally:
                await session.aclose(cancel=True)
            self._tally.disrupt("close")

    async def _lanes(self, session: MultiDeviceSession, requests: Requests) -> None:
        mode = self._pick.choice(requests.kind.modes)
        lanes = {
            device: [_in_mode(requests, mode) for _ in range(self._pick.randint(1, 3))]
            for device in range(self._devices)
        }
        feeds = {device: [request.feeds for request in asked] for device, asked in lanes.items()}
        results = await self._disturbed(session.infer(feeds, cast("Any", mode)))
        if results is not None:
            for device, asked in lanes.items():
                for request, outputs in zip(asked, results[device], strict=True):
                    request.check(outputs)
                    self._tally.checked += 1

    async def _stream(self, session: MultiDeviceSession, requests: Requests) -> None:
        pick = self._pick
        mode = pick.choice(requests.kind.modes)
        asked = [_in_mode(requests, mode) for _ in range(pick.randint(1, 20))]
        stop = pick.randint(1, 30)
        pipe = session.stream((request.feeds for request in asked), mode=cast("Any", mode), ordered=pick.random() < 0.5)

        async def consume() -> int:
            seen: set[int] = set()
            async for index, _, outputs in pipe:
                assert index not in seen, "a result came twice"
                seen.add(index)
                asked[index].check(outputs)
                self._tally.checked += 1
                if len(seen) == stop:
                    break
            return len(seen)

        try:
            came = await self._disturbed(consume())
        finally:
            await pipe.aclose()
        if came is not None:
            assert came == min(stop, len(asked))
            if came < len(asked):
                self._tally.disrupt("break out of a stream")


def _in_mode(requests: Requests, mode: str) -> Request:
    """Draw a request that fits a mode of several."""
    while True:
        request = requests.draw()
        if mode == "static" or request.mode != "static":
            return request


async def _to_host(tensors: list[Tensor]) -> list[Array]:
    return list(await asyncio.gather(*(tensor.to_host() for tensor in tensors)))
