"""The table as the fold of the journal, and as its changelog has it; pure."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from callyard.records import JournalEntry, digest
from streams.audit.fold import changes_of
from streams.claims import Claims, claim_of
from streams.desk import Desk
from streams.rows import (
    DeskRow,
    Row,
    decode,
    desk_key,
    registration_key,
    split_key,
    stay_key,
)
from tests.chaos.facts import Record

Table = Mapping[bytes, Row]


def folded(entries: Iterable[tuple[int, JournalEntry, bytes]]) -> dict[bytes, Row]:
    """The rows that decisions (partition, entry, its bytes; each desk's in order) lead to, by their table key."""
    desks: dict[tuple[int, str], Desk] = {}
    for partition, entry, value in entries:
        desk = desks.setdefault((partition, entry.conference), Desk(entry.conference))
        changes = changes_of(entry, digest(value))
        desk.apply(changes)
        if changes.retired:
            del desks[partition, entry.conference]
    table: dict[bytes, Row] = {}
    for (partition, conference), desk in desks.items():
        table[desk_key(partition, conference)] = desk.row
        for registration in desk.registrations.values():
            table[registration_key(partition, conference, registration.key)] = registration
        for stay in desk.stays.values():
            table[stay_key(partition, conference, stay.key)] = stay
    return table


def compacted(changelog: Iterable[Record]) -> tuple[dict[bytes, Row], dict[int, Mapping[str, Any]]]:
    """The table's rows as a changelog (each partition in order) has them, and each partition's own row."""
    newest: dict[bytes, bytes] = {}
    claims: defaultdict[int, Claims] = defaultdict(Claims)
    for record in changelog:
        if record.key is None or not claims[record.partition].admit(claim_of(record.headers)):
            continue
        if record.value is None:
            newest.pop(record.key, None)
        else:
            newest[record.key] = record.value
    rows: dict[bytes, Row] = {}
    positions: dict[int, Mapping[str, Any]] = {}
    for key, value in newest.items():
        partition, _, kind, _ = split_key(key)
        if kind == "@":
            positions[partition] = orjson.loads(value)
        else:
            row = decode(kind, value)
            # When the last snapshot was is not journalled: it decides nothing.
            rows[key] = dataclasses.replace(row, snapshot_ms=0) if isinstance(row, DeskRow) else row
    return rows, positions


def differences(fold: Table, table: Table) -> list[str]:
    """How the two differ, a sentence for each row."""
    return [
        f"row {key.decode()}: the journal says {fold.get(key)}, the table {table.get(key)}"
        for key in sorted({*fold, *table})
        if fold.get(key) != table.get(key)
    ]
