"""Consume a stream of messages: every device is kept busy, poison is set aside, SIGTERM ends it in order.

As a script it consumes messages of a broker that it makes up, sends itself SIGTERM, and checks that each message that
was taken has been answered or rejected::

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
from aioais import MultiDeviceSession
from aioais.demo_data import DIGITS_MODEL, load_digits

Image = npt.NDArray[np.float32]

BUFFER = 16
"""Messages that wait here for a device; the broker keeps the others."""


@dataclass
class Message:
    id: int
    body: bytes


class Broker:
    """Stands for the client of a message broker that gives a message again until it is acknowledged."""

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
        return Message(k, body[:-1] if k % 50 == 7 else body)  # some are poison

    async def answer(self, message: Message, digit: int) -> None:
        """Publish a result and acknowledge its message."""
        self.answers[message.id] = digit
        if len(self.answers) == 300:
            os.kill(os.getpid(), signal.SIGTERM)  # as whoever stops the service does

    async def reject(self, message: Message, reason: str) -> None:
        """Put a message where somebody looks at it, and acknowledge it."""
        self.rejected[message.id] = reason


def decode(message: Message) -> list[Image]:
    """Give the feeds of a message; whatever comes, a ``ValueError`` or what the model takes."""
    pixels = np.frombuffer(message.body, np.uint8)
    if len(pixels) != 64 or pixels.max() > 16:
        raise ValueError(f"wanted 64 bytes of 0 to 16, came {len(pixels)} of up to {pixels.max(initial=0)}")
    return [pixels.reshape(1, 1, 8, 8).astype(np.float32)]


async def poll(broker: Broker, inbox: anyio.abc.ObjectSendStream[Message], polling: anyio.CancelScope) -> None:
    """Take messages until ``polling`` is cancelled; waits while the inbox is full."""
    # Closed, the inbox ends behind its last message. One that was taken and has no place yet is not acknowledged, so
    # the broker gives it again.
    async with inbox:
        with polling:
            while True:
                await inbox.send(await broker.take())


async def consume(broker: Broker, session: MultiDeviceSession, inbox: AsyncIterable[Message]) -> None:
    """Answer messages until the inbox ends."""
    unanswered: dict[int, Message] = {}

    async def feeds() -> AsyncIterator[list[Image]]:
        # An item that fails ends the stream, so what cannot run must not enter it. Any error that is left is not of
        # the message: it ends the program, and the broker gives the messages without an answer to the next one.
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

    # The stream reads on when a result was taken: a slow broker slows down the reading and nothing piles up.
    async with aclosing(session.stream(feeds())) as results:
        async for index, _, (logits,) in results:
            await broker.answer(unanswered.pop(index), int(logits.argmax()))


async def stop_on_signals(polling: anyio.CancelScope) -> None:
    """Stop polling at the first signal; the second one kills, as usual."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            polling.cancel()
            return


async def main() -> None:
    broker = Broker()
    # An asyncio.Queue would do for the inbox, but has no end before Python 3.13.
    sender, receiver = anyio.create_memory_object_stream[Message](BUFFER)
    async with receiver, MultiDeviceSession(DIGITS_MODEL) as session, anyio.create_task_group() as tasks:
        polling = anyio.CancelScope()
        tasks.start_soon(stop_on_signals, polling)
        tasks.start_soon(poll, broker, sender, polling)
        await consume(broker, session, receiver)
        tasks.cancel_scope.cancel()  # no signal came: do not wait for one

    right = sum(digit == broker.labels[k % len(broker.labels)] for k, digit in broker.answers.items())
    print(f"{right} of {len(broker.answers)} digits are right, {len(broker.rejected)} messages were rejected")
    print(f"the first: {next(iter(broker.rejected.values()))}")
    assert right / len(broker.answers) >= 0.97
    assert all(k % 50 == 7 for k in broker.rejected)
    # At most the one that waited for a place when the signal came is left to the broker.
    assert broker.taken - len(broker.answers) - len(broker.rejected) <= 1


if __name__ == "__main__":
    aioais.run(main)
