"""The engine: carries out what `streams.partition` plans, in the one order that no crash can hurt.

Faust's agent only pumps events into a bounded queue (`Engine.put`). One task takes whatever waits, without waiting for
more, and for each partition: plans in memory; writes rows, positions and outbox as one batch to the changelog and
awaits it; delivers the outputs and awaits them; acknowledges in order. Whatever goes wrong on that way ends the
process (`Engine.failed`), so that its supervisor restarts it from what the table says: nothing is skipped, nothing is
swallowed, and memory that may be ahead of the table is never gone on with.

It must never send anything without asking the fence in the same step, and never plan for a generation that is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import structlog
from aiokafka import AIOKafkaProducer
from prometheus_client import Counter

from callyard.broker_clock import BrokerClock
from callyard.fence import Fence
from callyard.records import DeadlinePassed
from callyard.sending import Sequence as SenderSequence
from callyard.topics import Topics, original_ms
from streams import meters
from streams.changelog import Changelog, Owned, SupersededError, gathered
from streams.partition import Group, Input, Partition

log = structlog.get_logger(__name__)

HOLES = Counter("callyard_stream_input_holes", "Times that offsets of an input held no record.", ["topic"])

ASK_AGAIN_SECONDS = 5.0
"""A timer that was published and not yet read is published again after this time."""
EARLY_SECONDS = 0.5
"""A timer that was read too early (brokers' clocks differ) is published again after this time."""


class Event(Protocol):
    """What the engine needs of a Faust event."""

    message: Any

    def ack(self) -> bool: ...


class Kafka(Protocol):
    """What the engine needs of the Faust application."""

    def generation(self) -> int:
        """The consumer group's present generation; -1 while it is changing."""

    async def ends(self, topics: Iterable[str], partition: int) -> Mapping[str, int]:
        """The end offsets of these topics' partition."""


class Engine:
    """Owns the partitions of one worker between two rebalances."""

    def __init__(
        self,
        topics: Topics,
        kafka: Kafka,
        changelog: Changelog,
        outputs: AIOKafkaProducer,
        fence: Fence,
        worker: str,
        group_limit: int,
        tick_seconds: float,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._topics = topics
        self._kafka = kafka
        self._changelog = changelog
        self._outputs = outputs
        self._fence = fence
        self._worker = worker
        self._group_limit = group_limit
        self._tick_seconds = tick_seconds
        self._failed = failed
        self._owned: dict[int, Owned] = {}
        self._kept: dict[int, Owned] = {}
        self._generation = -1
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue(maxsize=4 * group_limit)
        self._lock = asyncio.Lock()
        self._held: dict[int, list[tuple[Event, Mapping[str, int]]]] = {}
        self._asked: dict[tuple[int, str], tuple[int, float]] = {}
        self._read: dict[tuple[int, str], tuple[int, float]] = {}
        self._unread: set[tuple[str, int]] = set()
        self._due_now = asyncio.Event()
        self._sequence = SenderSequence()
        self._clock = BrokerClock()

    # --- what Faust calls -------------------------------------------------------------------------------------------

    async def put(self, event: Event) -> None:
        """Take an event from Faust's stream; it is acknowledged once all that follows from it is delivered."""
        await self._queue.put((self._generation, event))

    async def revoke(self) -> None:
        """A rebalance begins: finish the group under way, then own nothing."""
        async with self._lock:
            self._generation = -1
            self._kept.update(self._owned)
            self._owned.clear()
            self._held.clear()
            self._asked.clear()
            self._read.clear()
            while not self._queue.empty():
                self._queue.get_nowait()
            meters.clear()

    async def recover(self, generation: int, numbers: Collection[int]) -> None:
        """Take over these partitions as their changelogs have them, and say what was left unsaid.

        Does nothing where the generation ends meanwhile: another recovery follows. Otherwise raises what `Changelog`
        does.
        """

        def still() -> bool:
            return self._kafka.generation() == generation >= 0

        found = await self._changelog.open(numbers, self._kept, still)
        if found is None:
            return
        async with self._lock:
            self._kept.update(found)  # of use to the next recovery where this one is given up
            if not await self._may_speak(generation):
                return
            try:
                if not all(await gathered(self._changelog.claim(o, generation, still) for o in found.values())):
                    return
            except SupersededError:
                if still():
                    raise
                return
            groups = [(owned, owned.partition.begin(owned.epoch, self._worker)) for _, owned in sorted(found.items())]
            self._owned, self._kept = found, {}
            self._generation = generation
            self._unread = {(topic.name, number) for topic in self._topics.inputs for number in found}
            await self._carry_out(groups)
            meters.owned(owned.partition for owned in found.values())
            log.info("partitions taken over", partitions=sorted(found), generation=generation)

    def applied(self) -> Mapping[tuple[str, int], int]:
        """The last applied offset of each input partition; -1 where nothing was applied yet."""
        return {
            (topic.name, number): owned.partition.applied.get(topic.name, -1)
            for number, owned in self._owned.items()
            for topic in self._topics.inputs
        }

    def skip(self, topic: str, partition: int, offset: int) -> None:
        """Retention removed inputs before they were applied: go on after ``offset``."""
        self._owned[partition].partition.applied[topic] = offset

    # --- tasks ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Decide whatever waits, until cancelled. Any error ends the process by ``failed``."""
        await self._guarded(self._decide_forever)

    async def keep_time(self) -> None:
        """Publish deadlines as they come due, until cancelled; replayed topics bring those that were recorded."""
        if self._topics.replayed:
            return
        await self._guarded(self._tick_forever)

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failed(error)
            raise

    async def _decide_forever(self) -> None:
        while True:
            waiting = [await self._queue.get()]
            async with self._lock:
                while len(waiting) < self._group_limit and not self._queue.empty():
                    waiting.append(self._queue.get_nowait())
                if not await self._may_speak(self._generation):
                    continue  # a rebalance is under way: what was taken comes again
                await self._decide([event for generation, event in waiting if generation == self._generation])

    async def _may_speak(self, generation: int) -> bool:
        """Wait for a fresh heartbeat. False: the generation is over, drop everything and await the rebalance."""
        while self._kafka.generation() == generation >= 0:
            if self._fence.holds:
                return True
            await asyncio.sleep(0.02)
        return False

    # --- one round --------------------------------------------------------------------------------------------------

    async def _decide(self, events: Sequence[Event]) -> None:
        began = time.monotonic()
        fresh: dict[int, list[Event]] = {}
        for event in events:
            fresh.setdefault(event.message.partition, []).append(event)
        while True:
            groups, acks, left = [], [], {}
            for number in sorted({*fresh, *self._held}):
                owned = self._owned.get(number)
                if owned is None:
                    continue
                ready = await self._admit(owned.partition, fresh.get(number, []))
                group = owned.partition.plan([self._input(event) for event in ready])
                if group.consumed:
                    groups.append((owned, group))
                acks += ready[: group.consumed]
                if group.consumed < len(ready):
                    left[number] = ready[group.consumed :]
            if not groups:
                return
            await self._carry_out(groups)
            for event in acks:
                event.ack()
            for _, group in groups:
                meters.decided(group)
            meters.GROUP_SECONDS.observe(time.monotonic() - began)
            meters.owned(owned.partition for owned in self._owned.values())
            fresh = left
            self._wake_for_due()

    async def _admit(self, partition: Partition, events: Sequence[Event]) -> list[Event]:
        """The events to decide now, in order; timers wait until the inputs before them were applied."""
        ready: list[Event] = []
        reached = dict(partition.applied)
        timers = self._topics.timers.name
        held = self._held.pop(partition.number, [])
        ends: Mapping[str, int] | None = None
        for event in events:
            message = event.message
            self._accept_hole(partition, message.topic, message.offset, reached)
            if message.offset <= reached.get(message.topic, -1):
                event.ack()
            elif message.topic == timers:
                if ends is None:  # asked once for all of them: whatever was written before any of these is before it
                    inputs = (self._topics.registrations.name, self._topics.calls.name)
                    ends = await self._kafka.ends(inputs, partition.number)
                held.append((event, ends))
                reached[timers] = message.offset
            else:
                ready.append(event)
                reached[message.topic] = message.offset
        while held and all(reached.get(topic, -1) >= end - 1 for topic, end in held[0][1].items()):
            event, _ = held.pop(0)
            if event.message.offset <= partition.applied.get(timers, -1):
                event.ack()
            else:
                ready.append(event)
        if held:
            self._held[partition.number] = held
        meters.HELD.set(sum(map(len, self._held.values())))
        for event in ready:
            if event.message.topic == timers and event.message.key is not None:
                key = (partition.number, event.message.key.decode(errors="replace"))
                if key in self._asked:
                    self._read[key] = (self._asked.pop(key)[0], time.monotonic())
        return ready

    def _accept_hole(self, partition: Partition, topic: str, offset: int, reached: dict[str, int]) -> None:
        """Go on after offsets that hold no record.

        The first record after a recovery was read from the applied position on, so offsets before it hold none: a
        transaction's marker took them, or they were removed. Anywhere else a hole means that records were skipped, and
        `Partition.plan` raises; the worker then reads again from the applied position.
        """
        if (topic, partition.number) not in self._unread:
            return
        self._unread.discard((topic, partition.number))
        if offset > reached.get(topic, -1) + 1:
            log.error("offsets hold no record; going on after them", topic=topic, partition=partition.number,
                      first_missing=reached.get(topic, -1) + 1, next_present=offset)  # fmt: skip
            HOLES.labels(topic).inc()
            partition.applied[topic] = reached[topic] = offset - 1

    async def _carry_out(self, groups: Sequence[tuple[Owned, Group]]) -> None:
        """State first: each partition's rows as one batch; only then the outputs."""
        await self._changelog.write([(owned, group.rows) for owned, group in groups])
        deliveries = []
        for _, group in groups:
            for output in group.outputs:
                self._fence.check()
                deliveries.append(
                    await self._outputs.send(
                        output.topic,
                        output.value,
                        key=output.key,
                        partition=output.partition,
                        headers=list(output.headers) or None,
                        timestamp_ms=output.at_ms,
                    )
                )
        for delivered in await gathered(deliveries):
            self._clock.observe(delivered)

    def _input(self, event: Event) -> Input:
        message = event.message
        original = original_ms(message.headers) if self._topics.replayed else None
        return Input(
            topic=message.topic,
            offset=message.offset,
            broker_ms=round(message.timestamp * 1000) if original is None else original,
            key=message.key,
            value=message.value,
        )

    # --- time -------------------------------------------------------------------------------------------------------

    def _broker_now(self) -> int:
        known = self._clock.now_ms()
        return int(time.time() * 1000) if known is None else known

    def _wake_for_due(self) -> None:
        now = self._broker_now()
        for number, owned in self._owned.items():
            if any((number, conference) not in self._asked for _, conference in owned.partition.due(now)[:1]):
                self._due_now.set()
                return

    async def _tick_forever(self) -> None:
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._due_now.wait(), timeout=self._tick_seconds)
            self._due_now.clear()
            await self._publish_due()

    async def _publish_due(self) -> None:
        generation, deliveries, now = self._generation, [], self._broker_now()
        if generation < 0 or self._kafka.generation() != generation or not self._fence.holds:
            return
        asked_at = time.monotonic()
        self._read = {key: read for key, read in self._read.items() if asked_at - read[1] < EARLY_SECONDS}
        for number, owned in self._owned.items():
            for due, conference in owned.partition.due(now):
                asked = self._asked.get((number, conference))
                if asked is not None and asked_at - asked[1] < ASK_AGAIN_SECONDS:
                    continue
                read = self._read.get((number, conference))
                if read is not None and read[0] == due and not owned.partition.desks[conference].row.overflow:
                    continue
                self._asked[number, conference] = (due, asked_at)
                record = self._sequence.stamp(DeadlinePassed(sender=self._worker, conference=conference, due_ms=due))
                deliveries.append((number, conference.encode(), record.encode()))
        sent: list[Awaitable[Any]] = []
        for number, key, value in deliveries:
            self._fence.check()
            sent.append(await self._outputs.send(self._topics.timers.name, value, key=key, partition=number))
        await gathered(sent)
