"""What hooks and agents share: number their records, send them in order, set rubbish aside.

A `Sender` never loses order within a conference (one producer, same key) and never drops a failed delivery silently:
`send` raises. `reject` puts what could not be read onto the rejected topic as it came, with the reason in headers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TypeAlias, TypeVar

from aiokafka import AIOKafkaProducer
from aiokafka.structs import RecordMetadata
from prometheus_client import Counter

from callyard.lasting import LastingProducer
from callyard.records import Sent
from callyard.topics import Topics

S = TypeVar("S", bound=Sent)
Producer: TypeAlias = AIOKafkaProducer | LastingProducer

REJECTED = Counter("callyard_rejected", "Records and messages that could not be read and were set aside.", ["source"])
SENT = Counter("callyard_sent", "Records delivered to Kafka.", ["topic", "type"])
MAX_REJECTED_BYTES = 900_000
"""What is set aside is cut at this length, so that it always fits a topic's largest message."""


class Sequence:
    """A sender's sequence: grows with each record and also across restarts (it starts at the clock's microseconds)."""

    def __init__(self, start: int | None = None) -> None:
        self._last = time.time_ns() // 1000 if start is None else start

    def stamp(self, record: S) -> S:
        """The record with its number and its sending time."""
        self._last += 1
        return record.model_copy(update={"sender_sequence": self._last, "sent_at_ms": time.time_ns() // 1_000_000})


class Sender:
    """Sends one worker's records to one topic, keyed by conference."""

    def __init__(
        self, producer: Producer, topics: Topics, topic: str, sign: Callable[[Sent], Sent] | None = None
    ) -> None:
        """``sign`` is given each record with its number and time, and returns what is sent."""
        self._sign = sign
        self._producer = producer
        self._topics = topics
        self._topic = topic
        self._sequence = Sequence()

    async def send(self, record: Sent, conference: str) -> None:
        """Deliver one record; returns when all replicas have it. Raises aiokafka's `KafkaError` when that failed."""
        await (await self.begin(record, conference))

    async def begin(self, record: Sent, conference: str) -> asyncio.Future[RecordMetadata]:
        """Hand one record over without waiting for its delivery; those of a conference keep the order of the calls.

        The future ends when all replicas have the record, or with aiokafka's `KafkaError`: the caller must look at it.
        """
        stamped: Sent = self._sequence.stamp(record)
        if self._sign is not None:
            stamped = self._sign(stamped)
        delivery: asyncio.Future[RecordMetadata] = await self._producer.send(
            self._topic, stamped.encode(), key=conference.encode()
        )
        delivery.add_done_callback(partial(self._count, getattr(record, "type", "?")))
        return delivery

    def _count(self, record_type: str, delivery: asyncio.Future[RecordMetadata]) -> None:
        if not delivery.cancelled() and delivery.exception() is None:
            SENT.labels(self._topic, record_type).inc()

    async def reject(self, source: str, reason: str, value: bytes, key: bytes | None = None) -> None:
        """Set aside what could not be read; ``source`` says where it came from (``ami``, ``esl``, a topic's name)."""
        REJECTED.labels(source).inc()
        await reject(self._producer, self._topics, source, reason, value, key)


async def reject(
    producer: Producer, topics: Topics, source: str, reason: str, value: bytes, key: bytes | None = None
) -> None:
    """Put ``value`` onto the rejected topic as it came, with source and reason in headers."""
    headers = [("callyard-source", source.encode()), ("callyard-reason", reason.encode(errors="replace")[:2000])]
    if len(value) > MAX_REJECTED_BYTES:
        headers.append(("callyard-cut-from-bytes", str(len(value)).encode()))
    await producer.send_and_wait(topics.rejected.name, value[:MAX_REJECTED_BYTES], key=key, headers=headers)
