"""A stay's row as an event makes it: begun, after a talk, renewed, as its gateway tells, after a failed dial.

What follows from the row, `streams.draft` looks for; which of these an event is, `streams.transitions` says. Pure.
"""

from __future__ import annotations

import dataclasses

from callyard.records import (
    AfterTalk,
    CallAlive,
    CallerConnected,
    CallerForm,
    CallerParked,
    CallRecord,
    CallState,
    DialFailed,
    DialStarted,
    FailureReason,
)
from streams.draft import Draft
from streams.rows import RegistrationState, StayRow, StayState


def after_talk(event: CallRecord) -> AfterTalk | None:
    """How the talk before this stay ended; None where it follows no talk."""
    return event.after if isinstance(event, CallerParked | CallAlive) else None


def new_stay(draft: Draft, event: CallRecord, old: StayRow | None) -> StayRow:
    """The stay that this event begins; ``old`` is the one before it, if the desk knows one."""
    caller = event.caller if isinstance(event, CallerParked | CallAlive) else None
    form = event.caller_form if isinstance(event, CallerParked | CallAlive) else CallerForm.NONE
    stay = StayRow(
        call_id=event.call_id,
        gateway_id=event.gateway_id,
        stay=event.stay,
        state=StayState.PARKED,
        since_ms=draft.now,
        until_ms=draft.now + draft.policy.call_lease_ms,
        caller=caller,
        caller_form=form,
    )
    after = after_talk(event)
    if after is AfterTalk.ENDED:
        return _held(draft, stay, old)
    if after is AfterTalk.LOST and old is not None:
        return _lost(draft, stay, old)
    return stay


def _held(draft: Draft, stay: StayRow, old: StayRow | None) -> StayRow:
    """The stay after a talk that the node ended as usual: whether its conference goes on is yet to be seen.

    Where the talk was may be unknown (the desk heard of it late): then the newest registration that is as old as the
    talk is taken for it, and none where there is none. Who is put back in by mistake was lost by none.
    """
    if old is None:
        return stay
    known = draft.desk.registrations.get(old.target or "")
    if known is not None and known.state is RegistrationState.ENDED and known.down_ms <= old.connected_ms:
        known = None  # ended before the talk began: its node had another instance of the conference by then
    anchor = known.key if known else next((row.key for row in draft.live() if row.since_ms <= old.connected_ms), None)
    held = dataclasses.replace(stay, anchor=anchor, held_ms=draft.now + draft.policy.kick_ms)
    return held if draft.outlived(held) else stay


def _lost(draft: Draft, stay: StayRow, old: StayRow) -> StayRow:
    """The stay after a talk that failed: at once again, unless such talks are short and one follows the other."""
    policy = draft.policy
    if not old.connected_ms or draft.now - old.connected_ms >= policy.short_talk_ms:
        return stay
    losses = old.losses + 1
    return dataclasses.replace(
        stay,
        target=old.target,
        tried=old.tried,
        losses=losses,
        failures=losses,
        misses=losses,
        told=old.told,
        retry_ms=draft.now + policy.backoff_after(losses),
    )


def renewed(draft: Draft, row: StayRow) -> StayRow:
    """The stay with a new lease."""
    return dataclasses.replace(row, until_ms=draft.now + draft.policy.call_lease_ms)


def as_told(draft: Draft, row: StayRow, event: CallRecord) -> StayRow:
    """The stay in the state that the gateway's event says it is in."""
    if isinstance(event, DialFailed):
        return failed_dial(draft, row, event.reason, event.attempt)
    state, attempt = StayState.PARKED, 0
    if isinstance(event, CallAlive):
        state, attempt = _TOLD[event.state], event.attempt
    elif isinstance(event, DialStarted):
        state, attempt = StayState.DIALING, event.attempt
    elif isinstance(event, CallerConnected):
        state, attempt = StayState.CONNECTED, event.attempt
    told, attempt = attempt, max(row.attempt, attempt)
    if state is StayState.DIALING:
        same = row.state is StayState.DIALING and row.attempt == attempt
        deadline = row.deadline_ms if same else draft.now + draft.policy.instruction_deadline_ms
        return dataclasses.replace(
            row,
            state=state,
            attempt=max(1, attempt),
            deadline_ms=deadline,
            retry_ms=0,
            notice=row.notice if same else None,
        )
    # A pause that the stay has begun with, after a talk that was lost, is not over because its gateway renews it.
    retry = row.retry_ms if state is row.state is StayState.PARKED else 0
    fresh = row.state in (StayState.PARKED, StayState.DIALING)
    row = dataclasses.replace(row, state=state, attempt=attempt, deadline_ms=0, retry_ms=retry, notice=None)
    if state is StayState.CONNECTED:
        return dataclasses.replace(
            row,
            connected_ms=row.connected_ms if row.connected_ms and not fresh else draft.now,
            talk=told,
            # By an attempt before those to the present target: to where is not known.
            target=row.target if told >= row.target_from else None,
        )
    return row


_TOLD = {
    CallState.PARKED: StayState.PARKED,
    CallState.DIALING: StayState.DIALING,
    CallState.CONNECTED: StayState.CONNECTED,
}

_HOPELESS = frozenset({FailureReason.REFUSED, FailureReason.BAD_INSTRUCTION})
"""Trying the same again soon can't help; a new registration can."""


def failed_dial(draft: Draft, row: StayRow, reason: FailureReason, attempt: int) -> StayRow:
    """The stay after a failed dial.

    ``misses`` count what speaks against the node. Where the conference isn't found it has ended, or has just begun; a
    gateway that couldn't redirect says nothing of the node.
    """
    policy = draft.policy
    failed = dataclasses.replace(
        row, state=StayState.PARKED, attempt=max(row.attempt, attempt), deadline_ms=0, notice=None
    )
    if reason is FailureReason.TOLD:
        return dataclasses.replace(failed, told=True, retry_ms=draft.now + policy.backoff_max_ms)
    failures, misses = row.failures + 1, row.misses + 1
    if reason is FailureReason.NOT_FOUND:
        misses = 0
    elif reason in {FailureReason.NOT_PARKED, FailureReason.EXPIRED}:
        misses = row.misses
    if reason in _HOPELESS:
        failures, misses = max(failures, policy.attempts), max(misses, policy.attempts)
    wait = policy.backoff_after(failures)
    live = draft.live()
    if failures >= policy.attempts and live and live[-1].key != row.target:
        # The next one's turn: it has nothing to do with the failures of this one.
        wait = policy.backoff_ms
    return dataclasses.replace(failed, failures=failures, misses=misses, retry_ms=draft.now + wait)
