"""What must be true of the decisions of a period, whatever happened in it; and its figures. Pure.

- Each stay ends with a reason: left, gone or lapsed. One whose lease was over long before the period's end has none.
- No stay has two instructions at once, none is sent to where no registration was live then, attempts only grow.
- Each instruction has one outcome, and no outcome tells of an attempt that nobody instructed.

It folds the rows that entries hold, so it sees what the stream saw. Of a desk whose beginning or snapshot it was not
given it judges only what it has seen. Read beside `streams.audit.trail`, which says which entries count.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from typing import Any

from streams.audit.findings import Findings

_ACTIVE = frozenset({"parked", "dialing", "connected"})
FORGOTTEN_MS = 60_000
"""How long after the end of its lease a stay may still be without an end: the stream may have been down."""
_SETTLES = frozenset({"dial-failed", "parked", "adopted", "revived"})
"""Outcomes of call events after which an instruction is over, so that the same decision may give the next."""
_ABOUT_ATTEMPTS = frozenset({"dialing", "connected", "dial-failed"})


class Waits:
    """Waiting times in milliseconds, four bytes each."""

    def __init__(self) -> None:
        self._values = array("I")

    def add(self, milliseconds: int) -> None:
        """Count a wait; one that clocks make negative counts as none."""
        self._values.append(min(max(0, milliseconds), 2**32 - 1))

    def extend(self, other: Waits) -> None:
        """Count those of another one."""
        self._values.extend(other._values)

    def spread(self) -> dict[str, int]:
        """Count, and percentiles by nearest rank, in milliseconds; without values only the count."""
        values = sorted(self._values)
        if not values:
            return {"count": 0}
        ranks = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
        return {
            "count": len(values),
            **{name: values[max(0, math.ceil(share * len(values)) - 1)] for name, share in ranks.items()},
        }


class _Desk:
    __slots__ = ("instructed", "partition", "registrations", "stays", "whole")

    def __init__(self, partition: int, whole: bool) -> None:
        self.partition = partition
        self.whole = whole
        """All its rows are known: it was read from its beginning or from a snapshot."""
        self.registrations: dict[str, dict[str, Any]] = {}
        self.stays: dict[str, dict[str, Any]] = {}
        self.instructed: dict[str, dict[str, Any]] = {}
        """The last instruction of each call, as long as it has no outcome."""


class Invariants:
    """Takes the decisions and snapshots of all partitions, each partition's in order."""

    def __init__(self, findings: Findings) -> None:
        self.counting = True
        """While unset, rows are folded and nothing is counted or judged."""
        self.inputs: Counter[str] = Counter()
        self.stays = 0
        self.ended: Counter[str] = Counter()
        self.dials = 0
        self.notices: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.waited = Waits()
        """From the beginning of a stay to the caller's coming into the conference."""
        self.waited_beside = Waits()
        """As before, but only while the conference was registered."""
        self._findings = findings
        self._desks: dict[str, _Desk] = {}
        self._now: dict[int, int] = {}

    def take(self, partition: int, where: str, entry: dict[str, Any]) -> None:
        """Take one decision or snapshot (as JSON) that counts. Raises `KeyError`, `TypeError` for what is neither."""
        if entry["type"] == "desk-snapshot":
            self._restore(partition, entry)
            return
        conference, now = entry["conference"], entry["now_ms"]
        desk = self._desks.get(conference)
        if desk is None:
            desk = self._desks[conference] = _Desk(partition, entry["version"] == 1)
        self._now[partition] = max(now, self._now.get(partition, 0))
        if self.counting:
            self.inputs[entry["event_type"]] += 1
        place = f"{where}, conference {conference}"
        said = entry.get("said") or {}
        if entry["outcome"] in _ABOUT_ATTEMPTS:
            self._outcome(desk, place, said)
        instructions = {one["call_id"]: one for one in entry.get("instructions", ())}
        forgotten = []
        for change in entry["changes"]:
            what = change.get("set")
            if what == "stay":
                self._stay(desk, place, change, entry, said, instructions.get(change["call_id"]))
            elif what == "registration":
                desk.registrations[f"{change['node_id']}|{change['source']}|{change['instance_id']}"] = change
            elif what is None:
                forgotten.append(change)
        for one in instructions.values():
            self._instructed(desk, place, one, now)
        for change in forgotten:
            self._forget(desk, conference, place, change)

    def add(self, other: Invariants) -> None:
        """Count what another one has found in other partitions, once both are finished."""
        for mine, others in (
            (self.inputs, other.inputs), (self.ended, other.ended), (self.notices, other.notices),
            (self.outcomes, other.outcomes), (self.failures, other.failures),
        ):  # fmt: skip
            mine.update(others)
        self.stays += other.stays
        self.dials += other.dials
        self.waited.extend(other.waited)
        self.waited_beside.extend(other.waited_beside)

    def finish(self) -> dict[str, int]:
        """Judge what has no end yet; returns how many stays are waiting, dialled and talking at the end."""
        left: Counter[str] = Counter()
        for conference, desk in self._desks.items():
            end = self._now.get(desk.partition, 0)  # what its own partition has come to
            for stay in desk.stays.values():
                if stay["state"] not in _ACTIVE:
                    continue
                left[stay["state"]] += 1
                if stay["until_ms"] + FORGOTTEN_MS < end:
                    self._findings.add(
                        "no end", f"conference {conference}",
                        f"{_stay(stay)} is {stay['state']} still, though its lease was over {end - stay['until_ms']} ms"
                        " before the end",
                    )  # fmt: skip
        self._desks.clear()
        return dict(left)

    # --- rows -------------------------------------------------------------------------------------------------------

    def _restore(self, partition: int, snapshot: dict[str, Any]) -> None:
        known = self._desks.get(snapshot["conference"])
        if known is not None and known.whole:
            return
        desk = self._desks[snapshot["conference"]] = _Desk(partition, whole=True)
        for row in snapshot["rows"]:
            if row.get("set") == "stay":
                desk.stays[row["call_id"]] = row
            elif row.get("set") == "registration":
                desk.registrations[f"{row['node_id']}|{row['source']}|{row['instance_id']}"] = row

    def _stay(
        self,
        desk: _Desk,
        place: str,
        row: dict[str, Any],
        entry: dict[str, Any],
        said: dict[str, Any],
        instruction: dict[str, Any] | None,
    ) -> None:
        call, state = row["call_id"], row["state"]
        old = desk.stays.get(call)
        desk.stays[call] = row
        if old is None or old["stay"] != row["stay"]:
            if old is not None and old["state"] in _ACTIVE:
                self._end("newer stay", desk, call)
            if (old is not None or desk.whole) and self.counting:
                self.stays += 1
            old = None
        elif _of(row, "attempt") < _of(old, "attempt"):
            self._findings.add(
                "attempts", place, f"{_stay(row)} goes back from attempt {_of(old, 'attempt')} to {_of(row, 'attempt')}"
            )
        before = None if old is None else old["state"]
        same = old is not None and state == "dialing" and _of(row, "attempt") == _of(old, "attempt")
        if before == "dialing" and old is not None and not same:
            self._settle(desk, place, old, row, entry, said, instruction)
        if state == "connected" and before != "connected" and old is not None and not old.get("connected_ms"):
            self._connected(desk, row)
        if state not in _ACTIVE and (before in _ACTIVE or (old is None and desk.whole)):
            self._end(state if state != "left" else said.get("reason") or "left", desk, call)
            if before is None and state == "left":
                desk.instructed.pop(call, None)

    def _connected(self, desk: _Desk, row: dict[str, Any]) -> None:
        if not self.counting:
            return
        self.waited.add(_of(row, "connected_ms") - row["since_ms"])
        target = desk.registrations.get(row.get("target") or "")
        if target is not None:
            self.waited_beside.add(_of(row, "connected_ms") - max(row["since_ms"], target["since_ms"]))

    def _end(self, reason: str, desk: _Desk, call: str) -> None:
        if self.counting:
            self.ended[reason] += 1
            if desk.instructed.pop(call, None) is not None:
                self.outcomes["caller " + reason] += 1
        else:
            desk.instructed.pop(call, None)

    def _forget(self, desk: _Desk, conference: str, place: str, change: dict[str, Any]) -> None:
        if change["forgotten"] == "desk":
            del self._desks[conference]
        elif change["forgotten"] == "registration":
            desk.registrations.pop(change["key"], None)
        else:
            row = desk.stays.pop(change["key"], None)
            desk.instructed.pop(change["key"], None)
            if row is not None and row["state"] in _ACTIVE:
                self._findings.add("no end", place, f"{_stay(row)} was forgotten while it was {row['state']}")

    # --- instructions -----------------------------------------------------------------------------------------------

    def _instructed(self, desk: _Desk, place: str, one: dict[str, Any], now: int) -> None:
        desk.instructed[one["call_id"]] = one
        if self.counting:
            if one["type"] == "tell-instruction":
                self.notices[one["notice"]] += 1
            else:
                self.dials += 1
        if one["type"] == "tell-instruction":
            return
        row = desk.registrations.get(f"{one['node_id']}|{one['source']}|{one['instance_id']}")
        if row is None:
            if desk.whole:
                self._findings.add("not registered", place, f"{_attempt(one)} goes to {one['node_id']}, unknown there")
        elif row["state"] != "live" or row["until_ms"] <= now:
            self._findings.add(
                "not registered", place,
                f"{_attempt(one)} goes to {one['node_id']}, whose registration was {row['state']}"
                f" until {row['until_ms']}",
            )  # fmt: skip

    def _settle(
        self,
        desk: _Desk,
        place: str,
        old: dict[str, Any],
        row: dict[str, Any],
        entry: dict[str, Any],
        said: dict[str, Any],
        instruction: dict[str, Any] | None,
    ) -> None:
        """An attempt was under way, and is no more: what came of it, and whether the next one may follow."""
        if row["state"] in _ACTIVE:
            due = entry["event_type"] == "deadline-passed" and _of(old, "deadline_ms") <= entry["now_ms"]
            own = entry["outcome"] in _SETTLES and said.get("call_id", row["call_id"]) == row["call_id"]
            if instruction is not None and not due and not own:
                self._findings.add(
                    "dialled twice", place,
                    f"{_attempt(instruction)} was instructed while attempt {_of(old, 'attempt')} was under way",
                )  # fmt: skip
            if desk.instructed.pop(row["call_id"], None) is None or not self.counting:
                return
            self.outcomes[_came_to(row, entry, due)] += 1
        elif row["state"] == "lapsed" and self.counting and desk.instructed.pop(row["call_id"], None) is not None:
            self.outcomes["caller lapsed"] += 1

    def _outcome(self, desk: _Desk, place: str, said: dict[str, Any]) -> None:
        row = desk.stays.get(said.get("call_id", ""))
        if row is None or row["stay"] != said.get("stay"):
            return
        if said.get("attempt", 0) > _of(row, "attempt"):
            self._findings.add(
                "outcome", place,
                f"{_stay(row)}: something came of attempt {said['attempt']}, though {_of(row, 'attempt')} was the last",
            )  # fmt: skip
        if "reason" in said and self.counting:
            self.failures[said["reason"]] += 1


def _came_to(row: dict[str, Any], entry: dict[str, Any], due: bool) -> str:
    if row["state"] == "connected":
        return "connected"
    if due:
        return "no outcome in time"
    if entry["outcome"] == "dial-failed":
        return "told" if (entry.get("said") or {}).get("reason") == "told" else "failed"
    return "the gateway says otherwise"


def _of(row: dict[str, Any], field: str) -> int:
    """A field that an older version may not have written: its default is 0."""
    value: int = row.get(field, 0)
    return value


def _stay(row: dict[str, Any]) -> str:
    return f"call {row['call_id']}, stay {row['stay']}"


def _attempt(one: dict[str, Any]) -> str:
    return f"call {one['call_id']}, stay {one['stay']}, attempt {one['attempt']},"
