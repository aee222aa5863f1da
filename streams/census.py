"""Counts what a partition's desks hold, and what decisions brought about, for metrics. Pure.

The counts follow the rows that change, one by one: a look at all desks, for every scrape, would hold up the callers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from callyard.records import DeadlinePassed, InputRecord
from streams.desk import Changes, Desk
from streams.draft import Decision
from streams.rows import ACTIVE, RegistrationRow, RegistrationState, StayRow, StayState


@dataclass
class Facts:
    """What a group of decisions brought about."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By the event's type and the outcome's name."""
    waits: list[float] = field(default_factory=list)
    """Seconds from the beginning of a stay until its caller was in the conference, of those who came in."""
    put_through: list[float] = field(default_factory=list)
    """Of these, the seconds in which the conference was registered as well."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Inputs that could not be read, by topic."""
    instructions: Counter[str] = field(default_factory=Counter)
    """By type."""
    lapsed_registrations: int = 0
    lapsed_calls: int = 0

    def note(self, event: InputRecord, decision: Decision, desk: Desk) -> None:
        """One decision; ``desk`` as it was before it."""
        changes = decision.changes
        self.outcomes[event.type, decision.outcome] += 1
        self.instructions.update(instruction.type for instruction in decision.instructions)
        for stay in changes.stays:
            before = desk.stays.get(stay.key)
            came_in = stay.state is StayState.CONNECTED and stay.connected_ms == changes.desk.now_ms
            if came_in and (before is None or (before.stay, before.state) != (stay.stay, stay.state)):
                self.waits.append((stay.connected_ms - stay.since_ms) / 1000)
                target = desk.registrations.get(stay.target or "")
                if target is not None:
                    since = max(stay.since_ms, target.since_ms, target.down_ms)
                    self.put_through.append(max(0, stay.connected_ms - since) / 1000)
        if isinstance(event, DeadlinePassed):  # nothing else ends a lease
            self.lapsed_registrations += sum(row.state is RegistrationState.LAPSED for row in changes.registrations)
            self.lapsed_calls += sum(row.state is StayState.LAPSED for row in changes.stays)


class Census:
    """How many live registrations and active callers the desks of one partition have."""

    def __init__(self) -> None:
        self.registrations = 0
        self.callers: Counter[StayState] = Counter()

    def load(self, desks: Iterable[Desk]) -> None:
        """Count these from the beginning."""
        self.registrations, self.callers = 0, Counter()
        for desk in desks:
            for registration in desk.registrations.values():
                self._registration(registration, 1)
            for stay in desk.stays.values():
                self._caller(stay, 1)

    def follow(self, desk: Desk, changes: Changes) -> None:
        """Count on with what a decision changes; ``desk`` as it was before it."""
        for registration in changes.registrations:
            self._registration(desk.registrations.get(registration.key), -1)
            self._registration(registration, 1)
        for stay in changes.stays:
            self._caller(desk.stays.get(stay.key), -1)
            self._caller(stay, 1)
        for key in changes.removed_registrations:
            self._registration(desk.registrations.get(key), -1)
        for key in changes.removed_stays:
            self._caller(desk.stays.get(key), -1)

    def _registration(self, row: RegistrationRow | None, count: int) -> None:
        if row is not None and row.state is RegistrationState.LIVE:
            self.registrations += count

    def _caller(self, row: StayRow | None, count: int) -> None:
        if row is not None and row.state in ACTIVE:
            self.callers[row.state] += count
