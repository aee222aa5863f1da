"""Topics on the real broker: created once, checked thoroughly, with messages that say what to do."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from callyard import clients, topics
from callyard.clients import KafkaUnreachableError
from callyard.kafka.embedded import EmbeddedKafka
from callyard.settings import KafkaSettings
from callyard.topics import TopicsError
from tests.conftest import unique_settings
from tests.support import kafka as support
from tests.support.ports import free_port
from tests.support.wait import until

pytestmark = pytest.mark.kafka


async def problems(settings: KafkaSettings) -> list[str]:
    """What the check finds; empty when all is well."""
    async with clients.admin(settings) as admin:
        try:
            await topics.check(admin, settings)
        except TopicsError as error:
            return error.problems
    return []


async def alter(settings: KafkaSettings, topic: topics.Topic, **changed: str) -> None:
    """Change a topic's own settings (underscores stand for dots), and wait until the broker shows it."""
    wanted = {**topic.config, **{key.replace("_", "."): value for key, value in changed.items()}}
    async with clients.admin(settings) as admin:
        responses = await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic.name, configs=wanted)])
        assert [resource[0] for response in responses for resource in response.resources] == [0]

        async def shown() -> bool:
            [response] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic.name)])
            found = {entry[0]: entry[1] for entry in response.resources[0][4]}
            return wanted.items() <= found.items()

        await until(shown, what=f"{topic.name} has {changed}")


async def test_created_topics_pass_the_check_and_creating_again_changes_nothing(kafka: EmbeddedKafka) -> None:
    settings = unique_settings(kafka, partitions=4)
    async with clients.admin(settings) as admin:
        created = await topics.create(admin, settings)
        assert sorted(created) == sorted(topic.name for topic in topics.topics(settings).all)
        await topics.check(admin, settings)
        assert await topics.create(admin, settings) == []
    await support.delete_topics(settings)


async def test_every_missing_topic_is_named_with_what_to_do(kafka: EmbeddedKafka) -> None:
    settings = unique_settings(kafka)
    assert await problems(settings) == [
        f"{topic.name} is missing: run 'callyard topics' with the same settings"
        for topic in topics.topics(settings).all
    ]


async def test_one_missing_topic_is_created_beside_the_others(kafka_settings: KafkaSettings) -> None:
    dials = topics.topics(kafka_settings).dials.name
    async with clients.admin(kafka_settings) as admin:
        await admin.delete_topics([dials])
    missing = [f"{dials} is missing: run 'callyard topics' with the same settings"]

    async def only_that() -> bool:
        return await problems(kafka_settings) == missing

    await until(only_that, what=f"the check says {missing}")
    async with clients.admin(kafka_settings) as admin:
        assert await topics.create(admin, kafka_settings) == [dials]
    assert await problems(kafka_settings) == []


async def test_a_wrong_number_of_partitions_is_named(kafka: EmbeddedKafka) -> None:
    settings = unique_settings(kafka, partitions=3)
    calls = topics.topics(settings).calls
    async with clients.admin(settings) as admin:
        await admin.create_topics([NewTopic(calls.name, 5, 1, topic_configs=dict(calls.config))])
        await topics.create(admin, settings)
    [problem] = await problems(settings)
    assert problem.startswith(f"{calls.name} has 5 partitions, CALLYARD_KAFKA_PARTITIONS says 3: set it to 5")
    await support.delete_topics(settings)


@pytest.mark.parametrize(
    ("topic", "changed", "wanted"),
    [
        ("calls", {"message_timestamp_type": "CreateTime"}, "message.timestamp.type=LogAppendTime"),
        ("registrations", {"cleanup_policy": "compact"}, "cleanup.policy=delete"),
        ("journal", {"retention_ms": "60000"}, "retention.ms=2592000000"),
        ("changelog", {"cleanup_policy": "delete"}, "cleanup.policy=compact"),
        ("changelog", {"max_message_bytes": "1000000"}, "max.message.bytes=8388608"),
    ],
)
async def test_a_policy_that_decisions_rely_on_is_checked(
    kafka_settings: KafkaSettings, topic: str, changed: dict[str, str], wanted: str
) -> None:
    altered = getattr(topics.topics(kafka_settings), topic)
    await alter(kafka_settings, altered, **changed)
    [problem] = await problems(kafka_settings)
    assert problem.startswith(f"{altered.name} has ")
    assert f"kafka-configs --alter --topic {altered.name} --add-config {wanted}" in problem


@pytest.mark.parametrize("retention", ["-1", "9000000000000"])
async def test_keeping_records_longer_is_no_problem(kafka_settings: KafkaSettings, retention: str) -> None:
    await alter(kafka_settings, topics.topics(kafka_settings).journal, retention_ms=retention)
    assert await problems(kafka_settings) == []


async def test_what_kafka_refuses_to_create_is_said_with_the_setting(kafka: EmbeddedKafka) -> None:
    settings = unique_settings(kafka).model_copy(update={"replication_factor": 3})
    async with clients.admin(settings) as admin:
        with pytest.raises(TopicsError, match="CALLYARD_KAFKA_REPLICATION_FACTOR is 3") as raised:
            await topics.create(admin, settings)
    assert len(raised.value.problems) == len(topics.topics(settings).all)


@pytest.mark.parametrize("client", ["admin", "producer", "consumer"])
async def test_no_kafka_is_said_at_once(client: str, recwarn: pytest.WarningsRecorder) -> None:
    settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}")
    made: dict[str, Any] = {
        "admin": lambda: clients.admin(settings),
        "producer": lambda: clients.producer(settings, "test"),
        "consumer": lambda: clients.consumer(settings, "any"),
    }
    begun = time.monotonic()
    with pytest.raises(KafkaUnreachableError, match="'callyard kafka' starts an embedded one"):
        async with made[client]():
            raise AssertionError("there is no Kafka")
    assert time.monotonic() - begun < 2
    assert [str(warning.message) for warning in recwarn] == []


async def test_a_kafka_that_accepts_and_says_nothing_is_given_up_after_the_request_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        settings = KafkaSettings(
            bootstrap_servers=f"127.0.0.1:{silent.getsockname()[1]}", request_timeout_ms=500
        )  # fmt: skip
        begun = time.monotonic()
        with pytest.raises(KafkaUnreachableError):
            async with clients.admin(settings):
                raise AssertionError("there is no Kafka")
        assert 0.4 < time.monotonic() - begun < 3


async def test_records_of_the_inputs_carry_the_brokers_time(kafka_settings: KafkaSettings) -> None:
    calls = topics.topics(kafka_settings).calls.name
    async with clients.producer(kafka_settings, "test") as producer:
        await producer.send_and_wait(calls, b"{}", key=b"49123", timestamp_ms=1_000)
    [record] = await support.read(kafka_settings, calls, enough=1)
    assert abs(record.timestamp - time.time() * 1000) < 60_000
    assert record.partition == topics.partition_of(b"49123", kafka_settings.partitions)
