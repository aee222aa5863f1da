"""The table as the fold of the journal, from any moment on: pure.

Every entry holds the rows that it changed as a whole. What is alive is renewed within its lease, each time with its
whole row. So a fold that begins one lease before a moment knows everything that was alive then, and one that begins
with a desk's rows (a snapshot's) knows all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from callyard.records import JournalEntry
from streams.audit.entries import Told
from streams.desk import Changes
from streams.rows import ACTIVE, DeskRow, RegistrationRow, RegistrationState, Row, StayRow, of_fields


@dataclass
class DeskState:
    """What is known of one conference number."""

    conference: str
    partition: int
    row: DeskRow = field(default_factory=DeskRow)
    registrations: dict[str, RegistrationRow] = field(default_factory=dict)
    stays: dict[str, StayRow] = field(default_factory=dict)

    def live(self) -> list[RegistrationRow]:
        """The live registrations, the newest first."""
        alive = (row for row in self.registrations.values() if row.state is RegistrationState.LIVE)
        return sorted(alive, key=lambda row: (row.serial, row.key), reverse=True)

    def active(self) -> list[StayRow]:
        """The calls that live, the longest waiting first."""
        return sorted((row for row in self.stays.values() if row.state in ACTIVE), key=lambda r: (r.since_ms, r.key))

    def take(self, row: Row) -> None:
        """Take one row."""
        if isinstance(row, DeskRow):
            self.row = row
        elif isinstance(row, RegistrationRow):
            self.registrations[row.key] = row
        else:
            self.stays[row.key] = row


class Fold:
    """Desks by conference number, as the entries taken so far have left them."""

    def __init__(self, start: Iterable[DeskState] = ()) -> None:
        self.desks = {desk.conference: desk for desk in start}

    def desk(self, conference: str, partition: int) -> DeskState:
        """The desk of a conference; an empty one where nothing is known of it."""
        return self.desks.get(conference) or self.desks.setdefault(conference, DeskState(conference, partition))

    def take(self, told: Told) -> Changes:
        """Fold one entry in; returns what it changed. What is removed without being known is left at that."""
        changes = changes_of(told.entry, told.hash)
        desk = self.desk(told.entry.conference, told.partition)
        rows: tuple[Row, ...] = (changes.desk, *changes.registrations, *changes.stays)
        for row in rows:
            desk.take(row)
        for key in changes.removed_registrations:
            desk.registrations.pop(key, None)
        for key in changes.removed_stays:
            desk.stays.pop(key, None)
        if changes.retired:
            del self.desks[told.entry.conference]
        return changes


def changes_of(entry: JournalEntry, head: str) -> Changes:
    """An entry's changes as rows; ``head``: the hash of the entry's bytes."""
    return rows_of(entry.changes, head)


def rows_of(changes: Iterable[Mapping[str, Any]], head: str | None = None) -> Changes:
    """Changes, or a snapshot's rows, as they stand in the journal, as rows."""
    desk = DeskRow()
    rows: dict[str, list[Any]] = {"registration": [], "stay": []}
    forgotten: dict[str, list[str]] = {"registration": [], "stay": []}
    retired = False
    for change in changes:
        fields = dict(change)
        if what := fields.pop("set", None):
            if what == "desk":
                row = of_fields("d", {**fields, "head": head})
                assert isinstance(row, DeskRow)  # noqa: S101 - by its kind
                desk = row
            else:
                rows[what].append(of_fields(what[0], fields))
        elif fields["forgotten"] == "desk":
            retired = True
        else:
            forgotten[fields["forgotten"]].append(fields["key"])
    return Changes(
        desk=desk,
        registrations=tuple(rows["registration"]),
        stays=tuple(rows["stay"]),
        removed_registrations=tuple(forgotten["registration"]),
        removed_stays=tuple(forgotten["stay"]),
        retired=retired,
    )
