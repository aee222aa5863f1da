"""`decide`: what one event means for one desk. Pure, total, replayable.

    decide(desk, event, now, policy) -> Decision(changes, instructions, outcome, why)

No clock, no IO, no logging, no order of dictionaries decides anything here. ``now`` is the broker's time of the event,
never less than the desk's. The desk isn't touched: the caller folds ``changes`` into it.

Level-triggered: after every event `streams.draft` looks at what now has to be true, and not at what just happened: a
caller who waits while a registration is live gets an instruction. The cost of an event is what it changes: a call's
event looks at that call only; all callers are looked at when the target has changed or a timer says so. No decision
concerns more than ``policy.fan_out`` callers; what is left over makes the desk due at once (``overflow``).
"""

from __future__ import annotations

import dataclasses

from callyard.nodes import allowed_nodes
from callyard.records import (
    AfterTalk,
    CallerConnected,
    CallerLeft,
    CallRecord,
    ConferenceRegistered,
    ConferenceUnregistered,
    DeadlinePassed,
    DialFailed,
    DialStarted,
    FailureReason,
    InputRecord,
    LeftReason,
    UnregisterReason,
    split_sip_uri,
)
from streams.desk import Desk, is_active
from streams.draft import Decision, Draft
from streams.policy import Policy
from streams.rows import RegistrationRow, RegistrationState, StayRow, StayState
from streams.signed import refusal
from streams.stays import after_talk, as_told, failed_dial, new_stay, renewed
from streams.transitions import Known, RegistrationStep, Step, registration_step, stay_step


def decide(desk: Desk, event: InputRecord, now: int, policy: Policy) -> Decision:
    """Decide one event. ``now``: the broker's timestamp in milliseconds; the desk's time never goes back."""
    draft = Draft(desk, max(now, desk.row.now_ms), policy)
    if isinstance(event, ConferenceRegistered):
        outcome, why = _registered(draft, event, now)
        draft.settle_registration()
    elif isinstance(event, ConferenceUnregistered):
        outcome, why = _unregistered(draft, event, now)
        draft.settle_registration()
    elif isinstance(event, DeadlinePassed):
        outcome, why = _deadline_passed(draft)
    else:
        outcome, why = _call(draft, event)
        draft.settle_call(event.call_id)
    return draft.decision(outcome, why)


# --- registrations --------------------------------------------------------------------------------------------------


def _registration_key(event: ConferenceRegistered | ConferenceUnregistered) -> str:
    return f"{event.node_id}|{event.source.value}|{event.instance_id}"


def _sequence(draft: Draft, event: ConferenceRegistered | ConferenceUnregistered) -> int:
    return event.sender_sequence if draft.policy.nodes else 0


def _registered(draft: Draft, event: ConferenceRegistered, broker_ms: int) -> tuple[str, str]:
    user, host, _, _ = split_sip_uri(event.sip_uri)
    if event.conference not in user:
        return "refused", f"the URI of node {event.node_id} does not lead to this conference: its user is {user}"
    if draft.policy.allowed_nodes and not allowed_nodes(",".join(draft.policy.allowed_nodes)).allows(host):
        return "refused", f"host {host} of node {event.node_id} is not among the allowed nodes"
    key = _registration_key(event)
    row = draft.desk.registrations.get(key)
    why = refusal(draft.policy, event, row, broker_ms)
    if why is not None:
        return "refused", why
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
            renewed_ms=draft.now,
            sequence=_sequence(draft, event),
        )
        return step.value, f"the conference runs on node {event.node_id}"
    # What comes back is tried at once, as what is new: it failed before it was lost, if ever.
    serial = draft.desk.row.version + 1 if step is RegistrationStep.REVIVE else row.serial
    draft.registrations[key] = dataclasses.replace(
        row,
        state=RegistrationState.LIVE,
        until_ms=until,
        sip_uri=event.sip_uri,
        serial=serial,
        renewed_ms=draft.now,
        sequence=_sequence(draft, event),
    )
    said = "vouches for the conference again" if step is RegistrationStep.REVIVE else "renewed its registration"
    return step.value, f"node {event.node_id} {said}"


def _unregistered(draft: Draft, event: ConferenceUnregistered, broker_ms: int) -> tuple[str, str]:
    key = _registration_key(event)
    row = draft.desk.registrations.get(key)
    why = refusal(draft.policy, event, row, broker_ms)
    if why is not None:
        return "refused", why
    step = registration_step(row.state if row else Known.NOTHING, f"unregistered-{event.reason.value}")
    forget = draft.now + draft.policy.ended_retention_ms
    if step is RegistrationStep.END or step is RegistrationStep.LOSE:
        state = RegistrationState.ENDED if event.reason is UnregisterReason.ENDED else RegistrationState.LOST
        down = row.down_ms if row is not None and row.state is not RegistrationState.LIVE else draft.now
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
        draft.registrations[key] = dataclasses.replace(
            row, state=state, until_ms=forget, down_ms=down, sequence=_sequence(draft, event)
        )
        return step.value, (
            f"the conference ended on node {event.node_id}"
            if state is RegistrationState.ENDED
            else f"node {event.node_id} can no longer vouch for the conference"
        )
    return step.value, f"nothing to end on node {event.node_id}"


# --- calls ----------------------------------------------------------------------------------------------------------


def _call(draft: Draft, event: CallRecord) -> tuple[str, str]:
    row = draft.desk.stays.get(event.call_id)
    step = stay_step(_known(row, event.stay), event.type)
    if row is not None and event.stay == row.stay:
        step = _compare_attempts(step, row, event)
    if step in (Step.STALE, Step.DUPLICATE, Step.UNKNOWN):
        if row is not None and step is Step.DUPLICATE and is_active(row):
            draft.stays[row.key] = renewed(draft, row)
        return step.value, _NO_OP[step]
    if step is Step.LEAVE:
        return step.value, _leave(draft, event, row)
    fresh = row is None or event.stay > row.stay
    base = new_stay(draft, event, row) if fresh or row is None else renewed(draft, row)
    if step in (Step.ADOPT, Step.REVIVE):
        draft.stays[base.key] = as_told(draft, base, event)
        said = "the desk did not know it" if step is Step.ADOPT else "it had been written off"
        return step.value, f"the gateway says that the call lives ({event.type}); {said}"
    if step is Step.FAIL:
        assert isinstance(event, DialFailed)  # noqa: S101 - by the table
        draft.stays[base.key] = failed_dial(draft, base, event.reason, event.attempt)
        return step.value, f"attempt {event.attempt} {_FAILED.get(event.reason, f'failed: {event.reason.value}')}"
    if step is Step.START or step is Step.CONNECT:
        assert isinstance(event, DialStarted | CallerConnected)  # noqa: S101 - by the table
        draft.stays[base.key] = as_told(draft, base, event)
        return step.value, (
            f"attempt {event.attempt} is dialled"
            if step is Step.START
            else f"the caller is in the conference (attempt {event.attempt})"
        )
    draft.stays[base.key] = base
    return step.value, (_parked_why(base, event) if step is Step.PARK else "the gateway renewed the call's lease")


_FAILED = {FailureReason.TOLD: "told the caller that the conference can't be reached"}


def _parked_why(stay: StayRow, event: CallRecord) -> str:
    after = after_talk(event)
    if after is None:
        return "the caller waits"
    if after is AfterTalk.LOST:
        return "the node's leg was lost; the caller waits to be put through again"
    return "the node hung up; " + (
        "the caller waits for the conference to begin again"
        if stay.anchor is None
        else "whether the conference is over is waited for"
    )


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
        torn = row.state is StayState.CONNECTED and event.attempt >= row.talk
        if event.attempt < row.attempt and not torn:
            return Step.STALE
        if event.attempt == row.attempt and row.state is StayState.PARKED:
            return Step.DUPLICATE
        if row.state is StayState.CONNECTED and event.reason in _NEVER_DIALLED:
            return Step.STALE
    return step


_NEVER_DIALLED = frozenset({FailureReason.NOT_PARKED, FailureReason.EXPIRED, FailureReason.BAD_INSTRUCTION})
"""The gateway refused the instruction itself, so it tells nothing of the talk."""


def _leave(draft: Draft, event: CallRecord, row: StayRow | None) -> str:
    assert isinstance(event, CallerLeft)  # noqa: S101 - by the table
    gone = event.reason is LeftReason.GONE
    draft.stays[event.call_id] = dataclasses.replace(
        row if row is not None and row.stay == event.stay else new_stay(draft, event, row),
        state=StayState.GONE if gone else StayState.LEFT,
        until_ms=draft.now + draft.policy.ended_retention_ms,
        deadline_ms=0,
        retry_ms=0,
        held_ms=row.held_ms if row is not None and gone else 0,
        notice=None,
    )
    return "the gateway no longer knows the call" if gone else f"the stay is over: {event.reason.value}"


# --- time -----------------------------------------------------------------------------------------------------------


def _deadline_passed(draft: Draft) -> tuple[str, str]:
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


def _registration_due(draft: Draft, row: RegistrationRow) -> str:
    if row.state is not RegistrationState.LIVE:
        draft.forgotten_registrations.append(row.key)
        return "registrations forgotten"
    draft.registrations[row.key] = dataclasses.replace(
        row,
        state=RegistrationState.LAPSED,
        until_ms=draft.now + draft.policy.ended_retention_ms,
        down_ms=draft.now,
    )
    return "registrations lapsed"


def _stay_due(draft: Draft, row: StayRow) -> str:
    if not is_active(row):
        draft.forgotten_stays.append(row.key)
        return "calls forgotten"
    if row.until_ms <= draft.now:
        draft.stays[row.key] = dataclasses.replace(
            row,
            state=StayState.LAPSED,
            until_ms=draft.now + draft.policy.ended_retention_ms,
            deadline_ms=0,
            retry_ms=0,
            notice=None,
        )
        return "calls lapsed"
    if row.state is StayState.DIALING:
        # No outcome was heard in time. The next attempt is due at once; the gateway refuses what is contradictory.
        draft.stays[row.key] = dataclasses.replace(
            row, state=StayState.PARKED, failures=row.failures + 1, deadline_ms=0, retry_ms=0, notice=None
        )
        return "instructions without an outcome"
    retry = row.retry_ms if row.retry_ms > draft.now else 0
    if 0 < row.held_ms <= draft.now:
        return _hold_due(draft, dataclasses.replace(row, retry_ms=retry))
    draft.stays[row.key] = dataclasses.replace(row, retry_ms=retry)
    return "retries due"


def _hold_due(draft: Draft, row: StayRow) -> str:
    """Whether the conference of the talk before this stay has gone on; what is decided now holds."""
    lives = draft.outlived(row)
    if lives is None:
        draft.stays[row.key] = dataclasses.replace(row, held_ms=0, anchor=None)
        return "callers whose conference is over"
    if lives.renewed_ms < row.since_ms + draft.policy.kick_ms:
        # Its node has said nothing since: a hook that is away would make every end look like a removal.
        draft.stays[row.key] = dataclasses.replace(row, held_ms=draft.now + max(draft.policy.kick_ms, 1_000))
        return "callers held on"
    draft.stays[row.key] = dataclasses.replace(row, held_ms=0)
    return "callers removed"
