"""Decides recorded inputs again and compares: what would this version have decided where that one decided this?

Each decision is made for the desk as it was recorded at that moment, so a decision that differs doesn't make all those
after it differ. A desk is known from its beginning, or from its first snapshot on; until then it is not compared.
Without any IO.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import orjson

from callyard.records import DIALS, DeadlinePassed, InputRecord
from streams.audit.fold import rows_of
from streams.decide import decide
from streams.desk import Changes, Desk
from streams.draft import Decision
from streams.journal import described, stamped
from streams.policy import Policy
from streams.rows import DeskRow

KEPT = 20
TIMER = "deadline-passed"
UNKNOWN_DESK = "neither the desk's beginning nor a snapshot of it was read"
UNKNOWN_POLICY = "its policy's declaration was not read"


@dataclass(frozen=True, slots=True)
class Difference:
    """A decision that this version makes otherwise."""

    where: str
    conference: str
    version: int
    event_type: str
    recorded: str
    replayed: str
    details: tuple[str, ...]
    """What differs, row by row."""


@dataclass(slots=True)
class Comparison:
    """What came of comparing decisions."""

    compared: int = 0
    differing: int = 0
    worded: int = 0
    """Decisions that are the same, but for the sentence that gives the reason."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Decisions that could not be compared, by why."""
    differences: list[Difference] = field(default_factory=list)
    """The first `KEPT` of them."""

    def add(self, other: Comparison) -> None:
        """Count what came of comparing others."""
        self.compared += other.compared
        self.differing += other.differing
        self.worded += other.worded
        self.left_out += other.left_out
        self.differences = (self.differences + other.differences)[:KEPT]


class Rerun:
    """Takes one journal's decisions and snapshots as JSON, each desk's in order."""

    def __init__(self, policy: Policy | None = None) -> None:
        """``policy``: decide by this one; None: by the one that was recorded."""
        self.result = Comparison()
        self._policy = policy
        self._policies: dict[str, Policy] = {}
        self._desks: dict[str, Desk] = {}
        self._empty: dict[str, DeskRow] = {}
        """Desks without other rows, most of a long period: no more is kept of them."""

    def declare(self, digest: str, policy: dict[str, Any]) -> None:
        """A policy was declared. Raises `TypeError` where it is none."""
        if digest not in self._policies:
            self._policies[digest] = Policy.of_dict(policy)

    def restore(self, snapshot: dict[str, Any]) -> None:
        """A desk was journalled whole; one that is known already is that one."""
        conference = snapshot["conference"]
        if conference in self._desks or conference in self._empty:
            return
        desk = Desk(conference)
        desk.apply(rows_of(snapshot["rows"]))
        self._keep(desk)

    def knows(self, entry: dict[str, Any]) -> bool:
        """Whether the desk of a decision is known as it was before it."""
        conference = entry["conference"]
        return conference in self._desks or conference in self._empty or entry["version"] == 1

    def follow(self, entry: dict[str, Any]) -> None:
        """Fold a decision without comparing it."""
        if self.knows(entry):
            self._apply(self._desk(entry["conference"]), rows_of(entry["changes"]))

    def compare(self, where: str, partition: int, entry: dict[str, Any], event: InputRecord | None) -> None:
        """Decide again what was decided here; ``event``: the input (a timer's, which is made up, may be None)."""
        if not self.knows(entry):
            self.result.left_out[UNKNOWN_DESK] += 1
            return
        policy = self._policy or self._policies.get(entry["policy_digest"])
        if policy is None:
            self.result.left_out[UNKNOWN_POLICY] += 1
            self.follow(entry)
            return
        if event is None:
            event = DeadlinePassed(sender="", conference=entry["conference"], due_ms=0)
        desk = self._desk(entry["conference"])
        decision = decide(desk, event, entry["broker_ms"], policy)
        self.result.compared += 1
        details = _differences(decision, entry, partition)
        if not details:
            self.result.worded += decision.why != entry["why"]
            self._apply(desk, decision.changes)
            return
        self.result.differing += 1
        if len(self.result.differences) < KEPT:
            recorded = f"{entry['outcome']}: {entry['why']}"
            replayed = f"{decision.outcome}: {decision.why}"
            self.result.differences.append(
                Difference(
                    where, entry["conference"], entry["version"], entry["event_type"], recorded, replayed, details
                )
            )
        self._apply(desk, rows_of(entry["changes"]))

    def _desk(self, conference: str) -> Desk:
        desk = self._desks.get(conference)
        if desk is None:
            desk = Desk(conference)
            desk.row = self._empty.pop(conference, desk.row)
        return desk

    def _apply(self, desk: Desk, changes: Changes) -> None:
        desk.apply(changes)
        if changes.retired:
            self._desks.pop(desk.conference, None)
        else:
            self._keep(desk)

    def _keep(self, desk: Desk) -> None:
        if desk.empty:
            self._desks.pop(desk.conference, None)
            self._empty[desk.conference] = desk.row
        else:
            self._desks[desk.conference] = desk


def _differences(decision: Decision, entry: dict[str, Any], partition: int) -> tuple[str, ...]:
    changes = described(decision.changes)
    said = [
        stamped(one, partition, entry["epoch"]).model_dump(mode="json", exclude_none=True)
        for one in decision.instructions
    ]
    if decision.outcome == entry["outcome"] and changes == entry["changes"] and said == entry["instructions"]:
        return ()
    # Another version's rows may have more fields, or fewer: what both mean is compared.
    changes = orjson.loads(orjson.dumps(changes))
    found = [] if decision.outcome == entry["outcome"] else [f"outcome: {entry['outcome']} → {decision.outcome}"]
    if rows_of(changes) != rows_of(entry["changes"]):
        for before, after in _pairs(entry["changes"], changes):
            if before != after:
                found.append(f"{_shown(before)} → {_shown(after)}")
    recorded = [DIALS.validate_python(one) for one in entry["instructions"]]
    if [DIALS.validate_python(one) for one in said] != recorded:
        found.append(f"instructions: {_instructed(entry['instructions'])} → {_instructed(said)}")
    return tuple(found)


def _pairs(recorded: list[Any], replayed: list[Any]) -> list[tuple[Any, Any]]:
    """Rows of the same key side by side."""
    by_key = [{_key(row): row for row in rows} for rows in (recorded, replayed)]
    return [(by_key[0].get(key), by_key[1].get(key)) for key in {**by_key[0], **by_key[1]}]


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    what = row.get("set") or row["forgotten"]
    return what, str(row.get("call_id") or row.get("key") or f"{row.get('node_id')}|{row.get('instance_id')}")


def _shown(row: dict[str, Any] | None) -> str:
    return "nothing" if row is None else orjson.dumps(row).decode()


def _instructed(instructions: list[dict[str, Any]]) -> str:
    lines = (f"{i['call_id']}#{i['stay']}.{i['attempt']} {i.get('node_id') or i.get('notice')}" for i in instructions)
    return ", ".join(lines) or "none"
