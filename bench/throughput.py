"""How much goes through one stream worker on a backlog."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from aiokafka import TopicPartition

from bench.stages import read
from callyard import clients
from callyard.errors import CommandError
from callyard.kafka.embedded import EmbeddedKafka
from callyard.processes import Child, worker
from callyard.records import (
    CallerLeft,
    CallerParked,
    CallRecord,
    ConferenceRegistered,
    ConferenceUnregistered,
    LeftReason,
    RegistrationRecord,
    Source,
)
from callyard.settings import KafkaSettings
from callyard.topics import topics
from callyard.topics_command import ensure

STREAM_SECONDS = 90.0
GATEWAY = "gw-bench"


def backlog(kafka: EmbeddedKafka) -> KafkaSettings:
    """Where the backlog and its journal are."""
    return KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, topic_prefix="backlog")


async def stream(
    kafka: EmbeddedKafka,
    directory: Path,
    inputs: int,
    policy: Mapping[str, str] | None = None,
    after: Callable[[KafkaSettings, Child], Awaitable[None]] | None = None,
) -> dict[str, Any]:
    """One worker on a backlog: inputs a second, from its first journal entry to its last.

    ``policy``: settings of its own; ``after``: awaited once it is through, before it is ended.
    """
    settings = backlog(kafka)
    await ensure(settings)
    await _write(settings, inputs)
    child = worker(
        "stream",
        environment={
            "CALLYARD_KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
            "CALLYARD_KAFKA_TOPIC_PREFIX": settings.topic_prefix,
            **(policy or {}),
        },
        log=directory / "backlog.log",
    )  # fmt: skip
    child.start()
    try:
        await _decided(settings, child, inputs)
        if after is not None:
            await after(settings, child)
    finally:
        await child.stop()
    journal = await read(settings, topics(settings).journal.name)
    written = sorted(record.timestamp for record in journal if b'"type":"decision"' in record.value)[:inputs]
    if len(written) < inputs:
        raise CommandError(f"the journal holds {len(written)} decisions, {inputs} were expected")
    seconds = (written[-1] - written[0]) / 1000
    return {"inputs": inputs, "seconds": round(seconds, 2), "a second": round(inputs / seconds)}


async def _write(settings: KafkaSettings, inputs: int) -> None:
    """Four inputs for each conference: a caller parks, it opens, it ends, the caller leaves."""
    names = topics(settings)
    async with clients.producer(settings, "bench", max_batch_size=256 * 1024) as producer:
        for number in range(inputs // 4):
            conference = str(100_000 + number)
            calls, registrations = _story(conference)
            for topic, record in zip(
                (names.calls, names.registrations, names.registrations, names.calls),
                (calls[0], *registrations, calls[1]),
                strict=True,
            ):
                await producer.send(topic.name, record.encode(), key=conference.encode())
        await producer.flush()


def _story(conference: str) -> tuple[list[CallRecord], list[RegistrationRecord]]:
    sender, source, instance, node = "bench", Source.FREESWITCH, f"i-{conference}", "node-1"
    call_id = f"{GATEWAY}/{conference}.1"
    return [
        CallerParked(sender=sender, conference=conference, gateway_id=GATEWAY, call_id=call_id, stay=1),
        CallerLeft(
            sender=sender, conference=conference, gateway_id=GATEWAY, call_id=call_id, stay=1, reason=LeftReason.HANGUP
        ),
    ], [
        ConferenceRegistered(
            sender=sender, conference=conference, source=source, instance_id=instance, node_id=node,
            sip_uri=f"sip:{conference}@192.0.2.7:5060;transport=tcp",
        ),
        ConferenceUnregistered(
            sender=sender, conference=conference, source=source, instance_id=instance, node_id=node
        ),
    ]  # fmt: skip


async def _decided(settings: KafkaSettings, child: Child, inputs: int) -> None:
    """Wait until the journal has an entry for each input; only its ends are asked for, because reading costs, too."""
    async with clients.consumer(settings) as consumer:
        partitions = [TopicPartition(topics(settings).journal.name, number) for number in range(settings.partitions)]

        async def complete() -> bool:
            await asyncio.sleep(0.1)
            ends = await consumer.end_offsets(partitions)
            # Each partition's journal begins with the epoch and the policy.
            return bool(sum(ends.values()) >= inputs + 2 * settings.partitions)

        await child.until(complete, STREAM_SECONDS, f"through with {inputs} inputs")
