"""The table's changelog, read and written by the one who owns a partition.

At a takeover it is read as a whole, past Faust, whose reading takes ten times as long and stops where the log ended
when it began. The order of a takeover is what makes it safe (`streams.claims`):

1. read the log to its end, and take the partition's rows from it;
2. append a claim: from there on rows of older claims are void;
3. what stands between that end and the claim was written by an owner that is going: where it counts, it counts here,
   too, so the log is read again, up to the claim;
4. write again what void rows have hidden.

After that the owner alone appends, so each of its batches must begin where the one before has ended. One that doesn't
tells of another writer: an older owner, whose rows are void and are written over, or a newer one, and this worker ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from prometheus_client import Counter

from callyard import clients
from callyard.fence import Fence
from callyard.settings import KafkaSettings
from streams.claims import Claim, Claims, claim_of
from streams.partition import Partition
from streams.rows import claim_key

log = structlog.get_logger(__name__)

FOREIGN = Counter(
    "callyard_stream_changelog_foreign_rows",
    "Offsets of the changelog at which an owner whose time was over has appended; its rows were written over.",
)
FETCH_BYTES = 4_000_000
FETCH_WAIT_MS = 50
STALLED_SECONDS = 60.0
"""Without a record for so long, reading has failed."""
MENDED_BYTES = 500_000
"""A batch of rows that are written over is closed at this size."""

Rows: TypeAlias = Mapping[bytes, bytes | None]  # None: forgotten
Stored: TypeAlias = ConsumerRecord[Any, Any]


class SupersededError(RuntimeError):
    """Another worker has claimed this partition since: whatever is in memory here is of the past."""


class TruncatedError(RuntimeError):
    """The changelog is shorter than what Kafka had acknowledged: memory is ahead of the table."""


@dataclass
class Content:
    """What one partition's changelog holds, as far as it was read."""

    rows: dict[bytes, bytes] = field(default_factory=dict)
    """The latest row of each key, of those that count."""
    hidden: set[bytes] = field(default_factory=set)
    """Keys whose latest row is void, so that compaction would keep that one."""
    claims: Claims = field(default_factory=Claims)
    end: int = 0
    """The offset up to which it was read."""

    def take(self, record: Stored) -> None:
        """The next record, in the log's order. Raises `ValueError` where no owner can have written it."""
        key, value = record.key, record.value
        if key is None:
            raise ValueError(f"{record.topic}-{record.partition}@{record.offset} has no key: no stream wrote it")
        if not self.claims.admit(claim_of(record.headers)):
            self.hidden.add(key)
            return
        self.hidden.discard(key)
        if value is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = value


@dataclass
class Owned:
    """A partition that this worker owns, or is about to."""

    partition: Partition
    claims: Claims
    hidden: set[bytes]
    end: int
    """The offset of the next row."""

    @property
    def number(self) -> int:
        return self.partition.number

    @property
    def epoch(self) -> int:
        """Of the newest claim that was read or made; 0: there was none."""
        return 0 if self.claims.held is None else self.claims.held.epoch


class Changelog:
    """The changelog of the desk table, for one worker."""

    def __init__(
        self, kafka: KafkaSettings, topic: str, producer: AIOKafkaProducer, fence: Fence, owner: str,
        made: Callable[[int], Partition],
    ) -> None:  # fmt: skip
        """``owner``: short, and unlike that of any other worker; ``made``: an empty partition of this number."""
        self._kafka = kafka
        self._topic = topic
        self._producer = producer
        self._fence = fence
        self._owner = owner
        self._made = made
        self.read_rows = 0
        """How many records were read so far, ever: it grows as long as a takeover goes forward."""

    # --- taking over ------------------------------------------------------------------------------------------------

    async def open(
        self, numbers: Collection[int], kept: Mapping[int, Owned], still: Callable[[], bool]
    ) -> dict[int, Owned] | None:
        """These partitions as their changelogs have them now. None: ``still`` has become false meanwhile.

        Those that this worker owned before (``kept``) aren't read again, unless somebody has written since.
        """
        if not numbers:
            return {}
        async with self._reader() as consumer:
            ends = {tp.partition: end for tp, end in (await consumer.end_offsets(self._tps(numbers))).items()}
            found = {number: kept[number] for number in numbers if number in kept and kept[number].end == ends[number]}
            wanted = {number: end for number, end in ends.items() if number not in found}
            async for number, content in self._whole(consumer, wanted, still):
                found[number] = self._loaded(number, content)
        return found if found.keys() == set(numbers) and still() else None

    async def claim(self, owned: Owned, generation: int, still: Callable[[], bool]) -> bool:
        """Make the partition this worker's: what older claims append from now on is void.

        False: ``still`` has become false meanwhile. Raises `SupersededError` where a newer claim is there already.
        """
        while still():
            claim = Claim(max(owned.partition.epoch + 1, owned.epoch + 1, generation), self._owner)
            [at] = await self._append([(owned, [(claim_key(owned.number), None)])], claim)
            if at != owned.end and not await self._catch_up(owned, claim, at, still):
                break
            owned.end = at + 1
            # An owner that had read the same log, and is no more, may have made a claim of the same epoch just before.
            if owned.claims.admit(claim):
                await self._write_over(owned, owned.hidden)
                owned.hidden = set()
                return True
        return False

    async def _catch_up(self, owned: Owned, claim: Claim, at: int, still: Callable[[], bool]) -> bool:
        """Take what was appended up to this worker's claim, at this offset; whether it was all read."""
        async with self._reader() as consumer:
            async for _, records, _ in self._batches(consumer, {owned.number: (owned.end, at)}, still):
                newer = [found for record in records if (found := claim_of(record.headers)) is not None]
                if any(found.epoch > claim.epoch for found in newer):
                    raise SupersededError(f"partition {owned.number} is claimed by {newer[-1]}")
            log.info("rows were written while the changelog was read", partition=owned.number, read_to=owned.end,
                     claimed_at=at)  # fmt: skip
            async for number, content in self._whole(consumer, {owned.number: at}, still):
                again = self._loaded(number, content)
                owned.partition, owned.claims, owned.hidden = again.partition, again.claims, again.hidden
                return True
        return False

    def _loaded(self, number: int, content: Content) -> Owned:
        partition = self._made(number)
        partition.load(content.rows.items())
        return Owned(partition, content.claims, content.hidden, content.end)

    # --- writing ----------------------------------------------------------------------------------------------------

    async def write(self, groups: Sequence[tuple[Owned, Rows]]) -> None:
        """Append each partition's rows as one batch, and await all of them.

        Raises `SupersededError` where another worker owns one of them, `FencedError` where that may be so, and
        `TruncatedError` where Kafka has lost what it had acknowledged.
        """
        offsets = await self._append([(owned, list(rows.items())) for owned, rows in groups])
        for (owned, rows), at in zip(groups, offsets, strict=True):
            hidden = await self._hidden(owned, at)
            owned.end = at + len(rows)
            await self._write_over(owned, hidden)

    async def _append(
        self, groups: Sequence[tuple[Owned, Sequence[tuple[bytes, bytes | None]]]], claim: Claim | None = None
    ) -> list[int]:
        """Where each of these batches begins."""
        sent: list[Awaitable[Any]] = []
        for owned, rows in groups:
            held = claim or owned.claims.held
            if held is None:
                raise RuntimeError(f"partition {owned.number} was not claimed")
            batch = self._producer.create_batch()
            for key, value in rows:
                if batch.append(key=key, value=value, timestamp=None, headers=[held.header]) is None:
                    raise RuntimeError(
                        f"partition {owned.number}: {len(rows)} rows do not fit one batch, so they would not be atomic"
                    )
            self._fence.check()
            sent.append(await self._producer.send_batch(batch, self._topic, partition=owned.number))
        offsets = []
        for (owned, _), done in zip(groups, await gathered(sent), strict=True):
            if done.offset < owned.end:
                raise TruncatedError(
                    f"{self._topic}-{owned.number}: {owned.end} rows were acknowledged, the next one is {done.offset}"
                )
            offsets.append(done.offset)
        return offsets

    async def _hidden(self, owned: Owned, end: int) -> set[bytes]:
        """The keys of what somebody else has appended up to this offset; raises where that is a newer owner."""
        keys: set[bytes] = set()
        if end == owned.end:
            return keys
        async with self._reader() as consumer:
            async for _, records, _ in self._batches(consumer, {owned.number: (owned.end, end)}, lambda: True):
                for record in records:
                    claim = claim_of(record.headers)
                    if owned.claims.counts(claim):
                        raise SupersededError(
                            f"{self._topic}-{owned.number}@{record.offset} is of {claim or 'no claim'}: this partition"
                            " has another owner"
                        )
                    keys.add(record.key)
        FOREIGN.inc(end - owned.end)
        log.error("an owner whose time was over wrote to the changelog; writing over it", partition=owned.number,
                  first=owned.end, rows=end - owned.end)  # fmt: skip
        return keys

    async def _write_over(self, owned: Owned, keys: Collection[bytes]) -> None:
        for part in _parts(owned.partition.rows(keys)):
            await self.write([(owned, part)])

    # --- reading ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[AIOKafkaConsumer]:
        async with clients.consumer(
            self._kafka, auto_offset_reset="earliest", fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=FETCH_BYTES,
        ) as consumer:  # fmt: skip
            yield consumer

    async def _whole(
        self, consumer: AIOKafkaConsumer, ends: Mapping[int, int], still: Callable[[], bool]
    ) -> AsyncIterator[tuple[int, Content]]:
        """Each of these partitions, from its beginning to this offset, as soon as it is read."""
        begins = await consumer.beginning_offsets(self._tps(ends))
        bounds = {tp.partition: (begin, ends[tp.partition]) for tp, begin in begins.items()}
        contents = {number: Content(end=end) for number, end in ends.items()}
        async for number, records, over in self._batches(consumer, bounds, still):
            content = contents[number]
            for record in records:
                content.take(record)
            if over:
                yield number, contents.pop(number)

    async def _batches(
        self, consumer: AIOKafkaConsumer, bounds: Mapping[int, tuple[int, int]], still: Callable[[], bool]
    ) -> AsyncIterator[tuple[int, list[Stored], bool]]:
        """The records between these offsets as they come, and whether those were a partition's last."""
        left = {TopicPartition(self._topic, number): end for number, (_, end) in bounds.items()}
        consumer.assign(list(left))
        for number, (begin, _) in bounds.items():
            consumer.seek(TopicPartition(self._topic, number), begin)
        got: Mapping[TopicPartition, list[Stored]] = {}
        heard = time.monotonic()
        while still():
            for tp, end in list(left.items()):
                records = [record for record in got.get(tp, ()) if record.offset < end]
                # Offsets without a record (compacted) end no fetch, but move the position.
                over = await consumer.position(tp) >= end
                if records or over:
                    yield tp.partition, records, over
                if over:
                    del left[tp]
                    consumer.pause(tp)
            if not left:
                return
            got = await consumer.getmany(*left, timeout_ms=FETCH_WAIT_MS)
            self.read_rows += sum(map(len, got.values()))
            if got:
                heard = time.monotonic()
            elif time.monotonic() - heard > STALLED_SECONDS:
                raise TruncatedError(
                    f"Kafka sent nothing for {STALLED_SECONDS:g} s: it is away, or its logs end before {left}"
                )

    def _tps(self, numbers: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, number) for number in numbers]


def _parts(rows: Rows) -> Iterator[Rows]:
    """These rows in batches that Kafka takes."""
    part: dict[bytes, bytes | None] = {}
    size = 0
    for key, value in rows.items():
        part[key] = value
        size += len(key) + len(value or b"")
        if size > MENDED_BYTES:
            yield part
            part, size = {}, 0
    if part:
        yield part


async def gathered(deliveries: Iterable[Awaitable[Any]]) -> list[Any]:
    """Await deliveries and return what was delivered; the first failure is raised after all have ended."""
    results = await asyncio.gather(*deliveries, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
