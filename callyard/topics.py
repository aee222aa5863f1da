"""The topics: names, partitions, policies; created explicitly and checked before any worker starts.

Faust ignores a missing topic with no more than a warning and never reads it when it appears later, and a wrong number
of partitions would put the events of one conference into different partitions of the table. So every worker calls
`check` first. The three inputs carry the broker's timestamps (LogAppendTime): they are the clock of all decisions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    InvalidReplicationFactorError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)
from aiokafka.partitioner import murmur2

from callyard import granted
from callyard.guards import patched
from callyard.settings import KafkaSettings

DAY_MS = 86_400_000
CHANGELOG_MAX_BYTES = 8 * 1024 * 1024
"""The largest batch of the table's changelog: a group of decisions is one batch or nothing."""
CLAIMS_KEPT_MS = 3_600_000
"""The table's changelog keeps every row for so long: which rows of older owners are void is told by what stands between
them (`streams.claims`), and a batch can come no later than its connection lives (10 minutes at a broker)."""


class TopicsError(Exception):
    """Topics are missing or not as they must be. ``problems`` says which and what to do."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("topics:\n" + "\n".join(f"  {problem}" for problem in problems))


@dataclass(frozen=True)
class Topic:
    """One topic as it must be. ``config`` holds Kafka's own topic settings."""

    name: str
    partitions: int
    config: Mapping[str, str]


@dataclass(frozen=True)
class Topics:
    """All topics of one Callyard. ``replayed``: they are marked for replays (`KafkaSettings.replayed`)."""

    registrations: Topic
    calls: Topic
    timers: Topic
    dials: Topic
    journal: Topic
    rejected: Topic
    changelog: Topic
    replayed: bool = False

    @property
    def inputs(self) -> tuple[Topic, Topic, Topic]:
        """What the stream consumes, in one Faust agent: their partition N meets in one table partition."""
        return self.registrations, self.calls, self.timers

    @property
    def all(self) -> tuple[Topic, ...]:
        return (*self.inputs, self.dials, self.journal, self.rejected, self.changelog)


def topics(settings: KafkaSettings) -> Topics:
    """The topics that these settings ask for."""
    prefix, partitions = settings.topic_prefix, settings.partitions
    # The first index entry of a segment (by default after 4 KB) makes the broker touch a new page of a mapped file: the
    # record that causes it was seen some 50 ms late on an ordinary disk. Seeking by offset reads 1 MB more at the most.
    # What is replayed keeps its own times, which may be older than any retention.
    replayed = settings.replayed
    written = {"message.timestamp.type": "CreateTime"} if replayed else {}
    append_time = {"message.timestamp.type": "LogAppendTime", "index.interval.bytes": str(1024 * 1024)}
    # Segments go by the records' own times, so a long past replayed would be one file for each of its days.
    rolled = str(_NEVER_MS if replayed else DAY_MS)
    kept = {"cleanup.policy": "delete", "segment.ms": rolled, **append_time}
    # The broker unpacks what senders compress: no reader needs their codecs, and none unpacks a bomb.
    plain = {"compression.type": "uncompressed"}

    def retention(name: Literal["registrations", "calls", "journal", "rejected"]) -> dict[str, str]:
        days = settings.retention_days_of(name)
        return {"retention.ms": _FOR_EVER if replayed and name != "rejected" else str(int(days * DAY_MS))}

    def topic(name: str, config: Mapping[str, str]) -> Topic:
        return Topic(f"{prefix}.{name}", partitions, config)

    return Topics(
        registrations=topic("registrations", {**kept, **plain, **retention("registrations")}),
        calls=topic("calls", {**kept, **plain, **retention("calls")}),
        timers=topic("timers", {**kept, **plain, "retention.ms": _FOR_EVER if replayed else str(DAY_MS)}),
        dials=topic("dials", {"cleanup.policy": "delete", "retention.ms": str(DAY_MS), **append_time, **plain}),
        journal=topic(
            "journal", {**kept, **written, "max.message.bytes": str(CHANGELOG_MAX_BYTES), **retention("journal")}
        ),
        rejected=topic("rejected", {"cleanup.policy": "delete", "segment.ms": str(DAY_MS), **retention("rejected")}),
        changelog=Topic(
            changelog_name(settings),
            partitions,
            {
                "cleanup.policy": "compact",
                "min.compaction.lag.ms": str(CLAIMS_KEPT_MS),
                "max.message.bytes": str(CHANGELOG_MAX_BYTES),
                "index.interval.bytes": append_time["index.interval.bytes"],
            },
        ),
        replayed=replayed,
    )


ORIGINAL_HEADER = "callyard-original-ms"
"""On an input that is replayed: when the broker had stamped it, in milliseconds since 1970-01-01 UTC."""


def original_ms(headers: Any) -> int | None:
    """The original time that an input's headers tell; None where they tell none that can be one."""
    for name, value in headers.items() if isinstance(headers, Mapping) else headers or ():
        if name == ORIGINAL_HEADER and value is not None and len(value) <= 15 and value.isdigit():
            return int(value)
    return None


def stream_id(settings: KafkaSettings) -> str:
    """Faust's app id: the consumer group of the stream workers."""
    return f"{settings.topic_prefix}-stream"


DESK_TABLE = "desks"


def changelog_name(settings: KafkaSettings) -> str:
    """The changelog topic of the desks' table, as Faust names it."""
    return f"{stream_id(settings)}-{DESK_TABLE}-changelog"


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key, as every Kafka client's default partitioner (murmur2) has it."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


async def create(admin: AIOKafkaAdminClient, settings: KafkaSettings) -> list[str]:
    """Create what is missing and return the names of what was created; what exists is left as it is (see `check`).

    Returns when the brokers list all of it. Raises `TopicsError` when Kafka refuses a topic.
    """
    existing = set(await admin.list_topics())
    missing = [topic for topic in topics(settings).all if topic.name not in existing]
    if not missing:
        return []
    response = await admin.create_topics(
        [
            NewTopic(topic.name, topic.partitions, settings.replication_factor, topic_configs=dict(topic.config))
            for topic in missing
        ],
        timeout_ms=settings.request_timeout_ms,
    )
    problems, created = [], []
    for name, code, *message in response.topic_errors:
        error = for_code(code)
        if not code:
            created.append(name)
        elif error is not TopicAlreadyExistsError:
            problems.append(f"{name} could not be created: {_reason(error, message)}")
            if error is InvalidReplicationFactorError:
                problems[-1] += f" (CALLYARD_KAFKA_REPLICATION_FACTOR is {settings.replication_factor})"
            elif error is TopicAuthorizationFailedError:
                problems[-1] += " (topics are made with an administrator's credentials)"
    if problems:
        raise TopicsError(sorted(problems))
    await _listed(admin, {topic.name for topic in missing}, settings.request_timeout_ms / 1000)
    return created


async def _listed(admin: AIOKafkaAdminClient, names: set[str], timeout: float) -> None:
    # The controller answers before the brokers know of the topics: a check or a producer right after that would still
    # miss them.
    deadline = time.monotonic() + timeout
    while missing := names - set(await admin.list_topics()):
        if time.monotonic() > deadline:
            raise TopicsError([f"{name} was created but no broker shows it yet: try again" for name in sorted(missing)])
        await asyncio.sleep(0.02)


async def check(admin: AIOKafkaAdminClient, settings: KafkaSettings) -> None:
    """Raise `TopicsError` unless every topic is there, with its partitions and the policies that decisions rely on."""
    existing = set(await admin.list_topics())
    missing = [topic.name for topic in topics(settings).all if topic.name not in existing]
    # Unlike aiokafka's own request this one never makes a broker create what is asked for.
    hidden = await granted.on_topics(patched(admin, "_client"), missing) if missing else {}
    problems = [
        f"{name} is missing, or may not be looked at with these credentials"
        if name in hidden
        else f"{name} is missing: run 'callyard topics' with the same settings"
        for name in missing
    ]
    present = [topic for topic in topics(settings).all if topic.name in existing]
    if present:
        problems.extend(await _check_partitions(admin, present))
        problems.extend(await _check_config(admin, present))
    if problems:
        raise TopicsError(problems)


async def _check_partitions(admin: AIOKafkaAdminClient, present: list[Topic]) -> list[str]:
    descriptions = await admin.describe_topics([topic.name for topic in present])
    found = {description["topic"]: len(description["partitions"]) for description in descriptions}
    return [
        f"{topic.name} has {found[topic.name]} partitions, CALLYARD_KAFKA_PARTITIONS says {topic.partitions}: set it to"
        f" {found[topic.name]}, or stop all workers and create the topics anew (all events of a conference must meet in"
        " one partition)"
        for topic in present
        if found[topic.name] != topic.partitions
    ]


async def _check_config(admin: AIOKafkaAdminClient, present: list[Topic]) -> list[str]:
    wanted = {topic.name: topic for topic in present}
    problems = []
    for response in await admin.describe_configs(
        [ConfigResource(ConfigResourceType.TOPIC, name) for name in wanted], include_synonyms=False
    ):
        for code, message, _, name, entries in response.resources:
            if code:
                problems.append(f"{name}: its settings cannot be read: {_reason(for_code(code), [message])}")
                continue
            found = {entry[0]: entry[1] for entry in entries}
            problems.extend(
                f"{name} has {key}={found.get(key)}, it must be {value}{' or more' if key in _AT_LEAST else ''}:"
                f" kafka-configs --alter --topic {name} --add-config {key}={value}"
                for key, value in wanted[name].config.items()
                if key not in _ADVICE and not _satisfied(key, value, found.get(key))
            )
    return sorted(problems)


_ADVICE = frozenset({"index.interval.bytes", "segment.ms"})
"""Given to what is created, not asked of what exists: what makes things faster, and how late (a day, by Kafka's default
a week) retention may remove a record, because it removes whole segments."""
_AT_LEAST = frozenset({"retention.ms", "max.message.bytes", "min.compaction.lag.ms"})
"""Topic settings of which more is as good; the others must be equal."""
_FOR_EVER = "-1"
_NEVER_MS = 2**63 - 1


def _satisfied(key: str, wanted: str, found: str | None) -> bool:
    if found is None or key not in _AT_LEAST or wanted == _FOR_EVER:
        return found == wanted
    return int(found) >= int(wanted) or (key == "retention.ms" and found == _FOR_EVER)


def _reason(error: type[Exception], message: Sequence[str | None]) -> str:
    return " ".join([error.__name__, *(text for text in message if text)])
