"""Follows the topics while the demo runs: what was decided about whom, and when each record reached Kafka.

It reads what any operator may read, and nothing else: registrations, dial instructions and the journal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from pydantic import TypeAdapter

from callyard import clients
from callyard.errors import CommandError
from callyard.records import DIALS, JOURNAL, REGISTRATIONS, ConferenceRegistered, DialInstruction, JournalEntry, parse
from callyard.settings import KafkaSettings
from callyard.topics import topics

T = TypeVar("T")
WAIT_SECONDS = 20.0


class Follower:
    """The records of one run. Times are the broker's: seconds since 1970-01-01 UTC."""

    def __init__(self) -> None:
        self.registrations: dict[str, float] = {}
        """When each conference was first registered."""
        self.instructions: list[tuple[float, DialInstruction]] = []
        self.entries: list[tuple[float, JournalEntry]] = []
        self._changed = asyncio.Event()

    def take(self, topic: str, at: float, value: bytes) -> None:
        """Take a record of a topic (``registrations``, ``dials`` or ``journal``)."""
        adapters: dict[str, TypeAdapter[Any]] = {"registrations": REGISTRATIONS, "dials": DIALS, "journal": JOURNAL}
        record = parse(adapters[topic], value)
        if isinstance(record, ConferenceRegistered):
            self.registrations.setdefault(record.conference, at)
        elif isinstance(record, DialInstruction):
            self.instructions.append((at, record))
        elif isinstance(record, JournalEntry):
            self.entries.append((at, record))
        self._changed.set()

    async def until(self, find: Callable[[], T | None], what: str) -> T:
        """Wait until ``find`` finds something, and return it. Raises `CommandError` when that takes too long."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (found := find()) is None:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), max(0.0, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                raise CommandError(f"not seen within {WAIT_SECONDS:g} s: {what}") from None
        return found

    def entry(self, outcome: str, call_id: str) -> tuple[float, JournalEntry] | None:
        """The journal's first entry with this outcome that changed this call's stay."""
        for at, entry in self.entries:
            if entry.outcome == outcome and any(change.get("call_id") == call_id for change in entry.changes):
                return at, entry
        return None

    def parked(self, conference: str, known: set[str]) -> tuple[float, JournalEntry] | None:
        """The journal's first entry of a caller parked for this conference who isn't among the ``known`` call ids."""
        for at, entry in self.entries:
            if entry.outcome == "parked" and entry.conference == conference and not known.issuperset(call_ids(entry)):
                return at, entry
        return None

    def instruction(self, call_id: str) -> tuple[float, DialInstruction] | None:
        """The first instruction for this call."""
        return next(((at, i) for at, i in self.instructions if i.call_id == call_id), None)


def call_ids(entry: JournalEntry) -> list[str]:
    """The calls whose stays an entry changed."""
    return [str(change["call_id"]) for change in entry.changes if "call_id" in change]


@asynccontextmanager
async def following(settings: KafkaSettings) -> AsyncIterator[Follower]:
    """Follow the topics from their beginning until the block ends."""
    names = topics(settings)
    short = {names.registrations.name: "registrations", names.dials.name: "dials", names.journal.name: "journal"}
    follower = Follower()
    async with clients.consumer(settings, auto_offset_reset="earliest", fetch_max_wait_ms=50) as consumer:
        consumer.assign([TopicPartition(name, number) for name in short for number in range(settings.partitions)])
        reading = asyncio.create_task(_read(consumer, short, follower), name="follower")
        try:
            yield follower
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def _read(consumer: AIOKafkaConsumer, short: dict[str, str], follower: Follower) -> None:
    async for record in consumer:
        follower.take(short[record.topic], record.timestamp / 1000, record.value)
