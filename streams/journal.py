"""Journal entries: what was decided, as bytes, chained by hash for each desk; and desks whole, as snapshots.

One entry for each applied input. Its ``changes`` are whole rows, so that the table is the fold of the journal; its
``previous_hash`` is the SHA-256 of the desk's record before it, as the bytes stand in Kafka.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

from callyard.records import DeskSnapshot, InputRecord, Instruction, JournalEntry, Position
from streams.desk import Changes, Desk
from streams.draft import Decision
from streams.rows import DeskRow, RegistrationRow, StayRow

_NOT_SAID = {
    "type", "schema_version", "conference", "gateway_id", "caller", "caller_form",
    "sender", "sender_sequence", "sent_at_ms", "key_id", "signature",
}  # fmt: skip
"""What an entry holds elsewhere, or must not hold twice: who has a caller's number forgotten looks at rows only."""


def stamped(instruction: Instruction, partition: int, epoch: int) -> Instruction:
    """The instruction with its desk's partition and its owner's epoch."""
    return instruction.model_copy(update={"partition": partition, "epoch": epoch})


def entry(
    desk: Desk,
    event: InputRecord,
    decision: Decision,
    instructions: tuple[Instruction, ...],
    position: Position,
    broker_ms: int,
    epoch: int,
    policy_digest: str,
) -> JournalEntry:
    """The entry of one decision; ``desk`` is as it was before the decision was applied."""
    return JournalEntry(
        conference=desk.conference,
        version=decision.changes.desk.version,
        previous_hash=desk.row.head,
        epoch=epoch,
        position=position,
        event_type=event.type,
        said=event.model_dump(mode="json", exclude=_NOT_SAID, exclude_none=True),
        broker_ms=broker_ms,
        now_ms=decision.changes.desk.now_ms,
        outcome=decision.outcome,
        why=decision.why,
        changes=tuple(described(decision.changes)),
        instructions=instructions,
        policy_digest=policy_digest,
    )


def snapshot(desk: Desk, taken_ms: int, epoch: int) -> DeskSnapshot:
    """The whole desk, as it is before a decision at ``taken_ms``. The desk must have decided something."""
    return DeskSnapshot(
        conference=desk.conference,
        version=desk.row.version,
        previous_hash=desk.row.head,
        epoch=epoch,
        taken_ms=taken_ms,
        rows=tuple(
            described(
                Changes(
                    desk.row,
                    tuple(row for _, row in sorted(desk.registrations.items())),
                    tuple(row for _, row in sorted(desk.stays.items())),
                )
            )
        ),
    )


def described(changes: Changes) -> list[dict[str, Any]]:
    """Changes as they are journalled: rows set whole, and keys that are forgotten."""
    found: list[dict[str, Any]] = [{"set": "registration", **_fields(row)} for row in changes.registrations]
    found += [{"set": "stay", **_fields(row)} for row in changes.stays]
    found += [{"forgotten": "registration", "key": key} for key in changes.removed_registrations]
    found += [{"forgotten": "stay", "key": key} for key in changes.removed_stays]
    # The hash is the entry's own, and when the last snapshot was, snapshots tell.
    found.append({"set": "desk", **{k: v for k, v in _fields(changes.desk).items() if k not in _UNSAID}})
    if changes.retired:
        found.append({"forgotten": "desk"})
    return found


_UNSAID = frozenset({"head", "snapshot_ms"})
_NAMES = {row: tuple(f.name for f in dataclasses.fields(row)) for row in (RegistrationRow, StayRow, DeskRow)}
_VALUES = {row: operator.attrgetter(*names) for row, names in _NAMES.items()}


def _fields(row: RegistrationRow | StayRow | DeskRow) -> dict[str, Any]:
    kind = type(row)
    return {name: value for name, value in zip(_NAMES[kind], _VALUES[kind](row), strict=True) if value is not None}
