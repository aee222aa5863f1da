"""Read a time range of topics: found by timestamp, in the order of time, to where they ended at the start; bounded.

    async with reading(settings, [names.journal.name], span("-2h", None)) as found:
        found.require_any()
        async for batch in found.batches():        # lists of aiokafka's records, merged over all partitions
            for record in batch:
                entry = parser.read(record)         # None for what is unreadable, and was reported

A range is half open: from the first record that Kafka stamped at its start or later, up to the first one stamped at its
end or later; what is appended while it is read is left out. Both bounds are looked up in Kafka's index: nothing before
the range is read. In memory is no more than one fetch (1 MB) for each partition.

Exit statuses of what goes wrong, for every command that reads by this: 1 failed, 2 wrong use, 3 nothing in the range,
4 the call, conference, node or gateway asked for isn't in it, 5 a record's schema version is newer than this program,
6 an unreadable record where ``--unreadable fail`` was asked for.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from pydantic import TypeAdapter
from rich.console import Console

from callyard import access, clients
from callyard.errors import CommandError
from callyard.records import DeskSnapshot, JournalEntry, NewerSchemaError, RecordError, parse
from callyard.settings import KafkaSettings
from callyard.topics import partition_of
from streams.audit.shapes import require_free
from streams.audit.times import moment, shown

R = TypeVar("R")
StoredRecord: TypeAlias = ConsumerRecord[Any, Any]
STALLED_SECONDS = 60.0
"""Without a record for so long, reading has failed."""
FETCH_WAIT_MS = 200


class EmptyRangeError(CommandError):
    """Nothing is in the range. The text says what there is."""

    status = 3


class UnknownError(CommandError):
    """The call, conference, node or gateway asked for isn't in the range."""

    status = 4


class NewerVersionError(CommandError):
    """A record's schema version is newer than this program: its meaning may have changed, so nothing is guessed."""

    status = 5


class UnreadableError(CommandError):
    """A record cannot be read, and that was to be fatal."""

    status = 6


class Unreadable(str, Enum):
    """What follows from a record that cannot be read; it is reported in any case."""

    SKIP = "skip"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of the broker's time, in milliseconds since 1970-01-01 UTC; None: from, or to, where it is."""

    start_ms: int | None = None
    end_ms: int | None = None

    def __str__(self) -> str:
        start = "the beginning" if self.start_ms is None else shown(self.start_ms)
        return f"{start} to {'now' if self.end_ms is None else shown(self.end_ms)}"


def span(start: str | None, end: str | None, now_ms: int | None = None) -> Span:
    """The range of two moments as given at the command line. Raises `MomentError` and `EmptyRangeError`."""
    now = int(time.time() * 1000) if now_ms is None else now_ms
    made = Span(None if start is None else moment(start, now), None if end is None else moment(end, now))
    if made.start_ms is not None and made.start_ms >= (now if made.end_ms is None else made.end_ms):
        raise EmptyRangeError(f"the range {made} is empty: its end must be later than its start")
    return made


class Reading:
    """A range being read. Made by `reading`."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        span: Span,
        bounds: Mapping[TopicPartition, tuple[int, int]],
        oldest: Mapping[TopicPartition, int],
    ) -> None:
        self.span = span
        self.bounds = bounds
        """First offset and end offset of each partition."""
        self.total = sum(end - start for start, end in bounds.values())
        """How many offsets the range spans; a compacted topic has fewer records."""
        self.on_progress: Callable[[int], None] | None = None
        """Called with how many of `total` are done, after each batch."""
        self._consumer = consumer
        self._oldest = oldest

    @property
    def oldest_ms(self) -> int | None:
        """The time of the oldest record that these topics hold, in the range or not; None: they are empty."""
        return min(self._oldest.values(), default=None)

    async def widen(self, start_ms: int | None, offsets: Mapping[TopicPartition, tuple[int, int]]) -> None:
        """Read more than the range, before anything was read: from an earlier time on (None: the range's own start),
        and at least from and to these offsets, as far as Kafka has them.
        """
        partitions = list(self.bounds)
        begins = await self._consumer.beginning_offsets(partitions)
        ends = await self._consumer.end_offsets(partitions)
        earlier = (
            {} if start_ms is None else await self._consumer.offsets_for_times(dict.fromkeys(partitions, start_ms))
        )
        wider = {}
        for partition, (start, end) in self.bounds.items():
            found = earlier.get(partition)
            first, last = offsets.get(partition, (start, end))
            first = max(begins[partition], min(start, first, start if found is None else found.offset))
            wider[partition] = (first, min(ends[partition], max(end, last)))
        self.read_instead(wider)

    def read_instead(self, bounds: Mapping[TopicPartition, tuple[int, int]]) -> None:
        """Read these offsets, which Kafka must have, and not those of the range; before anything was read."""
        for partition, (start, _) in bounds.items():
            self._consumer.seek(partition, start)
        self.bounds = bounds
        self.total = sum(end - start for start, end in bounds.values())

    def require_any(self) -> None:
        """Raise `EmptyRangeError` where the range holds no record at all."""
        if self.total:
            return
        names = ", ".join(sorted({partition.topic for partition in self.bounds}))
        said = f"{names} holds nothing from {self.span}"
        oldest = "it is empty" if self.oldest_ms is None else f"its oldest record is of {shown(self.oldest_ms)}"
        raise EmptyRangeError(f"{said}: {oldest}")

    async def batches(self) -> AsyncIterator[list[StoredRecord]]:
        """The records in the order of time: by timestamp, then topic and partition, each partition in its own order.

        Raises `CommandError` when Kafka stops answering, or when retention removes what is yet to be read.
        """
        merge = _Merge(self.bounds)
        while merge.open:
            missing = merge.missing
            if missing:
                await self._fetch(merge, missing)
            batch = merge.take()
            if batch:
                yield batch
            if self.on_progress is not None:
                self.on_progress(merge.taken)

    async def records(self) -> AsyncIterator[StoredRecord]:
        """As `batches`, one by one; slower."""
        async for batch in self.batches():
            for record in batch:
                yield record

    async def _fetch(self, merge: _Merge, missing: Collection[TopicPartition]) -> None:
        """Wait until each of these partitions has a record, or is at its end."""
        waits, heard = set(missing), time.monotonic()
        while waits:
            try:
                got = await self._consumer.getmany(*waits, timeout_ms=FETCH_WAIT_MS)
            except OffsetOutOfRangeError as error:
                raise CommandError(f"retention removed what was still to be read ({error}): ask again") from None
            except KafkaError as error:
                raise CommandError(f"Kafka cannot be read: {error!r}") from None
            for partition, records in got.items():
                merge.put(partition, records)
                heard = time.monotonic()
            for partition in waits - set(got):
                # Offsets without a record (compacted, or a transaction's marker) end no fetch, but move the position.
                merge.reached(partition, await self._consumer.position(partition))
            waits &= merge.missing
            if waits and time.monotonic() - heard > STALLED_SECONDS:
                raise CommandError(f"Kafka sent nothing of {sorted(map(str, waits))} for {STALLED_SECONDS:g} s")


class _Merge:
    """Partitions' records, merged as they come in. A partition is open until its end offset was reached."""

    def __init__(self, bounds: Mapping[TopicPartition, tuple[int, int]]) -> None:
        self._ends = {partition: end for partition, (_, end) in bounds.items()}
        self._next = {partition: start for partition, (start, _) in bounds.items()}
        self._buffers: dict[TopicPartition, deque[StoredRecord]] = {partition: deque() for partition in bounds}
        self._time = dict.fromkeys(bounds, 0)
        self.missing = {partition for partition in bounds if not self._at_end(partition)}
        """Partitions that must bring a record, or their end, before any more can be taken."""
        self._left = self.missing | set()
        self.taken = 0

    @property
    def open(self) -> bool:
        return bool(self._left)

    def put(self, partition: TopicPartition, records: Sequence[StoredRecord]) -> None:
        end = self._ends[partition]
        wanted = records if records[-1].offset < end else [record for record in records if record.offset < end]
        self._buffers[partition].extend(wanted)
        self.reached(partition, records[-1].offset + 1)

    def reached(self, partition: TopicPartition, position: int) -> None:
        self.taken += max(0, min(position, self._ends[partition]) - self._next[partition])
        self._next[partition] = max(self._next[partition], position)
        if self._buffers[partition]:
            self.missing.discard(partition)
        elif self._at_end(partition):
            self.missing.discard(partition)
            self._left.discard(partition)

    def take(self) -> list[StoredRecord]:
        """All that is surely next; empty while a partition is missing."""
        if self.missing:
            return []
        taken: list[StoredRecord] = []
        heap = [(self._stamp(partition), *partition) for partition in self._left]
        heapq.heapify(heap)
        while heap:
            _, topic, number = heap[0]
            partition = TopicPartition(topic, number)
            buffer = self._buffers[partition]
            # All of this partition's that come before any other's: most ranges come in runs.
            rest = min(heap[1:3], default=None)
            while True:
                record = buffer.popleft()
                taken.append(record)
                if not buffer or (rest is not None and (self._stamp(partition), topic, number) > rest):
                    break
            if buffer:
                heapq.heapreplace(heap, (self._stamp(partition), topic, number))
            elif self._at_end(partition):
                self._left.discard(partition)
                heapq.heappop(heap)
            else:
                self.missing.add(partition)
                break
        return taken

    def _stamp(self, partition: TopicPartition) -> int:
        # A broker's clock that was set back must not put a partition's own order upside down.
        stamp: int = max(self._time[partition], self._buffers[partition][0].timestamp)
        self._time[partition] = stamp
        return stamp

    def _at_end(self, partition: TopicPartition) -> bool:
        return self._next[partition] >= self._ends[partition]


@asynccontextmanager
async def reading(
    settings: KafkaSettings, names: Sequence[str], span: Span = Span(), *, partitions: Collection[int] | None = None,
    keys: Collection[bytes] | None = None,
) -> AsyncIterator[Reading]:  # fmt: skip
    """A range of these topics; ``partitions``: only these numbers; ``keys``: only where these keys are.

    Raises `KafkaUnreachableError`, and `CommandError` where a topic doesn't exist.
    """
    wanted = await partitions_of(settings, names, partitions, keys)
    async with clients.consumer(settings, auto_offset_reset="none", fetch_max_wait_ms=100) as consumer:
        consumer.assign(wanted)
        ends = await consumer.end_offsets(wanted)
        starts = await consumer.beginning_offsets(wanted)
        first = await consumer.offsets_for_times(dict.fromkeys(wanted, 0))
        oldest = {partition: found.timestamp for partition, found in first.items() if found is not None}
        for stamp, bounds in ((span.start_ms, starts), (span.end_ms, ends)):
            if stamp is not None:
                found_at = await consumer.offsets_for_times(dict.fromkeys(wanted, stamp))
                for partition, found in found_at.items():
                    bounds[partition] = ends[partition] if found is None else min(found.offset, ends[partition])
        bounds = {partition: (starts[partition], max(starts[partition], ends[partition])) for partition in wanted}
        for partition, (start, _) in bounds.items():
            consumer.seek(partition, start)
        yield Reading(consumer, span, bounds, oldest)


async def partitions_of(
    settings: KafkaSettings, names: Sequence[str], only: Collection[int] | None = None,
    keys: Collection[bytes] | None = None,
) -> list[TopicPartition]:  # fmt: skip
    """The partitions that these topics have, whatever is set. Raises `CommandError` where a topic doesn't exist."""
    await access.check_reading(settings, names)
    async with clients.admin(settings) as admin:
        existing = set(await admin.list_topics())
        if missing := sorted(set(names) - existing):
            raise CommandError(
                f"{', '.join(missing)}: no such topic at {settings.bootstrap_servers}; check"
                " CALLYARD_KAFKA_TOPIC_PREFIX and CALLYARD_KAFKA_BOOTSTRAP_SERVERS"
            )
        described = await admin.describe_topics(list(names))
    found = []
    for topic in described:
        # By how many there are, not by how many are set: a wrong setting must not look like an empty journal.
        count = len(topic["partitions"])
        of_keys = None if keys is None else {partition_of(key, count) for key in keys}
        found += [
            TopicPartition(topic["topic"], number)
            for number in range(count)
            if (only is None or number in only) and (of_keys is None or number in of_keys)
        ]
    return sorted(found)


class Parser:
    """Reads records of topics; reports what is unreadable, with its place, and skips it or fails."""

    def __init__(
        self, adapters: Mapping[str, TypeAdapter[Any]], unreadable: Unreadable, say: Callable[[str], None]
    ) -> None:
        self.skipped = 0
        self._adapters = adapters
        self._unreadable = unreadable
        self._say = say

    def read(self, record: StoredRecord) -> Any | None:
        """The record, or None where it is unreadable. Raises `UnreadableError` and `NewerVersionError`."""
        return self.judged(record, lambda: _parsed(self._adapters[record.topic], record))

    def judged(self, record: StoredRecord, read: Callable[[], R]) -> R | None:
        """What ``read`` makes of a record; otherwise as `read`."""
        try:
            return read()
        except NewerSchemaError as error:
            raise NewerVersionError(f"{place(record)}: {error}") from None
        except RecordError as error:
            if self._unreadable is Unreadable.FAIL:
                raise UnreadableError(f"{place(record)} is unreadable: {error}") from None
            self.skipped += 1
            self._say(f"{place(record)} is unreadable and skipped: {error}")
            return None


def _parsed(adapter: TypeAdapter[Any], record: StoredRecord) -> Any:
    found = parse(adapter, record.value)
    if isinstance(found, JournalEntry):
        require_free(found.changes, found.said)
    elif isinstance(found, DeskSnapshot):
        require_free(found.rows)
    return found


def place(record: StoredRecord) -> str:
    """Where a record stands, for people: ``callyard.journal-3@1204``."""
    return f"{record.topic}-{record.partition}@{record.offset}"


def warner(console: Console, most: int = 20) -> Callable[[str], None]:
    """Says lines on a console, each thing at most ``most`` times in all, and then that there are more."""
    said = 0

    def say(line: str) -> None:
        nonlocal said
        said += 1
        if said <= most:
            console.print(line)
        elif said == most + 1:
            console.print("… and more; see the count at the end")

    return say
