"""Consume a stream of messages on every device: bad messages are set aside, SIGTERM ends it in order.

As a script it consumes messages of a simulated broker, sends itself SIGTERM, and checks that each message that it took
was answered or rejected::

    python examples/serving/consumer.py
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

import anyio
import anyio.abc
import numpy as np
import numpy.typing as npt

import aioais
from aioais import AclError, MultiDeviceSession
from aioais.blame import Culprit, blame
from aioais.demo_data import DIGITS_MODEL, load_digits

Image = npt.NDArray[np.float32]

BUFFER = 16
"""Most messages that wait here for a device; the broker keeps the others."""
AHEAD = 4
"""Messages that are read ahead for each device. All that are taken and not answered are delivered again if this process
dies, so it takes few."""


@dataclass
class Message:
    id: int
    body: bytes


class Broker:
    """Simulates the client of a message broker that delivers a message again until it is acknowledged."""

    def __init__(self) -> None:
        self.taken = 0
        self.answers: dict[int, int] = {}
        self.rejected: dict[int, str] = {}
        images, self.labels = load_digits()
        self._bodies = [image.astype(np.uint8).tobytes() for image in images]

    async def take(self) -> Message:
        k = self.taken
        self.taken += 1
        body = self._bodies[k % len(self._bodies)]
        return Message(k, body[:-1] if k % 50 == 7 else body)  # some are bad

    async def answer(self, message: Message, digit: int) -> None:
        """Publish a result and acknowledge its message."""
        self.answers[message.id] = digit
        if len(self.answers) == 300:
            os.kill(os.getpid(), signal.SIGTERM)  # as a supervisor does to stop the service

    async def reject(self, message: Message, reason: str) -> None:
        """Put a message into a queue for inspection, and acknowledge it."""
        self.rejected[message.id] = reason


def decode(message: Message) -> list[Image]:
    """Return the feeds of a message; raise ``ValueError`` if the model cannot take them."""
    pixels = np.frombuffer(message.body, np.uint8)
    if len(pixels) != 64 or pixels.max() > 16:
        raise ValueError(f"got {len(pixels)} bytes of up to {pixels.max(initial=0)}; expected 64 bytes of 0 to 16")
    return [pixels.reshape(1, 1, 8, 8).astype(np.float32)]


async def poll(broker: Broker, inbox: anyio.abc.ObjectSendStream[Message], polling: anyio.CancelScope) -> None:
    """Take messages until ``polling`` is cancelled; waits while the inbox is full."""
    # When the inbox is closed, it ends after its last message. A message that was taken and is not in the inbox yet is
    # not acknowledged, so the broker delivers it again.
    async with inbox:
        with polling:
            while True:
                await inbox.send(await broker.take())


async def consume(broker: Broker, session: MultiDeviceSession, inbox: AsyncIterable[Message]) -> None:
    """Answer messages until the inbox ends."""
    unanswered: dict[int, Message] = {}

    async def feeds() -> AsyncIterator[list[Image]]:
        # An item that fails ends the stream, so bad messages must not enter it. A later error ends the program, and the
        # broker delivers the unanswered messages to the next one.
        count = 0
        async for message in inbox:
            try:
                item = decode(message)
            except ValueError as error:
                await broker.reject(message, str(error))
                continue
            unanswered[count] = message
            count += 1
            yield item

    # The stream reads more only as results are taken, so a slow broker slows down the reading and nothing piles up.
    async with aclosing(session.stream(feeds(), prefetch=AHEAD)) as results:
        try:
            async for index, _, (logits,) in results:
                await broker.answer(unanswered.pop(index), int(logits.argmax()))
        except AclError as error:
            if blame(error).culprit is Culprit.DATA:  # results are in order: the oldest one failed
                await broker.reject(unanswered[min(unanswered)], str(error))
            raise


async def stop_on_signals(polling: anyio.CancelScope) -> None:
    """Stop polling at the first signal; the second one ends the process, as usual."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            polling.cancel()
            return


async def main() -> None:
    broker = Broker()
    # An asyncio.Queue cannot be closed before Python 3.13.
    sender, receiver = anyio.create_memory_object_stream[Message](BUFFER)
    async with receiver, MultiDeviceSession(DIGITS_MODEL) as session, anyio.create_task_group() as tasks:
        polling = anyio.CancelScope()
        tasks.start_soon(stop_on_signals, polling)
        tasks.start_soon(poll, broker, sender, polling)
        await consume(broker, session, receiver)
        tasks.cancel_scope.cancel()  # stop waiting for a signal

    right = sum(digit == broker.labels[k % len(broker.labels)] for k, digit in broker.answers.items())
    print(f"{right} of {len(broker.answers)} digits are right, {len(broker.rejected)} messages were rejected")
    print(f"the first: {next(iter(broker.rejected.values()))}")
    assert right / len(broker.answers) >= 0.97
    assert all(k % 50 == 7 for k in broker.rejected)
    # At most one message, which waited for a place in the inbox at the signal, is left to the broker.
    assert broker.taken - len(broker.answers) - len(broker.rejected) <= 1


if __name__ == "__main__":
    aioais.run(main)
