"""Reads a period of the journal once and judges it: chains, invariants, figures, and the seals of checkpoints.

It begins two snapshots' time before the period, so that it knows how each desk stood; what lies there is folded and not
judged, except for its chains. Where checkpoints are given, it reads the whole ranges that they sealed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiokafka import TopicPartition

from callyard.records import NewerSchemaError, RecordError
from callyard.settings import KafkaSettings
from callyard.topics import DAY_MS, topics
from streams.audit.checkpoints import Checkpoint
from streams.audit.findings import Findings
from streams.audit.invariants import Invariants
from streams.audit.reading import (
    NewerVersionError,
    Reading,
    Span,
    StoredRecord,
    Unreadable,
    UnreadableError,
    place,
    reading,
)
from streams.audit.seal import Range, Seal, difference
from streams.audit.trail import Trail


@dataclass
class Report:
    """What was found in a period."""

    span: Span
    records: int = 0
    """Records of the period itself."""
    decisions: int = 0
    snapshots: int = 0
    repeated: int = 0
    unreadable: int = 0
    seconds: float = 0
    left: Mapping[str, int] = field(default_factory=dict)
    """Stays that were active at the end, by state."""
    sealed: Mapping[str, Any] | None = None
    """What the checkpoints say; None: none were given."""
    findings: Findings = field(default_factory=Findings)
    invariants: Invariants = field(default_factory=lambda: Invariants(Findings()))

    @property
    def good(self) -> bool:
        """Whether all holds."""
        return not self.findings.total

    def add(self, other: Report) -> None:
        """Count what was found in other partitions; without checkpoints."""
        self.records += other.records
        self.decisions += other.decisions
        self.snapshots += other.snapshots
        self.repeated += other.repeated
        self.unreadable += other.unreadable
        self.left = Counter(self.left) + Counter(other.left)
        self.findings.extend(other.findings)
        self.invariants.add(other.invariants)

    def as_dict(self) -> dict[str, Any]:
        """The report for machines; times in milliseconds."""
        found = self.invariants
        return {
            "from_ms": self.span.start_ms, "to_ms": self.span.end_ms, "good": self.good,
            "records": self.records, "decisions": self.decisions, "snapshots": self.snapshots,
            "repeated": self.repeated, "unreadable": self.unreadable, "inputs": dict(found.inputs),
            "stays": found.stays, "ended": dict(found.ended), "open": dict(self.left),
            "dials": found.dials, "notices": dict(found.notices), "outcomes": dict(found.outcomes),
            "failures": dict(found.failures), "waited_ms": found.waited.spread(),
            "waited_beside_the_conference_ms": found.waited_beside.spread(),
            "sealed": self.sealed, "findings": dict(self.findings.counts),
            "first_findings": [{"kind": f.kind, "where": f.where, "text": f.text} for f in self.findings.kept],
            "seconds": round(self.seconds, 3),
        }  # fmt: skip


class Verification:
    """A verification of one period, about to be read."""

    def __init__(
        self,
        found: Reading,
        counted: Mapping[TopicPartition, tuple[int, int]],
        checkpoints: Sequence[Checkpoint] | None,
        unreadable: Unreadable,
        kept_ms: float,
        say: Callable[[str], None],
    ) -> None:
        self.reading = found
        self._counted = {partition.partition: bounds for partition, bounds in counted.items()}
        self._checkpoints = checkpoints
        self._unreadable = unreadable
        self._kept_ms = kept_ms
        self._say = say
        self._findings = Findings()
        self._report = Report(found.span, findings=self._findings, invariants=Invariants(self._findings))

    async def run(self) -> Report:
        """Read it all. Raises what `Reading.batches` raises, `UnreadableError` and `NewerVersionError`."""
        report, began = self._report, time.monotonic()
        trails = {tp.partition: Trail(tp.topic, tp.partition, self._findings) for tp in self.reading.bounds}
        seals = {tp.partition: Seals(tp, self._ranges(tp.partition), self._findings) for tp in self.reading.bounds}
        sealing = self._checkpoints is not None
        invariants, findings = report.invariants, self._findings
        async for batch in self.reading.batches():
            for record in batch:
                number = record.partition
                first, end = self._counted[number]
                counting = first <= record.offset < end
                report.records += counting
                if sealing:
                    seals[number].take(record, counting)
                try:
                    entry = trails[number].take(record.offset, record.value)
                    if entry is None:
                        continue
                    findings.muted, invariants.counting = not counting, counting
                    invariants.take(number, f"{record.topic}-{number}@{record.offset}", entry)
                except NewerSchemaError as error:
                    raise NewerVersionError(f"{place(record)}: {error}") from None
                except (RecordError, KeyError, TypeError, AttributeError, ValueError) as error:
                    self._set_aside(record, error)
                finally:
                    findings.muted, invariants.counting = False, True
        report.left = invariants.finish()
        for trail in trails.values():
            report.decisions += trail.decisions
            report.snapshots += trail.snapshots
            report.repeated += trail.repeated
        if sealing:
            report.sealed = self._close(seals)
        report.seconds = time.monotonic() - began
        return report

    def _ranges(self, partition: int) -> list[Range]:
        return [one.ranges[partition] for one in self._checkpoints or () if partition in one.ranges]

    def _set_aside(self, record: StoredRecord, error: Exception) -> None:
        if self._unreadable is Unreadable.FAIL:
            raise UnreadableError(f"{place(record)} is unreadable: {error!r:.200}") from None
        self._report.unreadable += 1
        self._findings.add("unreadable", place(record), f"{error!r:.200}")
        self._say(f"{place(record)} is unreadable and skipped: {error!r:.200}")

    def _close(self, seals: Mapping[int, Seals]) -> dict[str, Any]:
        now = time.time() * 1000
        counts: Counter[str] = Counter()
        for one in seals.values():
            one.finish(now - self._kept_ms, counts)
        checked = self._checkpoints or []
        sealed = {number for one in checked for number in one.ranges}
        for number in sorted(sealed - seals.keys()):
            ranges = self._ranges(number)
            counts["ranges"] += len(ranges)
            counts["altered"] += len(ranges)
            where = f"{checked[-1].topic}-{number}"
            count = sum(one.count for one in ranges)
            self._findings.add("sealed", where, f"the partition is gone, with {count} records that were sealed")
        return {
            "first": checked[0].number if checked else None, "last": checked[-1].number if checked else None,
            "first_ms": checked[0].taken_ms if checked else None, "last_ms": checked[-1].taken_ms if checked else None,
            "records": counts["records"], "ranges": counts["ranges"], "expired": counts["expired"],
            "altered": counts["altered"], "unsealed": counts["unsealed"],
        }  # fmt: skip


class Seals:
    """The sealed ranges of one partition, checked as its records go by."""

    def __init__(self, partition: TopicPartition, ranges: Sequence[Range], findings: Findings) -> None:
        self._partition = partition
        self._ranges = list(ranges)
        self._findings = findings
        self._at: int = -1
        self._seal: Seal | None = None
        self._found: dict[int, Range] = {}
        self._unsealed = 0
        self.first: int | None = None
        self.last = -1

    def take(self, record: StoredRecord, counting: bool = True) -> None:
        """Take the next record; ``counting``: it is of the period, and not only read to know how things stood."""
        if self.first is None:
            self.first = record.offset
        self.last = record.offset
        while self._at + 1 < len(self._ranges) and record.offset >= self._ranges[self._at + 1].begin:
            self._next()
        if self._seal is not None and record.offset < self._ranges[self._at].end:
            self._seal.take(record.offset, record.timestamp, record.key, record.value)
        elif counting:
            self._unsealed += 1

    def _next(self) -> None:
        if self._seal is not None:
            self._found[self._at] = self._seal.close(self._ranges[self._at].end)
        self._at += 1
        self._seal = Seal(self._partition.partition, self._ranges[self._at].begin)

    def finish(self, kept_since_ms: float, counts: Counter[str]) -> None:
        """Compare all ranges. ``kept_since_ms``: what is younger than this, retention hasn't removed."""
        if self._seal is not None:
            self._found[self._at] = self._seal.close(self._ranges[self._at].end)
        where = f"{self._partition.topic}-{self._partition.partition}"
        counts["unsealed"] += self._unsealed
        for number, sealed in enumerate(self._ranges):
            begins_late = sealed.count > 0 and (self.first is None or self.first > sealed.begin)
            gone = begins_late and (self.first is None or self.first >= sealed.end)
            if begins_late and (sealed.last_ms if gone else sealed.first_ms) < kept_since_ms:
                counts["expired"] += 1
                continue
            counts["ranges"] += 1
            found = self._found.get(number) or Seal(sealed.partition, sealed.begin).close(sealed.end)
            wrong = difference(sealed, found)
            if wrong is None:
                counts["records"] += sealed.count
                continue
            counts["altered"] += 1
            if self.last < sealed.end - 1:
                wrong += f"; the partition ends at {self.last + 1}: its tail was cut off"
            elif begins_late:
                wrong += "; its beginning was removed, before retention could"
            self._findings.add("sealed", where, wrong)


@asynccontextmanager
async def verification(
    settings: KafkaSettings,
    span: Span,
    *,
    lookback_ms: int,
    checkpoints: Sequence[Checkpoint] | None = None,
    unreadable: Unreadable = Unreadable.SKIP,
    say: Callable[[str], None] = lambda _: None,
    partitions: Collection[int] | None = None,
) -> AsyncIterator[Verification]:
    """A verification of this period of the journal, ready to run; ``checkpoints``: those of it, the oldest first.

    ``partitions``: of these alone, be there anything or not; without checkpoints. Raises `EmptyRangeError` where the
    whole period holds nothing (and nothing was sealed), and what `reading` raises.
    """
    names = topics(settings)
    async with reading(settings, [names.journal.name], span, partitions=partitions) as found:
        chosen = None if checkpoints is None else [one for one in checkpoints if _concerns(one, span)]
        if not chosen and partitions is None:
            found.require_any()
        counted = dict(found.bounds)
        offsets: dict[TopicPartition, tuple[int, int]] = {}
        for one in chosen or ():
            for number, sealed in one.ranges.items():
                tp = TopicPartition(names.journal.name, number)
                first, end = offsets.get(tp, (sealed.begin, sealed.end))
                offsets[tp] = (min(first, sealed.begin), max(end, sealed.end))
        await found.widen(None if span.start_ms is None else span.start_ms - lookback_ms, offsets)
        kept_ms = float("inf") if names.replayed else settings.retention_days_of("journal") * DAY_MS
        yield Verification(found, counted, chosen, unreadable, kept_ms, say)


def _concerns(checkpoint: Checkpoint, span: Span) -> bool:
    """Whether a checkpoint sealed anything of the period."""
    begins = min((one.first_ms for one in checkpoint.ranges.values() if one.count), default=checkpoint.taken_ms)
    ends = max((one.last_ms for one in checkpoint.ranges.values() if one.count), default=checkpoint.taken_ms)
    return (span.end_ms is None or begins < span.end_ms) and (span.start_ms is None or ends >= span.start_ms)
