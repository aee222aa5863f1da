"""Writes recorded inputs into another Kafka, for tests and demonstrations: in the recorded order, at a chosen speed.

Registrations, calls and the deadlines that had passed go to topics of the same names under the other's prefix, which
must be marked for replays (``replay-…``): there, and nowhere else, a stream takes an input's time from its header, and
publishes no deadlines of its own. So what is decided there is what was decided here.

Between the topics of one partition Kafka keeps no order. So an input of another topic than the one before it is written
once the stream there has decided that one; without a running stream, nothing would keep the order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from callyard import clients
from callyard.errors import CommandError
from callyard.records import DeadlinePassed, RecordError
from callyard.settings import REPLAY_PREFIX, KafkaSettings
from callyard.topics import ORIGINAL_HEADER, Topics, partition_of, topics
from callyard.topics_command import ensure
from streams.audit.findings import Findings
from streams.audit.inputs import Inputs, following
from streams.audit.reading import Parser, Reading, Span, StoredRecord, Unreadable, reading
from streams.audit.rerun import TIMER
from streams.audit.shapes import require_decision
from streams.audit.trail import Trail, read

DECIDED_SECONDS = 60.0
"""How long the stream at the target may take to decide what was written."""
QUEUED = 500
"""Most inputs of a partition that are written and not yet known to be decided."""


@dataclass
class Written:
    """What was written into the other Kafka."""

    inputs: int = 0
    missing: int = 0
    """Inputs that have expired at the source."""
    unreadable: int = 0
    """Records of the journals that were skipped."""
    first_ms: int = 0
    last_ms: int = 0
    seconds: float = 0


@dataclass(frozen=True)
class Pace:
    """How fast, and how far apart."""

    speed: float | None = None
    """Times faster than it was; None: as fast as it goes."""
    space: float = 1.0
    """Times longer between two inputs, in the time that their headers tell."""
    begin_ms: int | None = None
    """The time that the first input's header tells; None: its own."""


async def require_other(source: KafkaSettings, target: KafkaSettings, same_kafka: bool) -> None:
    """Raise `CommandError` where inputs must not be written: to unmarked topics, or where they came from."""
    if not target.replayed:
        raise CommandError(
            f"the target's prefix is {target.topic_prefix!r}: it must begin with {REPLAY_PREFIX!r}, because only"
            " streams of such topics take an input's time from its header"
        )
    if source.topic_prefix == target.topic_prefix and await _cluster(source) == await _cluster(target):
        raise CommandError("source and target are the same topics")
    if not same_kafka and await _cluster(source) == await _cluster(target):
        raise CommandError(
            "source and target are the same Kafka: say --same-kafka if that is meant (under another prefix)"
        )


async def _cluster(settings: KafkaSettings) -> str:
    async with clients.admin(settings) as admin:
        described = await admin.describe_cluster()
    return str(described["cluster_id"])


async def write(
    source: KafkaSettings, target: KafkaSettings, span: Span, pace: Pace,
    unreadable: Unreadable = Unreadable.SKIP, say: Callable[[str], None] = lambda _: None,
) -> Written:  # fmt: skip
    """Write a period's inputs into the target, whose topics are created where they are missing.

    Raises `CommandError` where the target's stream doesn't decide them, and what `reading` and `Parser.judged` raise.
    """
    names = topics(source)
    await ensure(target)
    async with (
        reading(source, [names.journal.name], span) as found,
        following(source, (names.registrations.name, names.calls.name)) as inputs,
        clients.producer(target, "callyard-replay") as producer,
        clients.consumer(target, auto_offset_reset="latest") as journal,
    ):
        found.require_any()
        target_topics = topics(target)
        followed = [TopicPartition(target_topics.journal.name, number) for number in range(target.partitions)]
        journal.assign(followed)
        for partition, end in (await journal.end_offsets(followed)).items():
            journal.seek(partition, end)
        parser = Parser({}, unreadable, say)
        decided = _Decided(journal, parser)
        into = _Into(names, target_topics, producer, decided, pace)
        tasks = into.start() | {asyncio.create_task(decided.follow(), name="following the target's journal")}
        writing = asyncio.create_task(_write_all(found, inputs, into, parser), name="writing inputs")
        try:
            await asyncio.wait({writing, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            for ended in tasks:
                if ended.done():
                    ended.result()
            return await writing
        finally:
            writing.cancel()
            for running in tasks:
                running.cancel()
            await asyncio.gather(writing, *tasks, return_exceptions=True)


async def _write_all(found: Reading, inputs: Inputs, into: _Into, parser: Parser) -> Written:
    trails = {tp.partition: Trail(tp.topic, tp.partition, Findings()) for tp in found.bounds}
    async for batch in found.batches():
        for record in batch:
            entry = parser.judged(record, partial(into.decision, trails[record.partition], record))
            if entry is not None:
                await into.take(entry, inputs)
    into.written.unreadable = parser.skipped
    return await into.finish()


def _decided_at(record: StoredRecord) -> dict[str, Any] | None:
    """The position that a record of the target's journal decides; None: it decides none."""
    content = read(record.value)
    if content["type"] != "decision":
        return None
    require_decision(content)
    position: dict[str, Any] = content["position"]
    return position


class _Decided:
    """How far the target's stream has come."""

    def __init__(self, journal: AIOKafkaConsumer, parser: Parser) -> None:
        self._journal = journal
        self._parser = parser
        self._reached: dict[tuple[str, int], int] = {}
        self._went_on = asyncio.Condition()
        self._heard = time.monotonic()

    async def follow(self) -> None:
        """Read the target's journal, until cancelled."""
        while True:
            got = await self._journal.getmany(timeout_ms=200)
            async with self._went_on:
                for record in (record for records in got.values() for record in records):
                    at = self._parser.judged(record, partial(_decided_at, record))
                    if at is not None:
                        self._reached[at["topic"], at["partition"]] = at["offset"]
                        self._heard = time.monotonic()
                self._went_on.notify_all()

    async def until(self, topic: str, partition: int, offset: int) -> None:
        """Wait until this input was decided. Raises `CommandError` where nothing was for `DECIDED_SECONDS`."""
        began = time.monotonic()
        async with self._went_on:
            while self._reached.get((topic, partition), -1) < offset:
                await self._went_on.wait()
                if time.monotonic() - max(began, self._heard) > DECIDED_SECONDS:
                    raise CommandError(
                        f"no stream has decided {topic}-{partition}@{offset} within {DECIDED_SECONDS:g} s: run"
                        " 'callyard stream' with the target's settings, and look at what it logs"
                    )


@dataclass(frozen=True)
class _Given:
    """One input, as it is to be written."""

    topic: str
    key: bytes
    value: bytes
    original_ms: int


class _Into:
    """Writes inputs: each partition's in order, all partitions beside each other."""

    def __init__(
        self, names: Topics, target: Topics, producer: AIOKafkaProducer, decided: _Decided, pace: Pace
    ) -> None:
        self._topics = {
            names.registrations.name: target.registrations.name,
            names.calls.name: target.calls.name,
            names.timers.name: target.timers.name,
        }
        self._partitions = target.registrations.partitions
        self._producer = producer
        self._decided = decided
        self._pace = pace
        self._began = time.monotonic()
        self._queues = [asyncio.Queue[_Given](maxsize=QUEUED) for _ in range(self._partitions)]
        self.written = Written()

    def start(self) -> set[asyncio.Task[None]]:
        """Tasks that write what is taken, until cancelled."""
        return {
            asyncio.create_task(self._write(number, queue), name=f"writing partition {number}")
            for number, queue in enumerate(self._queues)
        }

    def decision(self, trail: Trail, record: StoredRecord) -> dict[str, Any] | None:
        """The decision that a record holds. Raises `RecordError` where it holds none that can be written again."""
        entry = trail.take(record.offset, record.value)
        if entry is None or entry["type"] != "decision":
            return None
        require_decision(entry)
        if (topic := entry["position"]["topic"]) not in self._topics:
            raise RecordError(f"it decides an input of {topic!r:.60}, which is none of {', '.join(self._topics)}")
        return entry

    async def take(self, entry: dict[str, Any], inputs: Inputs) -> None:
        """Take the input of one decision, when its time has come."""
        at_ms = entry["broker_ms"]
        value = await self._value(entry, inputs)
        if value is None:
            self.written.missing += 1
            return
        if not self.written.inputs:
            self.written.first_ms, self._began = at_ms, time.monotonic()
        elapsed = at_ms - self.written.first_ms
        if self._pace.speed is not None:
            await asyncio.sleep(max(0.0, elapsed / 1000 / self._pace.speed - (time.monotonic() - self._began)))
        begin_ms = self.written.first_ms if self._pace.begin_ms is None else self._pace.begin_ms
        original = max(0, begin_ms + round(elapsed * self._pace.space))
        key = entry["conference"].encode()
        given = _Given(self._topics[entry["position"]["topic"]], key, value, original)
        await self._queues[partition_of(key, self._partitions)].put(given)
        self.written.inputs += 1
        self.written.last_ms = max(self.written.last_ms, original)

    async def finish(self) -> Written:
        """Wait until all of it was decided."""
        for queue in self._queues:
            await queue.join()
        self.written.seconds = time.monotonic() - self._began
        return self.written

    async def _write(self, number: int, queue: asyncio.Queue[_Given]) -> None:
        under_way: list[Awaitable[Any]] = []
        topic = ""
        while True:
            given = await queue.get()
            if under_way and given.topic != topic:
                # Only within one topic is there an order.
                await self._settle(topic, number, under_way)
            topic = given.topic
            headers = [(ORIGINAL_HEADER, str(given.original_ms).encode())]
            under_way.append(
                await self._producer.send(topic, given.value, key=given.key, partition=number, headers=headers)
            )
            if queue.empty() or len(under_way) >= QUEUED:
                await self._settle(topic, number, under_way)
            queue.task_done()

    async def _settle(self, topic: str, number: int, under_way: list[Awaitable[Any]]) -> None:
        """Wait until what was written to a partition was decided there."""
        delivered = await asyncio.gather(*under_way)
        under_way.clear()
        await self._decided.until(topic, number, delivered[-1].offset)

    async def _value(self, entry: dict[str, Any], inputs: Inputs) -> bytes | None:
        if entry["event_type"] == TIMER:
            due = entry["broker_ms"]
            return DeadlinePassed(sender="replay", conference=entry["conference"], due_ms=due).encode()
        position = entry["position"]
        tp, offset = TopicPartition(position["topic"], position["partition"]), position["offset"]
        known, given = inputs.here(tp, offset)
        while not known:
            await inputs.fetch(tp, offset)
            known, given = inputs.here(tp, offset)
        if given is not None and given.value is None:
            raise CommandError(f"{tp.topic}-{tp.partition}@{offset} was decided and has no value")
        return None if given is None else bytes(given.value)
