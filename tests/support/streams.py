"""A stream worker as tests run it: a process of its own on the real Kafka, and what its journal must say."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRecord

from callyard import processes
from callyard.processes import Child
from callyard.records import DIALS, JOURNAL, DeskSnapshot, EpochBegan, Instruction, JournalEntry, digest, parse
from callyard.settings import KafkaSettings
from callyard.topics import topics
from tests.support import kafka


def stream_worker(settings: KafkaSettings, log: Path, **more: str) -> Child:
    """A worker that is not started yet; ``more``: further settings, for example ``POLICY_ATTEMPTS="2"``."""
    environment = {**kafka.environment(settings), **{f"CALLYARD_{key}": value for key, value in more.items()}}
    return processes.worker("stream", environment=environment, log=log)


async def instructions(settings: KafkaSettings, enough: int | None = None) -> list[Instruction]:
    """The instructions on the dials topic, repetitions included."""
    records = await kafka.read(settings, topics(settings).dials.name, enough=enough, timeout=60)
    return [parse(DIALS, record.value) for record in records]


async def journal(settings: KafkaSettings) -> list[ConsumerRecord[Any, Any]]:
    """The journal's records, each partition in its own order."""
    return await kafka.read(settings, topics(settings).journal.name)


def decisions(records: Iterable[Stored]) -> list[JournalEntry]:
    """The journal's decisions, repeated outputs dropped."""
    seen: dict[tuple[int, bytes], JournalEntry] = {}
    for record in records:
        entry = parse(JOURNAL, record.value)
        if isinstance(entry, JournalEntry):
            seen.setdefault((record.partition, record.value), entry)
    return list(seen.values())


class Follower:
    """Counts the inputs that the journal has decided, as it grows."""

    def __init__(self, settings: KafkaSettings, consumer: AIOKafkaConsumer) -> None:
        self._timers = topics(settings).timers.name
        self._consumer = consumer
        self._seen: set[tuple[str, int, int]] = set()

    async def decided(self, inputs: int) -> bool:
        """Whether so many inputs (timers not counted) were decided."""
        for batch in (await self._consumer.getmany(timeout_ms=50)).values():
            for record in batch:
                entry = parse(JOURNAL, record.value)
                if isinstance(entry, JournalEntry) and entry.position.topic != self._timers:
                    self._seen.add((entry.position.topic, entry.position.partition, entry.position.offset))
        return len(self._seen) >= inputs

    def __str__(self) -> str:
        return f"{len(self._seen)} inputs decided"


@asynccontextmanager
async def follower(settings: KafkaSettings) -> AsyncIterator[Follower]:
    """A follower of the journal from its beginning."""
    async with kafka.reader(settings, topics(settings).journal.name) as consumer:
        yield Follower(settings, consumer)


async def check_journal(settings: KafkaSettings, inputs: int) -> list[JournalEntry]:
    """The guarantees that hold whatever was killed: each input decided once, no gap, no contradiction, no old epoch."""
    records = await journal(settings)
    findings = journal_findings(records, await instructions(settings), topics(settings).timers.name, inputs)
    assert not findings, "\n".join(findings)
    return decisions(records)


class Stored(Protocol):
    """What is asked of a record of a topic."""

    @property
    def partition(self) -> int: ...

    @property
    def value(self) -> Any: ...


def journal_findings(records: Sequence[Stored], said: Iterable[Instruction], timers: str, inputs: int) -> list[str]:
    """What in a journal breaks those guarantees; pure.

    ``records``: the journal's, each partition in its order. ``said``: all instructions on the dials topic. ``timers``:
    the name of that topic, whose records nobody counts. ``inputs``: how many others there were.
    """
    entries = decisions(records)
    positions = Counter((e.position.topic, e.position.partition, e.position.offset) for e in entries)
    findings = [f"decided {count} times: {position}" for position, count in positions.items() if count > 1]
    decided = sum(1 for topic, _, _ in positions if topic != timers)
    if decided != inputs:
        findings.append(f"{inputs - decided} inputs were lost ({inputs} were written, {decided} decided)")
    return findings + _broken_chains(records) + _old_epochs(records) + _contradictions(entries, said)


def _broken_chains(records: Sequence[Stored]) -> list[str]:
    findings = []
    heads: dict[str, tuple[int, str | None]] = {}
    for value in dict.fromkeys(record.value for record in records):
        entry = parse(JOURNAL, value)
        if isinstance(entry, DeskSnapshot):
            version, head = heads.get(entry.conference, (0, None))
            if (entry.version, entry.previous_hash) != (version, head):
                findings.append(f"the chain of {entry.conference} breaks at the snapshot of version {entry.version}")
            heads[entry.conference] = (version, digest(value))
        elif isinstance(entry, JournalEntry):
            version, head = heads.get(entry.conference, (0, None))
            if (entry.version, entry.previous_hash) != (version + 1, head):
                findings.append(f"the chain of {entry.conference} breaks at version {entry.version} after {version}")
            heads[entry.conference] = (entry.version, digest(value))
    return findings


def _old_epochs(records: Sequence[Stored]) -> list[str]:
    findings = []
    epochs: dict[int, int] = {}
    repeated: set[bytes] = set()
    for record in records:
        entry = parse(JOURNAL, record.value)
        if isinstance(entry, EpochBegan):
            epochs[record.partition] = max(entry.epoch, epochs.get(record.partition, 0))
        elif isinstance(entry, JournalEntry) and record.value not in repeated:
            newest = epochs.get(record.partition, 0)
            if entry.epoch < newest:
                findings.append(f"an older epoch than {newest} spoke: {entry}")
        repeated.add(record.value)
    return findings


def _contradictions(entries: Iterable[JournalEntry], said: Iterable[Instruction]) -> list[str]:
    first: dict[str, Instruction] = {}
    findings = [
        f"contradictory instructions: {first[instruction.instruction_id]}, {instruction}"
        for instruction in said
        if first.setdefault(instruction.instruction_id, instruction) != instruction
    ]
    journalled = {i.instruction_id for e in entries for i in e.instructions}
    findings += [f"an instruction was lost: {name}" for name in sorted(journalled - set(first))]
    findings += [f"an instruction was invented: {name}" for name in sorted(set(first) - journalled)]
    return findings
