"""A desk: what the stream knows of one conference number, indexed for `decide`.

A desk changes in one way only: `Desk.apply` folds a `Changes` into it. The same fold rebuilds it from the changelog
and from the journal, so that the table is the fold of what was decided. Its indexes (live registrations, parked
callers in the order of their waiting, what is due when) follow from the rows and are never stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from sortedcontainers import SortedSet

from streams.rows import ACTIVE, DeskRow, RegistrationRow, RegistrationState, StayRow, StayState


class InvariantError(AssertionError):
    """What must always be true of a desk isn't: a bug of ours."""


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InvariantError(otherwise)


@dataclasses.dataclass(frozen=True, slots=True)
class Changes:
    """What one decision changes: the new rows whole, and what is removed by key."""

    desk: DeskRow
    registrations: tuple[RegistrationRow, ...] = ()
    stays: tuple[StayRow, ...] = ()
    removed_registrations: tuple[str, ...] = ()
    removed_stays: tuple[str, ...] = ()
    retired: bool = False
    """The desk itself is removed; its number begins anew."""


class Desk:
    """One conference number's registrations and callers."""

    __slots__ = ("_due", "conference", "live", "parked", "registrations", "row", "stays")

    def __init__(self, conference: str) -> None:
        self.conference = conference
        self.row = DeskRow()
        self.registrations: dict[str, RegistrationRow] = {}
        self.stays: dict[str, StayRow] = {}
        self.live: dict[str, RegistrationRow] = {}
        self.parked: SortedSet[tuple[int, str]] = SortedSet()
        self._due: SortedSet[tuple[int, str, str]] = SortedSet()

    def apply(self, changes: Changes) -> None:
        """Fold a decision's changes into the desk."""
        self.row = changes.desk
        for registration in changes.registrations:
            self._set_registration(registration)
        for key in changes.removed_registrations:
            self._unindex_registration(self.registrations.pop(key))
        for stay in changes.stays:
            self._set_stay(stay)
        for key in changes.removed_stays:
            self._unindex_stay(self.stays.pop(key))

    def load(self, row: RegistrationRow | StayRow | DeskRow) -> None:
        """Take one row as the changelog has it (after which the row before it counts no more)."""
        if isinstance(row, DeskRow):
            self.row = row
        elif isinstance(row, RegistrationRow):
            self._set_registration(row)
        else:
            self._set_stay(row)

    def target(self, now: int) -> RegistrationRow | None:
        """The registration that callers are sent to first: the newest live one."""
        return next(iter(newest_first(self.live.values(), now)), None)

    def waiting(self) -> Iterator[StayRow]:
        """The parked callers, the longest waiting first."""
        return (self.stays[call_id] for _, call_id in self.parked)

    def due(self, now: int) -> Iterator[RegistrationRow | StayRow]:
        """The rows that time alone changes by ``now``, the longest overdue first."""
        for when, kind, key in self._due:
            if when > now:
                return
            yield self.registrations[key] if kind == "r" else self.stays[key]

    @property
    def empty(self) -> bool:
        return not self.registrations and not self.stays

    def next_due_ms(self, stub_retention_ms: int) -> int | None:
        """When time alone next changes something here; None for never."""
        if self.row.overflow:
            return self.row.now_ms
        if self._due:
            return int(self._due[0][0])
        return None if self.row.empty_ms is None else self.row.empty_ms + stub_retention_ms

    def check(self) -> None:
        """Raise `InvariantError` where an invariant of the design doesn't hold. For tests and audits."""
        now = self.row.now_ms
        target = self.target(now)
        for stay in self.stays.values():
            if stay.state is StayState.DIALING:
                _require(stay.attempt >= 1 and stay.deadline_ms > 0, f"dials without attempt or deadline: {stay}")
            if stay.state is StayState.LEFT:
                _require(not stay.deadline_ms and not stay.retry_ms, f"over, but something is due: {stay}")
            if target is not None and stay.waits and stay.until_ms > now:
                _require(self.row.overflow, f"waits beside a live registration: {stay}, {target}")
        live = {row.key for row in self.registrations.values() if row.state is RegistrationState.LIVE}
        parked = {row.key for row in self.stays.values() if row.state is StayState.PARKED}
        _require(live == set(self.live), "the index of live registrations lies")
        _require(parked == {key for _, key in self.parked}, "the index of parked callers lies")
        _require(len(self._due) == len(self.registrations) + len(self.stays), "the index of deadlines lost a row")

    def _set_registration(self, row: RegistrationRow) -> None:
        old = self.registrations.get(row.key)
        if old is not None:
            self._unindex_registration(old)
        self.registrations[row.key] = row
        self._due.add((row.due_ms, "r", row.key))
        if row.state is RegistrationState.LIVE:
            self.live[row.key] = row

    def _unindex_registration(self, row: RegistrationRow) -> None:
        self._due.discard((row.due_ms, "r", row.key))
        self.live.pop(row.key, None)

    def _set_stay(self, row: StayRow) -> None:
        old = self.stays.get(row.key)
        if old is not None:
            self._unindex_stay(old)
        self.stays[row.key] = row
        self._due.add((row.due_ms, "s", row.key))
        if row.state is StayState.PARKED:
            self.parked.add((row.since_ms, row.key))

    def _unindex_stay(self, row: StayRow) -> None:
        self._due.discard((row.due_ms, "s", row.key))
        self.parked.discard((row.since_ms, row.key))


def newest_first(rows: Iterable[RegistrationRow], now: int) -> list[RegistrationRow]:
    """The live ones of these registrations, the newest first."""
    alive = [row for row in rows if row.state is RegistrationState.LIVE and row.until_ms > now]
    return sorted(alive, key=lambda row: (row.serial, row.key), reverse=True)


def is_active(stay: StayRow) -> bool:
    """Whether the call is, as far as is known, alive in this stay."""
    return stay.state in ACTIVE
