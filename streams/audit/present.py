"""The stream's table as its changelog has it now: the desks, and how far each input is decided."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from callyard.settings import KafkaSettings
from callyard.topics import topics
from streams.audit import changelog
from streams.audit.fold import DeskState
from streams.audit.lines import Lines
from streams.audit.reading import Parser, Unreadable, reading, warner


@dataclass
class Present:
    """The table, row by row as it is read."""

    desks: dict[str, DeskState] = field(default_factory=dict)
    """By conference number."""
    applied: dict[tuple[str, int], int] = field(default_factory=dict)
    """The last decided offset of each input (topic and partition); missing where nothing was."""

    def take(self, kept: changelog.Kept) -> None:
        """Take one record of the changelog, each partition's in order."""
        if kept.kind == changelog.CLAIM:
            return
        if kept.kind == changelog.POSITION:
            for topic, offset in kept.applied.items():
                self.applied[topic, kept.partition] = offset
            return
        desk = self.desks.setdefault(kept.conference, DeskState(kept.conference, kept.partition))
        if kept.row is not None:
            desk.take(kept.row)
        elif kept.kind == "r":
            desk.registrations.pop(kept.rest, None)
        elif kept.kind == "s":
            desk.stays.pop(kept.rest, None)


async def read_present(kafka: KafkaSettings, unreadable: Unreadable = Unreadable.SKIP) -> Present:
    """The table as it is now. Raises as `streams.audit.reading.reading` does, and as `Parser.judged`."""
    present, rows = Present(), changelog.Changelog()
    parser = Parser({}, unreadable, warner(Lines(stderr=True)))
    async with reading(kafka, [topics(kafka).changelog.name]) as found:
        async for batch in found.batches():
            for record in batch:
                kept = parser.judged(record, partial(rows.read, record))
                if kept is not None:
                    present.take(kept)
    return present
