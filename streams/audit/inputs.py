"""The recorded inputs that journal entries name, read in step with them: bounded, and nothing that no entry names."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from callyard import clients
from callyard.errors import CommandError
from callyard.settings import KafkaSettings
from streams.audit.reading import STALLED_SECONDS, StoredRecord, partitions_of


class Inputs:
    """Inputs by their position; asked for in the order of each partition. Made by `following`."""

    def __init__(self, consumer: AIOKafkaConsumer, begins: dict[TopicPartition, int], ends: dict[TopicPartition, int]):
        self._consumer = consumer
        self._begins = begins
        self._ends = ends
        self._buffers: dict[TopicPartition, deque[StoredRecord]] = {}

    def here(self, partition: TopicPartition, offset: int) -> tuple[bool, StoredRecord | None]:
        """Whether it is known without asking Kafka what stands there; and that (None: nothing, or not any more)."""
        if not self._begins.get(partition, 0) <= offset < self._ends.get(partition, 0):
            return True, None
        buffer = self._buffers.get(partition)
        while buffer:
            if buffer[0].offset > offset:
                return True, None
            record = buffer.popleft()
            if record.offset == offset:
                return True, record
        return False, None

    async def fetch(self, partition: TopicPartition, offset: int) -> None:
        """Get what stands there, and what follows. Raises `CommandError` where Kafka sends nothing."""
        if partition not in self._buffers:
            self._consumer.seek(partition, offset)
            self._consumer.resume(partition)
            self._buffers[partition] = deque()
        began = time.monotonic()
        try:
            while not (got := await self._consumer.getmany(partition, timeout_ms=200)):
                if await self._consumer.position(partition) > offset:
                    self._begins[partition] = offset + 1  # a transaction's marker stands there
                    return
                if time.monotonic() - began > STALLED_SECONDS:
                    raise CommandError(f"Kafka sent nothing of {partition} for {STALLED_SECONDS:g} s")
        except KafkaError as error:
            raise CommandError(f"Kafka cannot be read: {error!r}") from None
        self._buffers[partition].extend(got[partition])


@asynccontextmanager
async def following(settings: KafkaSettings, names: Sequence[str]) -> AsyncIterator[Inputs]:
    """The inputs of these topics. Raises `KafkaUnreachableError`, and `CommandError` without a topic."""
    partitions = await partitions_of(settings, names)
    async with clients.consumer(settings, auto_offset_reset="none", fetch_max_wait_ms=100) as consumer:
        consumer.assign(partitions)
        consumer.pause(*partitions)
        begins = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        yield Inputs(consumer, begins, ends)
