"""What a client may do on the real bus, found out by doing it: each with a client of its own, as whoever holds the
credentials would."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError, for_code
from aiokafka.protocol.fetch import FetchRequest

from callyard import clients
from callyard.settings import KafkaSettings
from tests.support.wait import until


async def written(settings: KafkaSettings, names: Iterable[str]) -> set[str]:
    """Where this client may write, by an idempotent producer as workers have it: no right on the cluster (KIP-679)."""
    found = set()
    try:
        async with clients.producer(settings, "test") as producer:
            for name in names:
                with contextlib.suppress(TopicAuthorizationFailedError):
                    await producer.send_and_wait(name, b"value", key=b"key", partition=0)
                    found.add(name)
    except clients.KafkaUnreachableError as error:
        assert "lets this client write nothing" in str(error)  # noqa: PT017 - whoever may write anywhere has an id
    return found


async def read(settings: KafkaSettings, names: Sequence[str]) -> set[str]:
    """Where this client may read; it asks without looking for the topic first, as consumers do."""
    asked = FetchRequest(100, 0, 1_000_000, 0, [(name, [(0, 0, 1_000_000)]) for name in names])
    async with clients.client(settings) as client:
        answer = await client.send(client.get_random_node(), asked)
    codes = {name: rows[0][1] for name, rows in answer.topics}
    assert set(codes) == set(names)
    assert set(codes.values()) <= {0, TopicAuthorizationFailedError.errno}
    return {name for name, code in codes.items() if not code}


async def seen(settings: KafkaSettings, names: Sequence[str]) -> set[str]:
    """Which of these this client can see; what it isn't told by name is in no list either."""
    async with clients.admin(settings) as admin:
        described = {topic["topic"]: topic["error_code"] for topic in await admin.describe_topics(list(names))}
        assert set(await admin.list_topics()) <= {name for name, code in described.items() if not code}
    assert set(described.values()) <= {0, TopicAuthorizationFailedError.errno}
    return {name for name, code in described.items() if not code}


async def with_settings(settings: KafkaSettings, names: Iterable[str]) -> set[str]:
    """Whose settings this client can read."""
    async with clients.admin(settings) as admin:
        answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names])
    return {name for answer in answers for code, _, _, name, _ in answer.resources if not code}


async def joined(settings: KafkaSettings, groups: Iterable[str], topic: str) -> set[str]:
    """Which groups this client can be a member of, for this topic."""
    found = set()
    for group in groups:
        consumer = AIOKafkaConsumer(**clients.connection(settings), group_id=group)
        try:
            await consumer.start()
            consumer.subscribe([topic])
            with contextlib.suppress(TopicAuthorizationFailedError):  # a member may not read the topic, all the same
                await asyncio.wait_for(consumer.getmany(timeout_ms=500), 10)
            member = await until(lambda c=consumer: c._coordinator.generation, what=f"joined {group}")
            assert member > 0
            found.add(group)
        except GroupAuthorizationFailedError:
            pass
        finally:
            await consumer.stop()
    return found


async def offsets_seen(settings: KafkaSettings, groups: Iterable[str]) -> set[str]:
    """Of which groups this client can see how far they have read."""
    found = set()
    async with clients.admin(settings) as admin:
        for group in groups:
            with contextlib.suppress(GroupAuthorizationFailedError):
                await admin.list_consumer_group_offsets(group)
                found.add(group)
    return found


async def administered(settings: KafkaSettings, topic: str, new: str) -> set[str]:
    """What of an administrator's work this client may do to a topic; where it may, it does."""
    partition = TopicPartition(topic, 0)
    config = ConfigResource(ConfigResourceType.TOPIC, topic, {"retention.ms": "1000"})
    found = set()

    async def tried(what: str, work: Callable[[Any], Awaitable[Any]]) -> None:
        try:
            async with clients.admin(settings) as admin:
                answer = await work(admin)
        except clients.KafkaUnreachableError as error:
            assert "uthorizationFailed" in str(error), str(error)  # noqa: PT017 - the code's name, as aiokafka has it
            return
        codes = _codes(answer)
        if not codes or any(codes):
            assert {for_code(code) for code in codes} <= {TopicAuthorizationFailedError}, codes
        if not any(codes):
            found.add(what)

    await tried("create", lambda admin: admin.create_topics([NewTopic(new, 1, 1)]))
    await tried("alter", lambda admin: admin.alter_configs([config]))
    await tried("erase", lambda admin: admin.delete_records({partition: RecordsToDelete(before_offset=0)}))
    await tried("delete", lambda admin: admin.delete_topics([topic]))
    return found


def _codes(answer: Any) -> list[int]:
    """The codes of an administrator's requests; those that raise instead have none."""
    if isinstance(answer, dict):
        return []
    if isinstance(answer, list):
        return [row[0] for one in answer for row in one.resources]
    rows = getattr(answer, "topic_errors", None) or answer.topic_error_codes
    return [row[1] for row in rows]
