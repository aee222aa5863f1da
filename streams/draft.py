"""A decision being made: the changes so far, and what has to be true after them.

`streams.decide` notes in a draft what an event changes; the ``settle_…`` methods then derive who is to be dialled. They
look at what is, the draft's changes included, and not at what just happened. Pure, as all of this core.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from callyard.records import DialInstruction, Instruction, Notice, TellInstruction
from streams.desk import Changes, Desk, newest_first
from streams.policy import Policy
from streams.rows import DeskRow, RegistrationRow, RegistrationState, StayRow, StayState


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """What follows from one event. ``outcome`` is the transition's name, ``why`` a sentence for people."""

    changes: Changes
    instructions: tuple[Instruction, ...]
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
        self.instructions: list[Instruction] = []
        self.overflow = desk.row.overflow
        self.retired = False

    # --- reading ----------------------------------------------------------------------------------------------------

    def stay(self, call_id: str) -> StayRow | None:
        return self.stays.get(call_id) or self.desk.stays.get(call_id)

    def live(self) -> list[RegistrationRow]:
        """The live registrations, the newest first, the draft's changes included."""
        return newest_first({**self.desk.live, **self.registrations}.values(), self.now)

    def outlived(self, stay: StayRow) -> RegistrationRow | None:
        """The registration of the talk before this stay, if it has lived on since: then the caller was removed."""
        if stay.anchor is None:
            return None
        row = self.registrations.get(stay.anchor) or self.desk.registrations.get(stay.anchor)
        if row is None or row.state is not RegistrationState.LIVE or row.until_ms <= self.now:
            return None
        return row if row.down_ms < stay.since_ms else None

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
            due = self._due_for(stay, live)
            if due is not None:
                self._instruct(stay, due)

    def settle_all(self) -> None:
        """After a timer: whoever waits beside a live registration, be it from an overflow or a retry."""
        live = self.live()
        if live:
            self._dial_waiting(live)

    def _dial_waiting(self, live: list[RegistrationRow]) -> None:
        waiting = [self.stays.get(row.key, row) for row in self.desk.waiting()]
        # Callers that this very decision returned to parked aren't in the desk's index yet.
        waiting += [stay for stay in self.stays.values() if (stay.since_ms, stay.key) not in self.desk.parked]
        found = [(stay, due) for stay in waiting if (due := self._due_for(stay, live)) is not None]
        # What else this decision has changed counts as well.
        room = max(1, self.policy.fan_out - len(self.stays.keys() - {stay.key for stay, _ in found}))
        for stay, due in found[:room]:
            self._instruct(stay, due)
        if len(found) > room:
            self.overflow = True

    def _due_for(self, stay: StayRow, live: list[RegistrationRow]) -> RegistrationRow | Notice | None:
        """Where this caller is to be sent now, or what the caller is to be told; None for nothing yet."""
        if stay.state is not StayState.PARKED or stay.until_ms <= self.now:
            return None
        if self.outlived(stay):
            # Only a timer ends the hold: it waits until all that was said of the registration has been read.
            return None if stay.held_ms or stay.retry_ms > self.now else Notice.REMOVED
        return self._turn_of(stay, live)

    def _turn_of(self, stay: StayRow, live: list[RegistrationRow]) -> RegistrationRow | Notice | None:
        """Whose turn it is, of the live registrations.

        A back-off belongs to the registration that failed. One that is newer than all that were tried is tried at once,
        and so is any other when the one that was tried is gone. After `Policy.attempts` failures the next older live
        one has its turn, the newest again after the last; then the caller is told, once.
        """
        tried = next((number for number, row in enumerate(live) if row.key == stay.target), None)
        if tried is None or live[0].serial > stay.tried:
            return live[0]
        if self._is_exhausted(stay) and tried == len(live) - 1:
            return Notice.UNREACHABLE if self.policy.after_attempts == "wait" else Notice.GIVEN_UP
        if stay.retry_ms > self.now:
            return None
        if stay.failures >= self.policy.attempts:
            return live[(tried + 1) % len(live)]
        return live[tried]

    def _is_exhausted(self, stay: StayRow) -> bool:
        # Only dials that failed at nodes: a gateway that is silent for a while must not end its callers' waiting.
        return not stay.told and stay.misses >= self.policy.attempts

    def _instruct(self, stay: StayRow, due: RegistrationRow | Notice) -> None:
        if isinstance(due, Notice):
            self._tell(stay, due)
        else:
            self._dial(stay, due)

    def _dial(self, stay: StayRow, target: RegistrationRow) -> None:
        deadline = self.now + self.policy.instruction_deadline_ms
        again = stay.target == target.key and target.serial <= stay.tried
        self.stays[stay.key] = dataclasses.replace(
            _under_way(stay, deadline),
            target=target.key,
            target_from=stay.target_from if stay.target == target.key else stay.attempt + 1,
            failures=stay.failures if again else 0,
            misses=stay.misses if again else 0,
            tried=max(stay.tried, target.serial),
            anchor=None,
            held_ms=0,
        )
        self.instructions.append(
            DialInstruction(
                **self._about(stay, deadline),
                sip_uri=target.sip_uri,
                node_id=target.node_id,
                source=target.source,
                instance_id=target.instance_id,
            )
        )

    def _tell(self, stay: StayRow, notice: Notice) -> None:
        deadline = self.now + self.policy.tell_deadline_ms
        # Counted anew: should this come to nothing, the next attempts are dials again.
        self.stays[stay.key] = dataclasses.replace(_under_way(stay, deadline), notice=notice, misses=0)
        self.instructions.append(TellInstruction(**self._about(stay, deadline), notice=notice))

    def _about(self, stay: StayRow, deadline: int) -> dict[str, Any]:
        """What all instructions tell of their call. Partition and epoch are their owner's, who sets them."""
        return {
            "gateway_id": stay.gateway_id, "call_id": stay.call_id, "conference": self.desk.conference,
            "stay": stay.stay, "attempt": stay.attempt + 1, "issued_at_ms": self.now, "deadline_ms": deadline,
            "partition": 0,
        }  # fmt: skip

    # --- the result -------------------------------------------------------------------------------------------------

    def decision(self, outcome: str, why: str) -> Decision:
        if self.instructions:
            why = f"{why}; {_said(self.instructions)}"
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


def _under_way(stay: StayRow, deadline: int) -> StayRow:
    """The stay with its next attempt under way."""
    return dataclasses.replace(
        stay, state=StayState.DIALING, attempt=stay.attempt + 1, deadline_ms=deadline, retry_ms=0, notice=None
    )


def _said(instructions: list[Instruction]) -> str:
    counts: dict[str, int] = {}
    for one in instructions:
        to = f"told: {one.notice.value}" if isinstance(one, TellInstruction) else f"sent to node {one.node_id}"
        counts[to] = counts.get(to, 0) + 1
    return "; ".join(
        f"{count} callers are {to}" if count > 1 else f"the caller is {to}" for to, count in counts.items()
    )
