"""A producer that outlives what Kafka refuses: it is made anew after that, so that its sender can go on.

An idempotent producer numbers its records. One that is refused (a right is missing) leaves a gap in the numbers, and
everything after the gap is refused for ever, even when the right is there again. Nothing is sent twice here: what
failed is told to whoever sent it, who says again what is still true.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.structs import RecordMetadata

from callyard import clients
from callyard.settings import KafkaSettings


class LastingProducer:
    """As aiokafka's producer, as far as `callyard.sending` needs it."""

    def __init__(self, settings: KafkaSettings, client_id: str) -> None:
        self._settings = settings
        self._client_id = client_id
        self._lock = asyncio.Lock()
        self._producer: AIOKafkaProducer | None = None
        self._stack = AsyncExitStack()
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect. Raises `KafkaUnreachableError`."""
        stack = AsyncExitStack()
        self._producer = await stack.enter_async_context(clients.producer(self._settings, self._client_id))
        self._stack = stack

    async def stop(self) -> None:
        """Deliver what was handed over, for a moment at most (`callyard.clients.STOP_SECONDS`), and disconnect."""
        await self._stack.aclose()
        await asyncio.gather(*self._ending)

    async def send(self, topic: str, value: bytes, **more: Any) -> asyncio.Future[RecordMetadata]:
        """Hand a record over; the future ends with its delivery. Raises aiokafka's `KafkaError`, as the future does."""
        producer = await self._sound()
        delivery: asyncio.Future[RecordMetadata] = await producer.send(topic, value, **more)
        delivery.add_done_callback(partial(self._look, producer))
        return delivery

    async def send_and_wait(self, topic: str, value: bytes, **more: Any) -> RecordMetadata:
        """Deliver a record."""
        return await (await self.send(topic, value, **more))

    async def _sound(self) -> AIOKafkaProducer:
        async with self._lock:
            if self._producer is None:
                try:
                    await self.start()
                except clients.KafkaUnreachableError as error:
                    raise KafkaConnectionError(str(error)) from None
            return self._producer

    def _look(self, producer: AIOKafkaProducer, delivery: asyncio.Future[RecordMetadata]) -> None:
        error = None if delivery.cancelled() else delivery.exception()
        if producer is self._producer and isinstance(error, KafkaError) and not error.retriable:
            self._producer = None
            ending = asyncio.create_task(self._stack.aclose(), name="a refused producer ends")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)


@asynccontextmanager
async def producer(settings: KafkaSettings, client_id: str) -> AsyncIterator[LastingProducer]:
    """A started one, stopped at the end. Raises `KafkaUnreachableError`."""
    made = LastingProducer(settings, client_id)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
