"""`decide`: what one event means for one desk. Pure, total, replayable.

    decide(desk, event, now, policy) -> Decision(changes, instructions, outcome, why)

No clock, no IO, no logging, no order of dictionaries decides anything here. ``now`` is the broker's time of the event,
never less than the desk's. The desk isn't touched: the caller folds ``changes`` into it.

Level-triggered: after every event `_Draft.settle` looks at what now has to be true, and not at what just happened:
a caller who waits while a registration is live gets an instruction. The cost of an event is what it changes: a call's
event looks at that call only; all callers are looked at when the target has changed or a timer says so. No decision
concerns more than ``policy.fan_out`` callers; what is left over makes the desk due at once (``overflow``).
"""

from __future__ import annotations

import dataclasses

from callyard.records import (
    CallAlive,
    CallerConnected,
    CallerForm,
    CallerLeft,
    CallerParked,
    CallRecord,
    CallState,
    ConferenceRegistered,
    ConferenceUnregistered,
    DeadlinePassed,
    DialFailed,
    DialInstruction,
    DialStarted,
    FailureReason,
    InputRecord,
    LeftReason,
    UnregisterReason,
    split_sip_uri,
)
from streams.desk import Changes, Desk, is_active, newest_first
from streams.policy import Policy
from streams.rows import DeskRow, RegistrationRow, RegistrationState, StayRow, StayState
from streams.transitions import Known, RegistrationStep, Step, registration_step, stay_step


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """What follows from one event. ``outcome`` is the transition's name, ``why`` a sentence for people."""

    changes: Changes
    instructions: tuple[DialInstruction, ...]
    outcome: str
    why: str


def decide(desk: Desk, event: InputRecord, now: int, policy: Policy) -> Decision:
    """Decide one event. ``now``: the broker's timestamp in milliseconds; the desk's time never goes back."""
    draft = _Draft(desk, max(now, desk.row.now_ms), policy)
    if isinstance(event, ConferenceRegistered):
        outcome, why = _registered(draft, event)
        draft.settle_registration()
    elif isinstance(event, ConferenceUnregistered):
        outcome, why = _unregistered(draft, event)
        draft.settle_registration()
    elif isinstance(event, DeadlinePassed):
        outcome, why = _deadline_passed(draft)
    else:
        outcome, why = _call(draft, event)
        draft.settle_call(event.call_id)
    return draft.decision(outcome, why)


class _Draft:
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


# --- registrations --------------------------------------------------------------------------------------------------


def _registration_key(event: ConferenceRegistered | ConferenceUnregistered) -> str:
    return f"{event.node_id}|{event.source.value}|{event.instance_id}"


def _registered(draft: _Draft, event: ConferenceRegistered) -> tuple[str, str]:
    user, host, _, _ = split_sip_uri(event.sip_uri)
    if event.conference not in user:
        return "refused", f"the URI of node {event.node_id} does not lead to this conference: its user is {user}"
    if draft.policy.allowed_nodes and host not in draft.policy.allowed_nodes:
        return "refused", f"host {host} of node {event.node_id} is not among the allowed nodes"
    key = _registration_key(event)
    row = draft.desk.registrations.get(key)
    step = registration_step(row.state if row else Known.NOTHING, event.type)
    until = draft.now + draft.policy.registration_lease_ms
    if step is RegistrationStep.STALE:
        return step.value, f"this instance ended on node {event.node_id}; it can't come back"
    if row is None:
        serial = draft.desk.row.version + 1
        draft.registrations[key] = RegistrationRow(
            node_id=event.node_id,
            source=event.source,
            instance_id=event.instance_id,
            sip_uri=event.sip_uri,
            state=RegistrationState.LIVE,
            serial=serial,
            since_ms=draft.now,
            until_ms=until,
        )
        return step.value, f"the conference runs on node {event.node_id}"
    draft.registrations[key] = dataclasses.replace(
        row, state=RegistrationState.LIVE, until_ms=until, sip_uri=event.sip_uri
    )
    if step is RegistrationStep.REVIVE:
        return step.value, f"node {event.node_id} vouches for the conference again"
    return step.value, f"node {event.node_id} renewed its registration"


def _unregistered(draft: _Draft, event: ConferenceUnregistered) -> tuple[str, str]:
    key = _registration_key(event)
    row = draft.desk.registrations.get(key)
    step = registration_step(row.state if row else Known.NOTHING, f"unregistered-{event.reason.value}")
    forget = draft.now + draft.policy.ended_retention_ms
    if step is RegistrationStep.END or step is RegistrationStep.LOSE:
        state = RegistrationState.ENDED if event.reason is UnregisterReason.ENDED else RegistrationState.LOST
        if row is None:
            row = RegistrationRow(
                node_id=event.node_id,
                source=event.source,
                instance_id=event.instance_id,
                sip_uri="",
                state=state,
                serial=0,
                since_ms=draft.now,
                until_ms=forget,
            )
        draft.registrations[key] = dataclasses.replace(row, state=state, until_ms=forget)
        return step.value, (
            f"the conference ended on node {event.node_id}"
            if state is RegistrationState.ENDED
            else f"node {event.node_id} can no longer vouch for the conference"
        )
    return step.value, f"nothing to end on node {event.node_id}"


# --- calls ----------------------------------------------------------------------------------------------------------


def _call(draft: _Draft, event: CallRecord) -> tuple[str, str]:
    row = draft.desk.stays.get(event.call_id)
    step = stay_step(_known(row, event.stay), event.type)
    if row is not None and event.stay == row.stay:
        step = _compare_attempts(step, row, event)
    if step in (Step.STALE, Step.DUPLICATE, Step.UNKNOWN):
        if row is not None and step is Step.DUPLICATE and is_active(row):
            draft.stays[row.key] = _renewed(draft, row)
        return step.value, _NO_OP[step]
    if step is Step.LEAVE:
        return step.value, _leave(draft, event, row)
    fresh = row is None or event.stay > row.stay
    base = _new_stay(draft, event) if fresh or row is None else _renewed(draft, row)
    if step in (Step.ADOPT, Step.REVIVE):
        draft.stays[base.key] = _as_told(draft, base, event)
        said = "the desk did not know it" if step is Step.ADOPT else "it had been written off"
        return step.value, f"the gateway says that the call lives ({event.type}); {said}"
    if step is Step.FAIL:
        assert isinstance(event, DialFailed)  # noqa: S101 - by the table
        draft.stays[base.key] = _failed(draft, base, event.reason, event.attempt)
        return step.value, f"attempt {event.attempt} failed: {event.reason.value}"
    if step is Step.START or step is Step.CONNECT:
        assert isinstance(event, DialStarted | CallerConnected)  # noqa: S101 - by the table
        draft.stays[base.key] = _as_told(draft, base, event)
        return step.value, (
            f"attempt {event.attempt} is dialled"
            if step is Step.START
            else f"the caller is in the conference (attempt {event.attempt})"
        )
    draft.stays[base.key] = base
    return step.value, ("the caller waits" if step is Step.PARK else "the gateway renewed the call's lease")


_NO_OP = {
    Step.STALE: "it speaks of a stay or an attempt that is over",
    Step.DUPLICATE: "it was said before",
    Step.UNKNOWN: "the desk never knew this call",
}


def _known(row: StayRow | None, stay: int) -> Known | StayState:
    if row is None:
        return Known.NOTHING
    if stay != row.stay:
        return Known.OLDER_STAY if row.stay < stay else Known.NEWER_STAY
    return row.state


def _compare_attempts(step: Step, row: StayRow, event: CallRecord) -> Step:
    """What the attempt's number makes of a step. A connection is a fact, whichever attempt it came from."""
    if step is Step.START and isinstance(event, DialStarted) and event.attempt < row.attempt:
        return Step.STALE
    if step is Step.FAIL and isinstance(event, DialFailed):
        if event.attempt < row.attempt:
            return Step.STALE
        if event.attempt == row.attempt and row.state is StayState.PARKED:
            return Step.DUPLICATE
        if row.state is StayState.CONNECTED and event.reason in _NEVER_DIALLED:
            return Step.STALE
    return step


_NEVER_DIALLED = frozenset({FailureReason.NOT_PARKED, FailureReason.BAD_INSTRUCTION})
"""The gateway refused the instruction itself, so it tells nothing of the talk."""


def _new_stay(draft: _Draft, event: CallRecord) -> StayRow:
    caller = event.caller if isinstance(event, CallerParked | CallAlive) else None
    form = event.caller_form if isinstance(event, CallerParked | CallAlive) else CallerForm.NONE
    return StayRow(
        call_id=event.call_id,
        gateway_id=event.gateway_id,
        stay=event.stay,
        state=StayState.PARKED,
        since_ms=draft.now,
        until_ms=draft.now + draft.policy.call_lease_ms,
        caller=caller,
        caller_form=form,
    )


def _renewed(draft: _Draft, row: StayRow) -> StayRow:
    return dataclasses.replace(row, until_ms=draft.now + draft.policy.call_lease_ms)


def _as_told(draft: _Draft, row: StayRow, event: CallRecord) -> StayRow:
    """The stay in the state that the gateway's event says it is in."""
    if isinstance(event, DialFailed):
        return _failed(draft, row, event.reason, event.attempt)
    state, attempt = StayState.PARKED, 0
    if isinstance(event, CallAlive):
        state, attempt = _TOLD[event.state], event.attempt
    elif isinstance(event, DialStarted):
        state, attempt = StayState.DIALING, event.attempt
    elif isinstance(event, CallerConnected):
        state, attempt = StayState.CONNECTED, event.attempt
    attempt = max(row.attempt, attempt)
    if state is StayState.DIALING:
        same = row.state is StayState.DIALING and row.attempt == attempt
        deadline = row.deadline_ms if same else draft.now + draft.policy.instruction_deadline_ms
        return dataclasses.replace(row, state=state, attempt=max(1, attempt), deadline_ms=deadline, retry_ms=0)
    return dataclasses.replace(row, state=state, attempt=attempt, deadline_ms=0, retry_ms=0)


_TOLD = {
    CallState.PARKED: StayState.PARKED,
    CallState.DIALING: StayState.DIALING,
    CallState.CONNECTED: StayState.CONNECTED,
}

_HOPELESS = frozenset({FailureReason.REFUSED, FailureReason.BAD_INSTRUCTION})
"""Trying the same again soon can't help; a new registration can."""


def _failed(draft: _Draft, row: StayRow, reason: FailureReason, attempt: int) -> StayRow:
    failures = row.failures + 1
    policy = draft.policy
    wait = policy.backoff_max_ms if reason in _HOPELESS else policy.backoff_after(failures)
    return dataclasses.replace(
        row,
        state=StayState.PARKED,
        attempt=max(row.attempt, attempt),
        failures=failures,
        deadline_ms=0,
        retry_ms=draft.now + wait,
    )


def _leave(draft: _Draft, event: CallRecord, row: StayRow | None) -> str:
    assert isinstance(event, CallerLeft)  # noqa: S101 - by the table
    gone = event.reason is LeftReason.GONE
    draft.stays[event.call_id] = dataclasses.replace(
        row if row is not None and row.stay == event.stay else _new_stay(draft, event),
        state=StayState.GONE if gone else StayState.LEFT,
        until_ms=draft.now + draft.policy.ended_retention_ms,
        deadline_ms=0,
        retry_ms=0,
    )
    return "the gateway no longer knows the call" if gone else f"the stay is over: {event.reason.value}"


# --- time -----------------------------------------------------------------------------------------------------------


def _deadline_passed(draft: _Draft) -> tuple[str, str]:
    counts: dict[str, int] = {}
    draft.overflow = False
    for number, row in enumerate(draft.desk.due(draft.now)):
        if number >= draft.policy.fan_out:
            draft.overflow = True
            break
        what = _registration_due(draft, row) if isinstance(row, RegistrationRow) else _stay_due(draft, row)
        counts[what] = counts.get(what, 0) + 1
    draft.settle_all()
    empty = draft.desk.row.empty_ms
    if draft.desk.empty and empty is not None and empty + draft.policy.stub_retention_ms <= draft.now:
        draft.retired = True
        return "retired", "nothing has been heard of this number for long: its version and hash are forgotten"
    if not counts and not draft.instructions:
        return "early", "nothing is due"
    told = ", ".join(f"{what}: {count}" for what, count in sorted(counts.items())) or "callers were still waiting"
    return "time", told


def _registration_due(draft: _Draft, row: RegistrationRow) -> str:
    if row.state is not RegistrationState.LIVE:
        draft.forgotten_registrations.append(row.key)
        return "registrations forgotten"
    draft.registrations[row.key] = dataclasses.replace(
        row, state=RegistrationState.LAPSED, until_ms=draft.now + draft.policy.ended_retention_ms
    )
    return "registrations lapsed"


def _stay_due(draft: _Draft, row: StayRow) -> str:
    if not is_active(row):
        draft.forgotten_stays.append(row.key)
        return "calls forgotten"
    if row.until_ms <= draft.now:
        draft.stays[row.key] = dataclasses.replace(
            row, state=StayState.LAPSED, until_ms=draft.now + draft.policy.ended_retention_ms, deadline_ms=0, retry_ms=0
        )
        return "calls lapsed"
    if row.state is StayState.DIALING:
        # No outcome was heard in time. The next attempt is due at once; the gateway refuses what is contradictory.
        draft.stays[row.key] = dataclasses.replace(
            row, state=StayState.PARKED, failures=row.failures + 1, deadline_ms=0, retry_ms=0
        )
        return "instructions without an outcome"
    draft.stays[row.key] = dataclasses.replace(row, retry_ms=0)
    return "retries due"
