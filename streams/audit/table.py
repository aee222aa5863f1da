"""The table as it is, or as it was at a moment: registrations and callers; and how two moments differ. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from streams.audit.fold import DeskState
from streams.audit.happenings import caller_of, node_of


@dataclass(frozen=True, slots=True)
class RegistrationLine:
    """A registration that was live."""

    conference: str
    node_id: str
    instance_id: str
    sip_uri: str
    since_ms: int
    until_ms: int
    """End of its lease, if it isn't renewed."""


@dataclass(frozen=True, slots=True)
class CallerLine:
    """A caller who waited, was being dialled, or talked."""

    conference: str
    call_id: str
    gateway_id: str
    stay: int
    state: str
    caller: str
    since_ms: int
    attempt: int
    failures: int
    node_id: str | None


@dataclass(frozen=True)
class Table:
    """What was registered, and who was there."""

    registrations: tuple[RegistrationLine, ...]
    callers: tuple[CallerLine, ...]

    def as_dict(self) -> dict[str, Any]:
        """As it stands in JSON."""
        return {
            "registrations": [asdict(line) for line in self.registrations],
            "callers": [asdict(line) for line in self.callers],
        }


def table_of(desks: Iterable[DeskState], conference: str | None = None) -> Table:
    """The live part of these desks; ``conference``: of this number only."""
    registrations, callers = [], []
    for desk in sorted(desks, key=lambda one: one.conference):
        if conference not in {None, desk.conference}:
            continue
        registrations += [
            RegistrationLine(desk.conference, r.node_id, r.instance_id, r.sip_uri, r.since_ms, r.until_ms)
            for r in desk.live()
        ]
        callers += [
            CallerLine(
                desk.conference, s.call_id, s.gateway_id, s.stay, s.state.value, caller_of(s), s.since_ms, s.attempt,
                s.failures, node_of(s),
            )
            for s in desk.active()
        ]  # fmt: skip
    return Table(tuple(registrations), tuple(callers))


@dataclass(frozen=True)
class Difference:
    """One line that two moments don't have in common."""

    change: str
    """``appeared``, ``gone`` or ``changed``."""
    kind: str
    """``registration`` or ``caller``."""
    before: RegistrationLine | CallerLine | None
    after: RegistrationLine | CallerLine | None
    fields: tuple[str, ...] = ()
    """What changed; a lease that was renewed is no change."""

    def as_dict(self) -> dict[str, Any]:
        """As it stands in JSON."""
        told = {"before": self.before, "after": self.after}
        lines = {name: asdict(line) for name, line in told.items() if line is not None}
        return {"change": self.change, "kind": self.kind, **lines, "fields": list(self.fields)}


def differences(before: Table, after: Table) -> list[Difference]:
    """How two tables differ, registrations first."""
    return [
        *_differ("registration", {(r.conference, r.node_id, r.instance_id): r for r in before.registrations},
                 {(r.conference, r.node_id, r.instance_id): r for r in after.registrations}),
        *_differ("caller", {(c.conference, c.call_id): c for c in before.callers},
                 {(c.conference, c.call_id): c for c in after.callers}),
    ]  # fmt: skip


def _differ(kind: str, before: Any, after: Any) -> list[Difference]:
    found = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if old is None or new is None:
            found.append(Difference("appeared" if old is None else "gone", kind, old, new))
            continue
        was, is_ = asdict(old), asdict(new)
        fields = tuple(name for name in was if was[name] != is_[name] and name != "until_ms")
        if fields:
            found.append(Difference("changed", kind, old, new, fields))
    return found
