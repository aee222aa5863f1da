"""Where Kafka holds a caller's number, until when, and what of it can be erased at once.

Kafka can't remove one record from a log. It removes what is older than a topic's retention, whole segments at a time,
and on demand *everything* of a partition up to an offset. The table's changelog is rewritten by its owner alone; a
tombstone from outside would make it another table than its owner's. So this counts and tells, and erases by offset
where asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from callyard import clients
from callyard.errors import CommandError
from callyard.settings import KafkaSettings
from callyard.topics import Topics, topics
from streams.audit import changelog, progress
from streams.audit.lines import plain
from streams.audit.options import errors
from streams.audit.reading import Parser, StoredRecord, Unreadable, reading, warner
from streams.rows import ACTIVE, StayRow

RETENTION_CHECK_MS = 300_000
"""How often brokers look for what may be removed (log.retention.check.interval.ms, Kafka's default)."""


@dataclass
class Held:
    """What one topic holds of a number."""

    topic: str
    records: int = 0
    by_form: dict[str, int] = field(default_factory=dict)
    oldest_ms: int | None = None
    newest_ms: int | None = None
    gone_by_ms: int | None = None
    """When the last of them is removed by retention; None: nothing is held, or it is kept for ever."""
    newest: dict[int, int] = field(default_factory=dict)
    """The offset of the newest, by partition."""

    def take(self, record: StoredRecord, form: str) -> None:
        """Count a record that holds the number."""
        self.records += 1
        self.by_form[form] = self.by_form.get(form, 0) + 1
        stamp: int = record.timestamp
        self.oldest_ms = stamp if self.oldest_ms is None else min(self.oldest_ms, stamp)
        self.newest_ms = stamp if self.newest_ms is None else max(self.newest_ms, stamp)
        self.newest[record.partition] = record.offset

    def as_dict(self) -> dict[str, Any]:
        """As it stands in JSON."""
        return {
            "topic": self.topic, "records": self.records, "by_form": self.by_form, "oldest_ms": self.oldest_ms,
            "newest_ms": self.newest_ms, "gone_by_ms": self.gone_by_ms,
        }  # fmt: skip


@dataclass
class Findings:
    """What all topics hold of a number."""

    topics: list[Held]
    rows: list[StayRow]
    """The table's present rows with it."""
    applied: dict[tuple[str, int], int]
    """The newest input that was decided, by topic and partition."""

    @property
    def forgotten_by_ms(self) -> int | None:
        """When the stream itself forgets the last of these rows at the latest; None: there is none, or a call lives."""
        if any(row.state in ACTIVE for row in self.rows):
            return None
        return max((row.until_ms for row in self.rows), default=None)


async def search(kafka: KafkaSettings, forms: frozenset[str]) -> Findings:
    """Look for a number, in all of these forms, in every topic that may hold one; reads all of them."""
    names = topics(kafka)
    findings = Findings([], [], {})
    parser, of_table = Parser({}, Unreadable.SKIP, warner(errors())), changelog.Changelog()
    needles = {form: _needles(form) for form in sorted(forms)}
    for topic in (names.calls, names.journal, names.rejected, names.changelog):
        held = Held(topic.name)
        rows: dict[bytes, StayRow] = {}
        async with reading(kafka, [topic.name]) as found:
            with progress.shown(found, topic.name, errors()):
                async for batch in found.batches():
                    for record in batch:
                        form = next((f for f, n in needles.items() if any(x in (record.value or b"") for x in n)), None)
                        if form is not None:
                            held.take(record, form)
                        if topic != names.changelog:
                            continue
                        kept = parser.judged(record, partial(of_table.read, record))
                        if kept is not None:
                            _take_row(record, kept, form is not None, rows, findings)
        findings.topics.append(held)
        findings.rows += rows.values()
    await _say_until(kafka, names, findings.topics)
    return findings


def _needles(form: str) -> tuple[bytes, ...]:
    # In a row of the changelog's outbox the entry's JSON stands in a string, its quotes escaped.
    quoted = orjson.dumps(form)
    return quoted, quoted.replace(b'"', b'\\"')


def _take_row(
    record: StoredRecord, kept: changelog.Kept, holds: bool, rows: dict[bytes, StayRow], findings: Findings
) -> None:  # fmt: skip
    findings.applied |= {(topic, kept.partition): offset for topic, offset in kept.applied.items()}
    if kept.kind != "s":
        return
    rows.pop(record.key, None)
    if holds and isinstance(kept.row, StayRow):
        rows[record.key] = kept.row


async def _say_until(kafka: KafkaSettings, names: Topics, found: list[Held]) -> None:
    """Ask the brokers how long each topic is kept: what they do counts, and not what is set here."""
    async with clients.admin(kafka) as admin:
        responses = await admin.describe_configs(
            [ConfigResource(ConfigResourceType.TOPIC, held.topic) for held in found], include_synonyms=False
        )
    kept: dict[str, dict[str, str]] = {}
    for response in responses:
        for _, _, _, name, entries in response.resources:
            kept[name] = {entry[0]: entry[1] for entry in entries}
    for held in found:
        config = kept.get(held.topic, {})
        retention = int(config.get("retention.ms", "-1"))
        if held.newest_ms is None or retention < 0 or held.topic == names.changelog.name:
            continue
        held.gone_by_ms = held.newest_ms + retention + int(config["segment.ms"]) + RETENTION_CHECK_MS


async def erase(kafka: KafkaSettings, findings: Findings) -> dict[str, dict[int, int]]:
    """Remove everything up to the newest record with the number, in each partition that holds one.

    Returns how far, by topic and partition. Raises `CommandError` while one of its calls lives, or where the stream has
    yet to decide one of its records: what is removed then would be lost to the caller.
    """
    names = topics(kafka)
    living = [row.call_id for row in findings.rows if row.state in ACTIVE]
    if living:
        raise CommandError(f"nothing was erased: {', '.join(map(plain, living))} lives, ask again once it is over")
    wanted: dict[str, dict[int, int]] = {}
    for held in findings.topics:
        if held.topic == names.changelog.name or not held.newest:
            continue
        for partition, offset in held.newest.items():
            if held.topic == names.calls.name and findings.applied.get((held.topic, partition), -1) < offset:
                raise CommandError(f"nothing was erased: {held.topic}-{partition}@{offset} was not decided yet")
        wanted[held.topic] = {partition: offset + 1 for partition, offset in sorted(held.newest.items())}
    async with clients.admin(kafka) as admin:
        for topic, offsets in wanted.items():
            await admin.delete_records(
                {TopicPartition(topic, number): RecordsToDelete(before_offset=to) for number, to in offsets.items()}
            )
    return wanted
