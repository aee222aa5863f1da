"""Reads recorded decisions with their inputs, exactly in the journal's order, and has them decided again."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition
from pydantic import TypeAdapter

from callyard.records import CALLS, REGISTRATIONS, NewerSchemaError, RecordError, parse
from callyard.settings import KafkaSettings
from callyard.topics import topics
from streams.audit.findings import Findings
from streams.audit.inputs import Inputs, following
from streams.audit.reading import NewerVersionError, Reading, Span, Unreadable, UnreadableError, place, reading
from streams.audit.rerun import TIMER, Comparison, Rerun
from streams.audit.shapes import require_decision
from streams.audit.trail import Trail
from streams.policy import Policy

EXPIRED = "their inputs have expired, or were removed"


@dataclass
class Replayed:
    """What came of a replay."""

    span: Span
    result: Comparison
    findings: Findings
    """What is wrong with the journal itself."""
    seconds: float

    def add(self, other: Replayed) -> None:
        """Count what came of other partitions."""
        self.result.add(other.result)
        self.findings.extend(other.findings)

    def as_dict(self) -> dict[str, Any]:
        """The result for machines."""
        return {
            "from_ms": self.span.start_ms, "to_ms": self.span.end_ms, "compared": self.result.compared,
            "differing": self.result.differing, "worded_otherwise": self.result.worded,
            "not_compared": dict(self.result.left_out), "journal_findings": dict(self.findings.counts),
            "differences": [
                {"where": d.where, "conference": d.conference, "version": d.version, "event_type": d.event_type,
                 "recorded": d.recorded, "replayed": d.replayed, "details": list(d.details)}
                for d in self.result.differences
            ],
            "seconds": round(self.seconds, 3),
        }  # fmt: skip


class Replay:
    """A replay of one period, about to be read. Made by `replay`."""

    def __init__(
        self,
        settings: KafkaSettings,
        found: Reading,
        counted: dict[int, tuple[int, int]],
        inputs: Inputs,
        policy: Policy | None,
        unreadable: Unreadable,
        say: Callable[[str], None],
    ) -> None:
        self.reading = found
        names = topics(settings)
        self._adapters: dict[str, TypeAdapter[Any]] = {
            names.registrations.name: REGISTRATIONS,
            names.calls.name: CALLS,
        }
        self._counted = counted
        self._inputs = inputs
        self._unreadable = unreadable
        self._say = say
        self._rerun = Rerun(policy)
        self._findings = Findings()
        self._trails = {
            tp.partition: Trail(tp.topic, tp.partition, self._findings, self._rerun.declare) for tp in found.bounds
        }

    async def run(self) -> Replayed:
        """Decide it all again. Raises what reading raises, `UnreadableError` and `NewerVersionError`."""
        began = time.monotonic()
        async for batch in self.reading.batches():
            for record in batch:
                try:
                    entry = self._trails[record.partition].take(record.offset, record.value)
                    if entry is not None:
                        await self._take(place(record), record.partition, record.offset, entry)
                except NewerSchemaError as error:
                    raise NewerVersionError(f"{place(record)}: {error}") from None
                except (RecordError, KeyError, TypeError, ValueError) as error:
                    if self._unreadable is Unreadable.FAIL:
                        raise UnreadableError(f"{place(record)} cannot be replayed: {error!r:.200}") from None
                    self._findings.add("unreadable", place(record), f"{error!r:.200}")
                    self._say(f"{place(record)} cannot be replayed and is skipped: {error!r:.200}")
        return Replayed(self.reading.span, self._rerun.result, self._findings, time.monotonic() - began)

    async def _take(self, where: str, partition: int, offset: int, entry: dict[str, Any]) -> None:
        if entry["type"] == "decision":
            require_decision(entry)
        first, end = self._counted[partition]
        if entry["type"] == "desk-snapshot":
            self._rerun.restore(entry)
        elif not first <= offset < end:
            self._rerun.follow(entry)
        elif entry["event_type"] == TIMER:
            # All that it says is its conference; timers are kept for a day only.
            self._rerun.compare(where, partition, entry, None)
        else:
            position = entry["position"]
            tp = TopicPartition(position["topic"], position["partition"])
            known, given = self._inputs.here(tp, position["offset"])
            while not known:
                await self._inputs.fetch(tp, position["offset"])
                known, given = self._inputs.here(tp, position["offset"])
            if given is None:
                self._rerun.result.left_out[EXPIRED] += 1
                self._rerun.follow(entry)
                return
            event = parse(self._adapters[tp.topic], given.value)
            if event.conference != entry["conference"]:
                raise RecordError(f"its input {tp.topic}-{tp.partition}@{position['offset']} is of another conference")
            self._rerun.compare(where, partition, entry, event)


@asynccontextmanager
async def replay(
    settings: KafkaSettings,
    span: Span,
    *,
    lookback_ms: int,
    policy: Policy | None = None,
    unreadable: Unreadable = Unreadable.SKIP,
    say: Callable[[str], None] = lambda _: None,
    partitions: Collection[int] | None = None,
) -> AsyncIterator[Replay]:
    """A replay of this period, ready to run; ``partitions``: of these alone, be there anything or not.

    Raises `EmptyRangeError` where the whole period holds nothing, and what `reading` raises.
    """
    names = topics(settings)
    async with (
        reading(settings, [names.journal.name], span, partitions=partitions) as found,
        following(settings, (names.registrations.name, names.calls.name)) as inputs,
    ):
        if partitions is None:
            found.require_any()
        counted = {tp.partition: bounds for tp, bounds in found.bounds.items()}
        await found.widen(None if span.start_ms is None else span.start_ms - lookback_ms, {})
        yield Replay(settings, found, counted, inputs, policy, unreadable, say)
