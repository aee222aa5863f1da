"""The engine without Faust or Kafka: what it asks of them, and how often."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, cast

from callyard.fence import Fence
from callyard.settings import KafkaSettings, PolicySettings
from callyard.topics import topics
from streams.engine import Engine
from streams.partition import Partition
from streams.policy import Policy

TOPICS = topics(KafkaSettings())
POLICY = Policy.of(PolicySettings())


class Asked:
    """Stands for Kafka; counts what it is asked."""

    def __init__(self, ends: Mapping[str, int]) -> None:
        self.questions = 0
        self._ends = ends

    async def ends(self, topics: Iterable[str], partition: int) -> Mapping[str, int]:
        assert partition == 0
        self.questions += 1
        return {topic: self._ends[topic] for topic in topics}


def event(topic: str, offset: int) -> Any:
    return SimpleNamespace(message=SimpleNamespace(topic=topic, offset=offset, key=b"49123"), ack=lambda: None)


def engine(kafka: Asked) -> Engine:
    nobody = cast("Any", None)
    return Engine(
        TOPICS, cast("Any", kafka), nobody, nobody, cast("Fence", None), "w", group_limit=500, tick_seconds=1,
        failed=lambda _: None,
    )  # fmt: skip


async def test_many_timers_cost_one_question() -> None:
    """A request for each would stand between a thousand leases that run out at once and everybody's callers."""
    kafka = Asked({TOPICS.registrations.name: 0, TOPICS.calls.name: 0})
    timers = [event(TOPICS.timers.name, offset) for offset in range(1_000)]
    made, partition = engine(kafka), Partition(0, TOPICS, POLICY, 3_600_000)
    assert await made._admit(partition, timers) == timers
    assert kafka.questions == 1


async def test_timers_wait_for_inputs_that_were_written_before() -> None:
    kafka = Asked({TOPICS.registrations.name: 0, TOPICS.calls.name: 2})
    first, second, third = (event(TOPICS.timers.name, offset) for offset in range(3))
    calls = [event(TOPICS.calls.name, offset) for offset in range(2)]
    made, partition = engine(kafka), Partition(0, TOPICS, POLICY, 3_600_000)
    assert await made._admit(partition, [first, second]) == []
    assert await made._admit(partition, [calls[0], third]) == [calls[0]]
    partition.applied[TOPICS.calls.name] = 0
    assert await made._admit(partition, [calls[1]]) == [calls[1], first, second, third]
    assert kafka.questions == 2
