"""A decision being made: the changes so far, and what has to be true after them.

`streams.decide` notes in a draft what an event changes; the ``settle_…`` methods then derive who is to be dialled. They
look at what is, the draft's changes included, and not at what just happened. Pure, as all of this core.
"""

from __future__ import annotations

import dataclasses

from callyard.records import DialInstruction
from streams.desk import Changes, Desk, newest_first
from streams.policy import Policy
from streams.rows import DeskRow, RegistrationRow, StayRow, StayState


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """What follows from one event. ``outcome`` is the transition's name, ``why`` a sentence for people."""

    changes: Changes
    instructions: tuple[DialInstruction, ...]
    outcome: str
    why: str


class Draft:
    """The changes so far, seen as if they were already in the desk."""

    def __init__(self, desk: Desk, now: int, policy: Policy) -> None:
        self.desk = desk
        self.now = now
        self.policy = policy
        self.registrations: dict[str, RegistrationRow] = {}
        self.stays: dict[str, StayRow] = {}
        self.forgotten_registrations: list[str] = []
        self.forgotten_stays: list[str] = []
        self.instructions: list[DialInstruction] = []
        self.overflow = desk.row.overflow
        self.retired = False

    # --- reading ----------------------------------------------------------------------------------------------------

    def stay(self, call_id: str) -> StayRow | None:
        return self.stays.get(call_id) or self.desk.stays.get(call_id)

    def live(self) -> list[RegistrationRow]:
        """The live registrations, the newest first, the draft's changes included."""
        return newest_first({**self.desk.live, **self.registrations}.values(), self.now)

    # --- what has to be true ----------------------------------------------------------------------------------------

    def settle_registration(self) -> None:
        """After a registration's event: only a change of what is live concerns the callers."""
        live = self.live()
        before = newest_first(self.desk.live.values(), self.now)
        if live and [row.key for row in live] != [row.key for row in before]:
            self._dial_waiting(live)

    def settle_call(self, call_id: str) -> None:
        """After a call's event: it alone may have become due."""
        live, stay = self.live(), self.stay(call_id)
        if live and stay is not None:
            target = self._target_of(stay, live)
            if target is not None:
                self._instruct(stay, target)

    def settle_all(self) -> None:
        """After a timer: whoever waits beside a live registration, be it from an overflow or a retry."""
        live = self.live()
        if live:
            self._dial_waiting(live)

    def _dial_waiting(self, live: list[RegistrationRow]) -> None:
        waiting = [self.stays.get(row.key, row) for row in self.desk.waiting()]
        # Callers that this very decision returned to parked aren't in the desk's index yet.
        waiting += [stay for stay in self.stays.values() if (stay.since_ms, stay.key) not in self.desk.parked]
        due = [(stay, target) for stay in waiting if (target := self._target_of(stay, live)) is not None]
        for stay, target in due[: self.policy.fan_out]:
            self._instruct(stay, target)
        if len(due) > self.policy.fan_out:
            self.overflow = True

    def _target_of(self, stay: StayRow, live: list[RegistrationRow]) -> RegistrationRow | None:
        """Where this caller is to be sent now; None for nowhere yet.

        A back-off belongs to the registration that failed. One that is newer than all that were tried is tried at once,
        and so is any other when the one that was tried is gone. After `Policy.attempts` failures the next older live
        one has its turn, the newest again after the last.
        """
        if stay.state is not StayState.PARKED or stay.until_ms <= self.now:
            return None
        tried = next((number for number, row in enumerate(live) if row.key == stay.target), None)
        if tried is None or live[0].serial > stay.tried:
            return live[0]
        if stay.retry_ms > self.now:
            return None
        if stay.failures >= self.policy.attempts:
            return live[(tried + 1) % len(live)]
        return live[tried]

    def _instruct(self, stay: StayRow, target: RegistrationRow) -> None:
        attempt = stay.attempt + 1
        deadline = self.now + self.policy.instruction_deadline_ms
        self.stays[stay.key] = dataclasses.replace(
            stay,
            state=StayState.DIALING,
            attempt=attempt,
            target=target.key,
            deadline_ms=deadline,
            retry_ms=0,
            failures=stay.failures if stay.target == target.key else 0,
            tried=max(stay.tried, target.serial),
        )
        self.instructions.append(
            DialInstruction(
                gateway_id=stay.gateway_id,
                call_id=stay.call_id,
                conference=self.desk.conference,
                stay=stay.stay,
                attempt=attempt,
                sip_uri=target.sip_uri,
                node_id=target.node_id,
                source=target.source,
                instance_id=target.instance_id,
                issued_at_ms=self.now,
                deadline_ms=deadline,
                partition=0,
            )
        )

    # --- the result -------------------------------------------------------------------------------------------------

    def decision(self, outcome: str, why: str) -> Decision:
        if self.instructions:
            first = self.instructions[0]
            many = f"{len(self.instructions)} callers are" if len(self.instructions) > 1 else "the caller is"
            why = f"{why}; {many} sent to node {first.node_id}"
        rest = self._rows_left()
        empty = None if rest else self.desk.row.empty_ms if self.desk.row.empty_ms is not None else self.now
        row = DeskRow(
            version=self.desk.row.version + 1,
            now_ms=self.now,
            head=self.desk.row.head,
            overflow=self.overflow,
            empty_ms=empty,
        )
        changes = Changes(
            desk=row,
            registrations=tuple(self.registrations.values()),
            stays=tuple(self.stays.values()),
            removed_registrations=tuple(self.forgotten_registrations),
            removed_stays=tuple(self.forgotten_stays),
            retired=self.retired,
        )
        return Decision(changes, tuple(self.instructions), outcome, why)

    def _rows_left(self) -> int:
        new = len(self.registrations.keys() - self.desk.registrations.keys()) + len(
            self.stays.keys() - self.desk.stays.keys()
        )
        gone = len(self.forgotten_registrations) + len(self.forgotten_stays)
        return len(self.desk.registrations) + len(self.desk.stays) + new - gone
