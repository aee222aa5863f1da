"""The stream's table as its changelog has it now: the desks, and how far each input is decided."""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

from callyard.settings import KafkaSettings
from callyard.topics import topics
from streams.audit.fold import DeskState
from streams.audit.reading import reading
from streams.rows import decode, split_key


@dataclass
class Present:
    """The table, row by row as it is read."""

    desks: dict[str, DeskState] = field(default_factory=dict)
    """By conference number."""
    applied: dict[tuple[str, int], int] = field(default_factory=dict)
    """The last decided offset of each input (topic and partition); missing where nothing was."""

    def take(self, key: bytes, value: bytes | None) -> None:
        """Take one record of the changelog, each partition's in order."""
        partition, conference, kind, rest = split_key(key)
        if kind == "@":
            for topic, offset in (orjson.loads(value)["applied"] if value is not None else {}).items():
                self.applied[topic, partition] = offset
            return
        desk = self.desks.setdefault(conference, DeskState(conference, partition))
        if value is not None:
            desk.take(decode(kind, value))
        elif kind == "r":
            desk.registrations.pop(rest, None)
        elif kind == "s":
            desk.stays.pop(rest, None)


async def read_present(kafka: KafkaSettings) -> Present:
    """The table as it is now. Raises as `streams.audit.reading.reading` does."""
    present = Present()
    async with reading(kafka, [topics(kafka).changelog.name]) as found:
        async for batch in found.batches():
            for record in batch:
                if record.key is not None:
                    present.take(record.key, record.value)
    return present
