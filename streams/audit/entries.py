"""The journal's decisions, each one once: what was said again is dropped, what an older owner said is void. Pure.

A worker that takes over says the outbox of the one before it again, the same bytes, before its own epoch begins. So a
repetition stands no further behind the first one than one group of inputs; that many are remembered for each partition.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from callyard.records import EpochBegan, JournalEntry, PolicyDeclared
from streams.audit.findings import KEPT
from streams.audit.reading import Parser, StoredRecord, place

REMEMBERED = 10_000
"""Hashes remembered for each partition: twice the most inputs of one group (`StreamSettings.group_limit`)."""


@dataclass(frozen=True, slots=True)
class Told:
    """One decision, and where the journal holds it."""

    entry: JournalEntry
    partition: int
    offset: int
    at_ms: int
    """When the journal's broker took it."""
    hash: str
    """SHA-256 of its bytes: what the desk's next entry must name."""


class Entries:
    """Takes a journal's records, each partition in its order, and gives its decisions."""

    def __init__(self, parser: Parser, say: Callable[[str], None] = lambda _: None) -> None:
        self.repeated = 0
        self.void = 0
        self.policies: dict[str, dict[str, Any]] = {}
        """The policies that were declared, by digest."""
        self.missing: list[str] = []
        """Where a desk's versions have a gap, for people: the first `KEPT`."""
        self.gaps = 0
        """How many there are."""
        self._parser = parser
        self._say = say
        self._seen: dict[int, OrderedDict[bytes, None]] = {}
        self._epochs: dict[int, int] = {}
        self._versions: dict[tuple[int, str], int] = {}

    def take(self, record: StoredRecord) -> Told | None:
        """The decision that this record holds; None where it is none, void, unreadable, or was told before."""
        entry = self._parser.read(record)
        if isinstance(entry, EpochBegan):
            self._epochs[record.partition] = max(entry.epoch, self._epochs.get(record.partition, 0))
        elif isinstance(entry, PolicyDeclared):
            self.policies[entry.digest] = entry.policy
        if not isinstance(entry, JournalEntry):
            return None
        head = hashlib.sha256(record.value)
        if self._was_told(record.partition, head.digest()):
            return None
        newest = self._epochs.get(record.partition, 0)
        if entry.epoch < newest:
            self.void += 1
            self._say(f"{place(record)} is void: epoch {entry.epoch} spoke after epoch {newest} had begun")
            return None
        self._epochs[record.partition] = entry.epoch
        told = Told(entry, record.partition, record.offset, record.timestamp, head.hexdigest())
        self._follow(told, place(record))
        return told

    def _was_told(self, partition: int, head: bytes) -> bool:
        seen = self._seen.setdefault(partition, OrderedDict())
        if head in seen:
            seen.move_to_end(head)
            self.repeated += 1
            return True
        seen[head] = None
        if len(seen) > REMEMBERED:
            seen.popitem(last=False)
        return False

    def _follow(self, told: Told, where: str) -> None:
        entry = told.entry
        desk = (told.partition, entry.conference)
        before = self._versions.get(desk, entry.version - 1)
        if entry.version != before + 1:
            self.gaps += 1
            if self.gaps <= KEPT:
                self.missing.append(
                    f"conference {entry.conference}: {where} is decision {entry.version}, the one before it {before}:"
                    " what was decided between them is missing"
                )
        if any(change.get("forgotten") == "desk" for change in entry.changes):
            self._versions.pop(desk, None)
        else:
            self._versions[desk] = entry.version
