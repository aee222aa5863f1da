"""Topics and records of the embedded Kafka, as tests write and read them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.record.util import calc_crc32c

from callyard import clients, topics
from callyard.records import Record
from callyard.settings import KafkaSettings


def environment(settings: KafkaSettings) -> dict[str, str]:
    """The variables by which a worker process reaches the same Kafka and the same topics."""
    return {
        "CALLYARD_KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "CALLYARD_KAFKA_TOPIC_PREFIX": settings.topic_prefix,
        "CALLYARD_KAFKA_PARTITIONS": str(settings.partitions),
    }


async def callyard(environment: Mapping[str, str], *words: str, timeout: float = 120) -> tuple[int, str, str]:
    """A command as a process of its own: exit status, output, what it said beside."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "callyard.main", *words, env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), timeout)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def create_topics(settings: KafkaSettings) -> None:
    """Create and check all topics of these settings."""
    async with clients.admin(settings) as admin:
        await topics.create(admin, settings)
        await topics.check(admin, settings)


async def delete_topics(settings: KafkaSettings) -> None:
    """Delete all topics of these settings: a broker of a long test run keeps no more than the running test's."""
    async with clients.admin(settings) as admin:
        existing = set(await admin.list_topics())
        await admin.delete_topics([topic.name for topic in topics.topics(settings).all if topic.name in existing])


async def send(settings: KafkaSettings, topic: str, *records: tuple[str | bytes | None, Record | bytes]) -> None:
    """Deliver records (key, value) to a topic, in order, and wait until all are there."""
    async with clients.producer(settings, "test") as producer:
        for key, value in records:
            await send_one(producer, topic, key, value)


async def send_one(producer: AIOKafkaProducer, topic: str, key: str | bytes | None, value: Record | bytes) -> None:
    """Deliver one record."""
    await producer.send_and_wait(
        topic,
        value.encode() if isinstance(value, Record) else value,
        key=key.encode() if isinstance(key, str) else key,
    )


async def send_named(
    settings: KafkaSettings, topic: str, partition: int, *records: tuple[bytes | None, bytes | None, Sequence[bytes]]
) -> None:
    """Deliver records (key, value, header names) as one batch whose header names are these bytes.

    No client writes names that aren't UTF-8: they are put into the finished batch in the place of others as long.
    """
    stands_for: dict[bytes, bytes] = {}
    async with clients.producer(settings, "test-names") as producer:
        batch = producer.create_batch()
        for key, value, names in records:
            headers = []
            for name in names:
                stand_in = f"{len(stands_for):_>{len(name)}}"
                stands_for[stand_in.encode() + b"\x02\xff"] = name + b"\x02\xff"  # with its value
                headers.append((stand_in, b"\xff"))
            assert batch.append(key=key, value=value, timestamp=None, headers=headers) is not None
        build = batch._build

        def put_in() -> bytearray:
            built = bytearray(build())
            for stand_in, name in stands_for.items():
                assert built.count(stand_in) == 1
                built[:] = built.replace(stand_in, name)
            built[CRC_AT : CRC_AT + 4] = calc_crc32c(bytes(built[CRC_AT + 4 :])).to_bytes(4, "big")
            return built

        batch._build = put_in
        await (await producer.send_batch(batch, topic, partition=partition))


CRC_AT = 17
"""Where the checksum of what follows it stands in a batch."""


@asynccontextmanager
async def reader(settings: KafkaSettings, *names: str) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer of these topics from their beginning, in no group."""
    async with clients.consumer(settings, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(name, number) for name in names for number in range(settings.partitions)])
        yield consumer


async def read(
    settings: KafkaSettings,
    *names: str,
    enough: int | Callable[[list[ConsumerRecord[Any, Any]]], bool] | None = None,
    timeout: float = 20,
) -> list[ConsumerRecord[Any, Any]]:
    """Records of these topics from their beginning, in the order of their timestamps.

    ``enough``: a number of records, or a function of what was read that says whether that is enough; fails when that
    takes longer than ``timeout`` seconds. None: all that is there now.
    """
    found: list[ConsumerRecord[Any, Any]] = []
    async with reader(settings, *names) as consumer:
        if enough is None:
            ends = await consumer.end_offsets(list(consumer.assignment()))
        deadline = time.monotonic() + timeout
        while True:
            if enough is None:
                positions = {partition: await consumer.position(partition) for partition in ends}
                if all(positions[partition] >= end for partition, end in ends.items()):
                    break
            elif len(found) >= enough if isinstance(enough, int) else enough(found):
                break
            if time.monotonic() > deadline:
                raise AssertionError(f"{names}: not enough within {timeout:g} s: {[r.value for r in found[-5:]]}")
            for batch in (await consumer.getmany(timeout_ms=100)).values():
                found.extend(batch)
    return sorted(found, key=lambda record: (record.timestamp, record.topic, record.partition, record.offset))
