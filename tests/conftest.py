"""Fixtures for all tests: the embedded Kafka (one for the whole run) and topics of each test's own."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from callyard.kafka import embedded
from callyard.settings import KafkaSettings
from tests.support import kafka as topics_of

pytest_plugins = ["tests.support.asterisk", "tests.support.cluster"]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of whoever runs the tests don't reach them, except for the cache's place."""
    for name in [name for name in os.environ if name.startswith("CALLYARD_") and name != "CALLYARD_CACHE"]:
        monkeypatch.delenv(name)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def kafka(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[embedded.EmbeddedKafka]:
    """A broker for the whole run. Tests that end or restart a broker start one of their own."""
    async with embedded.running(tmp_path_factory.mktemp("kafka") / "data") as running:
        yield running


@pytest_asyncio.fixture
async def kafka_settings(kafka: embedded.EmbeddedKafka) -> AsyncIterator[KafkaSettings]:
    """Settings with a topic prefix of this test's own, and those topics (of three partitions) created."""
    settings = unique_settings(kafka)
    await topics_of.create_topics(settings)
    yield settings
    await topics_of.delete_topics(settings)


def unique_settings(kafka: embedded.EmbeddedKafka, partitions: int = 3) -> KafkaSettings:
    """Settings for this broker whose topics and groups no other test has."""
    return KafkaSettings(
        bootstrap_servers=kafka.bootstrap_servers, topic_prefix=f"t{uuid.uuid4().hex[:12]}", partitions=partitions
    )
