"""Looks at a running Callyard for ``callyard status``: brokers, topics, groups, the table. It changes nothing.

An auditor's rights are enough. What they don't allow is told as such, and the rest is looked at all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    NotCoordinatorForGroupError,
    TopicAuthorizationFailedError,
    for_code,
)

from callyard import clients
from callyard.clients import KafkaUnreachableError
from callyard.settings import KafkaSettings
from callyard.topics import Topics, TopicsError, check, partition_of, stream_id, topics
from streams.audit.fold import DeskState
from streams.audit.present import read_present
from streams.audit.status import WAITS_MS, Gateway, Group, Lag, Member, Status

AGENTS = "{}-agent-"
"""How the groups of gateways' agents begin; what follows is the gateway's id."""
GROUP_TRIES = 20
NEWEST_SECONDS = 5.0
PAUSE_SECONDS = 1.0


async def look(kafka: KafkaSettings, patience_seconds: float) -> Status:
    """All of it. ``patience_seconds``: how long what is there may stay undecided; waited for only where it does."""
    found = Status(kafka.bootstrap_servers, int(time.time() * 1000), patience_seconds, partitions=kafka.partitions)
    names = topics(kafka)
    found.rejected = names.rejected.name
    try:
        async with clients.admin(kafka) as admin:
            try:
                await check(admin, kafka)
            except TopicsError as error:
                found.topics = error.problems
            existing = set(await admin.list_topics())
            groups = await _Groups(admin, found.blind).all(kafka)
            counts = await _counts(admin, [topic.name for topic in names.all if topic.name in existing])
        found.stream = groups.pop(stream_id(kafka), None)
        if len(counts) == len(names.all):
            found.partitions = counts[names.calls.name]
            await _look_inside(kafka, names, counts, found, groups)
    except KafkaUnreachableError as error:
        found.unreachable = str(error)
    except TopicAuthorizationFailedError as error:
        found.blind.append(f"this user may not read the topics ({error})")
    return found


class _Groups:
    """Callyard's consumer groups."""

    def __init__(self, admin: AIOKafkaAdminClient, blind: list[str]) -> None:
        self._admin = admin
        self._blind = blind

    async def all(self, kafka: KafkaSettings) -> dict[str, Group]:
        """The stream's group and those of all gateways' agents, by name; without those that may not be looked at."""
        agents = AGENTS.format(kafka.topic_prefix)
        listed = {name for name, *_ in await self._admin.list_consumer_groups()}
        wanted = {stream_id(kafka), *(name for name in listed if name.startswith(agents))}
        found = {name: await self._one(name) for name in sorted(wanted)}
        return {name: group for name, group in found.items() if group is not None}

    async def _one(self, name: str) -> Group | None:
        for tries_left in reversed(range(GROUP_TRIES)):
            try:
                [response] = await self._admin.describe_consumer_groups([name])
                [(code, _, state, _, _, members, *_)] = response.groups
                if code:
                    raise for_code(code)(name)
            except GroupAuthorizationFailedError:
                self._blind.append(f"this user may not look at the consumer group {name} (Describe)")
                return None
            except (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError):
                if not tries_left:  # a Kafka that nobody has used yet makes its own topic first
                    raise
                await asyncio.sleep(0.25)
            else:
                return Group(name, state, tuple(sorted((_member(*member) for member in members), key=_order)))
        raise AssertionError("the last try raises")


def _member(_id: str, client: str, host: str, _metadata: bytes, assignment: bytes) -> Member:
    assigned = ConsumerProtocolMemberAssignment.decode(assignment).partitions() if assignment else []
    return Member(client, host.lstrip("/"), tuple(sorted({one.partition for one in assigned})))


def _order(member: Member) -> tuple[tuple[int, ...], str, str]:
    return member.partitions, member.host, member.client


async def _counts(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, int]:
    """How many partitions there are, which may not be as many as are set."""
    described = await admin.describe_topics(names) if names else []
    found = {topic["topic"]: len(topic["partitions"]) for topic in described}
    return {name: found[name] for name in names}


async def _look_inside(
    kafka: KafkaSettings, names: Topics, counts: Mapping[str, int], found: Status, groups: Mapping[str, Group]
) -> None:  # fmt: skip
    every = [TopicPartition(name, number) for name, count in counts.items() for number in range(count)]
    own = {name: _of(kafka, group, names.dials.name, counts) for name, group in groups.items()}
    async with clients.consumer(kafka, auto_offset_reset="none", fetch_max_wait_ms=100) as consumer:
        consumer.assign(every)
        begins = await consumer.beginning_offsets(every)
        ends = await consumer.end_offsets(every)
        newest = await _newest(consumer, begins, ends)
        found.newest_ms = {name: newest.get(name) for name in counts}
        deadline = time.monotonic() + found.patience_seconds
        while True:
            table = await read_present(kafka)
            positions = {
                TopicPartition(topic.name, number): table.applied.get((topic.name, number), -1) + 1
                for topic in names.inputs
                for number in range(counts[topic.name])
            }
            callers = Counter(stay.gateway_id for desk in table.desks.values() for stay in desk.active())
            dials = await _dials(kafka, own)
            now = await consumer.end_offsets(every)
            found.inputs = {
                topic.name: _sum(
                    _lag(positions[tp], begins[tp], ends[tp], now[tp]) for tp in positions if tp.topic == topic.name
                )
                for topic in names.inputs
            }
            found.gateways = [
                Gateway(
                    _id(kafka, group),
                    group,
                    tp.partition,
                    _lag(dials[group.name], begins[tp], ends[tp], now[tp]),
                    callers[_id(kafka, group)],
                )
                for group in groups.values()
                for tp in [own[group.name]]
            ]
            stale = any(lag.stale for lag in (*found.inputs.values(), *(one.lag for one in found.gateways)))
            if not stale or time.monotonic() > deadline:
                break
            await asyncio.sleep(min(PAUSE_SECONDS, found.patience_seconds))
    _count(found, table.desks.values())


def _lag(position: int, begin: int, end_before: int, end_now: int) -> Lag:
    read = max(position, begin)
    return Lag(max(0, end_now - read), max(0, end_before - read))


def _sum(lags: Iterable[Lag]) -> Lag:
    found = list(lags)
    return Lag(sum(lag.undecided for lag in found), sum(lag.stale for lag in found))


def _of(kafka: KafkaSettings, group: Group, dials: str, counts: Mapping[str, int]) -> TopicPartition:
    """The partition in which a gateway's instructions lie."""
    return TopicPartition(dials, partition_of(_id(kafka, group).encode(), counts[dials]))


def _id(kafka: KafkaSettings, group: Group) -> str:
    return group.name.removeprefix(AGENTS.format(kafka.topic_prefix))


async def _dials(kafka: KafkaSettings, own: Mapping[str, TopicPartition]) -> dict[str, int]:
    """How far each gateway's agents say that they have read their partition; 0 where they said nothing yet.

    Who may look at a group may look at its offsets.
    """
    found = dict.fromkeys(own, 0)
    async with clients.admin(kafka) as admin:
        for name, tp in own.items():
            committed = await admin.list_consumer_group_offsets(name, partitions=[tp])
            found[name] = committed[tp].offset if tp in committed else 0
    return found


async def _newest(
    consumer: AIOKafkaConsumer, begins: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
) -> dict[str, int]:
    """When each topic's newest record was stamped, by the last record of each of its partitions."""
    newest: dict[str, int] = {}
    waits = {tp for tp, end in ends.items() if end > begins[tp]}
    for tp in ends:
        consumer.seek(tp, max(begins[tp], ends[tp] - 1))
    deadline = time.monotonic() + NEWEST_SECONDS
    # An end without a record (a transaction's marker) is waited for in vain.
    while waits and time.monotonic() < deadline:
        for tp, records in (await consumer.getmany(*waits, timeout_ms=200)).items():
            newest[tp.topic] = max(newest.get(tp.topic, 0), *(record.timestamp for record in records))
            waits.discard(tp)
    return newest


def _count(found: Status, desks: Collection[DeskState]) -> None:
    found.registrations = sum(len(desk.live()) for desk in desks)
    found.callers = dict(sorted(Counter(stay.state.value for desk in desks for stay in desk.active()).items()))
    before = found.at_ms - WAITS_MS
    found.stuck = tuple(
        sorted(
            desk.conference
            for desk in desks
            if any(registration.since_ms < before for registration in desk.live())
            and any(stay.state.value == "parked" and stay.since_ms < before for stay in desk.active())
        )
    )
